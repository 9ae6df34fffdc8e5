"""Every method on one frozen backbone with equal steps, for `mop-t5 compare`.

The learning rates come from one grid. The scores have confidence intervals of the paired bootstrap over the test rows.

OUTPUT/rates/RATE   the trials of the grid, scored on the valid split
OUTPUT              the trials with the best rates (see suite.py)
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from mop_t5.data import Example
from mop_t5.evaluation import AVERAGE, BASELINES, Table, TaskScores, mean_scores
from mop_t5.evaluation.bootstrap import Difference, holm, paired_bootstrap
from mop_t5.evaluation.values import Values, ValueScores, value_recall
from mop_t5.training import TrainingConfig

from mop_lab.finished_runs import FinishedSystem
from mop_lab.suites.compared_systems import FROZEN, CompareConfig, default_systems, known_systems
from mop_lab.suites.score_rows import average_of, scores_table
from mop_lab.suites.suite import Suite, trials_of
from mop_lab.suites.suite_config import SuiteConfig
from mop_lab.suites.systems import choose
from mop_lab.suites.trial import Inputs


class _Entry(NamedTuple):
    """The results of a system or a baseline.

    Attributes:
        label: The label of the system.
        points: One number per row: the mean of its three ROUGE over the seeds, times 100.
        means: For each seed, scenario -> scores, the average last.
        kept: For each seed, the values that the summaries keep.
        system: The finished runs, None for a baseline.
        rate: The learning rate, None for a baseline and for the frozen backbone.
    """

    label: str
    points: list[float]
    means: list[dict[str, TaskScores]]
    kept: list[ValueScores]
    system: FinishedSystem | None
    rate: float | None


class MethodComparison:
    """The systems of a config, each at its best rate of the grid.

    Args:
        config: The systems, the default ones if it names none, and how to score.
        training: How to train, except for the learning rate and the seed.
        grid: The rates, and the reference.

    Raises:
        ValueError: The reference is not among the systems, or tasks have metrics of their own.
    """

    def __init__(self, config: SuiteConfig, training: TrainingConfig, grid: CompareConfig):
        self.config, self.training, self.grid = config, training, grid
        default, known = default_systems(list(grid.variants)), known_systems(grid.variants)
        chosen = choose(config.systems, default, config.options, config.learning_rates, known)
        self.systems = {system.label: system for system in chosen}
        self.scorer = config.scorer()
        if grid.reference not in self.systems:
            raise ValueError(
                f"reference must be one of the systems, {', '.join(self.systems)}; got {grid.reference!r}. Choose it "
                "by --reference, or add it to --systems."
            )
        if self.scorer.tasks:
            raise ValueError(
                f"the tasks {', '.join(self.scorer.tasks)} have metrics of their own, and rows are compared by ROUGE. "
                "Use `mop-t5 table 2`."
            )
        self._inputs = Inputs()
        self._rows, self._known = (self._inputs.rows(config, split) for split in (config.split, "train"))
        # finished trials do not change
        self.tried, self.suite, self._entry = cache(self._find_tried), cache(self._best), cache(self._score_texts)

    @cached_property
    def _values(self) -> Values:
        return Values(self._known)

    def _find_tried(self, label: str) -> dict[float, Suite]:
        """Return the trials of a system: rate -> trials. Empty without a grid, and for the frozen backbone."""
        training = replace(self.training, steps=self.grid.rate_steps or self.training.steps)
        config = replace(self.config, seeds=self.config.seeds[:1], split="valid")
        folder, rates = Path(config.output) / "rates", () if label == FROZEN else self.grid.rates
        configs = {rate: replace(config, output=str(folder / f"{rate:g}")) for rate in rates}
        return {rate: self._planned(label, rate, training, one) for rate, one in configs.items()}

    def _best(self, label: str) -> Suite:
        """Return the trials of a system with every seed, at its best rate. The trials of the grid must be finished."""
        scores = {rate: average_of(suite.results()[label]) for rate, suite in self.tried(label).items()}
        rate = max(scores, key=scores.__getitem__, default=self.systems[label].learning_rate)
        seeds = self.config.seeds[:1] if label == FROZEN else self.config.seeds  # the backbone is the same with each
        return self._planned(label, rate, self.training, replace(self.config, seeds=seeds))

    def _planned(self, label: str, rate: float, training: TrainingConfig, config: SuiteConfig) -> Suite:
        system = replace(self.systems[label], learning_rate=rate)
        return Suite(trials_of([system], config, training, self._inputs)).plan()

    def overview(self) -> Table:
        """Return a table with one row per system: what is left to do."""
        rows: list[list[object]] = []
        for label in self.systems:
            tried = self.tried(label)
            if left := sum(not suite.finished for suite in tried.values()):
                rows.append([label, None, f"{left} of {len(tried)} trials, then {len(self.config.seeds)} seeds"])
                continue
            trials = self.suite(label).trials
            states = "; ".join(dict.fromkeys(trial.state for trial in trials))
            rows.append([label, None if label == FROZEN else trials[0].system.learning_rate, states])
        return Table(f"{len(rows)} systems", ["system", "learning rate", "to do"], rows, {"learning rate": "g"})

    def run(self, label: str) -> None:
        """Do what is left to do for one system."""
        for suite in self.tried(label).values():
            suite.run()
        self.suite(label).run()

    def compared(self, labels: Sequence[str]) -> Table:
        """Return the comparison of some finished systems with each other and, if it is among them, the reference."""
        entries, reference = self._finished(labels), self.grid.reference
        differences = self._differences(entries) if reference in labels else {}
        p = holm({label: one.p for label, one in differences.items()})
        rows: list[dict[str, object]] = []
        for entry in entries:
            averages = [means[AVERAGE] for means in entry.means]
            one = differences.get(entry.label)
            rows.append(
                {
                    "system": entry.label,
                    "trained": entry.system and entry.system.trained,
                    "% of backbone": entry.system and entry.system.share,
                    "rate": entry.rate,
                    "average: R-1/R-2/R-L": mean_scores(averages),
                    "deviation": 100 * stdev(scores.mean for scores in averages) if len(averages) > 1 else None,
                    "values kept, %": 100 * mean(one.recall for one in entry.kept),
                    "invented, %": 100 * mean(one.invented for one in entry.kept),
                    f"minus {reference} [95 %]": f"{one.mean:+.2f} [{one.low:+.2f}, {one.high:+.2f}]" if one else None,
                    "p": format(p[entry.label], ".4f") if one else None,
                }
            )
        formats = dict.fromkeys(["% of backbone", "average: R-1/R-2/R-L", "deviation"], ".2f")
        formats |= {"trained": ",d", "rate": "g", "values kept, %": ".1f", "invented, %": ".1f"}
        config, training = self.config, self.training
        notes = [
            f"{training.steps} steps of {training.step_size} each, seeds "
            f"{', '.join(map(str, config.seeds))}; the average over scenarios, mean over seeds. Deviation: of the mean "
            "of the three ROUGE over seeds (n - 1).",
            "Values kept: names, prices, ratings and other numbers of the reference that the dialogue contains, and "
            "the summary, too. Invented: values of the summaries that neither the dialogue nor the reference has.",
            f"Minus {reference}: of the mean of the three ROUGE; the 95 % interval of the paired bootstrap over the "
            f"{len(self._rows)} rows ({self.grid.resamples:,} resamples, within scenarios, of the seeds' means), and "
            "p after Holm for all rows of this table. The interval shows what other rows would have changed, not what "
            "other seeds would have.",
        ]
        return Table(config.how_scored(), list(rows[0]), [list(row.values()) for row in rows], formats, notes)

    def tables(self) -> dict[str, Table]:
        """Return the tables by their file names: the comparison, the scores by scenario, the grid.

        All trials must be finished.
        """
        entries = (([entry.label], entry.means) for entry in self._finished(list(self.systems)))
        scenarios = scores_table("By scenario: the mean of R-1, R-2 and R-L", ["system"], entries)
        tables = {"comparison": self.compared(list(self.systems)), "scenarios": scenarios}
        return tables | ({"rates": self._rates()} if self.grid.rates else {})

    def _finished(self, labels: Sequence[str]) -> list[_Entry]:
        """Return the entries of some systems, and the entries of the baselines."""
        return [self._entry(label) for label in [*labels, *BASELINES]]

    def _score_texts(self, label: str) -> _Entry:
        """Return the entry of a baseline, or of a finished system."""
        system = rate = None
        if label in BASELINES:
            seeds = [BASELINES[label](self._rows, self._known)]
            means = [self.scorer(self._rows, seeds[0])]
        else:
            system, first = self.suite(label).systems()[label], self.suite(label).trials[0]
            said = [{_key(example): text for example, text in system.predictions(seed)} for seed in system.seeds]
            if any(_key(example) not in texts for texts in said for example in self._rows):
                raise ValueError(
                    f"{first.folder.parent} was evaluated on other rows than the {self.config.split} split now has. "
                    "Take the corpus back as it was, or give another --output."
                )
            rate = None if label == FROZEN else first.system.learning_rate
            seeds = [[texts[_key(example)] for example in self._rows] for texts in said]
            means = list(system.scores.values())
        rouge = [self.scorer.by_rouge(self._rows, texts).values() for texts in seeds]
        points = [100 * mean(scores.mean for scores in row) for row in zip(*rouge)]
        kept = [value_recall(self._values, self._rows, texts) for texts in seeds]
        return _Entry(label, points, means, kept, system, rate)

    def _differences(self, entries: Sequence[_Entry]) -> dict[str, Difference]:
        """Return, by label, the mean of a system minus the mean of the reference, in points."""
        reference = self._entry(self.grid.reference)
        found = {}
        for entry in entries:
            if entry is not reference:
                gains: dict[str, list[float]] = {}  # scenario -> one number per row
                for example, own, theirs in zip(self._rows, entry.points, reference.points, strict=True):
                    gains.setdefault(example.scenario, []).append(own - theirs)
                found[entry.label] = paired_bootstrap(gains, self.grid.resamples)
        return found

    def _rates(self) -> Table:
        cells = [
            [label, *(average_of(suite.results()[label]) for suite in tried.values())]
            for label in self.systems
            if (tried := self.tried(label))
        ]
        columns = ["system", *(f"{rate:g}" for rate in self.grid.rates)]
        steps, seed = self.grid.rate_steps or self.training.steps, self.config.seeds[0]
        title = f"The rates: mean of R-1, R-2 and R-L on the valid split after {steps} steps, seed {seed}"
        return Table(title, columns, cells, dict.fromkeys(columns[1:], ".2f"))


def _key(example: Example) -> tuple[str, str, str]:
    return example.scenario, example.dialogue, example.summary
