"""Settings of transformers' Seq2SeqTrainer that a training passes on: the field `trainer` of TrainingConfig."""

import difflib
import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from enum import Enum
from typing import Any, get_args, get_type_hints

from mop_t5.checks import check_choice, check_int, check_number, check_type

# field of Trainer -> the setting of this package whose value it has
PASSED_ON = {
    "max_steps": "steps",
    **dict.fromkeys(("per_device_train_batch_size", "per_device_eval_batch_size"), "batch_size"),
    "gradient_accumulation_steps": "accumulation",
    "adam_beta2": "beta2",
    "label_smoothing_factor": "label_smoothing",
    **{name: name for name in ("learning_rate", "warmup_steps", "weight_decay", "max_grad_norm", "bf16", "seed")},
}
# setting of this package -> the other fields of Trainer that it decides
_DECIDED = {
    "output": ("output_dir",),
    "steps": ("num_train_epochs",),
    "batch_size": ("auto_find_batch_size",),
    "bf16": ("bf16_full_eval",),
    "gradient_checkpointing": (
        *("activation_checkpointing", "activation_checkpointing_kwargs"),
        *("gradient_checkpointing", "gradient_checkpointing_kwargs"),
    ),
    "compile": ("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    "log_every": ("logging_steps", "logging_strategy"),
    "evaluate_every": (
        *("eval_strategy", "eval_steps", "do_eval", "predict_with_generate"),
        *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    ),
    "save_every": ("save_strategy", "save_steps"),
    "max_target": ("generation_max_length",),
    "seed": ("data_seed",),
    "by_length": ("train_sampling_strategy", "length_column_name", "sortish_sampler"),
    "resume": ("resume_from_checkpoint",),
    "shard": ("fsdp", "fsdp_config", "deepspeed", "parallelism_config"),
    "hub_model_id": (
        *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
        "hub_revision",
    ),
}
_SET_BY = PASSED_ON | {field: setting for setting, decided in _DECIDED.items() for field in decided}
# why nobody may set some fields of Trainer -> these fields
_REASONS = {
    "T5 overflows in float16. Set bf16": ("fp16", "fp16_full_eval"),
    "it hides a loss that is not finite": ("logging_nan_inf_filter",),
    "a resumed run must end as an unbroken run ends": (
        *("ignore_data_skip", "save_only_model", "restore_callback_states_from_checkpoint", "enable_jit_checkpoint"),
    ),
    "all processes write to one folder": ("save_on_each_node",),
    "this package makes the batches": ("remove_unused_columns", "label_names"),
    "every row counts, in the order that the seed gives": (
        *("dataloader_drop_last", "dataloader_in_order", "accelerator_config"),
    ),
    "the loss is the mean over the tokens of all processes": ("average_tokens_across_devices",),
    "the method decides it": ("ddp_find_unused_parameters",),
    "the launcher connects the processes and chooses their devices before the training": (
        *("ddp_backend", "ddp_timeout", "local_rank", "use_cpu"),
    ),
    "a validation is one greedy search over the whole split. `mop-t5 evaluate` has more settings": (
        *("prediction_loss_only", "eval_do_concat_batches", "eval_use_gather_object", "include_for_metrics"),
        *("batch_eval_metrics", "generation_num_beams", "generation_config", "eval_on_start"),
    ),
    "it has no effect": ("do_train", "do_predict"),
    "Liger has no kernels for T5": ("use_liger_kernel", "liger_kernel_config"),
    "a training step reads no cache": ("use_cache",),
    "the method names the trained parameters": ("optim_target_modules",),
}
_FIXED = {field: why for why, fixed in _REASONS.items() for field in fixed}
# field of Trainer -> its smallest int
_SMALLEST = {"dataloader_num_workers": 0, "dataloader_prefetch_factor": 1}
_SMALLEST |= dict.fromkeys(("save_total_limit", "eval_accumulation_steps"), 1)
# field of Trainer with a number of 0 or more -> the bound that the number must be below
_BELOW = {"neftune_noise_alpha": math.inf, "adam_beta1": 1.0, "adam_epsilon": math.inf, "eval_delay": math.inf}
_OPTIMIZERS_OF_FUSED = ("adamw_torch", "adamw_torch_fused")
_REFUSED_OPTIMIZERS = {
    **dict.fromkeys(("galore", "apollo", "lomo", "adalomo"), "chooses its parameters by itself, not by groups"),
    "schedule": "keeps two sets of weights, and Trainer saves the set for training",  # schedule_free_*
}
_SCHEDULES_OF_OURS = ("linear", "cosine", "constant", "constant_with_warmup")


@functools.cache
def trainer_types() -> Mapping[str, Any]:
    """Return the types of the fields of Seq2SeqTrainingArguments, by name."""
    from transformers import Seq2SeqTrainingArguments  # imported here, because most trainings set none of them

    hints = get_type_hints(Seq2SeqTrainingArguments)
    return {field.name: hints[field.name] for field in fields(Seq2SeqTrainingArguments) if field.init}


def check_trainer_settings(settings: Mapping[str, Any]) -> None:
    """Check names and types of Trainer's settings.

    Args:
        settings: Fields of Seq2SeqTrainingArguments, by name.

    Raises:
        TypeError: A value has a wrong type.
        ValueError: A name is unknown, this package decides the field, or a value is out of range.
    """
    for name, value in settings.items():
        where = f"trainer.{name}"
        if name not in trainer_types():
            raise ValueError(f"{where} is no field of transformers' Seq2SeqTrainingArguments.{_hint(name)}")
        if name in _SET_BY:
            raise ValueError(f"{where} is set by {_SET_BY[name]}. Set {_SET_BY[name]}, and leave {where} out.")
        if name in _FIXED:
            raise ValueError(f"{where} cannot be set: {_FIXED[name]}. Leave it out.")
        _check_value(where, value, trainer_types()[name])
        _check_meaning(name, where, value)


def _hint(name: str) -> str:
    if name == "logging_dir":  # a field of transformers 4
        return " The environment variable TENSORBOARD_LOGGING_DIR names the folder."
    near = difflib.get_close_matches(name, [n for n in trainer_types() if n not in _FIXED], n=1)
    return f" Did you mean {near[0]!r}?" if near else " `mop-t5 train --help` lists the settings of this package."


def _check_value(where: str, value: Any, annotation: Any) -> None:
    choices = [kind for kind in get_args(annotation) if isinstance(kind, type) and issubclass(kind, Enum)]
    if choices:
        check_choice(where, value.value if isinstance(value, choices[0]) else value, [c.value for c in choices[0]])
    else:
        check_type(where, value, annotation)


def _check_meaning(name: str, where: str, value: Any) -> None:
    if name == "optim" and value in _OPTIMIZERS_OF_FUSED:
        raise ValueError(f"{where} {value!r} is set by fused. Set fused to true or false, and leave {where} out.")
    if name == "optim" and (why := _REFUSED_OPTIMIZERS.get(str(value).partition("_")[0])):
        raise ValueError(f"{where} must be another optimizer: {value!r} {why}.")
    if name == "lr_scheduler_type" and value in _SCHEDULES_OF_OURS:
        raise ValueError(f"{where} {value!r} is set by schedule. Set schedule, and leave {where} out.")
    if name in ("log_level", "log_level_replica"):
        from transformers.training_args import trainer_log_levels

        check_choice(where, value, list(trainer_log_levels))
    if name in _SMALLEST and value is not None:
        check_int(where, value, _SMALLEST[name])
    if name in _BELOW and value is not None:
        check_number(where, value, 0, below=_BELOW[name])


@contextmanager
def refused_by_transformers() -> Iterator[None]:
    """Say of an error of transformers or torch that settings under `trainer` caused it."""
    try:
        yield
    except (ValueError, TypeError, KeyError, RuntimeError, ImportError, NotImplementedError, AssertionError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
        raise ValueError(f"trainer: transformers refuses these settings ({said}). Change or leave them out.") from error
