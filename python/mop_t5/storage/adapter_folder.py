"""Read and write the folder of a saved method: model.safetensors and mop_config.json. Neither file can run code.

README.md beside them is a model card for people (see model_card.py). The checksum does not cover it.

Trainer looks for the name of the weights file when it resumes. There is no config.json, because from_pretrained(folder)
would then build a T5 with random weights. mop_config.json holds format_version, method, config (with the scenarios),
backbone (name, shape, sha256 of its weights) and the sha256 of both files.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mop_t5.backbone.load import BackboneShape
from mop_t5.backbone.tensors import check_floating, read_tensors
from mop_t5.checks import check_names, check_types
from mop_t5.files import StrPath, checksum, damage_in_a_sentence, failure_in_a_sentence, read_json, replace_files
from mop_t5.storage import model_card

CONFIG_NAME = "mop_config.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT_VERSION = 2
_NEXT = ".next"  # suffix of a file that waits to replace an older file, see replace_files
_KEYS = {"method": (str,), "config": (dict,), "backbone": (dict,)}
_BACKBONE_KEYS = {"name": (str, type(None)), "shape": (dict,), "sha256": (str,)}


def write(folder: StrPath, description: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write both files of a method and its model card. Keep all other files, and a card that was changed by hand.

    A process that is killed leaves the folder as it was, or with all of the new content. If only the new weights are in
    place, `read` takes the new description from its waiting file, because this description fits the weights.

    Args:
        folder: The folder. It is made if it does not exist.
        description: The keys method, config and backbone of mop_config.json.
        tensors: The weights of the method by name.

    Raises:
        OSError: A file cannot be written. The folder is as it was.
        ValueError: A layer of the method is quantised or sharded.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"folder {str(folder)!r} is a file. Give a directory to write into.")
    files = contents(description, tensors)
    if model_card.is_changed(folder / model_card.CARD_NAME):
        del files[model_card.CARD_NAME]
    with failure_in_a_sentence("the method", folder):
        folder.mkdir(parents=True, exist_ok=True)
        replace_files({folder / name: content for name, content in files.items()})


def contents(description: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """Return the content of both files and of the model card by file name.

    Raises:
        ValueError: A layer of the method is quantised or sharded.
    """
    for name, value in tensors.items():
        # DeepSpeed ZeRO-3 frees the values of a parameter that is not in use
        is_empty = isinstance(value, torch.Tensor) and getattr(value, "ds_numel", 0) > value.numel()
        if type(value).__name__ == "DTensor" or is_empty:
            raise ValueError(
                f"{name} of the method is sharded, so no process has all its values. In every process, gather them by "
                "weights = mop_t5.training.gathered_weights(model); then save them in one process by "
                "model.save_pretrained(folder, state_dict=weights)."
            )
        if not isinstance(value, torch.Tensor) or value.is_quantized or is_traceable_wrapper_subclass(value):
            raise ValueError(
                f"{name} of the method must be a plain tensor to be saved; got {type(value).__name__}, as of a "
                "quantised or sharded layer. Save the method before it is quantised or sharded."
            )
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    weights = to_bytes(tensors, metadata={"format": "pt"})
    description = {"format_version": FORMAT_VERSION, **description}
    description["sha256"] = _checksum(description, weights)
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    card = model_card.make(description, sum(tensor.numel() for tensor in tensors.values()))
    return {WEIGHTS_NAME: weights, CONFIG_NAME: text.encode(), model_card.CARD_NAME: card}


def write_card(folder: StrPath, *, licence: str | None = None, sections: str = "") -> bool:
    """Write the model card of a saved method again, with what the method does not know of itself.

    Args:
        folder: The adapter folder.
        licence: The licence of the adapter, by its name on the model hub. None leaves the field out.
        sections: Further sections, in Markdown.

    Returns:
        False if there is a card that was changed by hand. It stays as it is.

    Raises:
        FileNotFoundError: A file of the method is missing.
        OSError: The card cannot be written.
        ValueError: The folder is damaged, or `licence` is no name of a licence.
    """
    model_card.check_licence(licence)
    path = Path(folder) / model_card.CARD_NAME
    description, tensors = read(folder)
    if model_card.is_changed(path):
        return False
    parameters = sum(tensor.numel() for tensor in tensors.values())
    with failure_in_a_sentence("the model card", folder):
        replace_files({path: model_card.make(description, parameters, licence=licence, sections=sections)})
    return True


def read(folder: StrPath) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the description and the tensors of a saved method. The tensors are on the CPU.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or another version of mop_t5 wrote it.
    """
    _, description, weights = _content(Path(folder))
    return description, read_tensors(Path(folder) / WEIGHTS_NAME, weights)


def files(folder: StrPath) -> dict[str, Path]:
    """Return the paths of both files of a saved method by file name. Raise the errors of `read`."""
    path, *_ = _content(Path(folder))
    return {WEIGHTS_NAME: Path(folder) / WEIGHTS_NAME, CONFIG_NAME: path}


def _content(folder: Path) -> tuple[Path, dict[str, Any], bytes]:
    """Return the file of the description, its content, and the bytes of the weights. See `read`."""
    descriptions = [path for path in (folder / CONFIG_NAME, folder / f"{CONFIG_NAME}{_NEXT}") if path.is_file()]
    for name, found in ((CONFIG_NAME, descriptions), (WEIGHTS_NAME, (folder / WEIGHTS_NAME).is_file())):
        if not found:
            raise FileNotFoundError(f"{str(folder)!r} has no {name}; expected a folder written by mop_t5.save.")
    weights = (folder / WEIGHTS_NAME).read_bytes()
    errors = []
    for path in descriptions:
        try:
            return path, _read_description(path, weights), weights
        except ValueError as error:
            errors.append(error)
    raise errors[0]


def check_tensors(folder: StrPath, tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Check that `tensors` have the names and shapes of `expected`, and finite values.

    Args:
        folder: The folder of the tensors, for messages.
        tensors: The tensors that were read, by name.
        expected: Tensors of the expected names and shapes. Their values are not read.

    Raises:
        ValueError: A tensor is missing, unexpected, of another shape, not floating point, or not finite.
    """
    shapes, expected_shapes = ({(name, one.shape) for name, one in some.items()} for some in (tensors, expected))
    path, misfits = Path(folder) / WEIGHTS_NAME, sorted({name for name, _ in shapes ^ expected_shapes})
    if misfits:
        shown = ", ".join(misfits[:4]) + (", ..." if len(misfits) > 4 else "")
        raise ValueError(
            f"{str(path)!r} does not fit {CONFIG_NAME}: {shown} missing, unexpected or of another shape. Save again."
        )
    check_floating(path, tensors, {name: one.dtype for name, one in expected.items()})


def _checksum(description: dict[str, Any], weights: bytes) -> str:
    """Return the checksum of the weights and of the content of a description. The layout of its text does not count."""
    said = {key: value for key, value in description.items() if key != "sha256"}
    return checksum(checksum(weights).encode() + json.dumps(said, sort_keys=True).encode())


def _read_description(path: Path, weights: bytes) -> dict[str, Any]:
    description = read_json(path, "Copy or save it again.")
    if description.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{str(path)!r} has format_version {description.get('format_version')!r}; this mop_t5 reads "
            f"{FORMAT_VERSION}. It is damaged, or another version of mop_t5 wrote it."
        )
    if description.get("sha256") != _checksum(description, weights):
        raise ValueError(
            f"{str(path.parent)!r} is damaged or was changed by hand: {CONFIG_NAME} and {WEIGHTS_NAME} do not have the "
            "checksum that they were saved with. Copy or save it again."
        )
    backbone = description.get("backbone")
    for owner, keys in ((description, _KEYS), (backbone, _BACKBONE_KEYS)):
        for key, kinds in keys.items():
            if not isinstance(owner, dict) or not isinstance(owner.get(key, ...), kinds):
                of = " of the backbone" if owner is backbone else ""
                raise ValueError(f"{str(path)!r} has no {key}{of}, so it was not written by mop_t5.save.")
    with damage_in_a_sentence(path, "Copy or save it again."):
        check_types(BackboneShape(**description["backbone"]["shape"]))
        check_names("scenarios", description["config"]["scenarios"])
    return description
