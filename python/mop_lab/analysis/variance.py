"""How much scores vary over seeds (MOP, Fig. 5): the variance of each metric on each scenario, and their mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, pvariance, variance
from typing import NamedTuple

from mop_t5.evaluation import AVERAGE, Table, TaskScores, with_average
from mop_t5.plots.figures import look, save_figure

from mop_lab.finished_runs import FinishedSystem
from mop_lab.suites.score_rows import Repetitions, over_seeds

_ESTIMATORS: dict[str, Callable[[list[float]], float]] = {"n - 1": variance, "n": pvariance}


class Varied(NamedTuple):
    """A system with several seeds. seeds: one result a seed, scenario -> scores, the average last."""

    label: str
    seeds: Repetitions

    def by_scenario(self, estimator: str) -> dict[str, TaskScores]:
        """Scenario -> variance of each metric x 100 over the seeds, over 100 (as tables show scores times 100); last
        the mean over scenarios."""
        alone = [{name: scores for name, scores in one.items() if name != AVERAGE} for one in self.seeds]
        return with_average(over_seeds(alone, lambda numbers: 100 * _ESTIMATORS[estimator](numbers)))

    def mean(self, estimator: str) -> float:
        """The mean over scenarios and metrics of the variance of F1 x 100: what Fig. 5 shows."""
        return 100 * self.by_scenario(estimator)[AVERAGE].mean

    def averages(self) -> list[float]:
        """The seeds' average over scenarios and metrics, times 100."""
        return [100 * one[AVERAGE].mean for one in self.seeds]


def varied(systems: Sequence[FinishedSystem]) -> tuple[list[Varied], list[str]]:
    """The systems with several seeds, and the labels of the others. Raises ValueError where none has two seeds, and
    for a system whose seeds were not scored on the same scenarios."""
    found = [Varied(one.label, list(one.scores().values())) for one in systems]
    several = [one for one in found if len(one.seeds) > 1]
    if not several:
        raise ValueError(
            f"a variance over seeds needs at least two of them, and {', '.join(one.label for one in found)} "
            "has one seed each. Train with --seeds '[0, 1, 2]'."
        )
    for one in several:
        if len({tuple(scores) for scores in one.seeds}) > 1:
            raise ValueError(f"the seeds of {one.label} were not scored on the same scenarios. Evaluate them alike.")
    return several, [one.label for one in found if len(one.seeds) == 1]


def variance_table(
    title: str, systems: Sequence[Varied], left_out: Sequence[str], remarks: Sequence[str] = ()
) -> Table:
    """Return a table with one row per system and estimator: the variance on each scenario, its mean over them, and over
    metrics too. remarks: Notes to stand before the table's own."""
    scenarios = list(dict.fromkeys(name for one in systems for name in one.seeds[0] if name != AVERAGE))
    rows = []
    for one in systems:
        for estimator in _ESTIMATORS:
            found = one.by_scenario(estimator)
            cells = [found.get(name) for name in (*scenarios, AVERAGE)]
            rows.append([one.label, f"variance ({estimator})", len(one.seeds), *cells, one.mean(estimator)])
    notes = [
        *remarks,
        "Variance of F1 x 100 over the seeds, in points squared, of each metric on each scenario by itself. average: "
        "mean over scenarios. all: mean over scenarios and metrics, which is Fig. 5 of the MOP paper.",
        "(n - 1) estimates the variance of seeds that were not tried; (n) is that of those tried, (n - 1) / n of it. "
        "The paper does not say which it has.",
        "Variances of few seeds are themselves uncertain: with three seeds each, that of one system's score can be 39 "
        "times that of another by chance (F test, 5 %, two-sided).",
    ]
    if left_out:
        notes.append(f"Left out, with one seed: {'; '.join(left_out)}.")
    columns = ["system", "quantity", "seeds", *scenarios, AVERAGE, "all"]
    return Table(title, columns, rows, dict.fromkeys([*scenarios, AVERAGE, "all"], ".3f"), notes, labels=2)


def plot_variance(path: str | Path, systems: Sequence[Varied], title: str) -> list[Path]:
    """Write PATH.png and PATH.svg and return both: bars of the variance by both estimators, and beside them the average
    score of each seed."""
    from matplotlib.figure import Figure

    longest = max(len(one.label) for one in systems)
    figure = Figure(figsize=(8.5 + 0.085 * longest, 1.6 + 0.42 * len(systems)), layout="constrained")
    bars, points = figure.subplots(1, 2, sharey=True)
    places = range(len(systems))
    for number, (estimator, height) in enumerate(zip(_ESTIMATORS, (-0.19, 0.19))):
        where = [place + height for place in places]
        values = [one.mean(estimator) for one in systems]
        color = look((0, 5)[number])["color"]
        found = bars.barh(where, values, 0.36, label=f"variance ({estimator})", color=color)
        bars.bar_label(found, fmt="%.2f", padding=2, fontsize=7)
    for place, one in enumerate(systems):
        scores = one.averages()
        points.hlines(place, min(scores), max(scores), color="0.7", linewidth=2, zorder=1)
        points.plot(scores, [place] * len(scores), "o", color=look(0)["color"], markersize=6, alpha=0.75, zorder=2)
        points.plot(mean(scores), place, "|", color="black", markersize=14, markeredgewidth=1.5, zorder=3)
    bars.set_yticks(places, [one.label for one in systems])
    bars.set_ylim(len(systems) - 0.4, -0.6)  # the first on top
    bars.margins(x=0.12)
    bars.set_xlabel("mean over scenarios and metrics of the variance\nof F1 x 100 over seeds (points squared)")
    points.set_xlabel("average score x 100: a dot a seed, | their mean")
    for axes in (bars, points):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    bars.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    return save_figure(figure, path, [one.label for one in systems])
