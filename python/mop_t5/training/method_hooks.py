"""What a method has to say while it is trained: groups that rest, what follows the steps, records of its state."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from mop_t5.files import failure_in_a_sentence, replace_file


def trained_groups(model: PreTrainedModel) -> dict[str, Sequence[torch.nn.Parameter]]:
    """The parameter groups of an attached method, and "backbone", what it trains of that."""
    groups = model.mop.parameter_groups()
    own = {id(parameter) for parameter in model.mop.parameters()}
    backbone = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    return groups | ({"backbone": backbone} if backbone else {})


class MethodHooks(TrainerCallback):
    """Calls idle_groups, after_step and records of the method of `model`; see methods.base.Method."""

    def __init__(self, model: PreTrainedModel, folder: str | Path):
        self._model, self._folder = model, Path(folder)

    def on_train_begin(self, args, state, control, **kwargs):
        self._model.mop.after_step(state.global_step)
        # records of steps that a resumed run takes anew
        if state.is_world_process_zero:
            for name in self._model.mop.records():
                path = self._folder / name
                kept = [line for line in _lines(path) if line["step"] <= state.global_step] if state.global_step else []
                if kept or path.exists():
                    replace_file(path, "".join(map(_as_line, kept)).encode())

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        idle = self._model.mop.idle_groups(state.global_step)
        for name, parameters in trained_groups(self._model).items() if idle else ():
            for parameter in parameters if name in idle else ():
                parameter.grad = None  # the optimizer then skips it, momentum and decay too

    def on_step_end(self, args, state, control, **kwargs):
        self._model.mop.after_step(state.global_step)

    def on_evaluate(self, args, state, control, **kwargs):
        self._record(state)

    def on_train_end(self, args, state, control, **kwargs):
        if args.eval_strategy == IntervalStrategy.NO:  # else the model is that of the best validation again
            self._record(state)

    def _record(self, state) -> None:
        if not state.is_world_process_zero:
            return
        for name, record in self._model.mop.records().items():
            with failure_in_a_sentence(name, self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                with open(self._folder / name, "a", encoding="utf-8") as file:
                    file.write(_as_line({"step": state.global_step, **record}))


def _as_line(record: Mapping) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _lines(path: Path) -> list[dict]:
    """The records of a file, but for a last one that was cut off."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
