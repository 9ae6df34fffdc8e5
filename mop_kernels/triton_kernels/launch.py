"""Launch a kernel on the current stream of the tensors' device, or record the launch.

Every function of this backend launches its kernels here. Repeated calls launch them from notes (replay.py).

Recorded launches, on tensors of the device "meta", are what the tests compile ahead of time, without a GPU.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode


class Launch(NamedTuple):
    """One launch: the jitted function, the grid, its run-time arguments, its constexprs and launch options by name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple
    meta: dict[str, Any]


_recorded: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Within the block launches are collected, not run. For tests; holds for the whole process."""
    global _recorded
    previous, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = previous


def is_recording() -> bool:
    """Tell whether launches are recorded instead of made."""
    return _recorded is not None


def launch(kernel, grid: tuple[int, ...], *arguments, **meta) -> None:
    """kernel[grid](*arguments, **meta). A tensor or tuple of tensors first; meta: constexprs, num_warps, num_stages."""
    if 0 in grid:
        return
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, arguments, meta))
        return
    first = arguments[0]
    device = first.device if isinstance(first, torch.Tensor) else first[0].device
    if device.type == "meta":
        return  # only the shapes of results are wanted
    with device_guard(device):
        compiled = kernel[grid](*arguments, **meta, enable_fp_fusion=True)
    notes = _get_current_dispatch_mode()  # of this thread
    if hasattr(notes, "note_launch"):
        notes.note_launch(kernel, compiled, grid, arguments, meta)


def device_guard(device: torch.device) -> AbstractContextManager:
    """Return a context in which this device, if it is a GPU, is the current one."""
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return torch.cuda.device(device)
    return nullcontext()


def input_precision() -> str:
    """Return what tl.dot does with float32: IEEE products unless torch allows TF32 in its own.

    Reads torch.backends.cuda.matmul.fp32_precision, in a seventh of the time. `allow_tf32` would raise where the
    program has set `fp32_precision`.
    """
    return "tf32" if torch._C._get_fp32_precision_getter("cuda", "matmul") == "tf32" else "ieee"
