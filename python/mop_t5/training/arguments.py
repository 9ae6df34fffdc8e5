"""The settings of a training run, as transformers' arguments."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset
from transformers import PreTrainedModel, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks, is_tensorboard_available

from mop_t5.attachment.attached_model import attached, is_attached
from mop_t5.training.config import TrainingConfig
from mop_t5.training.trainer_settings import PASSED_ON, refused_by_transformers
from mop_t5.training.zero import zero_settings


def trainer_arguments(
    config: TrainingConfig, folder: Path, progress: bool, selection: str, skips_parameters: bool
) -> Seq2SeqTrainingArguments:
    """Return the settings of a training run as transformers' arguments.

    Args:
        config: The settings.
        folder: The folder of the checkpoints.
        progress: Show a bar.
        selection: The name of the score by which checkpoints are chosen.
        skips_parameters: True if a step may give no gradient to some of the method's parameters.
    """
    validates = config.evaluate_every > 0
    save_every = config.evaluate_every or config.save_every
    changeable: dict[str, Any] = {
        "optim": "adamw_torch_fused" if config.fused else "adamw_torch",
        "lr_scheduler_type": config.schedule if config.schedule != "constant" else "constant_with_warmup",
        "save_total_limit": 2,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "report_to": "none",
        "disable_tqdm": not progress,
    }
    changeable |= copy.deepcopy(config.trainer)
    if validates and changeable["save_total_limit"] == 1:
        changeable["save_total_limit"] = 2  # Trainer would delete the newest checkpoint at the end, beside the best one
    arguments = Seq2SeqTrainingArguments(
        **changeable,
        **{field: getattr(config, setting) for field, setting in PASSED_ON.items()},
        output_dir=str(folder),
        use_cpu=not torch.accelerator.is_available(),  # otherwise torchrun on CPUs would start separate runs
        logging_steps=min(config.log_every, config.steps),  # at least one point
        logging_nan_inf_filter=False,  # the filter would log the mean of earlier losses in place of a NaN
        eval_strategy="steps" if validates else "no",
        eval_steps=config.evaluate_every or None,
        save_strategy="steps" if save_every else "no",
        save_steps=save_every or 500,
        restore_callback_states_from_checkpoint=True,  # otherwise a resumed run would count its patience from zero
        load_best_model_at_end=validates,
        metric_for_best_model=selection if validates else None,
        predict_with_generate=True,
        generation_max_length=config.max_target + 1,
        remove_unused_columns=False,
        label_names=["labels"],
        # every trained parameter gets a gradient at every step, with zeros if its scenario is absent, so DDP need not
        # search for unused parameters, except for methods that skip some
        ddp_find_unused_parameters=skips_parameters,
        deepspeed=zero_settings(config),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one device per process; more would be torch's old DataParallel
    return arguments


def loader_settings(arguments: TrainingArguments) -> dict[str, Any]:
    """Return the keywords of a DataLoader that say how its rows are loaded."""
    names = ("num_workers", "prefetch_factor", "persistent_workers", "pin_memory", "multiprocessing_context")
    return {name: getattr(arguments, f"dataloader_{name}") for name in names}


def check_trainer_arguments(config: TrainingConfig, model: PreTrainedModel) -> None:
    """Raise the errors of transformers about `config.trainer` before a training writes anything.

    This function makes everything that the settings name: the arguments, a loader, an optimizer of one parameter, its
    schedule and the reports.

    Args:
        config: The settings.
        model: The model to train.

    Raises:
        RuntimeError: A report needs TensorBoard, which is not installed.
        ValueError: transformers or torch refuses a value, or the optimizer does not fit the method.
    """
    if not config.trainer:
        return
    optim = str(config.trainer.get("optim", ""))
    if is_attached(model) and attached(model).mop.expert_parameters() and ("8bit" in optim or "4bit" in optim):
        raise ValueError(
            f"trainer.optim must keep a state of 16 bits or more for {attached(model).mop.name}; got {optim!r}: an "
            "expert shares the scales of a quantised state with other experts. Choose another optimizer."
        )
    reports = config.trainer.get("report_to", "none")
    if "tensorboard" in (reports or "") and not is_tensorboard_available():
        raise RuntimeError(
            "trainer.report_to names tensorboard, which is not installed. Install it: "
            "pip install 'mop-kernels[tensorboard]'"
        )
    with refused_by_transformers():
        arguments = trainer_arguments(replace(config, shard="no"), Path("checkpoints"), False, "rouge", False)
        arguments.get_process_log_level()
        for report in get_reporting_integration_callbacks(arguments.report_to):
            report()
        DataLoader(TensorDataset(torch.zeros(1)), **loader_settings(arguments))
        optimizer_class, fields = Seq2SeqTrainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer = optimizer_class([torch.nn.Parameter(torch.zeros(1))], **fields)
        get_scheduler(
            arguments.lr_scheduler_type,
            optimizer,
            num_warmup_steps=config.warmup_steps,
            num_training_steps=config.steps,
            scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,  # type: ignore[arg-type]  # no text is left
        )
