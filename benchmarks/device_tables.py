"""Tables of a GPU: what `make gpu` measured, its goals, and before that what the floors let expect.

python -m benchmarks.device_tables                # estimates for an H200, for docs/performance_gpu.md
python -m benchmarks.device_tables RESULT.json    # what was measured
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.support.tables import digits
from benchmarks.support.work import (
    BANK,
    BOTH,
    FORWARD,
    H200,
    LAYER,
    PRECISIONS,
    WORK,
    Precision,
    Work,
    floors_us,
    run,
)
from mop_kernels.triton_kernels.launch import recording

OURS = "mop_kernels triton"
US_A_LAUNCH = 2.0
FACTOR = 2.0  # of the floor: straight-line kernels at some 1.4 to 2.5 times what instructions or bytes need


def group_of(work: Work, precision: str, direction: str) -> str:
    return f"{work.op}, {work.label}, {precision}: {direction}"


class Goal(NamedTuple):
    """Our device time in a group: at most `bound` us, or the best of `against` takes at least `bound` times as long."""

    group: str
    bound: float
    against: tuple[str, ...] = ()

    def judge(self, rows: list[dict]) -> dict:
        times = {row["name"]: row["median_ms"] for row in rows if row["group"] == self.group}
        own = times.get(OURS)
        others = [times[name] for name in self.against if name in times]
        goal = f">= {self.bound:g}x {' or '.join(self.against)}" if self.against else f"<= {self.bound:g} us"
        if own is None or (self.against and not others):
            return {"group": self.group, "goal": goal, "measured": None, "met": None}
        measured = min(others) / own if self.against else 1e3 * own
        return {
            "group": self.group,
            "goal": goal,
            "measured": measured,
            "met": measured >= self.bound if self.against else measured <= self.bound,
        }


COMPILED = ("torch.compile, three stages", "torch.compile, W as one product")
LOOP = ("pair by pair, one einsum a map, eager",)
GOALS = [
    Goal(group_of(BANK, "bfloat16", FORWARD), 10),
    Goal(group_of(BANK, "float32", FORWARD), 20),
    Goal(group_of(BANK, "bfloat16", BOTH), 40),
    Goal(group_of(BANK, "float32", BOTH), 80),
    *(
        Goal(group_of(BANK, precision, direction), bound, against)
        for precision in ("bfloat16", "float32")
        for direction in (FORWARD, BOTH)
        for bound, against in ((5, COMPILED), (100, LOOP))
    ),
    Goal(group_of(LAYER, "bfloat16", FORWARD), 3, ("dense F.linear",)),
    Goal("phm_linear, 4096 rows, 1024 -> 1024, one term, bfloat16: forward", 1, ("LyCORIS kron_bypass, Triton",)),
]


def floor_us(row: dict, rates: dict) -> float | None:
    """The larger floor at the rates measured in the same run; the precision stands in the group's name."""
    if row.get("flops") is None:
        return None
    precision = row["group"].rsplit(":", 1)[0].rsplit(", ", 1)[1]
    return max(row["flops"] / rates["mm_gflops"][precision], row["bytes"] / rates["copy_gbps"]) / 1e3


def measured(found: dict) -> list[str]:
    """The device benchmarks of one result as Markdown."""
    rates = found["rates"]
    mm = ", ".join(f"{name} {rate / 1e3:.0f}" for name, rate in rates["mm_gflops"].items())
    lines = [f"copy {rates['copy_gbps']:.0f} GB/s; torch.mm 8192^3, TFLOP/s: {mm}"]
    for group in dict.fromkeys(row["group"] for row in found["rows"]):
        rows = sorted((row for row in found["rows"] if row["group"] == group), key=lambda row: row["median_ms"])
        own = next((row["median_ms"] for row in rows if row["name"] == OURS), None)
        lines += [
            "",
            f"### {group}",
            "",
            "| | median us | quartiles | times ours | % of floor |",
            "|---|---:|---:|---:|---:|",
        ]
        for row in rows:
            floor = floor_us(row, rates)
            cells = [
                digits(1e3 * row["median_ms"]),
                f"{digits(1e3 * row['q1_ms'])}-{digits(1e3 * row['q3_ms'])}",
                f"{row['median_ms'] / own:.2f}" if own else "-",
                f"{floor / row['median_ms'] / 10:.0f}" if floor else "-",
            ]
            lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return lines


def goals(rows: list[dict]) -> list[str]:
    lines = ["| work | goal | measured | |", "|---|---:|---:|---|"]
    for judged in (goal.judge(rows) for goal in GOALS):
        value = "-" if judged["measured"] is None else f"{judged['measured']:.2f}"
        verdict = {None: "not measured", True: "met", False: "**not met**"}[judged["met"]]
        lines.append(f"| {judged['group']} | {judged['goal']} | {value} | {verdict} |")
    return lines


class _TorchKernels(TorchDispatchMode):
    """Counts torch's own operations that are a kernel on a GPU: all but views and allocations."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not (func.is_view or "empty" in func.__name__ or "view" in func.__name__)
        return func(*args, **(kwargs or {}))


def count_launches(work: Work, precision: Precision, direction: str) -> int:
    """Of one call: ours, and what the launchers leave to torch."""
    with torch.device("meta"), precision.in_force():
        tensors = work.inputs(precision.dtype)
        grads = [torch.empty(shape, dtype=precision.dtype) for shape in work.output_shapes()]
        with recording() as launches, _TorchKernels() as torch_kernels:
            run(work, "triton", tensors, direction, grads)
    return len(launches) + torch_kernels.count


def estimates() -> list[str]:
    """Operations, bytes, floors and what may be expected on an H200, for every work, dtype and direction."""
    lines = [
        "| work | dtype | direction | MFLOP | MB | arithmetic us | bytes us | launches | expected us |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for work in WORK:
        for precision in (p for p in PRECISIONS if p.name in ("float32", "bfloat16")):
            for direction in (FORWARD, BOTH):
                flops, nbytes = work.least_work(precision.dtype, direction)
                floors = floors_us(work, precision, direction, H200)
                count = count_launches(work, precision, direction)
                expected = FACTOR * max(floors.values()) + US_A_LAUNCH * count
                numbers = [f"{flops / 1e6:,.0f}", f"{nbytes / 1e6:,.1f}", *map(digits, floors.values()), f"{count}"]
                name = f"{work.op}, {work.label}"
                lines.append(f"| {name} | {precision.name} | {direction} | {' | '.join(numbers)} | {expected:,.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device_tables", description=__doc__.splitlines()[0])
    parser.add_argument("result", nargs="?", type=Path, help="a JSON of `make gpu`; without it: estimates")
    arguments = parser.parse_args()
    if arguments.result is None:
        print("\n".join(estimates()))
        return
    found = json.loads(arguments.result.read_text())["benchmarks"]
    print("\n".join([*measured(found), "", "### Goals", "", *goals(found["rows"])]))


if __name__ == "__main__":
    main()
