"""The goals of this package, each with what was measured. Ratios are of medians of one run, two threads, float32."""

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.support import tables

FORWARD, BOTH = "forward", "forward + backward"
BANK = "paper bank: "
LAYER = "lowrank_phm_linear, 4096 rows, 4096 -> 4096, terms 16, rank 1: "
SMALLER_LAYER = "lowrank_phm_linear, 512 rows, 1024 -> 1024, terms 4, rank 1: "
FULL = "phm_linear, 40 rows, 768 -> 128, terms 16: "
ARRAY = "terms*d*m array (Compacter's way)"
HOST = "host cost of a call with gradients on (16 -> 16, 4 rows): forward"
LAYER_FORMS = ("three stages", "W as one product", "torch.compile, three stages", "torch.compile, W as one product")


class Results:
    """All modules' JSON by name."""

    def __init__(self, modules: dict[str, dict]):
        self.modules = modules

    def groups(self) -> dict[str, tuple[dict, list[dict]]]:
        """group -> (its module's JSON, its rows)."""
        return {group: (found, rows) for found in self.modules.values() for group, rows in tables.groups(found).items()}

    def row(self, group: str, name: str) -> dict:
        for row in self.groups()[group][1]:
            if row["name"] == name:
                return row
        raise KeyError(name)

    def median(self, group: str, name: str) -> float:
        return self.row(group, name)["median_ms"]

    def ours(self, group: str) -> float:
        own = tables.own_median(self.groups()[group][1])
        if own is None:
            raise KeyError(group)
        return own

    def times_ours(self, group: str, *names: str) -> float:
        """The best of the named rows over our median; names that were not measured do not count."""
        rows = [row["median_ms"] for row in self.groups()[group][1] if row["name"] in names]
        if not rows:
            raise KeyError(names)
        return min(rows) / self.ours(group)


class Target(NamedTuple):
    work: str
    against: str
    bound: float  # at least, or at most
    at_least: bool
    measure: Callable[[Results], float]
    unit: str = "x"

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def mm_share(results: Results) -> float:
    found, rows = results.groups()[BANK + FORWARD]
    return 100 * tables.floor_ms(rows[0], found)["arithmetic"] / results.ours(BANK + FORWARD)


def worst_full_rank(results: Results) -> float:
    """Ours over the best plain form, in the shape and direction where that is worst."""
    forms = ("W as one product", "local first", "rule first")
    groups = [g for g in results.groups() if g.startswith("phm_linear, ")]
    if not groups:
        raise KeyError("phm_linear")
    return max(1 / results.times_ours(group, *forms) for group in groups)


def host_cost(results: Results) -> float:
    return 1e3 * results.median(HOST, "mop_kernels phm_linear")


def host_ratio(results: Results) -> float:
    return results.median(HOST, "mop_kernels phm_linear") / results.median(HOST, "F.linear")


def peak_memory(results: Results) -> float:
    row = results.row(f"peak memory, paper bank: {BOTH}", "mop_kernels cpu")
    return row["peak_mb"] / row["needed_mb"]


def experts_ratio(results: Results) -> float:
    group = "experts asked for: forward"
    return results.median(group, "E = 1024, 5 asked for") / results.median(group, "E = 5")


def generator_share(results: Results) -> float:
    step = results.median("training step, frozen T5-base, 8 x (64 -> 32) tokens", "MOP")
    generator = results.median("MOP's generator in that step: forward + backward", "mop_ffn")
    return 100 * generator / step


def over_plain(work: str, group: str, name: str, bound: float) -> Target:
    """A task_moe's median over that of the plain model."""

    def measure(results: Results) -> float:
        return results.median(group, name) / results.median(group, "the plain model")

    return Target(f"task_moe, m = 3, {work}", f"{name}: time over the plain model", bound, False, measure)


def ratio(work: str, group: str, against: str, bound: float, *names: str) -> Target:
    return Target(work, against, bound, True, lambda results: results.times_ours(group, *names))


PAIRS, STAGES = "pair by pair, ", "batched, three stages"
TARGETS = [
    ratio(f"paper bank, {BOTH}", BANK + BOTH, "einsum loop", 150, f"{PAIRS}one einsum a map"),
    ratio(f"paper bank, {BOTH}", BANK + BOTH, "the authors' way", 70, f"{PAIRS}terms*d*m array (the authors' way)"),
    ratio(f"paper bank, {BOTH}", BANK + BOTH, "batched, W as one product", 8, "batched, W as one product"),
    ratio(f"paper bank, {FORWARD}", BANK + FORWARD, STAGES, 4.5, STAGES),
    ratio(f"paper bank, {BOTH}", BANK + BOTH, STAGES, 3, STAGES),
    ratio(
        f"paper bank, {BOTH}",
        BANK + BOTH,
        "torch.compile of the best",
        2,
        "torch.compile, three stages",
        "torch.compile, W as one product",
    ),
    Target(f"paper bank, {FORWARD}", "share of the torch.mm 1024^3 rate", 50, True, mm_share, " %"),
    ratio(f"{LAYER}{FORWARD}", LAYER + FORWARD, "dense nn.Linear", 10, "dense F.linear"),
    ratio(f"{LAYER}{BOTH}", LAYER + BOTH, "dense nn.Linear", 6, "dense F.linear"),
    ratio(f"{SMALLER_LAYER}{FORWARD}", SMALLER_LAYER + FORWARD, "best PyTorch form", 1.5, ARRAY, *LAYER_FORMS),
    ratio(f"{SMALLER_LAYER}{BOTH}", SMALLER_LAYER + BOTH, "best PyTorch form", 1.5, ARRAY, *LAYER_FORMS),
    ratio(f"{FULL}{BOTH}", FULL + BOTH, "Compacter's eager way", 10, ARRAY),
    Target("phm_linear, worst shape and direction", "time over the best plain form", 1.05, False, worst_full_rank),
    Target("small phm_linear, gradients on", "host time (or the next line)", 10, False, host_cost, " us"),
    Target("small phm_linear, gradients on", "over F.linear", 4, False, host_ratio),
    Target(f"paper bank, {BOTH}", "peak memory over what is needed", 1.2, False, peak_memory),
    Target(f"E = 1024, 5 asked for, {FORWARD}", "time over E = 5", 1.1, False, experts_ratio),
    Target("training step, frozen T5-base", "share of mop_ffn", 2, False, generator_share, " %"),
    *(
        over_plain(work, group, name, bound)
        for work, group in (
            ("forward", "task_moe, m = 3, evaluation, T5-base, 8 x (64 -> 32) tokens: forward"),
            ("generate", "task_moe, m = 3, generate, T5-base, 8 x 4 beams, 64 tokens -> 8"),
        )
        for name, bound in (("dense", 3.2), ("hard-routed, one task", 1.1))
    ),
]


def as_markdown(results: Results) -> list[str]:
    lines = ["| work | measure | goal | measured | |", "|---|---|---:|---:|---|"]
    for target in TARGETS:
        goal = f"{'>=' if target.at_least else '<='} {target.bound:g}{target.unit}"
        try:
            value = target.measure(results)
            found = [f"{value:.2f}{target.unit}", "met" if target.met(value) else "**not met**"]
        except KeyError:
            found = ["-", "not measured"]
        lines.append(f"| {target.work} | {target.against} | {goal} | {' | '.join(found)} |")
    return lines
