"""A run folder: what a training run leaves, and all that is needed to use it again.

run.json      the configuration it was made with, every default filled in: `mop-t5 train --config` takes it
contents.json what the corpus and the backbone held (see contents.py)
adapter/      the method (mop_t5.save), or
backbone/     the whole model and its tokenizer, where all weights were trained
loss.jsonl    the loss history
checkpoints/  what `--resume` goes on from, if checkpoints were asked for

A run of several seeds has run.json, results.md and one such folder a seed, seed-N.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import mop_t5
from mop_t5.backbone.tokenizer import load_tokenizer
from mop_t5.files import check_writable, failure_in_a_sentence, replace_file, whole_folder
from mop_t5.operations import contents
from mop_t5.training.trainer import TrainingResult

SETTINGS = "run.json"
HISTORY = "loss.jsonl"
_EARLIER = {"normalise": "none"}  # what earlier versions did, and did not write
# what a resumed run may change: how long it goes on, how often it reports, and where its files lie
_MAY_CHANGE = ("steps", "patience", "evaluate_every", "save_every", "log_every", "corpus", "backbone")


def processes() -> PartialState:
    """The processes of this run: one, unless torchrun or `accelerate launch` started several."""
    # accelerate takes several processes on CPUs for as many runs unless it is told that CPUs are meant
    return PartialState(cpu=not torch.accelerator.is_available())


def prepare_output(folder: str | Path, *, overwrite: bool = False, keep: bool = False) -> Path:
    """Make an output folder. One that has content raises FileExistsError, unless `overwrite` (it is emptied) or `keep`
    (it is used as it is, to resume). Only a folder that looks like an earlier output is ever emptied. Of several
    processes all call this: either all raise, or the first one makes the folder."""
    folder, team = Path(folder), processes()
    full = check_output(folder, overwrite=overwrite, keep=keep)
    team.wait_for_everyone()  # nobody may look any more when the folder changes
    if team.is_main_process:
        if full:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    team.wait_for_everyone()
    return folder


def check_output(folder: str | Path, *, overwrite: bool = False, keep: bool = False) -> bool:
    """Whether prepare_output would empty this folder; raises what it raises, and changes nothing."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file. Choose another folder.")
    full = not keep and folder.is_dir() and any(folder.iterdir())
    if full and not overwrite:
        raise FileExistsError(f"{folder} exists and is not empty. Choose another folder or pass --overwrite.")
    if full and not (folder / SETTINGS).is_file():
        raise FileExistsError(f"{folder} has no {SETTINGS}, so it is not an earlier output. Empty it yourself.")
    check_writable(folder)
    return full


def describe_output(folder: str | Path, *, overwrite: bool = False, keep: bool = False) -> str:
    """What prepare_output would do, for a dry run; raises what it raises."""
    full = check_output(folder, overwrite=overwrite, keep=keep)
    what = "is emptied first" if full else "is gone on with" if keep else "is new or empty"
    return f"Output: {folder}, which {what}. Nothing was written."


def save_run(
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    result: TrainingResult,
    settings: dict,
) -> None:
    """Write the trained part of `model`, the history and `settings` (JSON; with the key "backbone" for a method)."""
    folder = Path(folder)
    if mop_t5.is_attached(model):
        mop_t5.save(model, folder / "adapter")
    else:
        with whole_folder(folder / "backbone", "the backbone") as writing:
            model.save_pretrained(writing)
            tokenizer.save_pretrained(writing)
        settings = settings | {"backbone": str((folder / "backbone").resolve())}
    result.write(folder / HISTORY)
    write_settings(folder, settings)


def write_settings(folder: str | Path, settings: dict) -> None:
    """run.json. Written before training, too, so that an interrupted run can be overwritten or resumed."""
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    with failure_in_a_sentence(SETTINGS, folder):
        replace_file(Path(folder) / SETTINGS, text.encode())


def read_settings(folder: str | Path) -> dict:
    """Return run.json of a run folder, with the settings that earlier versions did not write.

    Raises FileNotFoundError where there is none, and ValueError if it is damaged.
    """
    path = Path(folder) / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {SETTINGS}. Give the folder that `mop-t5 train --output` wrote.")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Copy it again, or train anew.") from error
    if not isinstance(settings, dict) or not isinstance(settings.get("seeds") or [], list):
        raise ValueError(f"{path} is damaged: it holds no settings. Copy it again, or train anew.")
    return _EARLIER | settings


def read_history(folder: str | Path) -> list[dict]:
    """`TrainingResult.history` of a run folder; empty where the run has not ended. ValueError if it is damaged."""
    path = Path(folder) / HISTORY
    try:
        points = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
        if not all(isinstance(point, dict) and "step" in point for point in points):
            raise ValueError("a line of it names no step")
        return points
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Copy it again, or train anew.") from error


def content_of_weights(folder: str | Path) -> dict[str, contents.Content]:
    """Return the content of the loss history, which tells one training from another; empty where it has not ended."""
    history = read_history(folder)
    return {"training": contents.of_json(history)} if history else {}


def check_resumable(folder: str | Path, settings: dict, may_change: tuple[str, ...] = _MAY_CHANGE) -> None:
    """Raise ValueError if the run in `folder` had other settings than it is to be resumed with. Trainer takes the
    optimizer's from the checkpoint whatever is asked for, and another seed or method would be another run."""
    # as JSON gives them back: tuples are lists there
    given, stored = json.loads(json.dumps(settings)), read_settings(folder)
    other = sorted(name for name in given if name not in may_change and given[name] != stored.get(name))
    if other:
        changes = "; ".join(f"{name} was {stored.get(name)!r}, now {given[name]!r}" for name in other)
        raise ValueError(
            f"{folder} cannot be resumed with another configuration: {changes}. Take it back, or start a new run with "
            "another --output."
        )


def load_run(
    folder: str | Path, backbone_path: str | None = None, *, on_accelerator: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict]:
    """Return the model with its method attached, its tokenizer, and the settings of a run folder.

    Args:
        folder: The run folder.
        backbone_path: In place of the backbone's path in the settings, for a backbone that was moved.
        on_accelerator: Move the model to the machine's accelerator if it has one.

    Raises:
        FileNotFoundError: The folder has no settings or no trained weights.
        ValueError: The run is damaged, or was trained with another backbone or tokenizer than there is.
    """
    folder, settings = Path(folder), read_settings(folder)
    if settings.get("seeds"):
        names = ", ".join(f"seed-{seed}" for seed in settings["seeds"])
        raise ValueError(f"{folder} holds several runs: {names}. Give one of these folders.")
    path = backbone_path or settings.get("backbone")
    if not (folder / "adapter").is_dir() and not (folder / "backbone").is_dir():
        raise FileNotFoundError(f"{folder} has no trained weights yet. Finish it with `mop-t5 train --resume`.")
    if (folder / "backbone").is_dir() and backbone_path is None:
        path = str(folder / "backbone")
    if not isinstance(path, str):
        raise ValueError(f"{folder / SETTINGS} names no backbone. Pass --backbone.")
    model = mop_t5.load_backbone(path)
    if (folder / "adapter").is_dir():
        mop_t5.load(model, folder / "adapter")
        if settings.get("method") not in (None, model.mop.name):
            raise ValueError(
                f"{folder} is damaged: {SETTINGS} names the method {settings['method']!r}, but its adapter is of "
                f"{model.mop.name!r}. Copy the whole run again, or train anew."
            )
    if on_accelerator and torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    tokenizer, made_of = load_tokenizer(path), contents.read_contents(folder) or {}
    if "tokenizer" in made_of and made_of["tokenizer"] != contents.of_tokenizer(tokenizer):
        raise ValueError(
            f"{folder} was trained with another tokenizer than {path!r} has now, so its texts would mean something "
            "else. Put the tokenizer back, or pass --backbone with the folder that has it."
        )
    return model, tokenizer, settings
