"""Rows of a table that differ in how they are trained, and rows that start from the adapters of others.

Each row is a Suite of its own in the same output folder, so rows are resumed one by one, as suites are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from mop_t5.evaluation import AVERAGE, Table, TaskScores
from mop_t5.training import TrainingConfig

from mop_lab.suites.suite import Run, Suite, SuiteConfig
from mop_lab.suites.systems import System, check_options, fields_of


class Start(NamedTuple):
    """A row begins with the adapter that another row has trained with the same seed: `field` is given its folder."""

    field: str
    row: Row


@dataclass(frozen=True)
class Row:
    """system: its label is the folder of the runs. config: on what it is run; its systems are not looked at. training:
    but for learning_rate, which is the system's, and seed."""

    system: System
    config: SuiteConfig
    training: TrainingConfig
    start: Start | None = None

    @property
    def label(self) -> str:
        return self.system.label

    def suite(self, seed: int, options: dict[str, str] | None = None) -> Suite:
        """The suite of this row and seed. options: in place of those of the system."""
        system = replace(self.system, options=self.system.options | (options or {}))
        own = fields_of(self.system.method)
        known = {name: value for name, value in self.config.options.items() if name in own}
        config = replace(self.config, seeds=[seed], systems=[self.label], learning_rates={}, options=known)
        return Suite(config, self.training, [self.label], {self.label: system})


class Planned(NamedTuple):
    """A row and seed. runs: None while the row that it starts from is not finished."""

    row: Row
    seed: int
    suite: Suite | None
    runs: list[Run] | None

    @property
    def finished(self) -> bool:
        return self.runs is not None and all(self.suite.state(run) == "finished" for run in self.runs)


class Rows:
    """Some rows, each behind the one that it starts from, and their runs with every seed."""

    def __init__(self, rows: Sequence[Row]):
        self._rows = list(rows)
        for row in rows:
            check_options(row.config.options, {row.label: row.system.method for row in rows})
        self._plans: dict[tuple[str, int], Planned] = {}  # a plan attaches the method once, for its parameters

    def plan(self) -> Iterator[Planned]:
        """In the order in which they are run; nothing is written. What is wrong with a row is raised when it comes."""
        for row in self._rows:
            for seed in row.config.seeds:
                yield self._planned(row, seed)

    def _planned(self, row: Row, seed: int) -> Planned:
        if (row.label, seed) in self._plans:
            return self._plans[row.label, seed]
        options = {}
        if row.start is not None:
            first = self._planned(row.start.row, seed)
            if not first.finished:
                return Planned(row, seed, None, None)
            options[row.start.field] = str((first.runs[-1].folder / "adapter").resolve())
        suite = row.suite(seed, options)
        self._plans[row.label, seed] = Planned(row, seed, suite, suite.plan())
        return self._plans[row.label, seed]

    def overview(self) -> Table:
        """A row a run: what it trains at which rate, and what is left to do."""
        cells = []
        for row, seed, suite, runs in self.plan():
            if runs is None:
                cells.append([row.label, seed, None, row.system.learning_rate, "train, after the row it starts from"])
            for run in runs or ():
                cells.append([row.label, seed, run.trained, run.training.learning_rate, suite.state(run)])
        columns = ["row", "seed", "trained", "learning rate", "to do"]
        return Table(f"{len(cells)} runs", columns, cells, {"trained": ",d"})

    def run(self, after: Callable[[], None] | None = None) -> None:
        """Do what is left to do. after: is called when a row that was not finished is, with one more seed."""
        count = sum(len(row.config.seeds) for row in self._rows)
        for number, planned in enumerate(self.plan(), start=1):
            print(f"row {number}/{count}: {planned.row.label}, seed {planned.seed}", flush=True)
            left = not planned.finished
            planned.suite.run(planned.runs)  # the row it starts from has come before it
            if left and after is not None:
                after()

    def scores(self) -> dict[str, list[dict[str, TaskScores]]]:
        """Label -> for each finished seed scenario -> scores, the average last."""
        results: dict[str, list[dict[str, TaskScores]]] = {}
        for planned in self.plan():
            if planned.finished:
                label = planned.row.label
                results.setdefault(label, []).append(planned.suite.results(planned.runs)[label][0])
        return results

    def folders(self) -> dict[str, list[Path]]:
        """Label -> the run folder of each seed."""
        folders: dict[str, list[Path]] = {}
        for row, _, _, runs in self.plan():
            folders.setdefault(row.label, []).append(runs[-1].folder)
        return folders


def means_of(seeds: Sequence[dict[str, TaskScores]]) -> dict[str, float]:
    """Scenario -> the mean over seeds of its score, the average over scenarios left out."""
    return {name: sum(one[name].mean for one in seeds) / len(seeds) for name in seeds[0] if name != AVERAGE}


def average_relative_gain(scores: dict[str, float], baseline: dict[str, float]) -> float | None:
    """The mean over the tasks of (score - baseline) / baseline; None where a baseline is 0."""
    if not all(baseline[task] for task in scores):
        return None
    return sum((score - baseline[task]) / baseline[task] for task, score in scores.items()) / len(scores)
