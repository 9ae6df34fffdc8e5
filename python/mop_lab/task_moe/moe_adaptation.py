"""Tasks that a mixture of experts was not trained on: used as it is, and tuned on a few rows.

OUTPUT/TASK/draw-S/corpus    the rows of one task that were drawn with seed S
OUTPUT/TASK/draw-S/runs      the runs, as those of a suite: every system at every learning rate and batch size
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import mop_t5
from mop_t5.backbone.tokenizer import load_tokenizer
from mop_t5.checks import check_int, check_least, check_number
from mop_t5.data import read_split, scenarios_of
from mop_t5.evaluation import Table, TaskScores, with_average
from mop_t5.operations.contents import write_contents
from mop_t5.operations.run_folder import prepare_output, read_history, save_run
from mop_t5.storage import adapter_folder
from mop_t5.training import TrainingConfig
from transformers import set_seed

from mop_lab.attempt.few_shot import write_draw
from mop_lab.suites.rows import Row, average_relative_gain, means_of
from mop_lab.suites.score_rows import Repetitions, score_rows
from mop_lab.suites.suite import Run, Suite, SuiteConfig, file_name
from mop_lab.suites.systems import System, check_options
from mop_lab.task_moe.moe_comparison import METHOD, VANILLA

ZERO, FEW = "zero-shot", "few-shot"
_OF_THE_RUN = ("experts", "encoder_layers", "decoder_layers", "router", "hidden", "selection", "own_tables")
_OF_THE_RUN += ("d_task", "train_task_vectors")


@dataclass(frozen=True)
class Adaptation:
    """How unseen tasks are learnt.

    Args:
        experts: folder of the saved task_moe (RUN/adapter) that was trained on other tasks.
        vanilla: folder of a backbone that was trained on the same other tasks (RUN/backbone of `mop-t5 train` without
            a method); what "vanilla" starts from, the backbone itself if not given.
        routes: of the unseen tasks: "learned", by the router from their vectors; "average"; "random_1" and "random_2".
        task_vectors: file of `mop-t5 task-vectors` with the unseen tasks, as wide as the vectors of the run.
        rates: learning rates to try.
        batch_sizes: rows of a batch to try, with every rate. The pair with the best validation is scored.
        shots: rows of each task to train on, and as many to validate on; all if not given.
    """

    experts: str
    vanilla: str | None = None
    routes: list[str] = field(default_factory=lambda: ["learned", "average", "random_1"])
    task_vectors: str | None = None
    rates: list[float] = field(default_factory=lambda: [1e-5, 2e-5, 5e-5])
    batch_sizes: list[int] = field(default_factory=lambda: [2, 4, 8])
    shots: int | None = None

    def __post_init__(self):
        for name, values in (("rates", self.rates), ("batch_sizes", self.batch_sizes)):
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must be different numbers, at least one; got {values}.")
            for value in values:
                check_number(name, value, above=0)
        check_least(self, 1, "batch_sizes")
        if self.shots is not None:
            check_int("shots", self.shots, 1)


class Learnt(NamedTuple):
    """One system on one task with one draw. run: the scored one. tried: each run that it was chosen from, with its best
    validation."""

    use: str
    system: str
    task: str
    seed: int
    run: Run
    scores: TaskScores
    tried: list[tuple[Run, float]]


class Adaptations:
    """All systems on all tasks. config: its corpus has the unseen tasks; its seeds draw the rows, too. training: but
    for rate and batch size."""

    def __init__(self, config: SuiteConfig, training: TrainingConfig, adaptation: Adaptation):
        grid = len(adaptation.rates) * len(adaptation.batch_sizes)
        if grid > 1 and not training.evaluate_every:
            raise ValueError(f"evaluate_every must be set, to choose one of {grid} rates and batch sizes; got 0.")
        self._config, self._training, self._adaptation = config, training, adaptation
        present = scenarios_of(read_split(config.corpus, config.split))
        self.tasks = present if config.scenarios is None else list(config.scenarios)
        self.systems = {VANILLA: ("fine_tuning", {})} | self._mixtures()
        check_options(config.options, {name: method for name, (method, _) in self.systems.items()})

    def _mixtures(self) -> dict[str, tuple[str, dict[str, Any]]]:
        folder = self._adaptation.experts
        description, tensors = adapter_folder.read(folder)
        if description["method"] != METHOD:
            raise ValueError(f"experts {folder!r} holds the method {description['method']!r}; expected {METHOD!r}.")
        saved = description["config"]
        known = sorted(set(self.tasks) & set(saved["scenarios"]))
        if known:
            raise ValueError(f"experts {folder!r} was trained on {', '.join(known)}. Choose other --scenarios.")
        temperature = float(tensors["mop.temperature"])  # where training left it; it stays there
        shared = {name: saved[name] for name in _OF_THE_RUN} | {"experts_from": str(Path(folder).resolve())}
        shared |= {"temperature": temperature, "minimum_temperature": temperature, "temperature_rate": 0.0}
        learned = {"routes_from": saved["routes_from"], "task_vectors": self._adaptation.task_vectors}
        return {
            f"{routes} routes": (METHOD, shared | {"routes": routes} | (learned if routes == "learned" else {}))
            for routes in self._adaptation.routes
        }

    def _suite(self, use: str, label: str, task: str, seed: int, rate: float, batch: int, scored: bool) -> Suite:
        method, options = self.systems[label]
        folder = Path(self._config.output) / file_name(task) / f"draw-{seed}"
        config = replace(self._config, output=str(folder), scenarios=[task])
        if options.get("routes") != "learned" or options["routes_from"] is not None:  # nothing of the routes is trained
            config = replace(config, group_rates={})
        if use == FEW and self._adaptation.shots is not None:
            write_draw(self._config.corpus, folder / "corpus", [task], self._adaptation.shots, seed, config.split)
            config = replace(config, corpus=str(folder / "corpus"))
        if label == VANILLA:
            config = replace(config, backbone=self._adaptation.vanilla or config.backbone)
        training = replace(self._training, batch_size=batch)
        name = f"{label}, {use}"
        if use == FEW:
            name += f", rate {rate:g}, batch {batch}"
        system = System(name, method, options, False, rate, scored=scored, fixed=True)
        return Row(system, config, training).suite(seed)

    def overview(self) -> Table:
        """What there is to do."""
        grid = len(self._adaptation.rates) * len(self._adaptation.batch_sizes)
        seeds = len(self._config.seeds)
        rows = [
            [label, method, seeds, len(self.tasks), grid * seeds * len(self.tasks)]
            for label, (method, _) in self.systems.items()
        ]
        title = f"{', '.join(self.tasks)}: {self._training.steps} steps each"
        return Table(title, ["system", "method", "draws", "tasks", "trainings"], rows)

    def run(self) -> list[Learnt]:
        """Do what is left to do."""
        return list(self._learnt())

    def _learnt(self) -> Iterator[Learnt]:
        adaptation = self._adaptation
        for label, task, seed in itertools.product(self.systems, self.tasks, self._config.seeds):
            suite = self._suite(ZERO, label, task, seed, adaptation.rates[0], adaptation.batch_sizes[0], True)
            (run,) = suite.plan()
            _leave_untrained(suite, run)
            yield Learnt(ZERO, label, task, seed, run, _score(suite, run, task), [])
            tried = []
            for rate, batch in itertools.product(adaptation.rates, adaptation.batch_sizes):
                suite = self._suite(FEW, label, task, seed, rate, batch, False)
                (run,) = suite.plan()
                suite.run([run])
                tried.append((run, _validation(run)))
            best, _ = max(tried, key=lambda one: one[1])  # the first of several
            rate, batch = best.training.learning_rate, best.training.batch_size
            suite = self._suite(FEW, label, task, seed, rate, batch, True)
            (run,) = suite.plan()
            yield Learnt(FEW, label, task, seed, run, _score(suite, run, task), tried)

    def tables(self, what: str, learnt: list[Learnt]) -> list[Table]:
        """The scores with and without tuning, beside the mean relative gain over "vanilla"; and what was chosen."""
        rows = []
        for use in (ZERO, FEW):
            results: dict[str, Repetitions] = {
                label: [
                    with_average({o.task: o.scores for o in learnt if (o.use, o.system, o.seed) == (use, label, seed)})
                    for seed in self._config.seeds
                ]
                for label in self.systems
            }
            baseline = means_of(results[VANILLA])
            columns = list(results[VANILLA][0])
            for label, repetitions in results.items():
                gain = average_relative_gain(means_of(repetitions), baseline)
                of_label = score_rows([use, label], repetitions, columns)
                rows += [[*row, None] for row in of_label]
                rows[-len(of_label)][-1] = None if gain is None else 100 * gain
        gain = f"gain over {VANILLA}, %"
        formats = dict.fromkeys(columns, ".2f") | {gain: "+.2f"}
        title = f"Tasks that were not trained on. {what}"
        scores = Table(title, ["use", "system", "quantity", *columns, gain], rows, formats, labels=3)
        chosen = [
            [o.system, o.task, o.seed, o.run.training.learning_rate, o.run.training.batch_size]
            + [max(v for _, v in o.tried), min(v for _, v in o.tried)]
            for o in learnt
            if o.use == FEW
        ]
        columns = ["system", "task", "draw", "rate", "batch", "best validation", "worst validation"]
        formats = dict.fromkeys(columns[-2:], ".2f")
        return [scores, Table("What was chosen by validation", columns, chosen, formats, labels=2)]


def _leave_untrained(suite: Suite, run: Run) -> None:
    """Make the run folder of a system as it was attached, with which the suite goes on to evaluate it."""
    if suite.state(run) in ("finished", "evaluate"):
        return
    path = run.settings["backbone"]
    model, tokenizer = mop_t5.load_backbone(path), load_tokenizer(path)
    set_seed(run.training.seed)
    mop_t5.attach(model, run.system.config(run.scenarios))
    prepare_output(run.folder, overwrite=True)
    write_contents(run.folder, run.made_of)
    save_run(run.folder, model, tokenizer, [{"step": 0}], run.settings)


def _score(suite: Suite, run: Run, task: str) -> TaskScores:
    suite.run([run])
    return suite.results([run])[run.system.label][0][task]


def _validation(run: Run) -> float:
    """The best validation of a run; where there was none, there is nothing to choose from either."""
    points = [point.get("eval_mean", point.get("eval_rouge")) for point in read_history(run.folder)]
    return max((point for point in points if point is not None), default=0.0)
