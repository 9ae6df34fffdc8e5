"""Train into a run folder. This is the work of `mop-t5 train`. Nothing in this module prints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, set_seed
from transformers.utils.logging import disable_progress_bar

from mop_t5.attachment.attached_model import attached
from mop_t5.backbone.settings import LoadingSettings
from mop_t5.data import Example, of_scenarios, read_split, read_tasks, scenarios_of, stream_split
from mop_t5.evaluation import Rouge, Scorer, Table, to_markdown
from mop_t5.evaluation.generation import encoded
from mop_t5.evaluation.scorer import warn_of_lost_characters
from mop_t5.evaluation.tables import history_table
from mop_t5.files import replace_file
from mop_t5.operations import contents, run_folder
from mop_t5.operations.attach import ParameterCount, attach, count_parameters
from mop_t5.operations.run_card import HubTarget, write_facts, write_run_card
from mop_t5.training.arguments import check_trainer_arguments
from mop_t5.training.checkpoints import check_step, checkpoints
from mop_t5.training.config import TrainingConfig
from mop_t5.training.encoder_cache import EncoderCache, cache_of
from mop_t5.training.run_settings import settings_of
from mop_t5.training.sharding import check_shard, gathered_weights, must_be_gathered
from mop_t5.training.trainer import CHECKPOINTS, TrainingResult, train
from mop_t5.training.zero import forget_zero


@dataclass(frozen=True)
class TrainedRun:
    """The result of `TrainingRun.run`.

    Attributes:
        parameters: The numbers of parameters.
        steps: Optimizer steps of each training.
        results: seed -> result, for the seeds that were trained in this call.
        table: One row per seed, for a run of several seeds. Only the first process has it.
    """

    parameters: ParameterCount
    steps: int
    results: Mapping[int, TrainingResult]
    table: Table | None

    def __str__(self) -> str:
        """Return one sentence on the parameters and, for one seed, on the loss."""
        trained, share = self.parameters.trained, 100 * self.parameters.share
        said = f"Trained {trained:,} parameters, {share:.4f} % of the backbone's {self.parameters.backbone:,}"
        if self.table is not None:
            return f"{said}, with each of {len(self.table.rows) - 2} seeds."
        if len(self.results) != 1:
            return f"{said}."
        (result,) = self.results.values()
        losses = [loss for _, loss in result.losses]
        seconds = f"{self.steps} steps of {result.seconds_per_step:.3f} s"
        return f"{said}, for {seconds}; loss {losses[0]:.3f} -> {losses[-1]:.3f}."


class TrainingRun:
    """A training with its inputs read and checked. Nothing is written before `run`.

    `cache` states the size of the encoder cache that the trainings will fill. It is None if they have none.

    Args:
        training: The settings of the training.
        corpus: Folder with the split train, and valid if evaluate_every is set. Or a dataset on the hub,
            "hub:OWNER/NAME[@REVISION][:CONFIG]".
        backbone: Folder of a T5, mT5 or umT5 with its tokenizer, or its name on the model hub.
        output: The run folder.
        method: Name of the method to tune. None trains all weights of the backbone.
        options: Fields of the method.
        scenarios: Train and validate on the rows of these scenarios only. None takes all.
        seeds: Train once with each of these seeds, into output/seed-N.
        rouge: ROUGE for the validations.
        stream: Folder for the training rows, which then stay on the disk. None keeps them in memory.
        hub: Where the adapter will be uploaded, and its licence. The upload is checked here, and done by `push_run`.
        loading: How the backbone is loaded.
        overwrite: Empty the output folder first if it holds an earlier run.
        resume: Continue from the newest checkpoint in the output folder.

    Raises:
        ValueError: A setting is wrong, or the run to resume was started with other settings or other data.
        ConnectionError, PermissionError: The hub cannot be reached, or refuses the upload.
        FileExistsError: The output folder has content, and neither overwrite nor resume is set.
    """

    def __init__(
        self,
        training: TrainingConfig,
        corpus: str,
        backbone: str,
        output: str,
        *,
        method: str | None = None,
        options: Mapping[str, Any] | None = None,
        scenarios: list[str] | None = None,
        seeds: list[int] | None = None,
        rouge: Rouge | None = None,
        stream: str | None = None,
        hub: HubTarget | None = None,
        loading: LoadingSettings | None = None,
        overwrite: bool = False,
        resume: bool = False,
    ):
        if overwrite and resume:
            raise ValueError("overwrite and resume exclude each other: one empties the folder that the other needs.")
        if method is None and options:
            raise ValueError("options are fields of a method. Name one with --method, or leave them out.")
        self._loading = LoadingSettings() if loading is None else loading
        self._loading.check_machine()
        if method is None and self._loading.quantise != "no":
            raise ValueError(
                f"quantise must be 'no' where no method is named, because quantised weights cannot be trained; got "
                f"{self._loading.quantise!r}. Name a method that leaves the backbone frozen, such as mop."
            )
        if seeds is not None and (len(seeds) < 2 or len(set(seeds)) != len(seeds)):
            raise ValueError(f"seeds must be two or more different integers, got {seeds}. For one run set seed.")
        for seed in seeds or ():
            replace(training, seed=seed)  # raises an error for a wrong seed before the first training
        if scenarios is not None and not scenarios:
            raise ValueError("scenarios must name at least one scenario, got none. Leave it out for all.")
        hub = hub or HubTarget()
        if hub.hub_model_id is not None and (method is None or seeds is not None):
            what = "a run without a method has no adapter" if method is None else "a run of several seeds has several"
            raise ValueError(
                f"hub_model_id needs a run of one adapter, and {what}. Leave it out, and upload afterwards."
            )
        self._team = run_folder.processes()
        if self._team.is_main_process:
            hub.check()
        else:
            disable_progress_bar()  # the bar of loading weights
        self._training, self._seeds, self._output = training, seeds, output
        self._keep = {"overwrite": overwrite, "keep": resume}
        self._backbone, self._method, self._options = backbone, method, dict(options or {})
        if stream is not None and training.cache_encoder != "no":
            raise ValueError(
                f"cache_encoder must be 'no' with stream, because the cache holds all dialogues; got "
                f"{training.cache_encoder!r}. Leave one of them out."
            )
        rows = self._training_rows(corpus, stream)
        self._examples = of_scenarios(rows, scenarios)
        self._valid = of_scenarios(read_split(corpus, "valid"), scenarios) if training.evaluate_every else None
        self._scorer = Scorer(rouge, read_tasks(corpus, scenarios_of(rows)))
        self._tokenizer = self._loading.tokenizer(backbone)
        if self._valid and self._team.is_main_process:
            warn_of_lost_characters(self._tokenizer, self._valid, self._scorer, "valid")
        # attaching raises an error for a wrong method before a folder is made
        self._model = self._new_model(training.seed if seeds is None else seeds[0])
        check_trainer_arguments(training, self._model)
        check_shard(self._model, training)
        self.cache: EncoderCache | None = None
        if training.cache_encoder != "no":
            sources = encoded(self._model, self._tokenizer, self._examples, None, max_source=training.max_source)
            self.cache = cache_of(training, self._model, sources)
        config = None if method is None else attached(self._model).mop.config
        self._settings = settings_of(
            training, corpus, backbone, method, config, scenarios, seeds, self._scorer.rouge, stream, self._loading
        )
        self._settings["licence"] = hub.licence  # not the repository: repeating a run must not upload it again
        self._made_of = contents.of_training(self._examples, self._valid, self._scorer.tasks, config)
        self._made_of |= contents.of_backbone(self._model, self._tokenizer)
        self._recorded: dict[str, contents.Content] | None = self._made_of
        if resume:
            run_folder.check_resumable(output, self._settings)
            known = contents.check_same_contents(output, self._made_of)
            if not known and self._team.is_main_process:
                contents.warn_of_unknown(output)
            self._recorded = self._made_of | (contents.read_contents(output) or {}) if known else None
        self._folders = {training.seed: Path(output)} if seeds is None else run_folder.seed_folders(output, seeds)
        if resume:
            self._check_steps()

    def describe(self) -> str:
        """Describe what `run` would do, for a dry run."""
        count = sum(parameter.numel() for parameter in self._model.parameters() if parameter.requires_grad)
        validation = ", without validation."
        if self._valid:
            validation = f", validated on {len(self._valid)} every {self._training.evaluate_every} steps."
        lines = [
            f"Would train {count:,} parameters for {self._training.steps} steps of "
            f"{self._training.step_size} on {len(self._examples)} rows{validation}"
        ]
        lines += [] if self.cache is None else [str(self.cache)]
        for seed, folder in self._folders.items() if self._keep["keep"] else ():
            whole = checkpoints(folder / CHECKPOINTS)
            state = f"from {whole[-1].name}" if whole else "finished" if _finished(folder) else "from the start"
            lines.append(f"Seed {seed}, {folder}: {state}.")
        return "\n".join([*lines, run_folder.describe_output(self._output, **self._keep)])

    def run(self) -> TrainedRun:
        """Train each seed, and write the run folders.

        Every process of a training on several devices must call this method. Only the first process writes.

        Raises:
            KeyboardInterrupt: Ctrl-C, with a sentence on what was kept.
            FileExistsError, FloatingPointError, OSError, ValueError: See `trainer.train`.
        """
        run_folder.prepare_output(self._output, **self._keep)
        if self._team.is_main_process:
            # run.json of a finished run describes its weights until they change
            if not run_folder.read_history(self._output):
                run_folder.write_settings(self._output, self._settings)
            if self._recorded is not None:
                contents.write_contents(self._output, self._recorded)
        resume, results, model = self._keep["keep"], {}, self._model
        parameters = count_parameters(model)  # ZeRO-3 leaves parameters without values
        for number, (seed, folder) in enumerate(self._folders.items()):
            continues = resume and (self._seeds is None or bool(checkpoints(folder / CHECKPOINTS)))
            if resume and not continues and _finished(folder):
                continue
            if number:
                model = self._new_model(seed)
            if self._team.is_main_process and self._seeds is not None and not continues:
                folder.mkdir(exist_ok=True)
                contents.write_contents(folder, self._made_of)
            try:
                results[seed] = train(
                    model,
                    self._tokenizer,
                    self._examples,
                    replace(self._training, seed=seed),
                    output=folder,
                    valid=self._valid,
                    scorer=self._scorer,
                    resume=continues,
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(self._interrupted(folder)) from None
            weights = gathered_weights(model) if must_be_gathered(model) else None
            if self._team.is_main_process:
                settings = self._settings | {"seed": seed, "seeds": None}
                run_folder.save_run(folder, model, self._tokenizer, results[seed].history, settings, weights)
                if self._method is not None:
                    write_facts(folder, self._examples, self._valid)
                    write_run_card(folder)
            self._team.wait_for_everyone()
        table = None
        if self._seeds is not None and self._team.is_main_process:  # other machines may not have these folders
            table = history_table({seed: run_folder.read_history(folder) for seed, folder in self._folders.items()})
            replace_file(Path(self._output) / "results.md", to_markdown(table).encode())
        return TrainedRun(parameters, self._training.steps, results, table)

    def _training_rows(self, corpus: str, stream: str | None) -> Sequence[Example]:
        if stream is None:
            return read_split(corpus, "train")
        with self._team.main_process_first():  # it writes the rows, and the other processes use the file
            return stream_split(corpus, "train", stream)

    def _new_model(self, seed: int) -> PreTrainedModel:
        forget_zero()
        model = self._loading.load(self._backbone)
        set_seed(seed)  # attach draws the method's initial values
        if self._method is None:
            if getattr(model, "is_quantized", False):
                raise ValueError(
                    f"backbone {self._backbone!r} must be a checkpoint in floating point where no method is named, "
                    "because quantised weights cannot be trained; this one is quantised. Name a method that leaves the "
                    "backbone frozen, such as mop."
                )
            return model.requires_grad_(True)
        return attach(model, self._method, scenarios=scenarios_of(self._examples), **self._options)

    def _check_steps(self) -> None:
        """Raise ValueError for a checkpoint of other steps, or a seed that ended without one after other steps."""
        for folder in self._folders.values():
            if whole := checkpoints(folder / CHECKPOINTS):
                check_step(whole[-1], self._training, self._team.num_processes)
            if whole or self._seeds is None or not _finished(folder):
                continue
            made = run_folder.read_settings(folder)
            if made.get("accumulation") != self._training.accumulation:
                raise ValueError(
                    f"{folder} ended without a checkpoint after steps of accumulation {made.get('accumulation')}; got "
                    f"{self._training.accumulation}. Set it back, with the number of processes."
                )
            if (ended := made.get("steps")) != self._training.steps:
                raise ValueError(
                    f"{folder} ended after {ended} steps without a checkpoint, so it cannot continue to "
                    f"{self._training.steps}. Set steps to {ended}, or start again with another --output."
                )

    def _interrupted(self, folder: Path) -> str:
        whole = checkpoints(folder / CHECKPOINTS)
        if not whole and self._seeds is None:
            return (
                f"interrupted before a checkpoint in {self._output}. Start again with --overwrite, and with "
                "--save_every."
            )
        kept = f"{whole[-1]} is kept" if whole else "the finished seeds are kept"
        return f"interrupted; {kept}; resume it with --resume."


def _finished(folder: Path) -> bool:
    return (folder / run_folder.SETTINGS).is_file() and bool(run_folder.read_history(folder))
