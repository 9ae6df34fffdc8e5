"""Every method on one frozen backbone with equal steps: rates from one grid for all, seeds, values kept, and the paired
bootstrap over the test rows. `mop-t5 compare`

OUTPUT/rates/RATE   the runs of the grid: a suite (see suite.py), scored on the valid split
OUTPUT              the runs with the best rates: a suite
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from mop_t5.data import Example, of_scenarios, read_split
from mop_t5.evaluation import (
    AVERAGE,
    BASELINES,
    Scorer,
    Table,
    TaskScores,
    Values,
    ValueScores,
    mean_scores,
    value_recall,
    with_average,
)
from mop_t5.evaluation.bootstrap import Difference, holm, paired_bootstrap
from mop_t5.training import TrainingConfig

from mop_lab.finished_runs import FinishedRun
from mop_lab.suites.compared_systems import FROZEN, Grid, default_systems, known_systems
from mop_lab.suites.score_rows import average_of, score_rows
from mop_lab.suites.suite import Run, Suite, SuiteConfig
from mop_lab.suites.systems import fields_of


class Trial(NamedTuple):
    """A system at a rate of the grid."""

    label: str
    rate: float
    suite: Suite
    runs: list[Run]

    @property
    def finished(self) -> bool:
        return all(self.suite.state(run) == "finished" for run in self.runs)

    def score(self) -> float:
        """x 100, on the valid split."""
        return average_of(self.suite.results(self.runs)[self.label], AVERAGE)


class Comparison:
    """The systems of `config` (or the default ones), each at its best rate of the grid.

    Raises ValueError for a reference that is not among the systems, and for tasks that are not scored by ROUGE.
    """

    def __init__(self, config: SuiteConfig, training: TrainingConfig, grid: Grid):
        self.config, self.training, self.grid = config, training, grid
        self._whole = whole = self._suite(config, training)
        self.labels = [system.label for system in whole.systems]
        self.scorer: Scorer = whole.scorer
        if grid.reference not in self.labels:
            raise ValueError(
                f"reference must be one of the systems, {', '.join(self.labels)}; got {grid.reference!r}. Choose it "
                "by --reference, or add it to --systems."
            )
        if self.scorer.tasks:
            raise ValueError(
                f"the tasks {', '.join(self.scorer.tasks)} have metrics of their own, and rows are compared by ROUGE. "
                "Use `mop-t5 table 2`."
            )
        self._systems = {system.label: system for system in whole.systems}
        self._rows, self._known = (
            of_scenarios(read_split(config.corpus, split), config.scenarios) for split in (config.split, "train")
        )
        # a plan loads the backbone and attaches the method, for its parameters
        self._trials_of: dict[str, list[Trial]] = {}
        self._suites: dict[str, tuple[Suite, list[Run]]] = {}
        self._entries: dict[str, _Entry] = {}  # what is finished does not change

    @cached_property
    def _values(self) -> Values:
        return Values(self._known)

    def _suite(self, config: SuiteConfig, training: TrainingConfig) -> Suite:
        variants = self.grid.variants
        return Suite(config, training, default_systems(list(variants)), known_systems(variants))

    def trials(self, label: str) -> list[Trial]:
        """Those of a system; none without a grid, and for what trains nothing."""
        if label == FROZEN or label in self._trials_of:
            return self._trials_of.get(label, [])
        found = self._trials_of[label] = []
        for rate in self.grid.rates:
            config = replace(
                self.config,
                systems=[label],
                seeds=self.config.seeds[:1],
                split="valid",
                learning_rates={label: rate},
                options=self._options(label),
                output=str(Path(self.config.output) / "rates" / f"{rate:g}"),
            )
            training = replace(self.training, steps=self.grid.rate_steps or self.training.steps)
            suite = self._suite(config, training)
            found.append(Trial(label, rate, suite, suite.plan()))
        return found

    def _options(self, label: str) -> dict:
        """Those of the config that this system's method has."""
        own = fields_of(self._systems[label].method)
        return {name: value for name, value in self.config.options.items() if name in own}

    def suite(self, label: str) -> tuple[Suite, list[Run]]:
        """The runs of one system, at its best rate; all trials must be finished."""
        if label in self._suites:
            return self._suites[label]
        rates = {name: rate for name, rate in self.config.learning_rates.items() if name == label}
        if trials := self.trials(label):
            rates = {label: max(trials, key=Trial.score).rate}
        options = self._options(label)
        seeds = self.config.seeds[:1] if label == FROZEN else self.config.seeds
        config = replace(self.config, systems=[label], learning_rates=rates, options=options, seeds=seeds)
        suite = self._suite(config, self.training)
        self._suites[label] = suite, suite.plan()
        return self._suites[label]

    def overview(self) -> Table:
        """A row a system: what is left to do."""
        rows = []
        for label in self.labels:
            trials = self.trials(label)
            left = sum(not trial.finished for trial in trials)
            if left:
                rows.append([label, None, f"{left} of {len(trials)} trials, then {len(self.config.seeds)} seeds"])
                continue
            suite, runs = self.suite(label)
            rate = None if label == FROZEN else runs[0].training.learning_rate
            rows.append([label, rate, "; ".join(dict.fromkeys(map(suite.state, runs)))])
        return Table(f"{len(rows)} systems", ["system", "learning rate", "to do"], rows, {"learning rate": "g"})

    def run(self, label: str) -> None:
        """Do what is left to do for one system."""
        for trial in self.trials(label):
            trial.suite.run(trial.runs)
        suite, runs = self.suite(label)
        suite.run(runs)

    def score_floors(self) -> None:
        """Write OUTPUT/floors, as every suite has it, for the report and for plots."""
        self._whole.floors()

    def compared(self, labels: Sequence[str]) -> Table:
        """The comparison of these systems, which must be finished, with the reference, if it is among them."""
        entries, reference = self._finished(labels), self.grid.reference
        differences = self._differences(entries) if reference in labels else {}
        p = holm({label: one.p for label, one in differences.items()})
        cells = []
        for entry in entries:
            averages = [means[AVERAGE] for means in entry.means]
            one = differences.get(entry.label)
            cells.append(
                [
                    entry.label,
                    entry.trained,
                    100 * entry.trained / entry.backbone if entry.backbone else None,
                    entry.rate,
                    mean_scores(averages),
                    100 * stdev(scores.mean for scores in averages) if len(averages) > 1 else None,
                    100 * mean(one.recall for one in entry.kept),
                    100 * mean(one.invented for one in entry.kept),
                    f"{one.mean:+.2f} [{one.low:+.2f}, {one.high:+.2f}]" if one else None,
                    format(p[entry.label], ".4f") if one else None,
                ]
            )
        columns = ["system", "trained", "% of backbone", "rate", "average: R-1/R-2/R-L", "deviation", "values kept, %"]
        columns += ["invented, %", f"minus {reference} [95 %]", "p"]
        formats = {"trained": ",d", "% of backbone": ".2f", "rate": "g", columns[4]: ".2f", "deviation": ".2f"}
        formats |= {"values kept, %": ".1f", "invented, %": ".1f"}
        config, training = self.config, self.training
        notes = [
            f"{training.steps} steps of {training.batch_size * training.accumulation} rows each, seeds "
            f"{', '.join(map(str, config.seeds))}; the average over scenarios, mean over seeds. Deviation: of the mean "
            "of the three ROUGE over seeds (n - 1).",
            "Values kept: names, prices, ratings and other numbers of the reference that the dialogue says, and the "
            "summary, too. Invented: values of the summaries that neither the dialogue nor the reference has.",
            f"Minus {reference}: of the mean of the three ROUGE; the 95 % interval of the paired bootstrap over the "
            f"{len(self._rows)} rows ({self.grid.resamples:,} resamples, within scenarios, of the seeds' means), and "
            "p after Holm for all rows of this table. The interval says what other rows would have changed, not what "
            "other seeds would have.",
        ]
        title = f"{self.scorer} on {len(self._rows)} {config.split} rows, {config.num_beams} beam(s)"
        return Table(title, columns, cells, formats, notes)

    def tables(self) -> dict[str, Table]:
        """File name -> table: the comparison, the scores by scenario, the grid. All must be finished."""
        tables = {"comparison": self.compared(self.labels), "scenarios": self._scenarios()}
        return tables | ({"rates": self._rates()} if self.grid.rates else {})

    def _finished(self, labels: Sequence[str]) -> list[_Entry]:
        """The entries of these systems, and those of the floors."""
        for label in [*labels, *BASELINES]:
            if label not in self._entries:
                self._entries[label] = self._floor(label) if label in BASELINES else self._entry(label)
        return [self._entries[label] for label in [*labels, *BASELINES]]

    def _floor(self, name: str) -> _Entry:
        return self._scored(name, [BASELINES[name](self._rows, self._known)])

    def _entry(self, label: str) -> _Entry:
        runs = self.suite(label)[1]
        seeds: dict[int, dict[tuple, str]] = {}
        for run in runs:
            said = FinishedRun(run.folder, self.config.split).predictions()
            seeds.setdefault(run.training.seed, {}).update({_key(example): text for example, text in said})
        if any(_key(example) not in said for said in seeds.values() for example in self._rows):
            raise ValueError(
                f"{runs[0].folder.parent} was evaluated on other rows than the {self.config.split} split now has. Take "
                "the corpus back as it was, or give another --output."
            )
        trained = sum(run.trained for run in runs) // len(seeds)
        rate = None if label == FROZEN else runs[0].training.learning_rate
        texts = [[said[_key(example)] for example in self._rows] for said in seeds.values()]
        return self._scored(label, texts, trained=trained, backbone=runs[0].backbone, rate=rate)

    def _scored(self, label: str, seeds: Sequence[Sequence[str]], **more) -> _Entry:
        """seeds: for each seed the text of each row."""
        rouge = [list(self.scorer.by_rouge(self._rows, texts).values()) for texts in seeds]
        means = [
            with_average({name: mean_scores(scores) for name, scores in self._by_scenario(one).items()})
            for one in rouge
        ]
        points = [100 * mean(scores.mean for scores in row) for row in zip(*rouge)]
        kept = [value_recall(self._values, self._rows, texts) for texts in seeds]
        return _Entry(label, points, means, kept, **more)

    def _by_scenario(self, numbers: Sequence[Any]) -> dict[str, list]:
        """numbers: one a row."""
        found: dict[str, list] = {}
        for example, number in zip(self._rows, numbers, strict=True):
            found.setdefault(example.scenario, []).append(number)
        return found

    def _differences(self, entries: Sequence[_Entry]) -> dict[str, Difference]:
        """Label -> its mean minus that of the reference, in points."""
        reference = self._entries[self.grid.reference]
        return {
            entry.label: paired_bootstrap(
                self._by_scenario([a - b for a, b in zip(entry.points, reference.points)]), self.grid.resamples
            )
            for entry in entries
            if entry is not reference
        }

    def _scenarios(self) -> Table:
        entries = self._finished(self.labels)
        columns = list(entries[0].means[0])
        cells = [row for entry in entries for row in score_rows([entry.label], entry.means, columns)]
        title = "By scenario: the mean of R-1, R-2 and R-L"
        return Table(title, ["system", "quantity", *columns], cells, dict.fromkeys(columns, ".2f"), labels=2)

    def _rates(self) -> Table:
        cells = [[label, *(t.score() for t in trials)] for label in self.labels if (trials := self.trials(label))]
        columns = ["system", *(f"{rate:g}" for rate in self.grid.rates)]
        steps, seed = self.grid.rate_steps or self.training.steps, self.config.seeds[0]
        title = f"The rates: mean of R-1, R-2 and R-L on the valid split after {steps} steps, seed {seed}"
        return Table(title, columns, cells, dict.fromkeys(columns[1:], ".2f"))


class _Entry(NamedTuple):
    """What a system or floor has reached. points: of each row the mean of its three ROUGE over seeds, x 100. means: for
    each seed scenario -> scores, the average last. kept: for each seed."""

    label: str
    points: list[float]
    means: list[dict[str, TaskScores]]
    kept: list[ValueScores]
    trained: int | None = None
    backbone: int | None = None
    rate: float | None = None


def _key(example: Example) -> tuple[str, str, str]:
    return example.scenario, example.dialogue, example.summary
