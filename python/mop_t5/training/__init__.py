"""Training: transformers' Seq2SeqTrainer, set up for methods and whole backbones."""

from mop_t5.training.config import TrainingConfig
from mop_t5.training.encoder_cache import EncoderCache
from mop_t5.training.memory_plan import Devices, MemoryPlan, PlannedStep, plan_memory
from mop_t5.training.optimizer import group_parameters, hold_absent_experts
from mop_t5.training.run_settings import settings_of
from mop_t5.training.sharding import gathered_weights
from mop_t5.training.trainer import CHECKPOINTS, TrainingResult, train
from mop_t5.training.training_run import TrainingRun

__all__ = [
    "CHECKPOINTS",
    "Devices",
    "EncoderCache",
    "MemoryPlan",
    "PlannedStep",
    "TrainingConfig",
    "TrainingResult",
    "TrainingRun",
    "gathered_weights",
    "group_parameters",
    "hold_absent_experts",
    "plan_memory",
    "settings_of",
    "train",
]
