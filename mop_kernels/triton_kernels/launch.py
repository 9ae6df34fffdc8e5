"""The one place that launches a kernel, on the current stream of the tensors' device; or records what would be.

Recorded launches, on tensors of the device "meta", are what the tests compile ahead of time, without a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


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


def launch(kernel, grid: tuple[int, ...], *arguments, **meta) -> None:
    """kernel[grid](*arguments, **meta). A tensor or tuple of tensors first; meta: constexprs, num_warps, num_stages."""
    if 0 in grid:
        return
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, arguments, meta))
        return
    first = arguments[0]
    device = first.device if isinstance(first, torch.Tensor) else first[0].device
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        with torch.cuda.device(device):
            kernel[grid](*arguments, **meta, enable_fp_fusion=True)
    else:
        kernel[grid](*arguments, **meta, enable_fp_fusion=True)


def input_precision() -> str:
    """What tl.dot does with float32: IEEE products unless torch allows TF32 in its own.

    Not read from `allow_tf32`, which raises where the program has set `fp32_precision`; that one knows both.
    """
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
