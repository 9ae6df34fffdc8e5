"""Read and write run folders. Training writes them; evaluation and serving read them.

run.json      the configuration with every default filled in; `mop-t5 train --config` takes this file
contents.json checksums of the corpus and of the backbone (see contents.py)
card.json     sizes of the corpus and versions, for the model card of the adapter (see run_card.py)
adapter/      the method (mop_t5.save), or
backbone/     the whole model and its tokenizer, where all weights were trained
loss.jsonl    the loss history
checkpoints/  the checkpoints from which `--resume` continues

A run of several seeds has run.json, results.md and one such folder per seed, seed-N.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mop_t5 import files
from mop_t5.attachment.attached_model import attached, is_attached
from mop_t5.backbone.settings import LoadingSettings
from mop_t5.backbone.source import is_prequantised
from mop_t5.checks import check_type
from mop_t5.operations import contents
from mop_t5.operations.attach import load

SETTINGS = "run.json"
HISTORY = "loss.jsonl"
_CURE = "Copy it again, or train anew."
# settings that earlier versions did not write
_EARLIER: dict[str, Any] = {
    "normalise": "none",
    "stream": None,
    "cache_encoder": "no",
    "cache_cross": False,
    "cache_folder": None,
    "cache_gigabytes": 8.0,
    "by_length": False,
    "compile": False,
    "gradient_checkpointing": False,
    "shard": "no",
    "fused": True,
    "trainer": {},
    "licence": None,
    **asdict(LoadingSettings()),
}
# settings that are used before anything else checks them, in run.json of a training or of an evaluation
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("steps", "max_source", "max_target", "num_beams", "seed"), int | None),
    **dict.fromkeys(("corpus", "backbone", "method", "licence", "split"), str | None),
    **dict.fromkeys(("implementation", "unit", "normalise"), str | None),
    **dict.fromkeys(("options", "trainer", "metrics"), dict[str, Any] | None),
    "seeds": list[int] | None,
}
_EARLIER_OPTIONS = {"mop": {"others": "mlp"}}  # fields that earlier versions of a method did not have
# settings that a resumed run may change: its length, its intervals, the places of its files and layers, its reports,
# its licence, how its batches are loaded, and how several processes share its steps and its weights (see
# training.checkpoints.check_step)
_MAY_CHANGE = (
    *("steps", "patience", "evaluate_every", "save_every", "log_every"),
    *("corpus", "stream", "backbone", "cache_folder", "cache_gigabytes", "licence"),
    *("trainer.report_to", "trainer.run_name", "trainer.project", "trainer.logging_first_step", "trainer.eval_delay"),
    *("trainer.trackio_space_id", "trainer.trackio_bucket_id", "trainer.trackio_static_space_id"),
    *("trainer.log_level", "trainer.log_level_replica", "trainer.log_on_each_node", "trainer.disable_tqdm"),
    *("trainer.dataloader_num_workers", "trainer.dataloader_prefetch_factor", "trainer.dataloader_pin_memory"),
    *("trainer.dataloader_persistent_workers", "trainer.dataloader_multiprocessing_context"),
    *("trainer.save_total_limit", "trainer.eval_accumulation_steps", "trainer.torch_empty_cache_steps"),
    *("trainer.include_num_input_tokens_seen", "trainer.skip_memory_metrics", "trainer.debug"),
    *("accumulation", "shard"),
    *("revision", "subfolder", "device_map", "max_memory", "offload_folder"),
)


def processes() -> PartialState:
    """Return the processes of this run: a single process, unless torchrun or `accelerate launch` started several."""
    # without `cpu`, accelerate takes several processes on CPUs for separate runs
    return PartialState(cpu=not torch.accelerator.is_available())


def seed_folders(folder: str | Path, seeds: Sequence[int]) -> dict[int, Path]:
    """Return the run folder of each seed."""
    return {seed: Path(folder) / f"seed-{seed}" for seed in seeds}


def prepare_output(folder: str | Path, *, overwrite: bool = False, keep: bool = False) -> Path:
    """Make an output folder. Every process of a run must call this function: all raise, or the first makes the folder.

    Args:
        folder: The output folder.
        overwrite: Empty a folder that has content. Only a folder with run.json is ever emptied.
        keep: Use a folder that has content as it is, to resume.

    Returns:
        The folder, as a Path.

    Raises:
        FileExistsError: The folder has content, and neither `overwrite` nor `keep` is set.
        OSError: The folder cannot be written into.
    """
    folder, team = Path(folder), processes()
    full = check_output(folder, overwrite=overwrite, keep=keep)
    team.wait_for_everyone()  # every process must have looked before the folder changes
    if team.is_main_process:
        if full:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    team.wait_for_everyone()
    return folder


def check_output(folder: str | Path, *, overwrite: bool = False, keep: bool = False) -> bool:
    """Return whether prepare_output would empty this folder. Raise the same errors, and change nothing."""
    cure = "Choose another folder or pass --overwrite."
    replaced = [] if keep and Path(folder).is_dir() else files.content_to_replace(folder, overwrite, cure=cure)
    if replaced and SETTINGS not in replaced:
        raise FileExistsError(f"{folder} has no {SETTINGS}, so it is not an earlier output. Empty it yourself.")
    files.check_writable(folder)
    return bool(replaced)


def describe_output(folder: str | Path, *, overwrite: bool = False, keep: bool = False) -> str:
    """Describe the effect of prepare_output, for a dry run. Raise the same errors, and change nothing."""
    full = check_output(folder, overwrite=overwrite, keep=keep)
    state = "is emptied first" if full else "is continued" if keep else "is new or empty"
    return f"Output: {folder}, which {state}. Nothing was written."


def save_run(
    folder: str | Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    history: Sequence[Mapping[str, Any]],
    settings: dict[str, Any],
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a finished run.

    Args:
        folder: The run folder.
        model: The trained model. Only the method is written, or the whole model where no method is attached.
        tokenizer: The tokenizer of the model.
        history: The loss history, as `TrainingResult.history`.
        settings: The content of run.json. It must name the "backbone" of a method.
        weights: The values to write, gathered from a sharded model. None: the values of the model.
    """
    folder = Path(folder)
    if is_attached(model):
        attached(model).save_pretrained(folder / "adapter", state_dict=weights)
    else:
        with files.whole_folder(folder / "backbone", "the backbone") as writing:
            model.save_pretrained(writing, state_dict=weights)
            tokenizer.save_pretrained(writing)
        settings = settings | {"backbone": str((folder / "backbone").resolve())}
    with files.failure_in_a_sentence("the loss history", folder / HISTORY):
        files.replace_file(folder / HISTORY, files.json_lines(history))
    write_settings(folder, settings)


def write_settings(folder: str | Path, settings: Mapping[str, Any]) -> None:
    """Write run.json. Call this before training, too: only a folder with run.json can be overwritten or resumed."""
    files.write_json(Path(folder) / SETTINGS, settings)


def read_settings(folder: str | Path) -> dict[str, Any]:
    """Return run.json of a run folder, with the settings that earlier versions did not write.

    Raises:
        FileNotFoundError: The folder has no run.json.
        ValueError: The file is damaged.
    """
    path = Path(folder) / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {SETTINGS}. Give the folder that `mop-t5 train --output` wrote.")
    settings = files.read_json(path, _CURE)
    with files.damage_in_a_sentence(path, _CURE):
        for name in _KINDS.keys() & settings.keys():
            check_type(name, settings[name], _KINDS[name])
        LoadingSettings.of_run(settings)
    if isinstance(options := settings.get("options"), dict):
        settings["options"] = _EARLIER_OPTIONS.get(str(settings.get("method")), {}) | options
    return _EARLIER | settings


def read_history(folder: str | Path) -> list[dict[str, Any]]:
    """Return the loss history of a run folder. Empty where the run has not ended. Raise ValueError if it is damaged."""
    path = Path(folder) / HISTORY
    with files.damage_in_a_sentence(path, _CURE):
        points = files.split_json_lines(path.read_text(encoding="utf-8")) if path.is_file() else []
        if not all(isinstance(point, dict) and "step" in point for point in points):
            raise ValueError("a line names no step")
        return points


def content_of_weights(folder: str | Path) -> dict[str, contents.Content]:
    """Return the checksum of the loss history, which identifies a training. Empty where the run has not ended."""
    history = read_history(folder)
    return {"training": contents.of_json(history)} if history else {}


def check_resumable(folder: str | Path, settings: Mapping[str, Any], may_change: Sequence[str] = _MAY_CHANGE) -> None:
    """Raise ValueError if the run in `folder` was started with other settings.

    Trainer restores the optimizer's settings from the checkpoint and ignores new settings. Another seed or another
    method would be another run.
    """
    # JSON turns tuples into lists
    given, stored = _each(json.loads(json.dumps(settings))), _each(read_settings(folder))
    names = given | {name: None for name in stored if name.startswith("trainer.")}
    other = sorted(name for name in names if name not in may_change and given.get(name) != stored.get(name))
    if other:
        changes = "; ".join(f"{name} was {stored.get(name)!r}, now {given.get(name)!r}" for name in other)
        raise ValueError(
            f"{folder} cannot be resumed with another configuration: {changes}. Take it back, or start a new run with "
            "another --output."
        )


def _each(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with each field of `trainer` as a setting of its own."""
    own = {name: value for name, value in settings.items() if name != "trainer"}
    return own | {f"trainer.{name}": value for name, value in (settings.get("trainer") or {}).items()}


def settings_of_trained(folder: str | Path) -> dict[str, Any]:
    """Return the settings of a run folder that has trained weights.

    Raises:
        FileNotFoundError: The folder has no settings or no trained weights.
        ValueError: The folder holds the runs of several seeds, or its settings are damaged.
    """
    folder, settings = Path(folder), read_settings(folder)
    if seeds := settings.get("seeds"):
        names = ", ".join(path.name for path in seed_folders(folder, seeds).values())
        raise ValueError(f"{folder} holds several runs: {names}. Give one of these folders.")
    if not (folder / "adapter").is_dir() and not (folder / "backbone").is_dir():
        raise FileNotFoundError(f"{folder} has no trained weights yet. Finish it with `mop-t5 train --resume`.")
    return settings


def load_run(
    folder: str | Path, backbone_path: str | None = None, *, on_accelerator: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Return the model of a run folder with its method attached, its tokenizer, and its settings.

    Args:
        folder: The run folder.
        backbone_path: The folder of a backbone that was moved. It replaces the path in the settings.
        on_accelerator: Move the model to the accelerator of the machine, if any. A model with a device_map stays.

    Raises:
        FileNotFoundError: The folder has no settings or no trained weights.
        ImportError: The backbone was quantised, and the package is missing.
        ValueError: The run is damaged, the backbone or the tokenizer has changed since the training, or a device of
            the run's device_map is missing.
    """
    folder, settings = Path(folder), settings_of_trained(folder)
    if backbone_path is None and (folder / "backbone").is_dir():
        backbone_path = str(folder / "backbone")
    path, moved = backbone_path or settings.get("backbone"), backbone_path is not None
    if not isinstance(path, str):
        raise ValueError(f"{folder / SETTINGS} names no backbone. Pass --backbone.")
    loading = LoadingSettings.of_run(settings, moved=moved)
    if moved and is_prequantised(path):  # it is what the run quantised, in saved form, or `load` refuses it
        loading = replace(loading, quantise="no")
    try:
        loading.check_machine()
    except ValueError as error:
        raise ValueError(f"{error} It is a setting in {folder / SETTINGS}: change it there.") from error
    model = loading.load(path)
    if (folder / "adapter").is_dir():
        method = attached(load(model, folder / "adapter")).mop.name
        if settings.get("method") not in (None, method):
            raise ValueError(
                f"{folder} is damaged: {SETTINGS} names the method {settings['method']!r}, but its adapter is of "
                f"{method!r}. Copy the whole run again, or train anew."
            )
    device = torch.accelerator.current_accelerator(check_available=True) if on_accelerator else None
    if device is not None and getattr(model, "hf_device_map", None) is None:
        torch.nn.Module.to(model, device)
    tokenizer, made_of = loading.tokenizer(path), contents.read_contents(folder) or {}
    if "tokenizer" in made_of and made_of["tokenizer"] != contents.of_tokenizer(tokenizer):
        raise ValueError(
            f"{folder} was trained with another tokenizer than {path!r} has now, so its texts would mean something "
            "else. Put the tokenizer back, or pass --backbone with the folder that has it."
        )
    return model, tokenizer, settings
