"""Explain which backend a call would take, and why.

The explanations are apart from the choice itself (backends.py), because they would slow down every call.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from . import backends, multiply_adds
from .functional import OPERATIONS as PHM_OPERATIONS
from .step import STEP_OPERATIONS
from .validation import dtype_of_call

OPERATIONS = {**PHM_OPERATIONS, **STEP_OPERATIONS}
_FIRST = {"phm_weight": "rule", "prefix_attention": "query"}  # name of the first tensor; otherwise "x"
_KERNELS = {"cpu": "compiled", "triton": "Triton", "cuda": "CUDA"}
_EXPLANATIONS = json.loads((Path(__file__).parent / "explanations.json").read_text())  # per backend and operation


def explain_backend(op: str | Callable, *args, **kwargs) -> str:
    """Explain which backend `op(*args, **kwargs)` would take and why, one fact per line. The call is not computed.

    On a GPU the first explanation may make the tiny launch that tests a backend.

    Args:
        op: The name of an operation, such as "phm_linear" or "prefix_attention", or the function itself.
        *args: The arguments of the call, tensors first.
        **kwargs: The arguments of the call by name.

    Returns:
        The backend and the reason, the method, the costs where a cost model chooses, and the missing backends with
        their reasons.

    Raises:
        ValueError: `op` is no operation.
        TypeError: No tensor is given.
        RuntimeError: The requested backend cannot run here.
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    if name not in OPERATIONS:
        raise ValueError(f"op must be one of {', '.join(OPERATIONS)}; got {name!r}.")
    given = inspect.signature(OPERATIONS[name]).bind_partial(*args, **kwargs).arguments
    backend, first = given.get("backend"), given.get(_FIRST.get(name, "x"))
    if not isinstance(first, Tensor):
        raise TypeError(f"explain_backend needs the arguments of {name}, tensors first; got {type(first).__name__}.")
    dtype = dtype_of_call(first)
    size = multiply_adds.of_call(name, given)
    choice = backends.resolve(backend, first.device, dtype, name, size)
    chosen_by = reason_of(backend, first.device, dtype, name, size)
    lines = [f"{name}: backend {choice} ({chosen_by})", f"method: {_EXPLANATIONS[choice][name]}"]
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
    """Return (unit, {direction: {way: cost}}) of an operation that chooses by a cost model, or else ("", {})."""
    if name not in ("phm_linear", "lowrank_phm_linear"):
        return "", {}
    *rules, local = factors
    terms, g_in, rank = rules[0].shape
    sizes = (terms, g_in, rules[-1].shape[2], *local.shape[1:])
    rows = x.numel() // (g_in * local.shape[1])
    if backend == "cpu" and name == "phm_linear":
        return "multiply-adds of a dense product", backends.plan_phm_linear(rows, *sizes)
    if backend == "triton":
        from . import triton_kernels

        phm = triton_kernels.device_functions.Phm(terms, rank, *sizes[1:])
        found = getattr(triton_kernels, name).plan(rows, phm, x.dtype)
        ways = {way.replace("_", " "): round(found[way], 1) for way in found}
        return "us on an H200, estimated", {"forward": dict(reversed(ways.items()))}
    return "", {}
