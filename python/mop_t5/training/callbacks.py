"""Callbacks of the trainer: when it logs, saves and stops."""

from __future__ import annotations

import torch
from transformers import EarlyStoppingCallback, ProgressCallback, TrainerCallback

from mop_t5.training.checkpoints import checkpoints
from mop_t5.training.config import TrainingConfig


class StopIfNotFinite(TrainerCallback):
    """Stop before a step whose gradient is not finite.

    The gradient is equal on all processes, so all stop at the same step. The loss may differ between processes.
    """

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        """Raise FloatingPointError if the gradient is not finite."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not torch.nn.utils.get_total_norm(gradients).isfinite():
            last = next(reversed(checkpoints(args.output_dir)), "none: save_every was 0")
            raise FloatingPointError(
                f"step {state.global_step + 1}: the loss or its gradient is not finite. Training stopped before this "
                f"step changed a weight; the last checkpoint is {last}. Lower learning_rate, "
                "raise warmup_steps, or turn bf16 off."
            )


class SaveEvery(TrainerCallback):
    """Save checkpoints between validations. Trainer's own interval serves the validations, which all save one."""

    def __init__(self, steps: int):
        self._steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a checkpoint at each interval."""
        if state.global_step % self._steps == 0:
            control.should_save = True


class LogWhenSaving(TrainerCallback):
    """Make every checkpoint a logged point, because a resumed Trainer forgets the losses since the last logged point.

    Add this callback behind the callbacks that decide when to save.
    """

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a logged point at each checkpoint."""
        control.should_log = control.should_log or control.should_save


class BarWithoutLogs(ProgressCallback):
    """A progress bar that does not print the losses, which are in the history and on the plot."""

    def on_log(self, *args, **kwargs):
        """Print nothing."""

    def close(self) -> None:
        """Close the bars, so that an error message stands on a line of its own."""
        for bar in (self.training_bar, self.prediction_bar):
            if bar is not None:
                bar.close()


def callbacks_of(config: TrainingConfig) -> list[TrainerCallback]:
    """Return the callbacks that the settings ask for."""
    callbacks: list[TrainerCallback] = [StopIfNotFinite()]
    if config.save_every:
        callbacks.append(SaveEvery(config.save_every))
    if config.patience:
        callbacks.append(EarlyStoppingCallback(config.patience))
    return [*callbacks, LogWhenSaving()]
