"""Training: transformers' Seq2SeqTrainer, set up, and the folders it leaves."""

from mop_t5.training.config import SCHEDULES, TrainingConfig
from mop_t5.training.optimizer import group_parameters, hold_absent_experts
from mop_t5.training.run import (
    check_output,
    check_resumable,
    describe_output,
    load_run,
    prepare_output,
    processes,
    read_history,
    read_settings,
    save_run,
    write_settings,
)
from mop_t5.training.trainer import CHECKPOINTS, TrainingResult, train

__all__ = [
    "CHECKPOINTS",
    "SCHEDULES",
    "TrainingConfig",
    "TrainingResult",
    "check_output",
    "check_resumable",
    "describe_output",
    "group_parameters",
    "hold_absent_experts",
    "load_run",
    "prepare_output",
    "processes",
    "read_history",
    "read_settings",
    "save_run",
    "train",
    "write_settings",
]
