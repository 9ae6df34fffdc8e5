"""Train a model in memory with transformers' Seq2SeqTrainer."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.utils import TorchDynamoPlugin
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    ProgressCallback,
    set_seed,
)

from mop_t5.attachment.attached_model import attached, check_not_wrapped, is_attached
from mop_t5.backbone.weights import offloads
from mop_t5.data import Collator, Example, TemperatureBatchSampler, scenario_ids_of, scenarios_of
from mop_t5.data.dataset import IGNORED
from mop_t5.evaluation import AVERAGE, Scorer, by_metric
from mop_t5.evaluation.generation import encoded, search_settings
from mop_t5.operations.contents import check_same_contents, of_rows
from mop_t5.operations.run_folder import processes
from mop_t5.training.arguments import check_trainer_arguments, loader_settings, trainer_arguments
from mop_t5.training.callbacks import BarWithoutLogs, MethodHooks, callbacks_of
from mop_t5.training.checkpoints import check_step, checkpoint_to_resume, checkpoints, lost_process_in_a_sentence
from mop_t5.training.config import TrainingConfig
from mop_t5.training.embedding_noise import noisy_embeddings
from mop_t5.training.encoder_cache import cache_of
from mop_t5.training.optimizer import group_parameters, hold_absent_experts, trained_groups
from mop_t5.training.recomputation import recomputed_blocks
from mop_t5.training.sharded_trainer import ShardedTrainer
from mop_t5.training.sharding import check_shard, shard

CHECKPOINTS = "checkpoints"
_COMPILER = "inductor"


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training, besides the trained model.

    Attributes:
        history: One dict per logged point, as Trainer logs it. It has `step`, `loss` (the mean since the last point),
            `learning_rate`, `grad_norm` and `epoch` (rows drawn so far over rows of the corpus). After a validation it
            has `step` and `eval_rouge1`, `eval_rouge2`, `eval_rougeL` and their mean `eval_rouge`, times 100 and
            averaged over scenarios. If tasks have metrics of their own it has `eval_TASK_mean`, the mean of the metrics
            of each task, and `eval_mean`, the mean over tasks.
        seconds_per_step: Wall time of the whole run, with validations, over its steps.
    """

    history: list[dict[str, Any]]
    seconds_per_step: float

    @property
    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of every logged point."""
        return [(point["step"], point["loss"]) for point in self.history if "loss" in point]


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
    """Train the parameters of `model` that require gradients: an attached method, or a backbone that is not frozen.

    A method gets the scenario of every row. A plain backbone gets no scenario.

    torchrun and `accelerate launch` train one model in several processes. A step takes `accumulation` batches of every
    process, and its loss is the mean over all tokens of these batches. The step equals the step of one process with
    `accumulation` times as many batches. Only the first process logs and saves.

    Args:
        model: The model. It ends in evaluation mode. After validations it has the weights of the best validation, by
            the mean over scenarios of the mean of each scenario's metrics.
        tokenizer: The tokenizer of the model.
        examples: The training rows.
        config: The settings.
        output: A folder. Checkpoints are written to `output/checkpoints`.
        valid: The validation rows. They are needed if `config.evaluate_every` is set.
        scorer: The scorer of the validations. The default is ROUGE by rouge_score on characters.
        resume: Continue from the newest checkpoint.
        progress: Show a bar.

    Raises:
        ValueError: No parameter requires a gradient, weights are offloaded, `valid` is missing, a row has an unknown
            scenario, the checkpoint is damaged or of another model, or the encoder cache is refused (see EncoderCache).
        FloatingPointError: The gradient of a step is not finite. The step has not changed a weight.
        OSError: A checkpoint cannot be written. All earlier checkpoints are kept.
        FileExistsError: There are checkpoints, and `resume` is False.
        FileNotFoundError: There is no checkpoint, and `resume` is True.
        ConnectionError: Another process of the training ended.
        ImportError, RuntimeError: See check_shard.
    """
    check_not_wrapped(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "no parameter of the model requires a gradient. Attach a method, or model.requires_grad_(True)."
        )
    if offloads(model):
        raise ValueError(
            "device_map keeps weights of the backbone in the memory of the host or on the disk, where Trainer cannot "
            "use them. Spread the backbone over more GPUs, quantise it (--quantise 8bit), or leave device_map out."
        )
    if config.evaluate_every and not valid:
        raise ValueError("config.evaluate_every is set, so valid must hold examples. Pass them, or set it to 0.")
    check_trainer_arguments(config, model)
    check_shard(model, config)
    validated = list(valid or ()) if config.evaluate_every else []
    folder, checkpoint = Path(output) / CHECKPOINTS, None
    if resume:
        checkpoint = checkpoint_to_resume(folder, model)
        check_step(checkpoint, config, processes().num_processes)
    elif checkpoints(folder):  # the new run could later resume from one of them
        raise FileExistsError(
            f"{str(folder)!r} holds checkpoints of an earlier run. Resume it, choose another output, or delete them."
        )
    set_seed(config.seed)
    if config.shard != "no" and is_attached(model):
        model.keep_description()
    if config.shard == "fsdp":
        shard(model)
    trainer = _Trainer(model, tokenizer, examples, config, folder, validated, scorer or Scorer(), progress)
    if checkpoint is not None:
        check_same_contents(checkpoint, trainer.made_of)
    try:
        if trainer.cache is not None:
            trainer.cache.fill(progress=progress and trainer.is_world_process_zero())
        with (
            recomputed_blocks(model, config.gradient_checkpointing),
            noisy_embeddings(model, config.trainer.get("neftune_noise_alpha")),
            lost_process_in_a_sentence(folder),
            warnings.catch_warnings(),
        ):
            # the views are the biases of positions, which no T5 changes in place
            warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
            outcome = trainer.train(resume_from_checkpoint=checkpoint)
    except UnpicklingError as error:  # Trainer reads its files in a checkpoint without running anything in them
        raise ValueError(
            f"{checkpoint} holds a file of more than tensors and numbers, which is not read: "
            f"{str(error).partition(chr(10))[0]} Delete this folder to resume from the checkpoint before it."
        ) from error
    finally:
        if isinstance(bars := trainer.pop_callback(BarWithoutLogs), BarWithoutLogs):
            bars.close()
    model.eval()
    if trainer.is_world_process_zero() and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()  # Trainer makes the folder even if it saves nothing
    steps = max(1, trainer.state.global_step)
    per_step = config.accumulation * trainer.args.world_size
    last = max((point["step"] for point in trainer.state.log_history), default=0)
    drawn = trainer.sampler.rows_drawn(last * per_step)
    history = [p | {"epoch": drawn[p["step"] * per_step] / len(examples)} for p in trainer.state.log_history]
    return TrainingResult(history, outcome.metrics["train_runtime"] / steps)


class _Trainer(ShardedTrainer):
    """Seq2SeqTrainer with the mixing sampler and the optimizer of a method."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        examples: Sequence[Example],
        config: TrainingConfig,
        folder: Path,
        valid: Sequence[Example],
        scorer: Scorer,
        progress: bool,
    ):
        self._t5, self._tokenizer, self._config = model, tokenizer, config
        self.shard = config.shard
        scenarios = list(attached(model).scenarios) if is_attached(model) else None
        limits = {"max_source": config.max_source, "max_target": config.max_target}
        # Trainer smooths the labels of a plain model outside it, and needs the inputs of the decoder then
        decoder_inputs: Callable[..., torch.Tensor] | None = None
        if config.label_smoothing and not is_attached(model):
            decoder_inputs = getattr(model, "prepare_decoder_input_ids_from_labels")  # noqa: B009  not in its type
        skips = is_attached(model) and attached(model).mop.skips_parameters
        self._rows = encoded(model, tokenizer, examples, scenarios, **limits)
        self.made_of = {"train": of_rows(examples)} | ({"valid": of_rows(valid)} if valid else {})
        validated: Dataset[dict[str, Any]] | None = None
        if valid:
            validated = rows = encoded(model, tokenizer, valid, scenarios, **limits)
            if config.sorts_by_length:  # the longest first, so that too little memory is an error at once
                order = sorted(range(len(rows)), key=rows.lengths.__getitem__, reverse=True)
                validated, valid = Subset(rows, order), [valid[i] for i in order]
        super().__init__(
            model=model,
            args=trainer_arguments(config, folder, progress, _selection(scorer), skips),
            data_collator=Collator(
                tokenizer.pad_token_id, None if scenarios is None else len(scenarios), decoder_inputs=decoder_inputs
            ),
            train_dataset=self._rows,
            eval_dataset=validated,
            processing_class=tokenizer,
            compute_metrics=partial(_scores, tokenizer, valid, scorer) if valid else None,
            callbacks=callbacks_of(config),
        )
        self.neftune_noise_alpha = None  # see noisy_embeddings
        self.cache = cache_of(config, model, self._rows)
        if is_attached(model):
            self.label_smoother = None  # an attached model smooths the labels itself, without logits
        if config.compile:
            # Trainer's torch_compile would compile again for other lengths, and turn TF32 on for the whole process
            self.accelerator.state.dynamo_plugin = TorchDynamoPlugin(backend=_COMPILER, dynamic=True)
        # the whole run is one pass of the sampler, so that no step spans two epochs with fewer batches
        self.sampler = TemperatureBatchSampler(
            scenario_ids_of(examples, scenarios or scenarios_of(examples)),
            config.batch_size if config.tokens_per_batch is None else None,
            temperature=config.temperature,
            batching=config.batching,
            seed=config.seed,
            num_batches=config.steps * config.accumulation * self.args.world_size,
            lengths=self._rows.lengths if config.sorts_by_length else None,
            tokens_per_batch=config.tokens_per_batch,
        )
        self.remove_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(BarWithoutLogs)
        if is_attached(model):
            self.add_callback(MethodHooks(self._t5, folder.parent))
        self.model_accepts_loss_kwargs = True  # makes Trainer count the tokens of a step; see compute_loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        share = BatchSamplerShard(self.sampler, self.args.world_size, self.args.process_index)
        loader = loader_settings(self.args)
        return DataLoader(self._rows, batch_sampler=share, collate_fn=self.data_collator, **loader)

    def _prepare_inputs(self, inputs):
        if self.cache is not None and self._t5.training:
            inputs = self.cache(inputs)
        return super()._prepare_inputs(inputs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the share of this batch in the loss of the step: the mean over all label tokens, or their sum.

        A plain T5 would return the mean over the tokens of the batch alone.

        Args:
            model: The model, which may be wrapped.
            inputs: The batch.
            return_outputs: Also return the outputs of the model.
            num_items_in_batch: The number of label tokens in all batches of the step, of all processes.
        """
        tokens = inputs["labels"].ne(IGNORED).sum()
        if is_attached(self._t5):
            inputs = {**inputs, "skip_logits": not return_outputs, "label_smoothing": self._config.label_smoothing}
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        if num_items_in_batch is not None and self._config.loss == "sum":
            loss = loss * (self.accelerator.num_processes * tokens)
        elif num_items_in_batch is not None:
            # times the processes, because gradients are averaged over processes
            loss = loss * (self.accelerator.num_processes * tokens / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval", **gen_kwargs):
        """Validate by greedy search, independent of the search settings in the backbone's checkpoint.

        The training goes on with the random numbers that it would have without the validation.
        """
        search = search_settings(self._t5, self._tokenizer, 1, self._config.max_target)
        with torch.random.fork_rng(devices=[]):  # the loader draws a seed
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **gen_kwargs | search)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """Return the optimizer, with the parameter groups of the method."""
        t5 = self._t5
        if self.optimizer is None and is_attached(t5):
            decayed = self.get_decay_parameter_names(t5)
            spared = {id(p) for name, p in t5.named_parameters() if name not in decayed}
            optimizer_class, fields = self.get_optimizer_cls_and_kwargs(self.args, t5)
            groups = group_parameters(
                trained_groups(t5),
                learning_rate=self._config.learning_rate,
                weight_decay=self._config.weight_decay,
                rates=self._config.group_rates,
                decays=lambda parameter: id(parameter) not in spared,
            )
            self.optimizer = optimizer_class(groups, **fields)
            hold_absent_experts(self.optimizer, attached(t5).mop.expert_parameters())
        return super().create_optimizer(model)


def _selection(scorer: Scorer) -> str:
    """Return the name of the score by which checkpoints are chosen."""
    return "mean" if scorer.tasks else "rouge"


def _scores(
    tokenizer: PreTrainedTokenizerBase, valid: Sequence[Example], scorer: Scorer, prediction: EvalPrediction
) -> dict[str, float]:
    """Return the scores of the generated summaries of a validation."""
    # several processes fill their last batches with the first rows; Seq2SeqTrainer leaves these at the end
    tokens = torch.as_tensor(prediction.predictions)[: len(valid)]
    texts = tokenizer.batch_decode(tokens.masked_fill(tokens < 0, tokenizer.pad_token_id), skip_special_tokens=True)
    scores = scorer(valid, texts)
    average = scores.pop(AVERAGE)
    parts = {f"{task}_mean": s.mean for task, s in scores.items()} if scorer.tasks else by_metric(average)
    return {name: 100 * value for name, value in (parts | {_selection(scorer): average.mean}).items()}
