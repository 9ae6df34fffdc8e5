"""The tables of scores on the page: numbers with their deviations, by which they can be sorted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import NamedTuple

from mop_t5.evaluation import AVERAGE, TaskScores, by_metric
from mop_t5.evaluation.tables import ROUGE_NAMES

from mop_lab.finished_runs import FinishedSystem

Floors = Mapping[str, Mapping[str, TaskScores]]


class Column(NamedTuple):
    """group: what stands above several columns, such as a scenario. first: of its group. number: aligned to the
    right."""

    name: str
    group: str = ""
    first: bool = False
    number: bool = True


class Cell(NamedTuple):
    """text: as it is shown, with `spread` behind it. value: what it is sorted by; None where there is none. best: the
    highest of the systems."""

    text: str
    value: float | str | None
    spread: str = ""
    best: bool = False


class Grid(NamedTuple):
    """Rows of label and cells, one a column. floors: rows that are no system, below."""

    columns: Sequence[Column]
    rows: Sequence[tuple[str, list[Cell]]]
    floors: Sequence[tuple[str, list[Cell]]]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Each group and how many columns it has; none where columns have no groups."""
        return list(Counter(column.group for column in self.columns if column.group).items())


_EMPTY = Cell("", None)
_Numbers = dict[tuple[str, str], list[float]]  # (scenario, metric) -> scores times 100, one a seed


def overview(systems: Sequence[FinishedSystem], floors: Floors) -> Grid:
    """What each system trains and scores on average over scenarios. None is the best where these differ."""
    numbers = {system.label: _numbers(system.scores().values(), average=True) for system in systems}
    of_floors = {name: _numbers([scores], average=True) for name, scores in floors.items()}
    scores = _grid(numbers, of_floors, compete=not differing_scenarios(systems))
    counted = any(system.trained is not None for system in systems)
    columns = [Column("method", number=False), Column("seeds")]
    columns += [Column("trained"), Column("% of backbone")] if counted else []
    rows = [(s.label, [*_about(s)[: len(columns)], *cells]) for s, (_, cells) in zip(systems, scores.rows)]
    empty = [_EMPTY] * len(columns)
    return Grid(
        [*columns, *(Column(column.name) for column in scores.columns)],
        rows,
        [(name, [*empty, *cells]) for name, cells in scores.floors],
    )


def by_scenario(systems: Sequence[FinishedSystem], floors: Floors) -> Grid:
    """What each system scores on each scenario."""
    return _grid(
        {system.label: _numbers(system.scores().values(), average=False) for system in systems},
        {name: _numbers([scores], average=False) for name, scores in floors.items()},
    )


def differing_scenarios(systems: Sequence[FinishedSystem]) -> bool:
    """Whether the averages are over other scenarios from system to system."""
    return len({frozenset(next(iter(system.scores().values()))) for system in systems}) > 1


def _numbers(seeds: Iterable[Mapping[str, TaskScores]], average: bool) -> _Numbers:
    """Those of the average, or those of the scenarios."""
    found: _Numbers = {}
    for scores in seeds:
        for scenario, one in scores.items():
            for metric, value in by_metric(one).items() if (scenario == AVERAGE) == average else ():
                found.setdefault((scenario, metric), []).append(100 * value)
    return found


def _grid(systems: Mapping[str, _Numbers], floors: Mapping[str, _Numbers], compete: bool = True) -> Grid:
    """compete: whether the best systems of a column are marked, where there are several."""
    every = dict.fromkeys(key for numbers in [*systems.values(), *floors.values()] for key in numbers)
    keys = sorted(every, key=lambda key: key[0])
    best = {}
    if compete and len(systems) > 1:
        means = {key: [mean(numbers[key]) for numbers in systems.values() if key in numbers] for key in keys}
        best = {key: _text(max(found)) for key, found in means.items() if found}

    def cells(numbers: _Numbers, best: Mapping[tuple[str, str], str]) -> list[Cell]:
        return [_cell(numbers[key], best.get(key)) if key in numbers else _EMPTY for key in keys]

    return Grid(
        [Column(ROUGE_NAMES.get(m, m), s, first=i == 0 or keys[i - 1][0] != s) for i, (s, m) in enumerate(keys)],
        [(label, cells(numbers, best)) for label, numbers in systems.items()],
        [(name, cells(numbers, {})) for name, numbers in floors.items()],
    )


def _text(number: float) -> str:
    return f"{number:.2f}"


def _cell(numbers: Sequence[float], best: str | None) -> Cell:
    text = _text(mean(numbers))
    return Cell(text, mean(numbers), _text(stdev(numbers)) if len(numbers) > 1 else "", text == best)


def _about(system: FinishedSystem) -> list[Cell]:
    """Its method, seeds, parameters and their share of the backbone."""
    known = [Cell(system.method, system.method), Cell(str(len(system.seeds)), len(system.seeds))]
    if system.trained is None:
        return [*known, _EMPTY, _EMPTY]
    share = 100 * system.trained / system.backbone
    return [*known, Cell(f"{system.trained:,}", system.trained), Cell(f"{share:.4g}", share)]
