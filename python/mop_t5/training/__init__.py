"""Training: transformers' Seq2SeqTrainer, set up for methods and whole backbones."""

from mop_t5.training.config import TrainingConfig
from mop_t5.training.encoder_cache import EncoderCache
from mop_t5.training.optimizer import group_parameters, hold_absent_experts
from mop_t5.training.trainer import CHECKPOINTS, TrainingResult, train
from mop_t5.training.training_run import TrainingRun, settings_of

__all__ = [
    "CHECKPOINTS",
    "EncoderCache",
    "TrainingConfig",
    "TrainingResult",
    "TrainingRun",
    "group_parameters",
    "hold_absent_experts",
    "settings_of",
    "train",
]
