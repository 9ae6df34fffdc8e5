"""The goals of this package, each with its measured value.

Ratios compare medians of one run. The goals of a CPU hold for two threads and float32, the goals of a GPU for an H200.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.support import contenders as forms
from benchmarks.support import floors, tables
from benchmarks.support.results import Results
from benchmarks.support.work import BANK, BOTH, DIRECTIONS, FORWARD, FULL_DOWN, LAYER, ONE_TERM, SMALLER_LAYER, Work


class Goal(NamedTuple):
    """A bound on a measured value.

    Attributes:
        work: The measured work; in most goals the name of the group.
        measure: The measured value, or the rows that our time is compared with.
        bound: The value to reach.
        at_least: True: the value must be at least the bound. False: at most.
        value: Returns the measured value. Raises KeyError if a row was not measured.
        unit: Unit of the value. "x": a ratio.
    """

    work: str
    measure: str
    bound: float
    at_least: bool
    value: Callable[[Results], float]
    unit: str = "x"

    def judge(self, results: Results) -> dict[str, Any]:
        """Return the goal, the measured value and whether it is met. The last two are None if rows are missing."""
        judged: dict[str, Any] = {"group": self.work, "measure": self.measure, "measured": None, "met": None}
        with contextlib.suppress(KeyError):
            value = self.value(results)
            judged |= {"measured": value, "met": value >= self.bound if self.at_least else value <= self.bound}
        return judged | {"goal": f"{'>=' if self.at_least else '<='} {self.bound:g}{self.unit}"}


def speedup(group: str, bound: float, *names: str, measure: str = "") -> Goal:
    """Return a goal: the best of the named rows takes at least `bound` times our time."""
    return Goal(group, measure or " or ".join(names), bound, True, lambda results: results.times_ours(group, *names))


def slowdown(group: str, bound: float, name: str, over: str) -> Goal:
    """Return a goal: the row `name` takes at most `bound` times as long as the row `over`."""
    measure = f"{name}: time over {over}"
    return Goal(group, measure, bound, False, lambda results: results.median(group, name) / results.median(group, over))


def own_time(group: str, bound_us: float, measure: str = "device time") -> Goal:
    """Return a goal: our time is at most `bound_us` microseconds."""
    return Goal(group, measure, bound_us, False, lambda results: 1e3 * results.ours(group), " us")


BANK_GROUP = "paper bank: "
LAYER_GROUP = f"{LAYER.name}: "
SMALLER_LAYER_GROUP = f"{SMALLER_LAYER.name}: "
FULL_GROUP = f"{FULL_DOWN.name}: "
HOST = "host cost of a call with gradients on (16 -> 16, 4 rows): "
LAYER_FORMS = (forms.ARRAY, forms.STAGES, forms.PRODUCT, *forms.COMPILED)


def arithmetic_share(results: Results) -> float:
    """Return the percentage of the torch.mm rate that the forward pass of the bank reaches."""
    found, rows = results.groups()[BANK_GROUP + FORWARD]
    return 100 * floors.of_row(rows[0], found)["arithmetic"] / results.ours(BANK_GROUP + FORWARD)


def worst_full_rank(results: Results) -> float:
    """Return our time over the time of the best plain form, for the shape and direction with the largest ratio."""
    groups = [g for g in results.groups() if g.startswith("phm_linear, ")]
    if not groups:
        raise KeyError("phm_linear")
    return max(1 / results.times_ours(group, forms.PRODUCT, "local first", "rule first") for group in groups)


def peak_memory(results: Results) -> float:
    """Return the peak memory of the bank, forward and backward, over the needed memory."""
    row = results.row(f"peak memory, paper bank: {BOTH}", "mop_kernels cpu")
    return row["peak_mb"] / row["needed_mb"]


def generator_share(results: Results) -> float:
    """Return the percentage of a training step that the forward and backward pass of mop_ffn takes."""
    step = results.median("training step, frozen T5-base, 8 x (64 -> 32) tokens", "MOP")
    return 100 * results.median(f"MOP's generator in that step: {BOTH}", "mop_ffn") / step


CPU_GOALS = [
    speedup(BANK_GROUP + BOTH, 150, forms.EINSUM_LOOP),
    speedup(BANK_GROUP + BOTH, 70, forms.AUTHORS_WAY),
    speedup(BANK_GROUP + BOTH, 8, forms.BATCHED_PRODUCT),
    speedup(BANK_GROUP + FORWARD, 4.5, forms.BATCHED_STAGES),
    speedup(BANK_GROUP + BOTH, 3, forms.BATCHED_STAGES),
    speedup(BANK_GROUP + BOTH, 2, *forms.COMPILED),
    Goal(BANK_GROUP + FORWARD, "share of the torch.mm 1024^3 rate", 50, True, arithmetic_share, " %"),
    speedup(LAYER_GROUP + FORWARD, 10, forms.DENSE),
    speedup(LAYER_GROUP + BOTH, 6, forms.DENSE),
    speedup(SMALLER_LAYER_GROUP + FORWARD, 1.5, *LAYER_FORMS, measure="best PyTorch form"),
    speedup(SMALLER_LAYER_GROUP + BOTH, 1.5, *LAYER_FORMS, measure="best PyTorch form"),
    speedup(FULL_GROUP + BOTH, 10, forms.ARRAY),
    Goal("phm_linear, worst shape and direction", "time over the best plain form", 1.05, False, worst_full_rank),
    own_time(HOST + FORWARD, 10, "time of phm_linear (or the next line)"),
    slowdown(HOST + FORWARD, 4, "mop_kernels phm_linear", "F.linear"),
    Goal(BANK_GROUP + BOTH, "peak memory over what is needed", 1.2, False, peak_memory),
    slowdown(f"experts asked for: {FORWARD}", 1.1, "E = 1024, 5 asked for", "E = 5"),
    Goal("training step, frozen T5-base", "share of mop_ffn", 2, False, generator_share, " %"),
    *(
        slowdown(group, bound, name, "the plain model")
        for group in (
            "task_moe, m = 3, evaluation, T5-base, 8 x (64 -> 32) tokens: forward",
            "task_moe, m = 3, generate, T5-base, 8 x 4 beams, 64 tokens -> 8",
        )
        for name, bound in (("dense", 3.2), ("hard-routed, one task", 1.1))
    ),
]


def group_on_gpu(work: Work, precision: str, direction: str) -> str:
    """Return the name of a group of bench_device.py."""
    return f"{work.name}, {precision}: {direction}"


GPU_GOALS = [
    own_time(group_on_gpu(BANK, "bfloat16", FORWARD), 10),
    own_time(group_on_gpu(BANK, "float32", FORWARD), 20),
    own_time(group_on_gpu(BANK, "bfloat16", BOTH), 40),
    own_time(group_on_gpu(BANK, "float32", BOTH), 80),
    *(
        speedup(group_on_gpu(BANK, precision, direction), bound, *names)
        for precision in ("bfloat16", "float32")
        for direction in DIRECTIONS
        for bound, names in ((5, forms.COMPILED), (100, (f"{forms.EINSUM_LOOP}, eager",)))
    ),
    speedup(group_on_gpu(LAYER, "bfloat16", FORWARD), 3, forms.DENSE),
    speedup(group_on_gpu(ONE_TERM, "bfloat16", FORWARD), 1, forms.LYCORIS),
]


def as_markdown(goals: Sequence[Goal], results: Results) -> list[str]:
    """Return the goals, their values and whether they are met as a Markdown table."""
    table = [["work", "measure", "goal", "measured", ""]]
    for goal in goals:
        judged = goal.judge(results)
        value = "-" if judged["measured"] is None else f"{judged['measured']:.2f}{goal.unit}"
        verdict = {None: "not measured", True: "met", False: "**not met**"}[judged["met"]]
        table.append([goal.work, goal.measure, judged["goal"], value, verdict])
    return tables.markdown(table, text=(0, 1, 4))
