"""Runs every operation on your own device, forward and backward, and compares it with float64. Start here for a fault.

    python -m mop_kernels.check [--device cuda] [--backend NAME ...]

Prints one row per operation, backend and dtype: the largest errors over a few shapes, relative to the root mean square
of the exact result, and how much of the error budget they take (mop_kernels/testing.py says what the budget is). Exits
with status 1 where a result is wrong, a call raises, or a backend that was named cannot run. It takes about a minute on
two cores; on a GPU the first run compiles Triton's kernels.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from . import backends, env_report, functional, self_check, testing
from .attempt import attempt_mix
from .testing import PROMPTS, SHAPES, Bank

BANKS = testing.BANKS | {"of the paper's sides": Bank(2, 2, SHAPES["paper_down"], SHAPES["paper_up"])}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Case(NamedTuple):
    """One call: of which operation, on what, and the same in plain float64."""

    op: str
    label: str
    call: Callable  # call(*tensors, backend=...)
    truth: Callable  # truth(*tensors)
    inputs: Callable  # inputs(dtype) -> tensors, floating-point all, on torch's default device


class Row(NamedTuple):
    """The largest relative errors of all cases of an operation, and what share of the budget they took."""

    op: str
    backend: str
    dtype: str
    cases: int = 0
    forward: float = 0.0
    backward: float = 0.0
    share: float = 0.0
    failures: tuple[str, ...] = ()

    def failed(self, how: str) -> "Row":
        return self._replace(failures=(*self.failures, how))


def cases() -> Iterator[Case]:
    for name in ("odd", "paper_up", "one_row", "no_row"):
        shape = SHAPES[name]
        if shape.rows:
            inputs = functools.partial(_rule_and_local, shape)
            yield Case("phm_weight", name, functional.phm_weight, testing.kron_weight, inputs)
        for bias in (True, False):
            label = name if bias else f"{name} without bias"
            dense, lowrank = (
                functools.partial(draw, shape, bias=bias) for draw in (testing.linear_inputs, testing.lowrank_inputs)
            )
            yield Case("phm_linear", label, functional.phm_linear, testing.kron_linear, dense)
            yield Case("lowrank_phm_linear", label, functional.lowrank_phm_linear, testing.kron_lowrank_linear, lowrank)
    yield _bank("odd", activation="relu")
    yield _bank("small", bias=False)
    yield _bank("small", full_rule=True)
    yield _bank("reading_b", experts=[2, 0])
    yield _bank("no_row")
    yield _bank("of the paper's sides")
    yield from map(_prompts, ("odd", "one", "long", "no_position"))


def _rule_and_local(shape: testing.Shape, dtype: torch.dtype) -> list[Tensor]:
    return testing.linear_inputs(shape, dtype)[1:3]


def _bank(name: str, activation: str = "gelu", experts: list[int] | None = None, **options) -> Case:
    """One call of mop_ffn; gelu, because gradients jump where rounding takes a hidden number over the kink of relu."""

    def chosen(tensors) -> Tensor | None:
        return None if experts is None else torch.tensor(experts, device=tensors[0].device)

    def call(*tensors, backend):
        x, down, ups = testing.as_mop_arguments(tensors)
        maps = [functional.LowRankPHM(*phm) for phm in (down, *ups)]
        options = {"activation": activation, "experts": chosen(tensors), "backend": backend}
        return functional.mop_ffn(x, maps[0], maps[1:], **options)

    def truth(*tensors):
        return testing.kron_mop_ffn(*testing.as_mop_arguments(tensors), activation, chosen(tensors))

    label = ", ".join([f"bank {name}", activation, *(f"{key}={value}" for key, value in options.items())])
    label += "" if experts is None else f", experts {experts}"
    return Case("mop_ffn", label, call, truth, lambda dtype: testing.mop_inputs(BANKS[name], dtype, **options))


def _prompts(name: str) -> Case:
    def call(*tensors, backend):
        x, source, target, *factors = tensors
        _, options = testing.prompt_inputs(PROMPTS[name], x.dtype)
        mask, task_ids, temperature = options["mask"], options["task_ids"], options["temperature"]
        return attempt_mix(x, mask, source, target, task_ids, *factors, temperature, backend=backend)

    def truth(*tensors):
        _, options = testing.prompt_inputs(PROMPTS[name], torch.float64)
        return testing.attempt_by_example(*tensors, **options)

    return Case(
        "attempt_mix", f"prompts {name}", call, truth, lambda dtype: testing.prompt_inputs(PROMPTS[name], dtype)[0]
    )


class Exact(NamedTuple):
    """A case's inputs and gradients of outputs in one dtype, what float64 makes of them, and how far off one may be."""

    case: Case
    tensors: list[Tensor | None]
    grads: list[Tensor]
    truth: tuple[list[Tensor], list[Tensor | None]]
    budget: float


def exact(case: Case, dtype: torch.dtype) -> Exact:
    tensors = case.inputs(dtype)
    in_float64 = testing.in_float64(tensors)
    outputs = case.truth(*in_float64)
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    generator = torch.Generator().manual_seed(9)
    grads = [testing.normal(generator, dtype, *y.shape) for y in outputs]
    truth = testing.value_and_gradients(case.truth, in_float64, [grad.double() for grad in grads])
    plain = testing.value_and_gradients(functools.partial(case.call, backend="reference"), tensors, grads)
    return Exact(case, tensors, grads, truth, testing.error_budget(*([*y, *g] for y, g in (plain, truth))))


def judge(row: Row, known: Exact) -> Row:
    """Run one case by the row's backend, and take what came out into the row."""
    call = functools.partial(known.case.call, backend=row.backend)
    try:
        actual = testing.value_and_gradients(call, known.tensors, known.grads)
    except Exception as error:  # whatever a compiler or a driver raises is what this is to show
        said = (str(error).strip().splitlines() or [""])[0]
        return row.failed(f"{known.case.label}: {type(error).__name__}: {said[:300]}")
    errors = [
        max((testing.relative_error(a, t) for a, t in zip(*pair, strict=True) if t is not None), default=0.0)
        for pair in zip(actual, known.truth, strict=True)
    ]
    row = row._replace(
        forward=max(row.forward, errors[0]),
        backward=max(row.backward, errors[1]),
        share=max(row.share, max(errors) / known.budget),
    )
    if all(error <= known.budget for error in errors):
        return row
    forward, backward = (f"{error:.3g}" for error in errors)
    what = f"relative errors {forward} forward and {backward} backward against float64, budget {known.budget:.3g}"
    return row.failed(f"{known.case.label}: {what}")


def takes(backend: str, kind: str, dtype: torch.dtype, op: str) -> bool:
    """Tell whether a backend is to be right there: bfloat16 products are wrong in Triton's interpreter."""
    interpreted = backend == "triton" and dtype is torch.bfloat16 and backends.interpreting()
    return backends.unfit(backend, kind, dtype, op) is None and not interpreted


def run(device: torch.device, names: list[str]) -> Iterator[Row]:
    """Judge every operation in every dtype, by every backend of `names` that takes it."""
    by_op: dict[str, list[Case]] = {}
    for case in cases():
        by_op.setdefault(case.op, []).append(case)
    with self_check.off(), device:
        for op, of_op in by_op.items():
            for dtype in DTYPES:
                known = [exact(case, dtype) for case in of_op]
                for name in names:
                    if takes(name, device.type, dtype, op):
                        row = Row(op, name, str(dtype).removeprefix("torch."), len(known))
                        yield functools.reduce(judge, known, row)


def as_line(row: Row) -> str:
    share = f"{row.share:.0%}" if row.share < 10 else "> 999%"
    figures = f"{row.forward:9.1e} {row.backward:9.1e} {share:>7}"
    verdict = "FAILED" if row.failures else "ok"
    return f"{row.op:<20}{row.dtype:<10}{row.backend:<10}{row.cases:>5}  {figures}  {verdict}"


HEAD = f"{'operation':<20}{'dtype':<10}{'backend':<10}{'cases':>5}  {'forward':>9} {'backward':>9} {'budget':>7}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mop_kernels.check", description=__doc__.splitlines()[0])
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help="such as cuda:1 (default here: %(default)s)")
    parser.add_argument("--backend", action="append", choices=backends.NAMES, help="may be repeated; all unless given")
    given = parser.parse_args(arguments)
    try:
        device = torch.device(given.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        said = str(error).splitlines()[0]
        parser.error(f"--device must name a device that is here, such as cpu or cuda:1; got {given.device!r}: {said}")
    if device.type == "meta":
        parser.error("--device must name a device that computes, such as cpu or cuda:1; got 'meta'")
    facts = env_report.collect()
    print("\n".join(f"{name:<10} {facts[name]}" for name in ("mop_kernels", "python", "torch", "triton", "cpu", "gpu")))
    absent = {}
    for name in given.backend or backends.NAMES:
        reason = backends.why_not(name, device) or backends.unfit(name, device.type, torch.float32, "phm_weight")
        if reason is not None:
            absent[name] = reason
    for name, reason in absent.items():
        print(f"{name:<10} not here: {reason}")
    names = [name for name in given.backend or backends.NAMES if name not in absent]
    print(f"device     {device}\n\n{HEAD}", flush=True)
    rows = []
    for row in run(device, names):
        rows.append(row)
        print(as_line(row), flush=True)
    failures = [f"{r.op} by {r.backend} in {r.dtype}, {what}" for r in rows for what in r.failures]
    print("", *failures, sep="\n")
    print(f"{sum(not row.failures for row in rows)} of {len(rows)} rows are right.")
    return int(bool(failures or not rows or (given.backend and absent)))


if __name__ == "__main__":
    sys.exit(main())
