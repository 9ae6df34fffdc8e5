"""Many systems on one corpus: one run folder a system and seed, as `mop-t5 train` and `mop-t5 evaluate` make them.

OUTPUT/runs/SYSTEM/seed-N      a run; of a system that is trained once a scenario, a folder with a run for each
OUTPUT/runs/SYSTEM/system.json what the system is called and trains
OUTPUT/floors                  the scores that no model made

What is finished is not done again, so a suite that was interrupted is resumed by the same call. Inputs are compared by
content: where the scored split changed, runs are scored again; where something that they were trained on changed, that
is an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mop_t5
from mop_t5.attachment.method import MethodConfig
from mop_t5.backbone.tokenizer import load_tokenizer
from mop_t5.data import Example, of_scenarios, read_split, read_tasks, scenarios_of
from mop_t5.evaluation import (
    SCORES,
    Rouge,
    Scorer,
    Table,
    TaskScores,
    baseline_texts,
    read_scores,
    show,
    with_average,
    write_scores,
)
from mop_t5.evaluation.run_evaluation import RunEvaluation, contents_of_evaluation, scoring_settings
from mop_t5.files import check_writable, remove_folder, replace_file
from mop_t5.operations import contents
from mop_t5.operations.run_folder import SETTINGS, prepare_output, read_history, write_settings
from mop_t5.training import CHECKPOINTS, TrainingConfig, TrainingRun, settings_of
from mop_t5.training.checkpoints import checkpoints
from transformers import PreTrainedModel

from mop_lab.finished_runs import SYSTEM, FinishedRun
from mop_lab.suites.suite_config import SuiteConfig
from mop_lab.suites.suite_run import Run, check_scored_as_before, file_name
from mop_lab.suites.systems import System, choose


class Suite:
    """The runs of some systems. training: for all of them, but for learning_rate, which each has its own, and seed.
    default: labels of the systems where config names none. known: the systems to choose from; see choose."""

    def __init__(
        self,
        config: SuiteConfig,
        training: TrainingConfig,
        default: Sequence[str],
        known: Mapping[str, System] | None = None,
    ):
        self.config, self.training = config, training
        self.systems = choose(config.systems, default, config.options, config.learning_rates, known)
        self._rows: dict[tuple, list[Example]] = {}
        self._backbone: dict[str, contents.Content] | None = None
        self.scorer = Scorer(Rouge(config.implementation, config.unit, config.normalise), read_tasks(config.corpus))

    def plan(self) -> list[Run]:
        """Return the runs, finished ones too. Nothing is written.

        Raises:
            ValueError: A run in the output folder was made with another configuration, or trained on other rows or
                another backbone than there are now. Also what is wrong with a system on this backbone.
        """
        check_writable(self.config.output)
        known, tested = self._scenarios()
        model = mop_t5.load_backbone(self.config.backbone)
        runs = []
        for system in self.systems:
            if system.separate:
                for number, scenario in enumerate(tested, start=1):
                    runs += self.runs_of(system, model, [scenario], f"{number}-{file_name(scenario)}")
            else:
                runs += self.runs_of(system, model, self.config.scenarios, known=known)
        unused = sorted(set(self.config.group_rates) - {name for run in runs for name in run.training.group_rates})
        if unused:
            raise ValueError(f"group_rates names {', '.join(unused)}, which is no parameter group of these systems.")
        return runs

    def runs_of(
        self,
        system: System,
        model: PreTrainedModel,
        only: Sequence[str] | None,
        inner: str = "",
        *,
        known: Sequence[str] = (),
    ) -> list[Run]:
        """The run of a system with each seed, behind that of the first version that it starts from, if it does.

        model: the plain backbone. only: the scenarios to train on; None for all, which are `known`. inner: name of the
        run's folder in that of the seed. Raises what `plan` does.
        """
        first, only = system.first, None if only is None else list(only)
        makes = system if first is None else first.system  # parameters of the same shapes
        if self._backbone is None:
            self._backbone = contents.of_backbone(model, load_tokenizer(self.config.backbone))
        mop_t5.attach(model, makes.config(only or known))
        count, groups = mop_t5.count_parameters(model), model.mop.parameter_groups()
        mop_t5.detach(model)
        rates = {name: factor for name, factor in self.config.group_rates.items() if name in groups}

        def run_of(system: System, seed: int, **changes) -> Run:
            training = replace(
                self.training, seed=seed, learning_rate=system.learning_rate, group_rates=rates, **changes
            )
            folder = Path(self.config.output) / "runs" / file_name(system.label) / f"seed-{seed}" / inner
            config = system.config(only or known)
            settings = self._settings(system, config, training, only)
            made_of = self._made_of(config, training, only) | self._backbone
            return Run(system, only, training, folder, settings, made_of, count.trained, count.backbone)

        # what trains nothing is a row, too: the backbone as it is
        fewer = {} if count.trained else {"steps": 1, "evaluate_every": 0, "patience": 0}
        runs = []
        for seed in self.config.seeds:
            if first is not None:
                runs.append(run_of(first.system, seed, steps=first.steps, evaluate_every=0, patience=0))
                start = {first.field: str((runs[-1].folder / "adapter").resolve())}
                system = replace(system, options=system.options | start)
            runs.append(run_of(system, seed, **fewer))
        for run in runs:
            if not run.check_as_before():
                contents.warn_of_unknown(f"a run in {self.config.output}")
            check_scored_as_before(self._evaluation(run), self._scoring | {"num_beams": self.config.num_beams})
        return runs

    def _scenarios(self) -> tuple[list[str], list[str]]:
        """Those of the training rows and those that are scored. Raises ValueError where a split has one that it must
        not have, or lacks one that it must have."""
        known = self._scenarios_in("train")
        tested = self._scenarios_in(self.config.split) if any(s.scored for s in self.systems) else known
        validated = self._scenarios_in("valid") if self.training.evaluate_every else tested
        for split, names in ((self.config.split, tested), ("valid", validated)):
            unknown = sorted(set(names) - set(known))
            if unknown:
                raise ValueError(
                    f"the {split} split has scenarios that train lacks: {', '.join(unknown)}. Add training rows for "
                    "them or take them out."
                )
        alone = [system.label for system in self.systems if system.separate]
        missing = sorted(set(tested) - set(validated))
        if alone and missing:
            raise ValueError(
                f"the valid split has no rows of {', '.join(missing)}, which {', '.join(alone)} would be validated on. "
                "Add some, or choose --systems without it."
            )
        return known, tested

    def _scenarios_in(self, split: str) -> list[str]:
        return scenarios_of(self._examples(split, self.config.scenarios))

    def _examples(self, split: str, scenarios: Sequence[str] | None) -> list[Example]:
        key = (split, None if scenarios is None else tuple(scenarios))
        if key not in self._rows:
            self._rows[key] = of_scenarios(read_split(self.config.corpus, split), scenarios)
        return self._rows[key]

    def _made_of(self, config: MethodConfig, training: TrainingConfig, only) -> dict[str, contents.Content]:
        """Return what `train` will write into contents.json of the corpus and of other files."""
        valid = self._examples("valid", only) if training.evaluate_every else None
        return contents.of_training(self._examples("train", only), valid, self.scorer.tasks, config)

    def _settings(self, system: System, config: MethodConfig, training: TrainingConfig, only) -> dict[str, Any]:
        """What `train` will write into run.json."""
        c = self.config
        return settings_of(training, c.corpus, c.backbone, system.method, config, only, None, self.scorer.rouge)

    def state(self, run: Run) -> str:
        """Return what is left to do for a run: "finished", "evaluate", "go on from checkpoint-N", "start anew" or
        "train". A run whose evaluation is of other rows is evaluated again."""
        if self._is_scored(run):
            return "finished"
        if read_history(run.folder):
            return "evaluate" if run.system.scored else "finished"
        whole = checkpoints(run.folder / CHECKPOINTS)
        if whole:
            return f"go on from {whole[-1].name}"
        return "start anew" if (run.folder / SETTINGS).is_file() else "train"

    def _is_scored(self, run: Run) -> bool:
        """Return whether there is an evaluation of the rows that the split has now, and of the weights of the run."""
        finished = FinishedRun(run.folder, self.config.split)
        if not (finished.evaluation / SCORES).is_file() or finished.made_of is None:
            return False
        now = contents_of_evaluation(run.folder, self._examples(self.config.split, run.scenarios), self.config.split)
        return not contents.changes(finished.made_of, now)

    def overview(self, runs: Sequence[Run]) -> Table:
        """A row a run: where it lies, what it trains at which rate, and what is left to do."""
        rows = [
            [run.system.label, ", ".join(run.scenarios or ["all"]), run.training.seed, run.trained]
            + [run.training.learning_rate, str(run.folder), self.state(run)]
            for run in runs
        ]
        columns = ["system", "scenarios", "seed", "trained", "learning rate", "folder", "to do"]
        return Table(f"{len(runs)} runs of {self.training.steps} steps", columns, rows, {"trained": ",d"})

    def run(self, runs: Sequence[Run]) -> None:
        """Do what is left to do for these runs. A finished one loses its checkpoints."""
        self._describe(runs)
        for number, run in enumerate(runs, start=1):
            state = self.state(run)
            print(f"[{number}/{len(runs)}] {run}: {state}", flush=True)
            try:
                self._finish(run, state)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"interrupted in run {number} of {len(runs)}, {run}. What is finished is kept, and the same "
                    f"command goes on; with this run: {self.state(run)}."
                ) from None

    def _finish(self, run: Run, state: str) -> None:
        if state != "finished":
            if state != "evaluate":
                trained = TrainingRun(
                    run.training,
                    self.config.corpus,
                    self.config.backbone,
                    str(run.folder),
                    method=run.system.method,
                    options=run.system.options,
                    scenarios=run.scenarios,
                    rouge=self.scorer.rouge,
                    overwrite=state == "start anew",
                    resume=state.startswith("go on"),
                ).run()
                print(trained)
            if run.system.scored:
                evaluation = RunEvaluation(
                    run.folder,
                    corpus=self._scoring["corpus"],
                    split=self.config.split,
                    backbone=self.config.backbone,
                    baselines=False,
                    rouge=self.scorer.rouge,
                    num_beams=self.config.num_beams,
                    batch_size=self.config.eval_batch_size,
                    overwrite=True,
                ).run()
                show(evaluation.table)
            remove_folder(run.folder / CHECKPOINTS)

    def _describe(self, runs: Sequence[Run]) -> None:
        """Write the system.json of what is scored."""
        for label in dict.fromkeys(run.system.label for run in runs if run.system.scored):
            mine = [r for r in runs if r.system.label == label and r.training.seed == runs[0].training.seed]
            content = {"label": label, "trained": sum(r.trained for r in mine), "backbone": mine[0].backbone}
            content["runs"] = len(mine)  # of a seed
            folder = Path(self.config.output) / "runs" / file_name(label)
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(folder / SYSTEM, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    def results(self, runs: Sequence[Run]) -> dict[str, list[dict[str, TaskScores]]]:
        """System -> one result a seed: scenario -> scores, the average last. All runs must be finished."""
        results: dict[str, dict[int, dict[str, TaskScores]]] = {}
        for run in runs:
            if not run.system.scored:
                continue
            scores = read_scores(self._evaluation(run))[run.system.method]
            results.setdefault(run.system.label, {}).setdefault(run.training.seed, {}).update(scores)
        return {label: [with_average(scores) for scores in seeds.values()] for label, seeds in results.items()}

    def floors(self) -> dict[str, dict[str, TaskScores]]:
        """Return floor -> scenario -> scores, computed once for a corpus."""
        folder = Path(self.config.output) / "floors"
        settings = self._scoring | {"scenarios": self.config.scenarios}
        check_scored_as_before(folder, settings)
        known, rows = (self._examples(split, self.config.scenarios) for split in ("train", self.config.split))
        made_of = {"train": contents.of_rows(known), self.config.split: contents.of_rows(rows)}
        if not (folder / SCORES).is_file() or contents.read_contents(folder) != made_of:
            texts = baseline_texts(rows, known)
            prepare_output(folder, overwrite=True)
            write_settings(folder, settings)
            contents.write_contents(folder, made_of)
            write_scores(folder, {name: self.scorer(rows, t) for name, t in texts.items()})
        return read_scores(folder)

    @property
    def _scoring(self) -> dict[str, Any]:
        """What scores depend on, besides the run."""
        c = self.config
        corpus = str(Path(c.corpus).resolve())
        return scoring_settings(corpus, c.split, self.scorer)

    def _evaluation(self, run: Run) -> Path:
        return run.folder / f"evaluation-{self.config.split}"
