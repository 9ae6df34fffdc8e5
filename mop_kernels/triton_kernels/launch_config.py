"""Tile sizes and warps of a launch: what `make tune` measured on this GPU, otherwise the kernel's own heuristic.

configs/<GPU name>.json maps a kernel's name to {key of sizes and dtype: {constexpr or option: value}}. Nothing is tuned
while a program runs: ranks of one job agree, and runs repeat.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from .cost_model import SMS

CONFIGS = Path(__file__).parent / "configs"


def key_of(sizes: dict[str, int], dtype: torch.dtype) -> str:
    return " ".join([str(dtype).removeprefix("torch."), *(f"{name}={size}" for name, size in sizes.items())])


def path_of(gpu: str) -> Path:
    return CONFIGS / f"{gpu.replace(' ', '_')}.json"


def pick(
    kernel: str,
    sizes: dict[str, int],
    dtype: torch.dtype,
    device: torch.device,
    heuristic: Callable[[dict[str, int], torch.dtype, int], dict[str, int]],
) -> dict[str, int]:
    """The launch configuration of `kernel` for these sizes: BLOCK_... constexprs, num_warps, num_stages.

    heuristic: function(sizes, dtype, multiprocessors of the device).
    """
    if _choices is not None:
        _choices.append(Choice(kernel, sizes, dtype, heuristic, multiprocessors(device)))
    if _forced and (kernel, key_of(sizes, dtype)) in _forced:
        return _forced[kernel, key_of(sizes, dtype)]
    if device.type == "cuda":
        tuned = _tuned(torch.cuda.get_device_name(device)).get(kernel, {}).get(key_of(sizes, dtype))
        if tuned is not None:
            return tuned
    return heuristic(sizes, dtype, multiprocessors(device))


@cache
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors the device has; those of an H200 where the device is no GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else SMS


@cache
def tensor_cores(device: torch.device) -> bool:
    """Return whether Triton multiplies on tensor cores there: from compute capability 8.0 on."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def _tuned(gpu: str) -> dict[str, dict[str, dict[str, int]]]:
    path = path_of(gpu)
    return json.loads(path.read_text()) if path.exists() else {}


# For `make tune` and the tests: which choices a call makes, and what another choice gives.


class Choice(NamedTuple):
    """One call of `pick`."""

    kernel: str
    sizes: dict[str, int]
    dtype: torch.dtype
    heuristic: Callable
    multiprocessors: int

    @property
    def key(self) -> tuple[str, str]:
        return self.kernel, key_of(self.sizes, self.dtype)

    def candidates(self) -> list[dict[str, int]]:
        """What is worth timing: `candidates` stands beside `heuristic`, `candidates_rows` beside `heuristic_rows`."""
        name = self.heuristic.__name__.replace("heuristic", "candidates")
        candidates = getattr(sys.modules[self.heuristic.__module__], name, lambda *_: [])
        asked = self.sizes, self.dtype, self.multiprocessors
        own = self.heuristic(*asked)
        return [own, *(config for config in candidates(*asked) if config != own)]


_choices: list[Choice] | None = None
_forced: dict[tuple[str, str], dict[str, int]] = {}


def is_watched() -> bool:
    """Whether choices are collected or forced."""
    return _choices is not None or bool(_forced)


@contextmanager
def asked() -> Iterator[list[Choice]]:
    """Within the block the choices are collected; for the whole process."""
    global _choices
    before, _choices = _choices, []
    try:
        yield _choices
    finally:
        _choices = before


@contextmanager
def forced(choice: Choice, config: dict[str, int]) -> Iterator[None]:
    """Within the block this choice falls on this configuration; for the whole process."""
    before = dict(_forced)
    _forced[choice.key] = config
    try:
        yield
    finally:
        _forced.clear()
        _forced.update(before)
