"""The settings of a training run, as transformers' arguments."""

from pathlib import Path

import torch
from transformers import Seq2SeqTrainingArguments

from mop_t5.training.config import TrainingConfig


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
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulation,
        learning_rate=config.learning_rate,
        optim="adamw_torch_fused" if config.fused else "adamw_torch",
        lr_scheduler_type=config.schedule if config.schedule != "constant" else "constant_with_warmup",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta2=config.beta2,
        max_grad_norm=config.max_grad_norm,
        label_smoothing_factor=config.label_smoothing,
        bf16=config.bf16,
        use_cpu=not torch.accelerator.is_available(),  # otherwise torchrun on CPUs would start separate runs
        logging_steps=min(config.log_every, config.steps),  # at least one point
        logging_nan_inf_filter=False,  # the filter would log the mean of earlier losses in place of a NaN
        eval_strategy="steps" if validates else "no",
        eval_steps=config.evaluate_every or None,
        save_strategy="steps" if save_every else "no",
        save_steps=save_every or 500,
        save_total_limit=2,
        restore_callback_states_from_checkpoint=True,  # otherwise a resumed run would count its patience from zero
        load_best_model_at_end=validates,
        metric_for_best_model=selection if validates else None,
        predict_with_generate=True,
        generation_max_length=config.max_target + 1,
        seed=config.seed,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        # every trained parameter gets a gradient at every step, with zeros if its scenario is absent, so DDP need not
        # search for unused parameters, except for methods that skip some
        ddp_find_unused_parameters=skips_parameters,
        report_to="none",
        disable_tqdm=not progress,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one device per process; more would be torch's old DataParallel
    return arguments
