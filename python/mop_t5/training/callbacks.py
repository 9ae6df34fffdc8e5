"""Callbacks of the trainer: they decide when it logs, saves and stops, and call the hooks of a method."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from transformers import EarlyStoppingCallback, PreTrainedModel, ProgressCallback, TrainerCallback, TrainerState
from transformers.trainer_utils import IntervalStrategy

from mop_t5.attachment.attached_model import attached
from mop_t5.files import damage_in_a_sentence, failure_in_a_sentence, json_lines, replace_file, split_json_lines
from mop_t5.training.checkpoints import checkpoints
from mop_t5.training.config import TrainingConfig
from mop_t5.training.optimizer import trained_groups


class StopIfNotFinite(TrainerCallback):
    """Stop before a step whose gradient is not finite.

    The gradient is equal on all processes, so all stop at the same step. The loss may differ between processes.
    """

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        """Raise FloatingPointError if the gradient is not finite."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # DeepSpeed has made its step already, and keeps the norm of its gradient
        norm = getattr(getattr(optimizer, "optimizer", None), "_global_grad_norm", None)
        if not math.isfinite(torch.nn.utils.get_total_norm(gradients).item() if norm is None else float(norm)):
            last = next(reversed(checkpoints(args.output_dir)), "none: save_every was 0")
            when = "before this step changed a weight" if norm is None else "after this step spoilt the weights"
            raise FloatingPointError(
                f"step {state.global_step + 1}: the loss or its gradient is not finite. Training stopped {when}; the "
                f"last checkpoint is {last}. Lower learning_rate, raise warmup_steps, or turn bf16 off."
            )


class SaveEvery(TrainerCallback):
    """Save checkpoints between validations. Trainer's own interval is used for validations, each with a checkpoint.

    Every checkpoint is a logged point, because a resumed Trainer forgets the losses since the last logged point.

    Args:
        steps: The interval. 0: only validations write a checkpoint.
    """

    def __init__(self, steps: int):
        self._steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        """Request a checkpoint at each interval, and a logged point at each checkpoint."""
        control.should_save |= self._steps > 0 and state.global_step % self._steps == 0
        control.should_log |= control.should_save


class BarWithoutLogs(ProgressCallback):
    """A progress bar that does not print the losses, which are in the history and on the plot."""

    def on_log(self, *args, **kwargs):
        """Print nothing."""

    def close(self) -> None:
        """Close the bars, so that an error message stands on a line of its own."""
        for bar in (self.training_bar, self.prediction_bar):
            if bar is not None:
                bar.close()


class MethodHooks(TrainerCallback):
    """Call idle_groups, after_step and records of an attached method (see Method).

    Args:
        model: The model with the method.
        folder: The folder of the records.
    """

    def __init__(self, model: PreTrainedModel, folder: str | Path):
        self._model, self._method, self._folder = model, attached(model).mop, Path(folder)

    def on_train_begin(self, args, state, control, **kwargs):
        """Set the method to the current step, and drop records of steps that a resumed run repeats."""
        self._method.after_step(state.global_step)
        if state.is_world_process_zero:
            for name in self._method.records():
                path = self._folder / name
                kept = [line for line in _lines(path) if line["step"] <= state.global_step] if state.global_step else []
                if kept or os.path.lexists(path):  # in place of a link, through which later records would be written
                    replace_file(path, json_lines(kept))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Remove the gradients of idle groups, so that the optimizer skips these parameters."""
        idle = self._method.idle_groups(state.global_step)
        for name, parameters in trained_groups(self._model).items() if idle else ():
            for parameter in parameters if name in idle else ():
                parameter.grad = None  # without momentum and decay, too

    def on_step_end(self, args, state, control, **kwargs):
        """Let the method update itself."""
        self._method.after_step(state.global_step)

    def on_evaluate(self, args, state, control, **kwargs):
        """Record the state of the method at each validation."""
        self._record(state)

    def on_train_end(self, args, state, control, **kwargs):
        """Record the state of the method at the end, unless validations have recorded it."""
        if args.eval_strategy == IntervalStrategy.NO:
            self._record(state)

    def _record(self, state: TrainerState) -> None:
        if not state.is_world_process_zero:
            return
        for name, record in self._method.records().items():
            with failure_in_a_sentence(name, self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                with open(self._folder / name, "ab") as file:
                    file.write(json_lines([{"step": state.global_step, **record}]))


def callbacks_of(config: TrainingConfig) -> list[TrainerCallback]:
    """Return the callbacks that the settings require."""
    early_stop = [EarlyStoppingCallback(config.patience)] if config.patience else []
    return [StopIfNotFinite(), *early_stop, SaveEvery(config.save_every)]


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, without a last line that was cut."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    with damage_in_a_sentence(path, "Delete it, or copy it again."):
        return split_json_lines(text[: text.rfind("\n") + 1])
