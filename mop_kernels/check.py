"""Run every operation on your own device, forward and backward, and compare it with float64. Start here after a fault.

    python -m mop_kernels.check [--device cuda] [--backend NAME ...]

The command prints one row per operation, backend and dtype: the largest errors over a few shapes, relative to the root
mean square of the exact result, and the share of the error budget that these errors take (testing.py). It exits with
status 1 if a result is wrong, a call raises, or a named backend cannot run. The run takes about a minute on two cores.
On a GPU the first run compiles Triton's kernels.
"""

import argparse
import functools
import math
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import backends, env_report, self_check, step_truth, testing
from .testing import BANKS, PROMPTS, SHAPES, Bank
from .truth import PRODUCTS, Case, bank_case, product_case, prompt_case

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Row(NamedTuple):
    """The largest relative errors over all cases of an operation, and the share of the budget that they take."""

    op: str
    backend: str
    dtype: str
    cases: int
    forward: float = 0.0
    backward: float = 0.0
    share: float = 0.0
    failures: tuple[str, ...] = ()


def cases() -> dict[str, dict[str, Case]]:
    """Return the cases of each operation by label."""
    products: dict[str, dict[str, Case]] = {op: {} for op in PRODUCTS}
    for name in ("odd", "paper_up", "one_row", "no_row"):
        for op, of_op in products.items():
            if op != "phm_weight":
                of_op[name] = product_case(op, SHAPES[name])
                of_op[f"{name} without bias"] = product_case(op, SHAPES[name], bias=False)
            elif SHAPES[name].rows:
                of_op[name] = product_case(op, SHAPES[name])
    # gelu: with relu a gradient jumps where rounding moves a hidden number across zero
    banks = {
        "odd, relu": bank_case(BANKS["odd"], "relu"),
        "small, gelu, bias=False": bank_case(BANKS["small"], "gelu", bias=False),
        "small, gelu, full_rule=True": bank_case(BANKS["small"], "gelu", full_rule=True),
        "reading_b, gelu, experts [2, 0]": bank_case(BANKS["reading_b"], "gelu", [2, 0]),
        "no_row, gelu": bank_case(BANKS["no_row"], "gelu"),
        "of the paper's sides, gelu": bank_case(Bank(2, 2, SHAPES["paper_down"], SHAPES["paper_up"]), "gelu"),
    }
    return products | {
        "mop_ffn": {f"bank {label}": case for label, case in banks.items()},
        "attempt_mix": {f"prompts {n}": prompt_case(PROMPTS[n]) for n in ("odd", "one", "long", "no_position")},
        **step_truth.cases(),
    }


class Exact(NamedTuple):
    """A case's inputs and output gradients in one dtype, the results in float64, and the error budget."""

    label: str
    case: Case
    tensors: Sequence[Tensor | None]
    grads: list[Tensor]
    truth: tuple[list[Tensor], list[Tensor | None]]
    budget: float


def exact(label: str, case: Case, dtype: torch.dtype) -> Exact:
    """Return a case with its inputs, its results in float64 and its error budget."""
    tensors = case.inputs(dtype)
    in_float64 = testing.in_float64(tensors)
    outputs = case.truth(*in_float64)
    generator = torch.Generator().manual_seed(9)
    grads = [
        testing.normal(generator, dtype, *y.shape) for y in ([outputs] if isinstance(outputs, Tensor) else outputs)
    ]
    truth = testing.value_and_gradients(case.truth, in_float64, [grad.double() for grad in grads])
    plain = testing.value_and_gradients(functools.partial(case.function, backend="reference"), tensors, grads)
    budget = testing.error_budget([*plain[0], *plain[1]], [*truth[0], *truth[1]])
    return Exact(label, case, tensors, grads, truth, budget)


def _largest_error(found: Sequence[Tensor | None], truth: Sequence[Tensor | None]) -> float:
    """Return the largest relative error of the results. It is infinite where a result is missing or NaN."""
    largest = 0.0 if len(found) == len(truth) else math.inf
    for result, exact in zip(found, truth):
        if exact is not None:
            error = math.nan if result is None else testing.relative_error(result, exact)
            largest = max(largest, math.inf if math.isnan(error) else error)
    return largest


def judge(row: Row, known: Exact) -> Row:
    """Run one case by the row's backend, and add its errors to the row."""
    call = functools.partial(known.case.function, backend=row.backend)
    try:
        found = testing.value_and_gradients(call, known.tensors, known.grads)
    except Exception as error:  # show every error of a compiler or a driver
        said = (str(error).strip().splitlines() or [""])[0]
        return row._replace(failures=(*row.failures, f"{known.label}: {type(error).__name__}: {said[:300]}"))
    forward, backward = _largest_error(found[0], known.truth[0]), _largest_error(found[1], known.truth[1])
    failures = row.failures
    if not (forward <= known.budget and backward <= known.budget):
        errors = f"relative errors {forward:.3g} forward and {backward:.3g} backward against float64"
        failures = (*failures, f"{known.label}: {errors}, budget {known.budget:.3g}")
    return row._replace(
        forward=max(row.forward, forward),
        backward=max(row.backward, backward),
        share=max(row.share, max(forward, backward) / known.budget),
        failures=failures,
    )


def takes(backend: str, kind: str, dtype: torch.dtype, op: str) -> bool:
    """Tell whether the backend can be judged for this dtype: Triton's interpreter gets bfloat16 products wrong."""
    interpreted = backend == "triton" and dtype is torch.bfloat16 and backends.interpreting()
    return backends.unfit(backend, kind, dtype, op) is None and not interpreted


def run(device: torch.device, names: list[str]) -> Iterator[Row]:
    """Judge every operation in every dtype, by each backend of `names` that takes the operation."""
    with self_check.off(), device:
        for op, of_op in cases().items():
            for dtype in DTYPES:
                known = [exact(label, case, dtype) for label, case in of_op.items()]
                for name in names:
                    if takes(name, device.type, dtype, op):
                        row = Row(op, name, str(dtype).removeprefix("torch."), len(known))
                        yield functools.reduce(judge, known, row)


HEAD = f"{'operation':<22}{'dtype':<10}{'backend':<10}{'cases':>5}  {'forward':>9} {'backward':>9} {'budget':>7}"


def as_line(row: Row) -> str:
    """Return the row in the columns of HEAD."""
    share = f"{row.share:.0%}" if row.share < 10 else "> 999%"
    figures = f"{row.forward:9.1e} {row.backward:9.1e} {share:>7}"
    verdict = "FAILED" if row.failures else "ok"
    return f"{row.op:<22}{row.dtype:<10}{row.backend:<10}{row.cases:>5}  {figures}  {verdict}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m mop_kernels.check", description=__doc__.splitlines()[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="such as cuda:1 (default here: %(default)s)")
    parser.add_argument("--backend", action="append", choices=backends.NAMES, help="may be repeated; default: all")
    given = parser.parse_args(arguments)
    try:
        device = torch.device(given.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        got = f"{given.device!r}: {str(error).splitlines()[0]}"
        parser.error(f"--device must name a device of this machine, such as cpu or cuda:1; got {got}")
    if device.type == "meta":
        parser.error("--device must name a device that computes, such as cpu or cuda:1; got 'meta'")
    facts = env_report.collect()
    print("\n".join(f"{name:<10} {facts[name]}" for name in ("mop_kernels", "python", "torch", "triton", "cpu", "gpu")))
    names, absent = [], False
    for name in given.backend or backends.NAMES:
        reason = backends.why_not(name, device) or backends.unfit(name, device.type, torch.float32, "phm_weight")
        if reason is None:
            names.append(name)
        else:
            absent = True
            print(f"{name:<10} not here: {reason}")
    print(f"device     {device}\n\n{HEAD}", flush=True)
    rows = []
    for row in run(device, names):
        rows.append(row)
        print(as_line(row), flush=True)
    failures = [f"{r.op} by {r.backend} in {r.dtype}, {failure}" for r in rows for failure in r.failures]
    print("", *failures, sep="\n")
    print(f"{sum(not row.failures for row in rows)} of {len(rows)} rows are right.")
    return int(bool(failures or not rows or (given.backend and absent)))


if __name__ == "__main__":
    sys.exit(main())
