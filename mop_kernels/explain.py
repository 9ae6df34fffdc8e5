"""Say which backend a call would take, and why.

This stands apart from the choice itself (backends.py), because a call should not pay for words.
"""

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from . import backends, multiply_adds
from .functional import OPERATIONS
from .validation import dtype_of_call

_KERNELS = {"cpu": "compiled", "triton": "Triton", "cuda": "CUDA"}
_METHODS = {
    "reference": dict.fromkeys(OPERATIONS, "plain einsum"),
    "cpu": {
        "phm_weight": "one row of W per (a, u), terms summed in registers",
        "phm_linear": "W built once, then one dense matrix product; on few rows the factors, without W",
        "lowrank_phm_linear": "three stages, W never built, parallel over blocks of rows",
        "mop_ffn": "three stages per map, W never built, hidden rows on chip, parallel over (layer, expert) pairs",
        "attempt_mix": "x is copied and its maximum taken in one pass; the prompts are mixed in one pass",
    },
    "triton": {
        "phm_weight": "one tile of W per program, terms summed in registers",
        "phm_linear": "W built once, then one dense matrix product; on few rows the factors, without W, in one launch",
        "lowrank_phm_linear": "three stages, W never built; on few rows in one launch",
        "mop_ffn": "one launch for all pairs and maps, W never built; torch.matmul where hidden rows are too wide",
        "attempt_mix": "x is copied and its maximum taken in one pass; the prompts are mixed in one pass",
    },
    "cuda": {
        "phm_weight": "one product of inner size terms, of tiles in shared memory",
        "phm_linear": "W built once, then one dense product; on few rows the rule first, without W",
        "lowrank_phm_linear": "three stages, W never built; on few rows in one launch",
        "mop_ffn": "one launch for all pairs and maps, W never built",
    },
}


def explain_backend(op: str | Callable, *args, **kwargs) -> str:
    """Say which backend `op(*args, **kwargs)` would take and why, one fact per line, without computing it.

    On a GPU the first question may make the tiny launch that decides whether a backend is taken.

    Args:
        op: "phm_weight", "phm_linear", "lowrank_phm_linear", "mop_ffn" or "attempt_mix", or the function itself.
        *args: The arguments of the call, tensors first.
        **kwargs: The arguments of the call by name.

    Returns:
        The backend and the reason, the method, the costs where a cost model chooses, and the missing backends and why.

    Raises:
        ValueError: `op` is no operation.
        TypeError: No tensor is given.
        RuntimeError: The requested backend cannot run here.
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    if name not in OPERATIONS:
        raise ValueError(f"op must be one of {', '.join(OPERATIONS)}; got {name!r}.")
    given = inspect.signature(OPERATIONS[name]).bind_partial(*args, **kwargs).arguments
    backend, first = given.get("backend"), given.get("rule" if name == "phm_weight" else "x")
    if not isinstance(first, Tensor):
        raise TypeError(f"explain_backend needs the arguments of {name}, tensors first; got {type(first).__name__}.")
    dtype = dtype_of_call(first)
    size = multiply_adds.of_call(name, given)
    choice = backends.resolve(backend, first.device, dtype, name, size)
    chosen_by = reason_of(backend, first.device, dtype, name, size)
    lines = [f"{name}: backend {choice} ({chosen_by})", f"method: {_METHODS[choice][name]}"]
    lines += _plan_lines(name, choice, given)
    absent = {other: backends.why_not(other, first.device) for other in backends.NAMES}
    return "\n".join([*lines, *(f"not here: {other} ({reason})" for other, reason in absent.items() if reason)])


def reason_of(
    backend: str | None, device: torch.device, dtype: torch.dtype, op: str = "phm_weight", multiply_adds: int = 0
) -> str:
    """Return the reason for the choice of `backends.resolve`, which takes the same arguments."""
    name, source = backends.requested(backend)
    if name != "auto":
        return f"asked for by {source}"
    best = backends.best_for(device.type, device, dtype, op, multiply_adds)
    missing = backends.why_not(best, device) or backends.unfit(best, device.type, dtype, op)
    if missing:
        return f"auto: {missing}"
    reason = f"auto: {_KERNELS[best]} kernels serve {dtype} on {device.type}"
    if device.type != "cuda":
        return reason
    other = "triton" if best == "cuda" else "cuda"
    if op in backends.WITHOUT.get(other, ()):
        return f"{reason}; {other} has no {op}"
    if backends.why_not(other, device) is not None:
        return f"{reason}; not here: {other}"
    bound, origin = backends.cuda_up_to(device, dtype, op)
    size = "at most" if best == "cuda" else "more than"
    return f"{reason}; {multiply_adds:,} multiply-adds, {size} {bound:,}, {origin}"


def _plan_lines(name: str, backend: str, given: Mapping[str, object]) -> list[str]:
    names = [k for k in inspect.signature(OPERATIONS[name]).parameters if k not in ("bias", "backend")]
    tensors = [t for t in map(given.get, names) if isinstance(t, Tensor)]
    if len(tensors) < len(names):
        return []
    unit, plans = plan(name, backend, *tensors)
    lines = []
    for direction, costs in plans.items():
        taken, figures = min(costs, key=costs.__getitem__), ", ".join(f"{way} {cost:,}" for way, cost in costs.items())
        lines.append(f"plan, {direction}: {taken}; costs in {unit}: {figures}")
    return lines


def plan(name: str, backend: str, x: Tensor, *factors: Tensor) -> tuple[str, dict[str, dict[str, float]]]:
    """Return (unit, {direction: {way: cost}}) of an operation that chooses by a cost model, else ("", {})."""
    if name not in ("phm_linear", "lowrank_phm_linear"):
        return "", {}
    rules, local = factors[:-1], factors[-1]
    terms, g_in = rules[0].shape[:2]
    g_out, (loc_in, loc_out) = rules[-1].shape[2], local.shape[1:]
    rows = x.numel() // (g_in * loc_in)
    if backend == "cpu" and name == "phm_linear":
        return "multiply-adds of a dense product", backends.plan_phm_linear(rows, terms, g_in, g_out, loc_in, loc_out)
    if backend == "triton":
        from . import triton_kernels

        rank = () if name == "phm_linear" else (rules[0].shape[2],)
        module = getattr(triton_kernels, name)
        found = module.plan(rows, terms, *rank, g_in, g_out, loc_in, loc_out, x.dtype)
        ways = {way.replace("_", " "): round(found[way], 1) for way in found}
        return "us on an H200, estimated", {"forward": dict(reversed(ways.items()))}
    return "", {}
