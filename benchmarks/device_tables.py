"""Tables of a GPU: the times that `make gpu` measured and their goals, or the times that the floors let expect.

python -m benchmarks.device_tables                # estimates for an H200, for docs/performance_gpu.md
python -m benchmarks.device_tables RESULT.json    # the measured times
"""

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.support import floors, goals, tables
from benchmarks.support.results import Results
from benchmarks.support.step_work import run
from benchmarks.support.tables import digits
from benchmarks.support.work import BFLOAT16, DIRECTIONS, FLOAT32, WORK, Precision, Work
from mop_kernels.triton_kernels.launch import recording

US_PER_LAUNCH = 2.0
FACTOR = 2.0  # expected time over floor: straight-line kernels take some 1.4 to 2.5 times the floor


class _TorchKernels(TorchDispatchMode):
    """Counts torch's own operations that launch a kernel on a GPU: all but views and allocations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.count += not (func.is_view or "empty" in func.__name__ or "view" in func.__name__)
        return func(*args, **(kwargs or {}))


def count_launches(work: Work, precision: Precision, direction: str) -> int:
    """Return the launches of one call: ours, and the operations that the launchers leave to torch."""
    with torch.device("meta"), precision.in_force():
        tensors = work.inputs(precision.dtype)
        grads = [torch.empty(shape, dtype=precision.dtype) for shape in work.output_shapes()]
        with recording() as launches, _TorchKernels() as torch_kernels:
            run(work, tensors, direction, grads)
    return len(launches) + torch_kernels.count


def estimates() -> list[str]:
    """Return the operations, bytes, floors and expected times on an H200 of every work, dtype and direction."""
    floors_us = ("arithmetic us", "bytes us")
    table = [["work", "dtype", "direction", "MFLOP", "MB", *floors_us, "launches", "expected us"]]
    for work, precision, direction in product(WORK, (FLOAT32, BFLOAT16), DIRECTIONS):
        flops, nbytes = work.least_work(precision.dtype, direction)
        least_us = [1e3 * ms for ms in floors.floors_ms(flops, nbytes, floors.H200, precision.name).values()]
        count = count_launches(work, precision, direction)
        expected = FACTOR * max(least_us) + US_PER_LAUNCH * count
        numbers = [f"{flops / 1e6:,.0f}", f"{nbytes / 1e6:,.1f}", *map(digits, least_us), f"{count}"]
        table.append([work.name, precision.name, direction, *numbers, f"{expected:,.0f}"])
    return tables.markdown(table, text=(0, 1, 2))


def measured(found: dict[str, Any]) -> list[str]:
    """Return the device times of one result, and the goals, as Markdown."""
    judged = goals.as_markdown(goals.GPU_GOALS, Results({"device": found}))
    return [*tables.as_markdown("Device times", found, "us"), "", "## Goals", "", *judged]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device_tables", description=__doc__.splitlines()[0])
    parser.add_argument("result", nargs="?", type=Path, help="a JSON of `make gpu`; without it, estimates are printed")
    arguments = parser.parse_args()
    found = None if arguments.result is None else json.loads(arguments.result.read_text())["benchmarks"]
    print("\n".join(estimates() if found is None else measured(found)))


if __name__ == "__main__":
    main()
