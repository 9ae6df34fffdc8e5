"""Measure how much scores vary over seeds: the variance of each metric on each scenario (MOP paper, Fig. 5)."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, pvariance, variance

from mop_t5.evaluation import AVERAGE, Table, TaskScores, with_average
from mop_t5.plots.figures import look, save_figure

from mop_lab.finished_runs import FinishedSystem
from mop_lab.suites.score_rows import over_seeds

_ESTIMATORS: dict[str, Callable[[list[float]], float]] = {"n - 1": variance, "n": pvariance}


def variances(system: FinishedSystem, estimator: str) -> dict[str, TaskScores]:
    """Return scenario -> variance over the seeds of each metric x 100, with the mean over scenarios last.

    The variances are divided by 100, because tables show scores times 100.

    Args:
        system: A system with several seeds.
        estimator: "n - 1" or "n".
    """
    seeds = list(system.scores.values())
    return with_average(over_seeds(seeds, lambda numbers: 100 * _ESTIMATORS[estimator](numbers)))


def varied(systems: Sequence[FinishedSystem]) -> tuple[list[FinishedSystem], list[str]]:
    """Return the systems with several seeds, and the labels of the other systems.

    Raises:
        ValueError: No system has two seeds, or the seeds of a system were not scored on the same scenarios.
    """
    several = [one for one in systems if len(one.seeds) > 1]
    if not several:
        raise ValueError(
            f"a variance over seeds needs at least two of them, and {', '.join(one.label for one in systems)} "
            "has one seed each. Train with --seeds '[0, 1, 2]'."
        )
    for one in several:
        if len({tuple(scores) for scores in one.scores.values()}) > 1:
            raise ValueError(f"the seeds of {one.label} were not scored on the same scenarios. Evaluate them alike.")
    return several, [one.label for one in systems if len(one.seeds) == 1]


def _of_all(variances: Mapping[str, TaskScores]) -> float:
    """Return the mean over scenarios and metrics of the variance of F1 x 100, as Fig. 5 shows it."""
    return 100 * variances[AVERAGE].mean


def variance_table(
    title: str, systems: Sequence[FinishedSystem], left_out: Sequence[str], remarks: Sequence[str] = ()
) -> Table:
    """Return a table with one row per system and estimator: the variance on each scenario, and its means.

    Args:
        title: The title of the table.
        systems: The systems with several seeds.
        left_out: Labels of the systems with one seed.
        remarks: Notes before the notes of the table.
    """
    found = [(one, name, variances(one, name)) for one in systems for name in _ESTIMATORS]
    scenarios = list(dict.fromkeys(name for _, _, means in found for name in means if name != AVERAGE))
    rows = [
        [one.label, f"variance ({name})", len(one.seeds), *map(means.get, [*scenarios, AVERAGE]), _of_all(means)]
        for one, name, means in found
    ]
    notes = [
        *remarks,
        "Variance of F1 x 100 over the seeds, in points squared, of each metric on each scenario by itself. average: "
        "mean over scenarios. all: mean over scenarios and metrics, as in Fig. 5 of the MOP paper.",
        "(n - 1) estimates the variance of seeds that were not tried. (n) is the variance of the seeds that were "
        "tried, (n - 1) / n of the estimate. The paper does not say which of the two it shows.",
        "Variances of few seeds are themselves uncertain: with three seeds each, the variance of one system can be 39 "
        "times the variance of another by chance (F test, 5 %, two-sided).",
    ]
    if left_out:
        notes.append(f"Left out, with one seed: {'; '.join(left_out)}.")
    columns = ["system", "quantity", "seeds", *scenarios, AVERAGE, "all"]
    return Table(title, columns, rows, dict.fromkeys([*scenarios, AVERAGE, "all"], ".3f"), notes, labels=2)


def plot_variance(path: str | Path, systems: Sequence[FinishedSystem], title: str) -> list[Path]:
    """Plot the variance by both estimators as bars, and beside the bars the average score of each seed.

    Args:
        path: The path of the files without a suffix.
        systems: The systems with several seeds.
        title: The title of the plot.

    Returns:
        PATH.png and PATH.svg.
    """
    from matplotlib.figure import Figure

    longest = max(len(one.label) for one in systems)
    figure = Figure(figsize=(8.5 + 0.085 * longest, 1.6 + 0.42 * len(systems)), layout="constrained")
    bars, points = figure.subplots(1, 2, sharey=True)
    places = range(len(systems))
    for number, (estimator, height) in enumerate(zip(_ESTIMATORS, (-0.19, 0.19))):
        where = [place + height for place in places]
        values = [_of_all(variances(one, estimator)) for one in systems]
        color = look((0, 5)[number])["color"]
        found = bars.barh(where, values, 0.36, label=f"variance ({estimator})", color=color)
        bars.bar_label(found, fmt="%.2f", padding=2, fontsize=7)
    for place, one in enumerate(systems):
        scores = one.averages
        points.hlines(place, min(scores), max(scores), color="0.7", linewidth=2, zorder=1)
        points.plot(scores, [place] * len(scores), "o", color=look(0)["color"], markersize=6, alpha=0.75, zorder=2)
        points.plot(mean(scores), place, "|", color="black", markersize=14, markeredgewidth=1.5, zorder=3)
    bars.set_yticks(places, [one.label for one in systems])
    bars.set_ylim(len(systems) - 0.4, -0.6)  # the first on top
    bars.margins(x=0.12)
    bars.set_xlabel("mean over scenarios and metrics of the variance\nof F1 x 100 over seeds (points squared)")
    points.set_xlabel("average score x 100: one dot per seed, | their mean")
    for axes in (bars, points):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
    bars.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    return save_figure(figure, path, [one.label for one in systems])
