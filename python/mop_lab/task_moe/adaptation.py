"""Adaptation of a mixture of experts to tasks that it was not trained on: zero-shot, and tuned on a few rows.

OUTPUT/TASK/draw-S/corpus    the rows of one task that were drawn with seed S
OUTPUT/TASK/draw-S/runs      the runs of a suite: every system at every learning rate and batch size
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from mop_t5.checks import check_int
from mop_t5.evaluation import Table, TaskScores, with_average
from mop_t5.evaluation.tables import validation_score
from mop_t5.operations.run_folder import read_history
from mop_t5.storage import adapter_folder
from mop_t5.training import TrainingConfig

from mop_lab.attempt.few_shot import write_draw
from mop_lab.suites.score_rows import average_relative_gain, score_rows
from mop_lab.suites.suite import Suite, trials_of
from mop_lab.suites.suite_config import SuiteConfig
from mop_lab.suites.systems import System, check_options
from mop_lab.suites.trial import Inputs, Trial, file_name
from mop_lab.task_moe.comparison import METHOD, VANILLA

ZERO, FEW = "zero-shot", "few-shot"
_OF_THE_RUN = (
    *("experts", "encoder_layers", "decoder_layers", "router", "hidden", "selection", "own_tables"),
    *("d_task", "train_task_vectors"),
)


@dataclass(frozen=True)
class Adaptation:
    """How unseen tasks are learnt.

    Args:
        experts: folder of the saved task_moe (RUN/adapter) that was trained on other tasks.
        vanilla: folder of a backbone that was trained on the same other tasks (RUN/backbone of `mop-t5 train` without
            a method). "vanilla" starts from it. The default is the backbone itself.
        routes: routes of the unseen tasks: "learned", by the router from their vectors; "average"; "random_1" and
            "random_2".
        task_vectors: file of `mop-t5 task-vectors` with the unseen tasks. Its vectors are as wide as those of the run.
        rates: learning rates to try.
        batch_sizes: rows per batch to try, with every rate. The pair with the best validation is scored.
        shots: rows of each task to train on, and as many to validate on. The default is all.
    """

    experts: str
    vanilla: str | None = None
    routes: list[str] = field(default_factory=lambda: ["learned", "average", "random_1"])
    task_vectors: str | None = None
    rates: list[float] = field(default_factory=lambda: [1e-5, 2e-5, 5e-5])
    batch_sizes: list[int] = field(default_factory=lambda: [2, 4, 8])
    shots: int | None = None

    def __post_init__(self):
        for name in ("rates", "batch_sizes"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"{name} must be different numbers, at least one; got {values}.")
        for rate, batch in itertools.product(self.rates, self.batch_sizes):
            TrainingConfig(learning_rate=rate, batch_size=batch)  # raises an error for a wrong number
        if self.shots is not None:
            check_int("shots", self.shots, 1)


class Learnt(NamedTuple):
    """The result of one system on one task with one draw.

    Attributes:
        use: ZERO or FEW.
        system: The label of the system.
        task: The task.
        trial: The scored trial. Its seed is the seed of the draw.
        validations: The best validation of each trial that it was chosen from.
    """

    use: str
    system: str
    task: str
    trial: Trial
    validations: list[float]


class Adaptations:
    """The trials of all systems on all unseen tasks, and their tables.

    Args:
        config: The corpus of the unseen tasks, the backbone, the output folder, and how to score. Its seeds are used
            for the draws of the rows, too.
        training: How to train, except for the learning rate and the batch size.
        adaptation: The mixture of experts, and the grid.

    Raises:
        ValueError: There is a grid without validation, `experts` is not a mixture of experts of other tasks, or no
            method has a field of the options.
    """

    def __init__(self, config: SuiteConfig, training: TrainingConfig, adaptation: Adaptation):
        self._grid = list(itertools.product(adaptation.rates, adaptation.batch_sizes))
        if len(self._grid) > 1 and not training.evaluate_every:
            raise ValueError(
                f"evaluate_every must be set, to choose one of {len(self._grid)} rates and batch sizes; got 0."
            )
        self._config, self._training, self._adaptation = config, training, adaptation
        self._inputs = Inputs()
        self.tasks = config.scenarios or self._inputs.scenarios(config, config.split)
        self.systems = [System(VANILLA, "fine_tuning", {}, False, 0.0, fixed=True), *self._mixtures()]
        check_options(config.options, self.systems)

    def _mixtures(self) -> Iterator[System]:
        folder = self._adaptation.experts
        description, tensors = adapter_folder.read(folder)
        if description["method"] != METHOD:
            raise ValueError(f"experts {folder!r} holds the method {description['method']!r}; expected {METHOD!r}.")
        saved = description["config"]
        if known := sorted(set(self.tasks) & set(saved["scenarios"])):
            raise ValueError(f"experts {folder!r} was trained on {', '.join(known)}. Choose other --scenarios.")
        temperature = float(tensors["mop.temperature"])  # the last temperature of the training; it stays constant
        shared = {name: saved[name] for name in _OF_THE_RUN} | {"experts_from": str(Path(folder).resolve())}
        shared |= {"temperature": temperature, "minimum_temperature": temperature, "temperature_rate": 0.0}
        learned = {"routes_from": saved["routes_from"], "task_vectors": self._adaptation.task_vectors}
        for routes in self._adaptation.routes:
            options = shared | {"routes": routes} | (learned if routes == "learned" else {})
            yield System(f"{routes} routes", METHOD, options, False, 0.0, fixed=True)

    def _trial(self, system: System, use: str, task: str, seed: int, rate: float, batch: int) -> Trial:
        folder = Path(self._config.output) / file_name(task) / f"draw-{seed}"
        config = replace(self._config, output=str(folder), scenarios=[task], seeds=[seed])
        options = system.options
        if options.get("routes") != "learned" or options["routes_from"] is not None:
            config = replace(config, group_rates={})  # no parameter of the routes is trained
        if use == FEW and self._adaptation.shots is not None:
            write_draw(self._config.corpus, folder / "corpus", [task], self._adaptation.shots, seed, config.split)
            config = replace(config, corpus=str(folder / "corpus"))
        if system.label == VANILLA:
            config = replace(config, backbone=self._adaptation.vanilla or config.backbone)
        grid = "" if use == ZERO else f", rate {rate:g}, batch {batch}"
        named = replace(system, label=f"{system.label}, {use}{grid}", learning_rate=rate)
        training = replace(self._training, batch_size=batch)
        (trial,) = trials_of([named.with_options(config.options)], config, training, self._inputs)
        return replace(trial, untrained=use == ZERO)

    def overview(self) -> Table:
        """Return a table with one row per system: the number of its trainings."""
        seeds, tasks = len(self._config.seeds), len(self.tasks)
        rows = [[s.label, s.method, seeds, tasks, len(self._grid) * seeds * tasks] for s in self.systems]
        title = f"{', '.join(self.tasks)}: {self._training.steps} steps each"
        return Table(title, ["system", "method", "draws", "tasks", "trainings"], rows)

    def run(self) -> list[Learnt]:
        """Do what is left to do, and return the results."""
        learnt = []
        for system, task, seed in itertools.product(self.systems, self.tasks, self._config.seeds):
            chosen = {ZERO: self._trial(system, ZERO, task, seed, *self._grid[0])}
            grid = [self._trial(system, FEW, task, seed, rate, batch) for rate, batch in self._grid]
            Suite([replace(trial, system=replace(trial.system, scored=False)) for trial in grid]).plan().run()
            validations = [_best_validation(trial) for trial in grid]
            chosen[FEW] = grid[validations.index(max(validations))]
            for use, trial in chosen.items():
                Suite([trial]).plan().run()
                learnt.append(Learnt(use, system.label, task, trial, validations if use == FEW else []))
        return learnt

    def tables(self, learnt: list[Learnt]) -> dict[str, Table]:
        """Return the tables by their file names: the scores of both uses beside their gains, and the chosen trials."""
        rows: list[list[object]] = []
        of_tasks: dict[tuple[str, str, int], dict[str, TaskScores]] = {}
        for one in learnt:
            scores = one.trial.result.scores()[one.task]
            of_tasks.setdefault((one.use, one.system, one.trial.seed), {})[one.task] = scores
        labels, seeds = [system.label for system in self.systems], self._config.seeds
        for use in (ZERO, FEW):
            results = {label: [with_average(of_tasks[use, label, seed]) for seed in seeds] for label in labels}
            columns = list(results[VANILLA][0])
            for label, repetitions in results.items():
                first, *others = score_rows([use, label], repetitions, columns)
                gain = average_relative_gain(repetitions, results[VANILLA])
                rows += [[*first, gain], *([*row, None] for row in others)]
        gain_column = f"gain over {VANILLA}, %"
        formats = dict.fromkeys(columns, ".2f") | {gain_column: "+.2f"}
        title = f"Tasks that were not trained on. {self._config.how_scored(', their mean,')}"
        of_uses = Table(title, ["use", "system", "quantity", *columns, gain_column], rows, formats, labels=3)
        chosen = [
            [o.system, o.task, o.trial.seed, o.trial.system.learning_rate, o.trial.schedule.batch_size]
            + [max(o.validations), min(o.validations)]
            for o in learnt
            if o.use == FEW
        ]
        columns = ["system", "task", "draw", "rate", "batch", "best validation", "worst validation"]
        formats = dict.fromkeys(columns[-2:], ".2f")
        title = "What was chosen by validation"
        return {"adaptation": of_uses, "adaptation-chosen": Table(title, columns, chosen, formats, labels=2)}


def _best_validation(trial: Trial) -> float:
    """Return the best validation of a finished trial, 0 if the trial was never validated."""
    scores = [validation_score(point) for point in read_history(trial.folder)]
    return max((score for score in scores if score is not None), default=0.0)
