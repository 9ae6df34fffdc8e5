"""Choose tile sizes and warps of a launch, and launch the kernel on the current stream of the tensors' device.

Every function of this backend launches its kernels by `launch`. Repeated calls launch from notes instead (replay.py).

`make tune` measures the launch configurations of a GPU. Without such a measurement a launch takes the first
configuration that the kernel proposes. configs/<GPU name>.json maps the name of a kernel to {key of sizes and dtype:
{constexpr or option: value}}. Nothing is tuned while a program runs: all ranks of a job agree, and runs repeat.

`recording` collects launches on tensors of the device "meta". The tests compile these ahead of time, without a GPU.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

Value = TypeVar("Value")
Sizes = dict[str, int]  # the numbers that a choice depends on, by name
Config = dict[str, int]  # BLOCK_... constexprs, num_warps, num_stages
Configs = Iterator[Config]  # a kernel's own choice, then other choices worth timing
Proposals = Callable[[Sizes, torch.dtype, int], Configs]  # takes sizes, dtype, and the number of multiprocessors

CONFIGS = Path(__file__).parent / "configs"
MULTIPROCESSORS = 132  # of an H200


class Launch(NamedTuple):
    """One launch: the jitted function, the grid, its run-time arguments, its constexprs and launch options by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple
    meta: dict[str, Any]


class Choice(NamedTuple):
    """One call of `pick`."""

    kernel: str
    sizes: Sizes
    dtype: torch.dtype
    proposals: Proposals
    multiprocessors: int

    @property
    def key(self) -> tuple[str, str]:
        """Name of the kernel, and key of sizes and dtype."""
        return self.kernel, key_of(self.sizes, self.dtype)

    def candidates(self) -> list[Config]:
        """Return the configurations worth timing: the kernel's own choice, then all different ones."""
        own, *others = self.proposals(self.sizes, self.dtype, self.multiprocessors)
        return [own, *(config for config in others if config != own)]


_recorded: list[Launch] | None = None
_choices: list[Choice] | None = None
_forced: dict[tuple[str, str], Config] = {}


def recording() -> AbstractContextManager[list[Launch]]:
    """Collect the launches of the block instead of making them. Applies to the whole process. For tests."""
    return _within_block("_recorded", [])


def asked() -> AbstractContextManager[list[Choice]]:
    """Collect the choices of the block. Applies to the whole process. For `make tune` and tests."""
    return _within_block("_choices", [])


def forced(choice: Choice, config: Config) -> AbstractContextManager:
    """Take this configuration for this choice within the block. Applies to the whole process, as `asked` does."""
    return _within_block("_forced", _forced | {choice.key: config})


@contextmanager
def _within_block(name: str, value: Value) -> Iterator[Value]:
    """Set a variable of this module within the block."""
    before = globals()[name]
    globals()[name] = value
    try:
        yield value
    finally:
        globals()[name] = before


def is_watched() -> bool:
    """Return True if launches or choices are collected, or choices forced."""
    return _recorded is not None or _choices is not None or bool(_forced)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **meta: Any) -> None:
    """Launch kernel[grid](*arguments, **meta).

    Args:
        kernel: A jitted function.
        grid: Programs per dimension. An empty grid launches nothing.
        arguments: Run-time arguments: first a tensor or a tuple of tensors.
        meta: Constexprs, num_warps, num_stages.
    """
    if 0 in grid:
        return
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, arguments, meta))
        return
    first = arguments[0]
    device = first.device if isinstance(first, torch.Tensor) else first[0].device
    if device.type == "meta":
        return  # the caller wants only the shapes of results
    with device_guard(device):
        compiled = kernel[grid](*arguments, **meta, enable_fp_fusion=True)
    note_launch = getattr(_get_current_dispatch_mode(), "note_launch", None)  # of this thread
    if note_launch is not None:
        note_launch(kernel, compiled, grid, arguments, meta)


def device_guard(device: torch.device) -> AbstractContextManager:
    """Return a context in which this device is the current one, if it is a GPU."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return nullcontext()


def input_precision() -> str:
    """Return the precision of tl.dot for float32: "ieee" unless torch allows TF32 in its own products.

    Reads torch.backends.cuda.matmul.fp32_precision, in a seventh of the time. `allow_tf32` would raise if the program
    has set `fp32_precision`.
    """
    return "tf32" if torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32" else "ieee"


def pick(kernel: str, sizes: Sizes, dtype: torch.dtype, device: torch.device, proposals: Proposals) -> Config:
    """Return the launch configuration of `kernel` for these sizes: forced, tuned for this GPU, or the kernel's own."""
    if _choices is not None:
        _choices.append(Choice(kernel, sizes, dtype, proposals, multiprocessors(device)))
    if _forced and (kernel, key_of(sizes, dtype)) in _forced:
        return _forced[kernel, key_of(sizes, dtype)]
    if device.type == "cuda":
        tuned = _tuned(torch.cuda.get_device_name(device)).get(kernel, {}).get(key_of(sizes, dtype))
        if tuned is not None:
            return tuned
    return next(proposals(sizes, dtype, multiprocessors(device)))


def key_of(sizes: Sizes, dtype: torch.dtype) -> str:
    """Return the key of sizes and dtype in a file of configurations."""
    return " ".join([str(dtype).removeprefix("torch."), *(f"{name}={size}" for name, size in sizes.items())])


def path_of(gpu: str) -> Path:
    """Return the file of the configurations that were tuned for this GPU."""
    return CONFIGS / f"{gpu.replace(' ', '_')}.json"


@cache
def _tuned(gpu: str) -> dict[str, dict[str, Config]]:
    path = path_of(gpu)
    return json.loads(path.read_text()) if path.exists() else {}


@cache
def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors of the device; 132, as on an H200, if it is not a GPU."""
    if device.type != "cuda":
        return MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def tensor_cores(device: torch.device) -> bool:
    """Return True if Triton multiplies on tensor cores of this device: from compute capability 8.0 on."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)
