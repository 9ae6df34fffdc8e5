"""The sample of the recorded launches that the tests compile: every kind of launch, the cheapest of each kind."""

from collections import Counter, defaultdict
from statistics import median
from typing import Any

from benchmarks.support.launches import CONSTANTS, Launch, Recorded, flat
from mop_kernels.triton_kernels.device_functions import Phm

ARCHES = (90, 80)
SECONDS = 0.5  # of a kernel without measured compilations


def combination(launch: Launch) -> tuple:
    """Return the choices of code in a kernel: dtypes, flags, names, and absent, unaligned or long arguments."""
    kinds = flat(launch.arguments)
    flags = tuple((name, value) for name, value in launch.meta if isinstance(value, bool | str))
    dtypes = frozenset(kind.removesuffix("-") for kind in kinds if kind not in CONSTANTS)
    rare = tuple(any(kind.endswith(mark) for kind in kinds) for mark in ("None", "-", "L"))
    return launch.kernel, dtypes, launch.dtype, flags, rare


def features(recorded: Recorded) -> set[tuple]:
    """Return what a sample of all launches must contain.

    A sample contains all combinations, every block and option of each kernel, and every kernel of the paper's shapes in
    each dtype.
    """
    launch, origin = recorded.launch, recorded.origin
    found: set[tuple[Any, ...]] = {combination(launch)}
    if "::" not in origin:  # not a test
        found.add((launch.kernel, launch.dtype, origin.partition(",")[0]))
    for name, value in launch.meta:
        if isinstance(value, Phm):
            blocks = {field: number for field, number in vars(value).items() if field.startswith("block")}
            found |= {(launch.kernel, name, field, number) for field, number in blocks.items()}
        elif name.startswith(("BLOCK", "num")):
            found.add((launch.kernel, name, value))
    return found


def sample(recorded: list[Recorded]) -> list[tuple[Recorded, int]]:
    """Return launches, each with an architecture, that have all features between them.

    The launch that adds most features per second of its compilation comes first, for the architecture that has fewer
    launches. Each kernel is compiled for every architecture in every dtype.
    """
    seconds = _seconds(recorded)
    wanted = [(r, arch, features(r) | {(r.launch.kernel, r.launch.dtype, arch)}) for r in recorded for arch in ARCHES]
    left = set().union(*(some for _, _, some in wanted))
    chosen: list[tuple[Recorded, int]] = []
    used: Counter[int] = Counter()
    while left:
        r, arch, some = max(wanted, key=lambda task: (len(task[2] & left) / seconds[task[0].launch], -used[task[1]]))
        chosen.append((r, arch))
        used[arch] += 1
        left -= some
    return chosen


def _seconds(recorded: list[Recorded]) -> dict[Launch, float]:
    """Return the seconds of each compilation, never 0; the median of the kernel if it was not measured."""
    measured = defaultdict(list)
    for r in recorded:
        if r.seconds is not None:
            measured[r.launch.kernel].append(r.seconds)
    usual = {kernel: median(numbers) for kernel, numbers in measured.items()}
    return {
        r.launch: max(0.1, usual.get(r.launch.kernel, SECONDS) if r.seconds is None else r.seconds) for r in recorded
    }
