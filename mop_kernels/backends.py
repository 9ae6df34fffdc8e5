"""Find the backends of this machine, and choose the backend of a call.

Order of choice: the argument `backend=`, then `use_backend(...)`, then the environment variable MOP_KERNELS_BACKEND,
then "auto". A named backend never falls back: it runs or it raises. "auto" depends on the device, the dtype, the size
of the work and the installation, never on a timing, so that all processes of a job agree and runs repeat.
"""

import importlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

from . import ops, self_check, step_ops

NAMES: tuple[str, ...] = ("reference", "cpu", "triton", "cuda")


def _load(name: str, missing: str) -> tuple[ModuleType | None, str]:
    """Return a compiled module of this package, or None and the reason. `missing`: the reason if there is no such file.

    A module does not load if it was built for another Python, or for a torch without the stable ABI it needs.
    """
    try:
        return importlib.import_module(f"mop_kernels.{name}"), ""
    except ModuleNotFoundError:
        return None, missing
    except ImportError as error:
        return None, str(error)


_C, _missing_cpu = _load("_C", "it was not built")
if _C is not None:
    ops.define("cpu")

# Like TRITON_INTERPRET, this variable is for tests. It holds the path of a library that runs the CUDA kernels on CPU
# tensors, each CUDA thread as a host thread (tests/cuda/emulation.py builds it). Backend "cuda" is then this library.
_EMULATED_CUDA = os.environ.get("MOP_KERNELS_EMULATE_CUDA")
_C_cuda: ModuleType | None = None
_missing_cuda = (
    f"it was {'not built' if _C is None else _C.build_info()['cuda']}; where nvcc is, build it from source: "
    "pip install --force-reinstall --no-deps --no-binary mop-kernels mop-kernels (in a clone: pip install .)"
)
if _EMULATED_CUDA:
    torch.ops.load_library(_EMULATED_CUDA)
elif torch.version.cuda is not None:
    _C_cuda, _missing_cuda = _load("_C_cuda", _missing_cuda)
elif importlib.util.find_spec("mop_kernels._C_cuda") is not None:
    _missing_cuda = "it was built, but this torch is without CUDA; install a torch build with CUDA"

if _EMULATED_CUDA or _C_cuda is not None:
    ops.define("cuda")

_TRITON_IS_INSTALLED = importlib.util.find_spec("triton") is not None  # a search takes longer than a call may
_TRITON_TRUE = ("1", "true", "on", "yes", "y")  # in any case. Triton takes every other value for false
_INTERPRET_CHANGED = "TRITON_INTERPRET was set after triton was imported; set it before Python starts"

# Dtypes and devices of each backend's kernels. "meta" computes shapes only. The reference takes everything.
_DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "triton": (torch.float32, torch.bfloat16, torch.float16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
_OLDEST_GPU = (8, 0)  # oldest compute capability that csrc/cuda is compiled for and has enough shared memory
WITHOUT = {"cuda": ("attempt_mix", *step_ops.SCHEMAS)}  # operations that a backend has no kernel for
_DEVICES = {"cpu": ("cpu", "meta"), "triton": ("cuda", "meta"), "cuda": ("cuda", "meta")}

# On a GPU "auto" takes the CUDA kernels up to this number of multiply-adds, and Triton's kernels beyond. A call of a
# compiled op costs the host some 30 us less than a Triton launch from Python. CUDA-core sums, at an assumed 15e12
# operations per second, lose this time again against tensor cores after about 2.2e8 multiply-adds. The number is an
# estimate until `make gpu` measures it on a GPU: crossover/<GPU name>.json maps operation and dtype to the result.
CUDA_UP_TO = 2**28
CROSSOVERS = Path(__file__).parent / "crossover"
_crossovers = {path.stem: json.loads(path.read_text()) for path in CROSSOVERS.glob("*.json")}

Function = TypeVar("Function", bound=Callable)
_VARIABLE = "MOP_KERNELS_BACKEND"
# os.environ without its encoding of keys, which takes half a microsecond per look
_ENVIRONMENT, _KEY = getattr(os.environ, "_data", os.environ), os.environ.encodekey(_VARIABLE)
_override: str | None = None
_warned: set[str] = set()
_verdicts: dict[tuple[str, int], str | None] = {}  # results of `_why_not_on`, once the backend has launched


def _constant_for_dynamo(function: Function) -> Function:
    """Mark a function as torch.compiler.assume_constant_result does, which imports Dynamo."""
    function.__dict__["_dynamo_marked_constant"] = True
    return function


def build_info() -> dict[str, str]:
    """Return facts of the build: compiler, torch, vector instructions, and CUDA or why not. Empty without a build."""
    return {} if _C is None else dict(_C.build_info())


def plan_phm_linear(rows: int, *sizes: int) -> dict[str, dict[str, float]]:
    """Return {direction: {way: cost}} of the cpu backend's phm_linear. It takes the first of the cheapest ways.

    sizes: terms, g_in, g_out, loc_in, loc_out.
    """
    assert _C is not None
    return _C.plan_phm_linear(rows, *sizes)


def available_backends() -> tuple[str, ...]:
    """Return the backends that can run on this machine, in the order of NAMES. A backend of GPUs must have launched."""
    return tuple(name for name in NAMES if why_not(name) is None)


def why_not(name: str, device: torch.device | None = None) -> str | None:
    """Return None if the backend can run on this machine. Otherwise return the reason and the cure.

    device: The device that the backend must run on. None: for a backend of GPUs, any GPU of the machine.
    """
    if name == "reference":
        return None
    if name == "cpu":
        cure = "with a C++ compiler on the PATH, run pip install again"
        return f"the compiled module mop_kernels._C is missing ({_missing_cpu}); {cure}" if _C is None else None
    if device is not None and device.type == "cuda" and device.index is not None:
        return _why_not_on(name, device.index)
    reason = _missing(name)
    if reason is None and device is not None and device.type == "cuda":
        return _why_not_on(name, torch.cuda.current_device())
    if reason is not None or device is not None or runs_on_cpu(name):
        return reason
    reasons = []
    for index in range(torch.cuda.device_count()):
        reason = _why_not_on(name, index)
        if reason is None:
            return None
        reasons.append(reason)
    return "; ".join(dict.fromkeys(reasons))


def _missing(name: str) -> str | None:
    """Return why no GPU of this machine can take the backend "triton" or "cuda", or None."""
    if name == "triton":
        if not _TRITON_IS_INSTALLED:
            return "triton is not installed; pip install triton"
        if torch.cuda.is_available() or interpreting():
            return None
        cure = "TRITON_INTERPRET=1 runs the kernels slowly on CPU tensors, for tests"
        return f"torch sees no CUDA GPU; {_INTERPRET_CHANGED if _interpreter_is_asked() else cure}"
    if _EMULATED_CUDA:
        return None
    if _C_cuda is None:
        return f"the compiled module mop_kernels._C_cuda is missing: {_missing_cuda}"
    return None if torch.cuda.is_available() else "torch sees no CUDA GPU"


@_constant_for_dynamo  # torch.compile asks, instead of tracing a launch
def _why_not_on(name: str, index: int) -> str | None:
    """Return why the backend cannot run on this GPU, or None: a missing part, an old chip, or a failed launch."""
    if (name, index) in _verdicts and not self_check.is_off():
        return _verdicts[name, index]
    reason = _missing(name) or _lacks(name, index)
    if not self_check.can_look():
        return reason
    try:
        _verdicts[name, index] = reason or self_check.failure(name, index)
    except torch.OutOfMemoryError:
        return None  # nothing is known; a later call tries again
    return _verdicts[name, index]


def _lacks(name: str, index: int) -> str | None:
    """Return the compute capability that the backend needs and this GPU lacks, as a reason, or None."""
    capability = torch.cuda.get_device_capability(index)
    if name == "triton" or capability >= _OLDEST_GPU:
        return None
    needed, found = (".".join(map(str, version)) for version in (_OLDEST_GPU, capability))
    return f"it needs compute capability {needed} or later, cuda:{index} has {found}; use backend='triton'"


@_constant_for_dynamo
def interpreting() -> bool:
    """Tell whether Triton's interpreter runs the kernels, on CPU tensors.

    Triton reads TRITON_INTERPRET each time a function is decorated: its own library when triton is imported, the
    kernels when triton_kernels is. Kernels and library must agree.
    """
    interpreted = getattr(sys.modules.get("mop_kernels.triton_kernels"), "INTERPRETED", None)  # None before its import
    if interpreted is not None:
        return interpreted
    return _interpreter_is_asked() and not _triton_library_is_compiled()


def _interpreter_is_asked() -> bool:
    """Tell whether a function decorated now would be interpreted."""
    triton = sys.modules.get("triton")
    if triton is None:
        return os.environ.get("TRITON_INTERPRET", "").lower() in _TRITON_TRUE
    return triton.knobs.runtime.interpret


def _triton_library_is_compiled() -> bool:
    """Tell whether triton was imported without the interpreter. False before triton is imported."""
    triton = sys.modules.get("triton")
    return triton is not None and isinstance(triton.language.cdiv, triton.JITFunction)


def runs_on_cpu(name: str) -> bool:
    """Tell whether the backend takes CPU tensors here. Interpreted or emulated kernels of a GPU do, for tests."""
    if name == "triton":
        return interpreting()
    return name != "cuda" or bool(_EMULATED_CUDA)


def check_name(name: str) -> str:
    """Return the name. Raise ValueError for an unknown name."""
    if name != "auto" and name not in NAMES:
        raise ValueError(f"backend must be one of 'auto', {', '.join(map(repr, NAMES))}; got {name!r}.")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Make `name` the backend of all calls in the block that name no backend themselves.

    The choice applies to the whole process, not to one thread. Raise ValueError for an unknown name.
    """
    global _override
    previous, _override = _override, check_name(name)
    try:
        yield
    finally:
        _override = previous


def requested(backend: str | None) -> tuple[str, str]:
    """Return the name of the requested backend, or "auto", and who requested it."""
    if backend is not None:
        if not isinstance(backend, str):
            raise TypeError(f"backend must be a string or None; got {type(backend).__name__}.")
        return check_name(backend), "the argument backend="
    if _override is not None:
        return _override, "use_backend"
    if _KEY in _ENVIRONMENT and os.environ[_VARIABLE]:
        return check_name(os.environ[_VARIABLE]), f"the environment variable {_VARIABLE}"
    return "auto", "auto"


def resolve(
    backend: str | None, device: torch.device, dtype: torch.dtype, op: str = "phm_weight", multiply_adds: int = 0
) -> str:
    """Return the backend of one call of `op`.

    Raises:
        ValueError: The name is unknown.
        RuntimeError: The named backend cannot run here.
    """
    name, source = requested(backend)
    kind = device.type
    chosen = best_for(kind, device, dtype, op, multiply_adds) if name == "auto" else name
    reason = why_not(chosen, device) or unfit(chosen, kind, dtype, op)
    if reason is None:
        return chosen
    if name == "auto":
        _warn_once(f"uses its slow reference backend: {reason}. Name backend='reference' to silence this.")
        return "reference"
    raise RuntimeError(
        f"backend {name!r} (asked for by {source}) cannot run here: {reason}. "
        f"Available: {', '.join(available_backends())}; backend='auto' takes the best of them."
    )


def has_kernel(op: str, tensor: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Tell whether a call of `op` that names no backend runs on kernels.

    Otherwise it would run in plain PyTorch or raise, and a caller with a plain form of its own can take that form.
    dtype: The dtype of the call. None: that of the tensor.
    """
    name, _ = requested(None)
    kind, dtype = tensor.device.type, tensor.dtype if dtype is None else dtype
    chosen = best_for(kind, tensor.device, dtype, op, 0) if name == "auto" else name
    return chosen != "reference" and (why_not(chosen, tensor.device) or unfit(chosen, kind, dtype, op)) is None


def best_for(kind: str, device: torch.device, dtype: torch.dtype, op: str, multiply_adds: int) -> str:
    """Return the best backend for "auto". kind: the type of the device, which takes a while to look up."""
    if kind != "cuda":
        return "cpu"
    if op in WITHOUT["cuda"]:
        return "triton"
    absent = {name: why_not(name, device) for name in ("cuda", "triton")}
    for name, reason in absent.items():
        if reason is not None and reason in self_check.failures:
            _warn_once(f"leaves its backend {name!r} out: {reason}.")
    if absent["cuda"] is not None:
        return "triton"
    if absent["triton"] is not None:
        return "cuda"
    return "cuda" if multiply_adds <= cuda_up_to(device, dtype, op)[0] else "triton"


def cuda_up_to(device: torch.device, dtype: torch.dtype, op: str) -> tuple[int, str]:
    """Return the multiply-adds up to which "auto" takes CUDA instead of Triton, and the origin of this number."""
    way = "graph" if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing() else "eager"
    if _crossovers:
        measured = _crossovers.get(torch.cuda.get_device_properties(device).name.replace(" ", "_"), {})
        bound = measured.get(way, {}).get(op, {}).get(str(dtype).removeprefix("torch."))
        if bound is not None:
            return bound, f"measured on this GPU ({way})"
    if way == "graph" and dtype.itemsize == 2:
        return 0, "an estimate of device times, which alone count in a graph"
    return CUDA_UP_TO, "an estimate"


def unfit(name: str, kind: str, dtype: torch.dtype, op: str) -> str | None:
    """Return why a backend cannot compute an operation on tensors of this device type and dtype, or None."""
    if op in WITHOUT.get(name, ()):
        return f"it has no {op}"
    if name not in _DEVICES:
        return None
    if kind not in _DEVICES[name] and not (kind == "cpu" and runs_on_cpu(name)):
        reason = f"it takes tensors on {_DEVICES[name][0]}, these are on {kind}"
        set_late = name == "triton" and kind == "cpu" and _interpreter_is_asked()
        return f"{reason}; {_INTERPRET_CHANGED}" if set_late else reason
    if dtype not in _DTYPES[name]:
        return f"it takes {', '.join(str(t).removeprefix('torch.') for t in _DTYPES[name])}, these are {dtype}"
    return None


def _stacklevel_of_caller() -> int:
    """Return the level, for warnings.warn in the caller, of the first frame outside this package and torch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("mop_kernels", "torch"):
        frame, level = frame.f_back, level + 1
    return level


def _warn_once(what: str) -> None:
    if torch.compiler.is_compiling() or what in _warned:
        return
    _warned.add(what)
    warnings.warn(f"mop_kernels {what}", stacklevel=_stacklevel_of_caller())
