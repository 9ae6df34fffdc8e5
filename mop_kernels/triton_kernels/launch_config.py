"""Tile sizes and warps of a launch: what `make tune` measured on this GPU, otherwise the kernel's own heuristic.

configs/<GPU name>.json maps a kernel's name to {key of sizes and dtype: {constexpr or option: value}}. Nothing is tuned
while a program runs: ranks of one job agree, and runs repeat.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

CONFIGS = Path(__file__).parent / "configs"


def key_of(sizes: dict[str, int], dtype: torch.dtype) -> str:
    return " ".join([str(dtype).removeprefix("torch."), *(f"{name}={size}" for name, size in sizes.items())])


def pick(
    kernel: str,
    sizes: dict[str, int],
    dtype: torch.dtype,
    device: torch.device,
    heuristic: Callable[[dict[str, int], torch.dtype], dict[str, int]],
) -> dict[str, int]:
    """The launch configuration of `kernel` for these sizes: BLOCK_... constexprs, num_warps, num_stages."""
    if device.type == "cuda":
        tuned = _tuned(torch.cuda.get_device_name(device)).get(kernel, {}).get(key_of(sizes, dtype))
        if tuned is not None:
            return tuned
    return heuristic(sizes, dtype)


@cache
def _tuned(gpu: str) -> dict[str, dict[str, dict[str, int]]]:
    path = CONFIGS / f"{gpu.replace(' ', '_')}.json"
    return json.loads(path.read_text()) if path.exists() else {}
