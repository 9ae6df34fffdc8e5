"""Training by transformers' Seq2SeqTrainer: what it is given, and what comes back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)

from mop_t5.attachment.attached_model import check_not_wrapped, is_attached
from mop_t5.data import Collator, EncodedExamples, Example, TemperatureBatchSampler, scenario_ids_of, scenarios_of
from mop_t5.data.dataset import IGNORED
from mop_t5.evaluation import AVERAGE, Scorer, by_metric
from mop_t5.evaluation.search import search_settings
from mop_t5.files import failure_in_a_sentence, replace_file
from mop_t5.operations.contents import check_same_contents, of_rows
from mop_t5.training.checkpoints import LogWhenSaving, WholeCheckpoints, check_none, checkpoint_to_resume, checkpoints
from mop_t5.training.config import TrainingConfig
from mop_t5.training.method_hooks import MethodHooks, trained_groups
from mop_t5.training.optimizer import group_parameters, hold_absent_experts

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class TrainingResult:
    """What a run leaves besides the trained model.

    history: one dict a logged point, as Trainer logs them: `step` with `loss` (mean since the point before),
        `learning_rate`, `grad_norm` and `epoch` (rows drawn so far over rows of the corpus); after a validation `step`
        with `eval_rouge1`, `eval_rouge2`, `eval_rougeL` and their mean `eval_rouge`, all times 100 and averaged over
        scenarios; on a corpus whose tasks have metrics of their own with `eval_TASK_mean` of each task, the mean of its
        metrics, and `eval_mean`, the mean of these.
    seconds_per_step: wall time of the whole run over its steps, validation included.
    """

    history: list[dict]
    seconds_per_step: float

    @property
    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of every logged point."""
        return [(point["step"], point["loss"]) for point in self.history if "loss" in point]

    def write(self, path: str | Path) -> None:
        """The history as JSON lines."""
        with failure_in_a_sentence("the loss history", path):
            replace_file(path, "".join(json.dumps(point) + "\n" for point in self.history).encode())


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    config: TrainingConfig,
    *,
    output: str | Path,
    valid: Sequence[Example] | None = None,
    scorer: Scorer | None = None,
    resume: bool = False,
    progress: bool = True,
) -> TrainingResult:
    """Train what of `model` asks for gradients: an attached method, or a plain backbone that was not frozen.

    A method gets the scenario of every row; a plain backbone gets none. Checkpoints go to `output/checkpoints`, from
    the newest of which `resume=True` goes on. `valid` is needed where `config.evaluate_every` is set; `scorer` scores
    it (default: ROUGE by rouge_score on characters), and the model ends as it was at its best validation, by the mean
    over scenarios of the mean of each one's metrics.

    Started by torchrun or `accelerate launch`, the processes train one model: a step takes `accumulation` batches of
    every process, its loss is the mean over all their tokens, and it is the step that one process would make with
    `accumulation` times as many batches. Only the first process logs and saves.

    Raises ValueError if nothing asks for a gradient, if `valid` is missing, or if a row's scenario is unknown;
    FloatingPointError at the step whose gradient is not finite, before it changes a weight; OSError, with all earlier
    checkpoints kept, if one cannot be written; FileExistsError if there are checkpoints and `resume` is False, and with
    `resume` what checkpoint_to_resume raises: FileNotFoundError if there is none, ValueError for one of another model.
    """
    check_not_wrapped(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "no parameter of the model asks for a gradient. Attach a method, or model.requires_grad_(True)."
        )
    if config.evaluate_every and not valid:
        raise ValueError("config.evaluate_every is set, so valid must hold examples. Pass them, or set it to 0.")
    folder = Path(output) / CHECKPOINTS
    if not resume:
        check_none(folder)
    set_seed(config.seed)
    scorer = scorer or Scorer()
    scenarios, source_text = (list(model.scenarios), model.mop.source_text) if is_attached(model) else (None, None)
    encoding = {"source_text": source_text, "max_source": config.max_source, "max_target": config.max_target}
    encoding["vocab_size"] = model.get_input_embeddings().num_embeddings
    mixing_ids = scenario_ids_of(examples, scenarios or scenarios_of(examples))
    skips_parameters = is_attached(model) and model.mop.skips_parameters
    trainer = _Trainer(
        model=model,
        args=_arguments(config, folder, progress, _selection(scorer), skips_parameters),
        data_collator=Collator(
            tokenizer.pad_token_id,
            None if scenarios is None else len(scenarios),
            # Trainer smooths labels outside the model, which then cannot make the decoder's inputs from them.
            decoder_inputs=model.prepare_decoder_input_ids_from_labels if config.label_smoothing else None,
        ),
        train_dataset=EncodedExamples(examples, tokenizer, scenarios, **encoding),
        eval_dataset=EncodedExamples(valid, tokenizer, scenarios, **encoding) if config.evaluate_every else None,
        processing_class=tokenizer,
        compute_metrics=_metrics(tokenizer, valid, scorer) if config.evaluate_every else None,
        callbacks=_callbacks(config),
    )
    trainer.set_up(config, mixing_ids)
    if is_attached(model):
        trainer.add_callback(MethodHooks(model, output))
    trainer.made_of = {"train": of_rows(examples)} | ({"valid": of_rows(valid)} if config.evaluate_every else {})
    checkpoint = checkpoint_to_resume(folder, model) if resume else None
    if checkpoint is not None:
        check_same_contents(checkpoint, trainer.made_of)
        _check_processes(checkpoint, trainer.args.world_size)
    try:
        outcome = trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        trainer.close_bars()  # else what is said of an error stands behind them
    model.eval()
    if trainer.is_world_process_zero() and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()  # Trainer makes it even where nothing is saved
    steps = max(1, trainer.state.global_step)
    rows = config.batch_size * config.accumulation * trainer.args.world_size
    history = [point | {"epoch": point["step"] * rows / len(examples)} for point in trainer.state.log_history]
    return TrainingResult(history, outcome.metrics["train_runtime"] / steps)


def _check_processes(checkpoint: str, processes: int) -> None:
    """Raise ValueError if a checkpoint was written by another number of processes, which had taken other batches."""
    wrote = len(list(Path(checkpoint).glob("rng_state*.pth")))  # every process leaves one
    if wrote != processes:
        raise ValueError(
            f"{checkpoint} was written by {wrote} process(es) and cannot be resumed by {processes}: they would take "
            f"other batches. Start {wrote}."
        )


class _Trainer(WholeCheckpoints, Seq2SeqTrainer):
    """Seq2SeqTrainer with the mixing sampler and the optimizer of a method."""

    def set_up(self, config: TrainingConfig, mixing_ids: Sequence[int]) -> None:
        self._config = config
        # The whole run is one pass of the sampler: no step straddles two epochs with fewer batches than the others.
        batches = config.steps * config.accumulation * self.args.world_size
        self._sampler = TemperatureBatchSampler(
            mixing_ids,
            config.batch_size,
            temperature=config.temperature,
            batching=config.batching,
            seed=config.seed,
            num_batches=batches,
        )
        self.add_callback(LogWhenSaving)
        # The losses are in the history and on the plot; printed, they would push the results off the screen.
        self.remove_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(_BarWithoutLogs)
        self.model_accepts_loss_kwargs = True  # so that Trainer counts the tokens of a step; see compute_loss

    def get_train_dataloader(self) -> DataLoader:
        share = BatchSamplerShard(self._sampler, self.args.world_size, self.args.process_index)
        return DataLoader(self.train_dataset, batch_sampler=share, collate_fn=self.data_collator)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """num_items_in_batch: label tokens in all batches of the step, of all processes. The loss is this batch's share
        of the mean over them, which a plain T5 would not make of it, or of their sum."""
        tokens = inputs["labels"].ne(IGNORED).sum()
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if self.label_smoother is not None and outputs.get("loss") is not None:
            loss = loss + outputs["loss"]  # the method's own: the labels were smoothed outside the model
        if num_items_in_batch is not None and self._config.loss == "sum":
            loss = loss * (self.accelerator.num_processes * tokens)
        elif num_items_in_batch is not None:
            # times the processes, because the gradients of processes are averaged
            loss = loss * (self.accelerator.num_processes * tokens / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *arguments, **keywords):
        """Validate by greedy search: Trainer would search as the checkpoint of the backbone asks for."""
        search = search_settings(self.model, self.processing_class, 1, self._config.max_target)
        return super().evaluate(*arguments, **keywords, **search)

    def close_bars(self) -> None:
        bars = self.pop_callback(_BarWithoutLogs)
        if bars is not None:
            bars.close()

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None and is_attached(self.model):
            method = self.model.mop
            decayed = self.get_decay_parameter_names(self.model)
            spared = {id(p) for name, p in self.model.named_parameters() if name not in decayed}
            optimizer_class, fields = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            groups = group_parameters(
                trained_groups(self.model),
                learning_rate=self._config.learning_rate,
                weight_decay=self._config.weight_decay,
                rates=self._config.group_rates,
                decays=lambda parameter: id(parameter) not in spared,
            )
            self.optimizer = optimizer_class(groups, **fields)
            hold_absent_experts(self.optimizer, method.expert_parameters())
        return super().create_optimizer(model)


class _BarWithoutLogs(ProgressCallback):
    def on_log(self, *args, **kwargs):
        pass

    def close(self) -> None:
        for bar in (self.training_bar, self.prediction_bar):
            if bar is not None:
                bar.close()


class _StopWhereNotFinite(TrainerCallback):
    """Stops before a step whose gradient is not finite. The gradient is the same on all processes, so all of them stop;
    the loss is not."""

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not torch.nn.utils.get_total_norm(gradients).isfinite():
            last = next(reversed(checkpoints(args.output_dir)), "none: save_every was 0")
            raise FloatingPointError(
                f"step {state.global_step + 1}: the loss or its gradient is not finite. Training stopped before this "
                f"step changed a weight; the last checkpoint is {last}. Lower learning_rate, "
                "raise warmup_steps, or turn bf16 off."
            )


class _SaveEvery(TrainerCallback):
    """Checkpoints between validations; Trainer's own interval is that of the validations, which all leave one."""

    def __init__(self, steps: int):
        self._steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self._steps == 0:
            control.should_save = True


def _callbacks(config: TrainingConfig) -> list[TrainerCallback]:
    callbacks: list[TrainerCallback] = [_StopWhereNotFinite()]
    if config.save_every:
        callbacks.append(_SaveEvery(config.save_every))
    if config.patience:
        callbacks.append(EarlyStoppingCallback(config.patience))
    return callbacks


def _selection(scorer: Scorer) -> str:
    """The name of the number by which checkpoints are chosen."""
    return "mean" if scorer.tasks else "rouge"


def _arguments(
    config: TrainingConfig, folder: Path, progress: bool, selection: str = "rouge", skips_parameters: bool = False
) -> Seq2SeqTrainingArguments:
    validates = config.evaluate_every > 0
    save_every = config.evaluate_every or config.save_every
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule if config.schedule != "constant" else "constant_with_warmup",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta2=config.beta2,
        max_grad_norm=config.max_grad_norm,
        label_smoothing_factor=config.label_smoothing,
        bf16=config.bf16,
        use_cpu=not torch.accelerator.is_available(),  # else torchrun on CPUs would start runs that know no others
        logging_steps=min(config.log_every, config.steps),  # at least one point
        logging_nan_inf_filter=False,  # it would log the mean of earlier losses in place of a NaN
        eval_strategy="steps" if validates else "no",
        eval_steps=config.evaluate_every or None,
        save_strategy="steps" if save_every else "no",
        save_steps=save_every or 500,
        save_total_limit=2,
        restore_callback_states_from_checkpoint=True,  # else a resumed run starts to count its patience anew
        load_best_model_at_end=validates,
        metric_for_best_model=selection if validates else None,
        predict_with_generate=True,
        generation_max_length=config.max_target + 1,
        seed=config.seed,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        # Every trained parameter gets a gradient at every step, of zeros where a batch lacks its scenario, so DDP need
        # not search for unused ones, but for methods that say so.
        ddp_find_unused_parameters=skips_parameters,
        report_to="none",
        disable_tqdm=not progress,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process, one device: more would be torch's old DataParallel
    return arguments


def _metrics(tokenizer: PreTrainedTokenizerBase, valid: Sequence[Example], scorer: Scorer):
    def compute(prediction) -> dict[str, float]:
        # several processes fill their last batches up with the first rows; Seq2SeqTrainer leaves those at the end
        tokens = torch.as_tensor(prediction.predictions)[: len(valid)]
        texts = tokenizer.batch_decode(tokens.masked_fill(tokens < 0, tokenizer.pad_token_id), skip_special_tokens=True)
        scores = scorer(valid, texts)
        average = scores.pop(AVERAGE)
        parts = {f"{task}_mean": s.mean for task, s in scores.items()} if scorer.tasks else by_metric(average)
        return {name: 100 * value for name, value in (parts | {_selection(scorer): average.mean}).items()}

    return compute
