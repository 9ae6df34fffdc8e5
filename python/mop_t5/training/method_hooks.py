"""Call the hooks of a method during training: idle groups, updates after a step, records of its state."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerState
from transformers.trainer_utils import IntervalStrategy

from mop_t5.attachment.attached_model import attached
from mop_t5.files import failure_in_a_sentence, replace_file


def trained_groups(model: PreTrainedModel) -> dict[str, Sequence[torch.nn.Parameter]]:
    """Return the parameter groups of an attached method, and as "backbone" the trained parameters of the backbone."""
    method = attached(model).mop
    groups = method.parameter_groups()
    own = {id(parameter) for parameter in method.parameters()}
    backbone = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    return groups | ({"backbone": backbone} if backbone else {})


class MethodHooks(TrainerCallback):
    """Calls of idle_groups, after_step and records of an attached method; see Method.

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
                if kept or path.exists():
                    replace_file(path, "".join(map(_as_line, kept)).encode())

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
                with open(self._folder / name, "a", encoding="utf-8") as file:
                    file.write(_as_line({"step": state.global_step, **record}))


def _as_line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, without a last line that was cut."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
