"""The settings of a training run."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from mop_t5.checks import LARGEST_INT, Count, Positive, at_least, check_number, check_types, one_of, within
from mop_t5.data import BATCHINGS
from mop_t5.training.trainer_settings import check_trainer_settings

SCHEDULES = ("linear", "cosine", "constant")
SHARDS = ("no", "fsdp", "zero2", "zero3")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run. The fields are the same for a method on a frozen backbone and for a whole backbone.

    Args:
        steps: optimizer steps in all.
        batch_size: rows per batch and device.
        accumulation: batches per step and device. The step equals the step of one batch with all their rows.
        learning_rate: highest learning rate of AdamW, reached after the warm-up.
        group_rates: factors on the learning rate for named parameter groups of the method, such as {"experts": 10}.
        schedule: course of the rate after the warm-up: "linear" to zero, "cosine" to zero, or "constant".
        warmup_steps: steps over which the rate rises from zero.
        weight_decay: decoupled decay of AdamW. Biases and norms have no decay.
        beta2: AdamW's decay of squared gradients. A lower value adapts faster, for runs of a few hundred steps.
        max_grad_norm: gradients are scaled down to this norm. 0 turns it off.
        label_smoothing: share of the target's probability that is spread over the vocabulary.
        loss: "mean" over the target tokens of a step, or their "sum". The choice changes the effect of max_grad_norm;
            AdamW itself is invariant to it.
        temperature: mixing temperature T, P(scenario) proportional to size^(1/T). 1 keeps the corpus as it is.
        batching: "homogeneous", one scenario per batch, or "mixed".
        by_length: rows of similar length share a batch, to save computation on padding. An epoch has the same rows
            equally often, and its batches are in random order. Validation sorts its rows, too.
        tokens_per_batch: tokens per batch and device, padding included, in place of batch_size. A batch has as many
            rows of similar length as fit into rows * (longest source + longest target). Validation keeps batch_size.
        max_source: tokens kept per dialogue.
        max_target: tokens kept per summary, and generated at most when validating.
        evaluate_every: steps between validations, which score generated summaries. The best checkpoint is kept. 0: no
            validation.
        patience: validations without a better mean score after which training stops. 0: train to the end.
        save_every: steps between checkpoints. 0: only validations write a checkpoint, and they always do.
        log_every: steps per point of the loss history. A point has the mean loss of these steps.
        bf16: compute in bfloat16 by autocast. The dtype of the weights does not change.
        cache_encoder: "memory" or "disk": compute the outputs of the encoder once per dialogue, before the first step,
            and keep them there. "no": compute them at every step. Something else than "no" needs a method that acts in
            the decoder only, and turns the dropout of the encoder off.
        cache_cross: keep the keys and values of all cross-attentions, too. For T5-small this takes 13 times the room,
            and a step saves the maps that make them.
        cache_folder: folder of the kept files, where cache_encoder is "disk". Runs that name the same folder share the
            files.
        cache_gigabytes: the most that the kept values may take, in 10^9 bytes. A run that needs more is an error.
        compile: train with torch.compile, for batches of any length. The first steps compile, for minutes on a CPU.
        gradient_checkpointing: keep only the inputs of each block of the T5 for backward, and compute the block again
            there. It needs less memory and more time, and changes no result.
        shard: "fsdp": share the backbone's weights among the processes of torchrun, by FSDP2 of torch. Each block is
            gathered when it is computed. "zero2", "zero3": share gradients and optimizer, or weights too, by DeepSpeed.
            "no": every process has everything.
        fused: update all weights in one kernel of AdamW. False: PyTorch's plain AdamW, which also takes parameters that
            lie on several devices.
        trainer: further fields of transformers' Seq2SeqTrainingArguments, such as {"report_to": "tensorboard"}; as
            flags --trainer.report_to tensorboard. Fields that the settings above decide are refused.
        seed: seed of everything that is random.
    """

    steps: Positive = 1000
    batch_size: Positive = 16
    accumulation: Positive = 1
    learning_rate: Annotated[float, within(above=0)] = 5e-4
    group_rates: dict[str, float] = field(default_factory=dict)
    schedule: Annotated[str, one_of(*SCHEDULES)] = "linear"
    warmup_steps: Count = 50
    weight_decay: Annotated[float, within(0)] = 0.01
    beta2: Annotated[float, within(0, below=1)] = 0.999
    max_grad_norm: Annotated[float, within(0)] = 1.0
    label_smoothing: Annotated[float, within(0, below=1)] = 0.0
    loss: Annotated[str, one_of("mean", "sum")] = "mean"
    temperature: float = 2.0
    batching: Annotated[str, one_of(*BATCHINGS)] = "homogeneous"
    by_length: bool = False
    tokens_per_batch: Annotated[int | None, at_least(1)] = None
    max_source: Positive = 512
    max_target: Positive = 128
    evaluate_every: Count = 0
    patience: Count = 0
    save_every: Count = 0
    log_every: Positive = 20
    bf16: bool = False
    cache_encoder: Annotated[str, one_of("no", "memory", "disk")] = "no"
    cache_cross: bool = False
    cache_folder: str | None = None
    cache_gigabytes: Annotated[float, within(above=0)] = 8.0
    compile: bool = False
    gradient_checkpointing: bool = False
    shard: Annotated[str, one_of(*SHARDS)] = "no"
    fused: bool = True
    trainer: dict[str, Any] = field(default_factory=dict)
    seed: Count = 0

    def __post_init__(self):
        check_types(self, infinite=("temperature",))
        if self.temperature != math.inf:  # inf draws all scenarios equally often
            check_number("temperature", self.temperature, above=0)
        for group, factor in self.group_rates.items():
            check_number(f"group_rates[{group!r}]", factor, 0, below=LARGEST_INT)
        check_trainer_settings(self.trainer)
        if self.trainer.get("neftune_noise_alpha") and self.cache_encoder != "no":
            raise ValueError(
                "trainer.neftune_noise_alpha must be 0 where cache_encoder is not 'no': kept outputs of the encoder "
                "have no noise. Leave one of them out."
            )
        if self.shard != "no" and (self.compile or self.cache_encoder != "no"):
            other = "compile must be false" if self.compile else "cache_encoder must be 'no'"
            raise ValueError(f"{other} where shard is {self.shard!r}. Set one of them back to its default.")
        if self.cache_cross and self.cache_encoder == "no":
            raise ValueError("cache_cross must be false where cache_encoder is 'no'; got true. Set cache_encoder.")
        if self.cache_cross and self.gradient_checkpointing:  # transformers drops the cache of a recomputed block
            raise ValueError(
                "gradient_checkpointing must be false where cache_cross is true: a block computed again takes no "
                "kept keys and values. Set one of them to false."
            )
        if (self.cache_folder is not None) != (self.cache_encoder == "disk"):
            raise ValueError(
                f"cache_folder must name a folder where cache_encoder is 'disk', and only there; got "
                f"{self.cache_folder!r} with cache_encoder {self.cache_encoder!r}."
            )
        if self.patience and not self.evaluate_every:
            raise ValueError(f"patience must be 0 unless evaluate_every is set; got {self.patience}.")

    @property
    def sorts_by_length(self) -> bool:
        """Whether rows of similar length share a batch."""
        return self.by_length or self.tokens_per_batch is not None

    @property
    def step_size(self) -> str:
        """The size of an optimizer step on one device, in words."""
        if self.tokens_per_batch is None:
            return f"{self.batch_size * self.accumulation} rows"
        return f"at most {self.tokens_per_batch * self.accumulation} tokens"
