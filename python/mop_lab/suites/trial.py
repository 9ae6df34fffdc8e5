"""A trial: the training of one system with one seed, its run folder, and its evaluation.

Every experiment of this package is a list of trials (see suite.py). A finished trial is never repeated: the state of a
trial is read from its folder. Inputs are compared by content. If the scored split has changed, the trial is scored
again. If anything that it was trained on has changed, that is an error.
"""

import re
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import mop_t5
from mop_t5.attachment.method import MethodConfig
from mop_t5.backbone.tokenizer import load_tokenizer
from mop_t5.data import Example, of_scenarios, read_split, scenarios_of
from mop_t5.data.dataset_objects import place_of
from mop_t5.evaluation import SCORES, show
from mop_t5.evaluation.run_evaluation import EvaluationConfig, RunEvaluation, contents_of_evaluation
from mop_t5.files import remove_folder
from mop_t5.operations import contents
from mop_t5.operations.run_folder import SETTINGS, check_resumable, prepare_output, read_history, save_run
from mop_t5.training import CHECKPOINTS, TrainingConfig, TrainingRun, settings_of
from mop_t5.training.checkpoints import checkpoints
from transformers import set_seed

from mop_lab.finished_runs import FinishedRun
from mop_lab.suites.suite_config import SuiteConfig
from mop_lab.suites.systems import System

FINISHED = "finished"


class Inputs:
    """The corpora and backbones of several trials. Each is read once."""

    def __init__(self) -> None:
        self._split = cache(read_split)
        self._model = cache(mop_t5.load_backbone)
        self._counts: dict[tuple[str, str], tuple[mop_t5.ParameterCount, set[str]]] = {}
        self.contents_of_backbone = cache(lambda path: contents.of_backbone(self._model(path), load_tokenizer(path)))

    def rows(self, config: SuiteConfig, split: str) -> list[Example]:
        """Return the rows of a split, of the scenarios that the config chooses."""
        return of_scenarios(self._split(config.corpus, split), config.scenarios)

    def scenarios(self, config: SuiteConfig, split: str) -> list[str]:
        """Return those scenarios of a split that the config chooses."""
        return scenarios_of(self.rows(config, split))

    def counted(self, path: str, config: MethodConfig) -> tuple[mop_t5.ParameterCount, set[str]]:
        """Attach a method to a plain backbone. Return its numbers of parameters and the names of its parameter groups.

        Raises:
            ValueError: The method does not fit the backbone.
        """
        key = path, repr(config)
        if key not in self._counts:
            model = mop_t5.attach(self._model(path), config)
            self._counts[key] = mop_t5.count_parameters(model), set(model.mop.parameter_groups())
            mop_t5.detach(model)
        return self._counts[key]

    def release(self) -> None:
        """Free the memory of the backbones. A backbone is loaded again when it is needed."""
        self._model.cache_clear()


class Start(NamedTuple):
    """The starting point of a trial: the adapter of another trial.

    Attributes:
        field: The field of the method that is given the adapter's folder.
        trial: The trial that trains the adapter.
        same_shapes: True if both trials train parameters of the same shapes. Then the later trial can be planned
            before the earlier one has ended.
    """

    field: str
    trial: "Trial"
    same_shapes: bool = False


@dataclass(frozen=True, eq=False)
class Trial:
    """One training of a system with one seed.

    Attributes:
        system: The system. Its label names the folder.
        config: The corpus, the scenarios to train and score on, the backbone, the output folder, and how to score.
        schedule: How to train. learning_rate and group_rates are set by `training`.
        inputs: Shared by the trials of a suite.
        name: Name of the run folder within the folder of the seed. Empty if the latter is the run folder.
        start: The starting point, if the system begins with the adapter of another trial.
        untrained: Score the system as it is attached, without training.
    """

    system: System
    config: SuiteConfig
    schedule: TrainingConfig
    inputs: Inputs
    name: str = ""
    start: Start | None = None
    untrained: bool = False

    def __str__(self) -> str:
        alone = "" if self.config.scenarios is None else f", {', '.join(self.config.scenarios)} alone"
        return f"{self.system.label}{alone}, seed {self.seed}"

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return self.schedule.seed

    @property
    def system_folder(self) -> Path:
        """The folder of all runs of the system."""
        return Path(self.config.output) / "runs" / file_name(self.system.label)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.system_folder / f"seed-{self.seed}" / self.name

    @property
    def adapter(self) -> str:
        """The folder of the trained adapter."""
        return str((self.folder / "adapter").resolve())

    @property
    def attached(self) -> System:
        """The system with the adapter to start from among its options."""
        started = {} if self.start is None else {self.start.field: self.start.trial.adapter}
        return replace(self.system, options=self.system.options | started)

    @property
    def waits(self) -> bool:
        """True if the trial cannot be planned yet, because its starting point is not finished."""
        return self.start is not None and not self.start.same_shapes and not self.start.trial.finished

    @property
    def _counted(self) -> tuple[mop_t5.ParameterCount, set[str]]:
        like = self.start.trial if self.start is not None and self.start.same_shapes else self
        return self.inputs.counted(self.config.backbone, like._method_config())

    @property
    def size(self) -> mop_t5.ParameterCount:
        """The numbers of parameters."""
        return self._counted[0]

    @cached_property
    def training(self) -> TrainingConfig:
        """How the trial trains."""
        rates = {name: factor for name, factor in self.config.group_rates.items() if name in self._counted[1]}
        schedule = replace(self.schedule, learning_rate=self.system.learning_rate, group_rates=rates)
        # a system without trained parameters is a row, too: the backbone as it is
        return schedule if self.size.trained else replace(schedule, steps=1, evaluate_every=0, patience=0)

    def check(self) -> None:
        """Check the method against the backbone, and a run in the folder against the run that this trial would make.

        The corpus and the backbone may have moved if their contents are recorded. A run of an earlier version has no
        record of its contents. Then this method warns.

        Raises:
            ValueError: The method does not fit the backbone, or the run in the folder had other settings, other rows
                or another backbone.
        """
        settings, made_of = self._settings(), self._made_of()
        if (self.folder / SETTINGS).is_file():
            known = contents.check_same_contents(self.folder, made_of)
            check_resumable(self.folder, settings, may_change=("corpus", "backbone") if known else ())
            if not known:
                contents.warn_of_unknown(f"a run in {self.config.output}")
        scoring = self.config.scoring() | {"num_beams": self.config.num_beams}
        check_scored_as_before(self.result.evaluation, scoring)

    @property
    def state(self) -> str:
        """Return the remaining work: "finished", "evaluate", "resume from checkpoint-N", "start anew" or "train".

        A run whose evaluation is of other rows or of other weights is evaluated again.
        """
        if self.waits:
            return "train, after its starting point"
        if self._is_scored():
            return FINISHED
        if read_history(self.folder):
            return "evaluate" if self.system.scored else FINISHED
        if whole := checkpoints(self.folder / CHECKPOINTS):
            return f"resume from {whole[-1].name}"
        return "start anew" if (self.folder / SETTINGS).is_file() else "train"

    @property
    def finished(self) -> bool:
        """True if nothing is left to do."""
        return self.state == FINISHED

    def run(self) -> None:
        """Do the remaining work. A finished run loses its checkpoints."""
        state = self.state
        if state == FINISHED:
            return
        if state != "evaluate" and self.untrained:
            self._attach_only()
        elif state != "evaluate":
            training = TrainingRun(
                self.training,
                self.config.corpus,
                self.config.backbone,
                str(self.folder),
                method=self.system.method,
                options=self.attached.options,
                scenarios=self.config.scenarios,
                rouge=self.config.scorer().rouge,
                overwrite=state == "start anew",
                resume=state.startswith("resume"),
            )
            print(training.run())
        if self.system.scored:
            evaluation = EvaluationConfig(
                str(self.folder),
                corpus=place_of(self.config.corpus),
                split=self.config.split,
                backbone=self.config.backbone,
                floors=False,
                num_beams=self.config.num_beams,
                batch_size=self.config.eval_batch_size,
                overwrite=True,
            )
            _, table = RunEvaluation(evaluation, self.config.scorer().rouge).run()
            show(table)
        remove_folder(self.folder / CHECKPOINTS)

    @property
    def result(self) -> FinishedRun:
        """The run folder with its evaluation."""
        return FinishedRun(self.folder, self.config.split)

    def _method_config(self) -> MethodConfig:
        return self.attached.config(self.config.scenarios or self.inputs.scenarios(self.config, "train"))

    def _settings(self) -> dict[str, Any]:
        """Return run.json, as the training writes it."""
        suite, method, config = self.config, self.system.method, self._method_config()
        rouge = suite.scorer().rouge
        return settings_of(self.training, suite.corpus, suite.backbone, method, config, suite.scenarios, None, rouge)

    def _made_of(self) -> dict[str, contents.Content]:
        """Return contents.json, as the training writes it."""
        train, tasks = self.inputs.rows(self.config, "train"), self.config.scorer().tasks
        valid = self.inputs.rows(self.config, "valid") if self.training.evaluate_every else None
        found = contents.of_training(train, valid, tasks, self._method_config())
        return found | self.inputs.contents_of_backbone(self.config.backbone)

    def _is_scored(self) -> bool:
        """Return whether there is an evaluation of the present rows of the split, and of the weights of the run."""
        evaluated, split = self.result, self.config.split
        if not (evaluated.evaluation / SCORES).is_file() or evaluated.made_of is None:
            return False
        rows = self.inputs.rows(self.config, split)
        return not contents.changes(evaluated.made_of, contents_of_evaluation(self.folder, rows, split))

    def _attach_only(self) -> None:
        """Write the run folder of the system as it is attached."""
        path = self.config.backbone
        model, tokenizer = mop_t5.load_backbone(path), load_tokenizer(path)
        set_seed(self.seed)
        mop_t5.attach(model, self._method_config())
        prepare_output(self.folder, overwrite=True)
        contents.write_contents(self.folder, self._made_of())
        save_run(self.folder, model, tokenizer, [{"step": 0}], self._settings())


def check_scored_as_before(folder: Path, scoring: dict[str, Any]) -> None:
    """Raise ValueError if the scores in a folder were computed with other settings. The corpus may have moved."""
    if (folder / SETTINGS).is_file():
        check_resumable(folder, {"metrics": None} | scoring, may_change=("corpus",))


def file_name(label: str) -> str:
    """Return the name of a folder for a label."""
    return re.sub(r"[^\w+]+", "-", label).strip("-").lower()
