"""Find the largest work for which the CUDA kernels are faster than Triton's on this GPU: a step of `make gpu`.

    python -m benchmarks.crossover [--seconds 60]

The command times calls with gradients, forward and backward, on a ladder of sizes of each operation, because "auto"
must choose for these calls. They are timed eager, and replayed from a CUDA graph, where the host's time does not count.
The result is written to mop_kernels/crossover/<GPU name>.json: {"eager" or "graph": {operation: {dtype:
multiply-adds}}}. backends.py reads this file. A backend is proven right before it is timed (support/cases.py).
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import NamedTuple

import torch

from benchmarks.support import results
from benchmarks.support.cases import Case
from benchmarks.support.contenders import ours
from benchmarks.support.timer import WAYS
from benchmarks.support.work import BOTH, PRECISIONS, SHAPES, Bank, Precision, Shape, Work, size_of_call
from mop_kernels import backends

COMPARED = ("cuda", "triton")
LADDER = [
    *(Work("phm_weight", f"{4 * side}", Shape(1, 4, 4, 4, side, side, 1)) for side in (16, 64, 256, 1024)),
    *(Work("phm_linear", f"{rows} rows", Shape(rows, 4, 4, 4, 192, 192, 1)) for rows in (4, 32, 256, 2048, 16384)),
    *(
        Work("lowrank_phm_linear", f"{rows} rows", Shape(rows, 16, 16, 16, 64, 64, 1))
        for rows in (4, 40, 400, 4000, 40000)
    ),
    *(
        Work("mop_ffn", f"{layers * experts} pairs", Bank(layers, experts, SHAPES["paper_down"], SHAPES["paper_up"]))
        for layers, experts in ((1, 1), (4, 2), (12, 5), (12, 20), (24, 64))
    ),
]
Crossovers = dict[str, dict[str, dict[str, int]]]


class Point(NamedTuple):
    """One rung: the multiply-adds of a call, and its milliseconds by each backend."""

    multiply_adds: int
    cuda: float
    triton: float


def crossover(points: Iterable[Point]) -> int:
    """Return the multiply-adds up to which CUDA is faster: the geometric mean of its last win and the next rung.

    A win beyond a defeat does not count. If CUDA wins every rung, the largest rung is returned, because nothing is
    known beyond it.
    """
    last = None
    for point in sorted(points):
        if point.cuda > point.triton:
            return 0 if last is None else round(math.sqrt(last * point.multiply_adds))
        last = point.multiply_adds
    return last or 0


def measure(
    ladder: Sequence[Work],
    precisions: Iterable[Precision],
    timer: Callable[[Work, Precision], dict[str, Point]],
    deadline: float,
) -> Crossovers:
    """Find the crossovers of every operation and precision that are timed in full before the deadline.

    Args:
        ladder: Works of growing size, of all operations.
        precisions: Precisions in which each work is timed.
        timer: Returns the points of a work, one per way.
        deadline: In seconds of time.monotonic.

    Returns:
        {way: {operation: {dtype: multiply-adds}}}.
    """
    found: Crossovers = {}
    for precision, op in product(precisions, dict.fromkeys(work.op for work in ladder)):
        rungs = []
        for work in (w for w in ladder if w.op == op):
            if time.monotonic() > deadline:
                print("out of time: the other works keep the estimate")
                return found
            rungs.append(timer(work, precision))
            print(f"{op}, {work.label}, {precision.name}: {rungs[-1]}", flush=True)
        for way in rungs[0]:
            found.setdefault(way, {}).setdefault(op, {})[precision.name] = crossover(rung[way] for rung in rungs)
    return found


def times(work: Work, precision: Precision) -> dict[str, Point]:
    """Prove both backends right and time them on this GPU, in every way."""
    with torch.device("cuda"), precision.in_force():
        case = Case(work, True, precision)
        calls = [case.call_of(contender, BOTH) for contender in ours(work.op, COMPARED)]
        size = size_of_call(work.op, case.tensors)
        return {
            way: Point(size, *(statistics.median(timed(call, [leaves] * 10, 7)) for call, leaves in calls))
            for way, timed in WAYS.items()
        }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crossover", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="stop after this many seconds (%(default)s)")
    arguments = parser.parse_args()
    absent = [f"{name}: {backends.why_not(name)}" for name in COMPARED if backends.why_not(name) is not None]
    if absent:
        raise SystemExit(f"Both backends are timed against each other; not here: {'; '.join(absent)}.")
    precisions = [p for p in PRECISIONS if not p.tf32]
    found = measure(LADDER, precisions, times, time.monotonic() + arguments.seconds)
    path = backends.CROSSOVERS / f"{torch.cuda.get_device_name().replace(' ', '_')}.json"
    results.write(found, path, sort_keys=True)
    print(f"written to {path.name}")


if __name__ == "__main__":
    main()
