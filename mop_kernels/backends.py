"""Which implementations exist here, and which one a call takes.

Order of choice: the argument `backend=`, then `use_backend(...)`, then the environment variable MOP_KERNELS_BACKEND,
then "auto". A named backend never falls back: it runs or it raises. "auto" depends on the device, the dtype and what is
installed, never on a timing, so that all processes of a job agree and runs repeat.
"""

import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from . import ops

NAMES = ("reference", "cpu", "triton", "cuda")

_C = None
_missing_cpu = "it was not built"
if importlib.util.find_spec("mop_kernels._C") is not None:
    try:
        from . import _C
    except ImportError as error:  # built for another Python, or for a torch without the stable ABI it needs
        _missing_cpu = str(error)

if _C is not None:
    ops.define("cpu")

# what each backend's kernels take; "meta" computes shapes only. The reference takes everything.
_DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
}
_DEVICES = {"cpu": ("cpu", "meta"), "triton": ("cuda", "meta")}
_NOT_IN_THIS_VERSION = "this version of mop_kernels has no {} kernels yet"

_VARIABLE = "MOP_KERNELS_BACKEND"
_override: str | None = None
_warned: set[str] = set()


def build_info() -> dict:
    """What the compiled module says of itself (compiler, torch, vector instructions); {} where it is absent."""
    return {} if _C is None else dict(_C.build_info())


def plan_phm_linear(rows: int, terms: int, g_in: int, g_out: int, loc_in: int, loc_out: int) -> dict:
    """{direction: {way: cost}} of the cpu backend's phm_linear; it takes the cheapest, of equals the first."""
    return _C.plan_phm_linear(rows, terms, g_in, g_out, loc_in, loc_out)


def plan(name: str, backend: str, x: torch.Tensor, *factors: torch.Tensor) -> tuple[str, dict[str, dict[str, float]]]:
    """(unit, {direction: {way: cost}}) of an operation that chooses by a cost model, ("", {}) of any other."""
    if name not in ("phm_linear", "lowrank_phm_linear"):
        return "", {}
    rules, local = factors[:-1], factors[-1]
    terms, g_in = rules[0].shape[:2]
    g_out, (loc_in, loc_out) = rules[-1].shape[2], local.shape[1:]
    rows = x.numel() // (g_in * loc_in)
    if backend == "cpu" and name == "phm_linear":
        return "multiply-adds of a dense product", plan_phm_linear(rows, terms, g_in, g_out, loc_in, loc_out)
    if backend == "triton":
        from . import triton_kernels

        rank = () if name == "phm_linear" else (rules[0].shape[2],)
        module = getattr(triton_kernels, name)
        found = module.plan(rows, terms, *rank, g_in, g_out, loc_in, loc_out, x.dtype)
        ways = {way.replace("_", " "): round(found[way], 1) for way in found if way != "takes_local_first"}
        return "us on an H200, estimated", {"forward": dict(reversed(ways.items()))}
    return "", {}


def available_backends() -> tuple[str, ...]:
    """The backends that can run on this machine, in the order of NAMES."""
    return tuple(name for name in NAMES if why_not(name) is None)


def why_not(name: str) -> str | None:
    """None if the backend can run on this machine, otherwise the reason and the cure."""
    if name == "reference":
        return None
    if name == "cpu":
        if _C is not None:
            return None
        return (
            f"the compiled module mop_kernels._C is missing ({_missing_cpu}); with a C++ compiler on the PATH, "
            "run pip install again"
        )
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed; pip install triton"
        if torch.cuda.is_available() or interpreting():
            return None
        return "torch sees no CUDA GPU; TRITON_INTERPRET=1 runs the kernels slowly on CPU tensors, for tests"
    return _NOT_IN_THIS_VERSION.format(name)


def interpreting() -> bool:
    """Whether Triton's interpreter runs its kernels, on CPU tensors; triton reads the variable when it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def check_name(name: str) -> str:
    if name != "auto" and name not in NAMES:
        raise ValueError(f"backend must be one of 'auto', {', '.join(map(repr, NAMES))}; got {name!r}.")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make `name` the backend of all calls in the block that name none themselves.

    Holds for the whole process, not for one thread. Raises ValueError for an unknown name.
    """
    global _override
    previous, _override = _override, check_name(name)
    try:
        yield
    finally:
        _override = previous


def requested(backend: str | None) -> tuple[str, str]:
    """(name or "auto", who asked for it)."""
    if backend is not None:
        if not isinstance(backend, str):
            raise TypeError(f"backend must be a string or None; got {type(backend).__name__}.")
        return check_name(backend), "the argument backend="
    if _override is not None:
        return _override, "use_backend"
    name = os.environ.get(_VARIABLE)
    if name:
        return check_name(name), f"the environment variable {_VARIABLE}"
    return "auto", "auto"


def resolve(backend: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """The backend of one call. Raises ValueError for an unknown name, RuntimeError for one that cannot run."""
    name, source = requested(backend)
    kind = device.type
    chosen = _best_for(kind) if name == "auto" else name
    reason = why_not(chosen) or _unfit(chosen, kind, dtype)
    if reason is None:
        return chosen
    if name == "auto":
        _warn_once(reason)
        return "reference"
    raise RuntimeError(
        f"backend {name!r} (asked for by {source}) cannot run here: {reason}. "
        f"Available: {', '.join(available_backends())}; backend='auto' takes the best of them."
    )


def reason_of(backend: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """Why `resolve` takes what it takes, in words; apart from it, because a call should not pay for them."""
    name, source = requested(backend)
    if name != "auto":
        return f"asked for by {source}"
    best = _best_for(device.type)
    missing = why_not(best) or _unfit(best, device.type, dtype)
    return f"auto: {missing or f'{_KERNELS[best]} kernels serve {dtype} on {device.type}'}"


_KERNELS = {"cpu": "compiled", "triton": "Triton"}


def _best_for(kind: str) -> str:
    """The backend that "auto" hopes for on a kind of device."""
    return "triton" if kind == "cuda" else "cpu"


def _unfit(name: str, kind: str, dtype: torch.dtype) -> str | None:
    if name not in _DEVICES:
        return None
    if kind not in _DEVICES[name] and not (name == "triton" and kind == "cpu" and interpreting()):
        return f"it takes tensors on {_DEVICES[name][0]}, these are on {kind}"
    if dtype not in _DTYPES[name]:
        return f"it takes {', '.join(str(t).removeprefix('torch.') for t in _DTYPES[name])}, these are {dtype}"
    return None


def _stacklevel_of_caller() -> int:
    """For warnings.warn in the calling function: the first frame outside this package and torch (nn.Module's call)."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("mop_kernels", "torch"):
        frame, level = frame.f_back, level + 1
    return level


def _warn_once(reason: str) -> None:
    if torch.compiler.is_compiling() or reason in _warned:
        return
    _warned.add(reason)
    warnings.warn(
        f"mop_kernels uses its slow reference backend: {reason}. Name backend='reference' to silence this.",
        stacklevel=_stacklevel_of_caller(),
    )
