"""The settings of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import get_origin, get_type_hints

from mop_t5.checks import LARGEST_INT
from mop_t5.data import BATCHINGS

_KINDS = {int: "an integer", float: "a number", bool: "True or False", str: "a string", dict: "a dict"}
SCHEDULES = ("linear", "cosine", "constant")
_LOSSES = ("mean", "sum")


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. The fields are the same for a method on a frozen backbone and for a whole backbone.

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
        max_source: tokens kept per dialogue.
        max_target: tokens kept per summary, and generated at most when validating.
        evaluate_every: steps between validations, which score generated summaries. The best checkpoint is kept. 0: no
            validation.
        patience: validations without a better mean score after which training stops. 0: train to the end.
        save_every: steps between checkpoints. 0: only validations write a checkpoint, and they always do.
        log_every: steps per point of the loss history. A point has the mean loss of these steps.
        bf16: compute in bfloat16 by autocast. The dtype of the weights does not change.
        seed: seed of everything that is random.
    """

    steps: int = 1000
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 5e-4
    group_rates: dict[str, float] = field(default_factory=dict)
    schedule: str = "linear"
    warmup_steps: int = 50
    weight_decay: float = 0.01
    beta2: float = 0.999
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    loss: str = "mean"
    temperature: float = 2.0
    batching: str = "homogeneous"
    max_source: int = 512
    max_target: int = 128
    evaluate_every: int = 0
    patience: int = 0
    save_every: int = 0
    log_every: int = 20
    bf16: bool = False
    seed: int = 0

    def __post_init__(self):
        for name, kind in get_type_hints(type(self)).items():
            self._check_type(name, get_origin(kind) or kind)
        for name in ("steps", "batch_size", "accumulation", "max_source", "max_target", "log_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        counts = ("warmup_steps", "evaluate_every", "patience", "save_every", "seed")
        for name in (*counts, "weight_decay", "max_grad_norm"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        self._require("learning_rate", self.learning_rate > 0, "above 0")
        self._require("temperature", self.temperature > 0, "above 0; 1 keeps the sizes, 2 is the paper's")
        self._require("beta2", 0 <= self.beta2 < 1, "at least 0 and below 1")
        self._require("label_smoothing", 0 <= self.label_smoothing < 1, "at least 0 and below 1")
        self._require("batching", self.batching in BATCHINGS, f"one of {', '.join(BATCHINGS)}")
        self._require("loss", self.loss in _LOSSES, f"one of {', '.join(_LOSSES)}")
        self._require("schedule", self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        self._require("patience", not self.patience or self.evaluate_every > 0, "0 unless evaluate_every is set")

    def _check_type(self, name: str, kind: type) -> None:
        value = getattr(self, name)
        if not isinstance(value, (int, float) if kind is float else kind) or isinstance(value, bool) != (kind is bool):
            raise TypeError(f"{name} must be {_KINDS[kind]}, got {value!r}.")
        if kind is int:
            self._require(name, abs(getattr(self, name)) <= LARGEST_INT, f"at most {LARGEST_INT}")
        if kind is float and not (name == "temperature" and value == math.inf):  # inf draws all scenarios equally often
            self._require(name, _is_finite(value), "a finite number")
        if isinstance(value, dict):
            holds = all(isinstance(key, str) and _is_finite(rate) and rate >= 0 for key, rate in value.items())
            self._require(name, holds, "factors of at least 0 by name of a parameter group, such as {'experts': 10}")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}.")


def _is_finite(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) <= LARGEST_INT
