"""Build the score tables of the page: numbers with their deviations, by which the rows can be sorted."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple

from mop_t5.evaluation import AVERAGE, TaskScores, by_metric
from mop_t5.evaluation.tables import ROUGE_NAMES

from mop_lab.finished_runs import FinishedSystem

Baselines = Mapping[str, Mapping[str, TaskScores]]  # baseline -> scenario -> scores


class Cell(NamedTuple):
    """A cell of a grid.

    Attributes:
        text: The text that is shown.
        value: The value by which the column is sorted. None for an empty cell. Numbers are aligned to the right.
        spread: The deviation, shown behind the text.
        best: True if the value is the highest of the systems.
    """

    text: str
    value: float | str | None
    spread: str = ""
    best: bool = False


class Grid(NamedTuple):
    """A table of scores.

    Attributes:
        columns: (group, header) of each column behind the labels. Columns of one scenario are a group.
        rows: Label and cells of each system.
        baselines: Label and cells of each baseline. They stand below the systems.
    """

    columns: Sequence[tuple[str, str]]
    rows: Sequence[tuple[str, list[Cell]]]
    baselines: Sequence[tuple[str, list[Cell]]]


_EMPTY = Cell("", None)
_Numbers = dict[tuple[str, str], list[float]]  # (scenario, metric) -> scores times 100, one per seed


def overview(systems: Sequence[FinishedSystem], baselines: Baselines, mark_best: bool) -> Grid:
    """Return method, parameters and average scores of each system.

    Args:
        systems: The systems.
        baselines: The baselines.
        mark_best: Mark the best of several systems in each column.
    """
    scores = score_grid(systems, baselines, average=True, mark_best=mark_best)
    counted = any(system.backbone for system in systems)
    columns = ["method", "seeds", *(["trained", "% of backbone"] if counted else [])]
    return Grid(
        [("", name) for name in (*columns, *(metric for _, metric in scores.columns))],
        [(s.label, [*_about(s)[: len(columns)], *cells]) for s, (_, cells) in zip(systems, scores.rows)],
        [(name, [*[_EMPTY] * len(columns), *cells]) for name, cells in scores.baselines],
    )


def score_grid(
    systems: Sequence[FinishedSystem], baselines: Baselines, *, average: bool = False, mark_best: bool = True
) -> Grid:
    """Return the scores of each system on each scenario.

    Args:
        systems: The systems.
        baselines: The baselines.
        average: Return the average in place of the scenarios.
        mark_best: Mark the best of several systems in each column.
    """

    def numbers(seeds: Iterable[Mapping[str, TaskScores]]) -> _Numbers:
        found: _Numbers = {}
        for scores in seeds:
            for scenario, one in scores.items():
                for metric, value in by_metric(one).items() if (scenario == AVERAGE) == average else ():
                    found.setdefault((scenario, metric), []).append(100 * value)
        return found

    of_systems = [(system.label, numbers(system.scores.values())) for system in systems]
    of_baselines = [(name, numbers([scores])) for name, scores in baselines.items()]
    every = dict.fromkeys(key for _, own in [*of_systems, *of_baselines] for key in own)
    keys = sorted(every, key=lambda key: key[0])
    best = {}
    if mark_best and len(systems) > 1:
        means = {key: [mean(own[key]) for _, own in of_systems if key in own] for key in keys}
        best = {key: f"{max(found):.2f}" for key, found in means.items() if found}

    def cells(own: _Numbers, best: Mapping[tuple[str, str], str]) -> list[Cell]:
        return [_cell(own[key], best.get(key)) if key in own else _EMPTY for key in keys]

    return Grid(
        [(scenario, ROUGE_NAMES.get(metric, metric)) for scenario, metric in keys],
        [(label, cells(own, best)) for label, own in of_systems],
        [(name, cells(own, {})) for name, own in of_baselines],
    )


def _cell(numbers: Sequence[float], best: str | None) -> Cell:
    text = f"{mean(numbers):.2f}"
    return Cell(text, mean(numbers), f"{stdev(numbers):.2f}" if len(numbers) > 1 else "", text == best)


def _about(system: FinishedSystem) -> list[Cell]:
    """Return method, seeds, trained parameters and their share of the backbone."""
    known = [Cell(system.method, system.method), Cell(str(len(system.seeds)), len(system.seeds))]
    if not system.backbone:
        return [*known, _EMPTY, _EMPTY]
    return [*known, Cell(f"{system.trained:,}", system.trained), Cell(f"{system.share:.4g}", system.share)]
