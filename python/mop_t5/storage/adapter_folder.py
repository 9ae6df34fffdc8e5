"""The folder of a saved method: model.safetensors and mop_config.json, nothing that can run code.

The weights file has the name that Trainer looks for when it resumes. There is no config.json: with one,
from_pretrained(folder) would build a T5 with random weights. mop_config.json holds format_version, method, config (with
the scenarios), backbone (name, shape, sha256 of its weights) and the sha256 of both files.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from mop_t5.files import checksum, failure_in_a_sentence, flush, write_durably

CONFIG_NAME = "mop_config.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT_VERSION = 2
_NEXT = ".next"  # behind the name of a file that waits to take the place of an older one
_KEYS = {"method": str, "config": dict, "backbone": dict}
_BACKBONE_KEYS = {"name": (str, type(None)), "shape": dict, "sha256": str}


def write(folder: str | os.PathLike, description: dict, tensors: dict[str, torch.Tensor]) -> None:
    """Write both files; other files in the folder stay. Raises OSError, with the folder as it was.

    A process that is killed leaves the folder as it was or with all of the new: `read` takes the description that
    fits the weights, the waiting one if the weights have been replaced and the description has not.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"folder {str(folder)!r} is a file. Give a directory to write into.")
    files = contents(description, tensors)
    waiting = {folder / name: folder / f"{name}{_NEXT}" for name in files}
    with failure_in_a_sentence("the method", folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path, content in zip(waiting.values(), files.values(), strict=True):
                write_durably(path, content)
        except OSError:
            for path in waiting.values():
                path.unlink(missing_ok=True)
            raise
        for path, complete in waiting.items():
            os.replace(complete, path)
        flush(folder)


def contents(description: dict, tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """Return both files by their names. Raises ValueError where a layer of the method is quantised."""
    for name, value in tensors.items():
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
    return {WEIGHTS_NAME: weights, CONFIG_NAME: text.encode()}


def read(folder: str | os.PathLike) -> tuple[dict, dict[str, torch.Tensor]]:
    """The description, without checksum, and the tensors, on the CPU. Raises ValueError for damaged files.

    Raises FileNotFoundError where a file is missing.
    """
    folder = Path(folder)
    descriptions = [path for path in (folder / CONFIG_NAME, folder / f"{CONFIG_NAME}{_NEXT}") if path.is_file()]
    for name, found in ((CONFIG_NAME, descriptions), (WEIGHTS_NAME, (folder / WEIGHTS_NAME).is_file())):
        if not found:
            raise FileNotFoundError(f"{str(folder)!r} has no {name}; expected a folder written by mop_t5.save.")
    weights = (folder / WEIGHTS_NAME).read_bytes()
    first_error = None
    for path in descriptions:
        try:
            description = _read_description(path, weights)
            break
        except ValueError as error:
            first_error = first_error or error
    else:
        raise first_error
    try:
        return description, from_bytes(weights)
    except SafetensorError as error:
        raise ValueError(f"{str(folder / WEIGHTS_NAME)!r} is not a safetensors file ({error}).") from error


def check_tensors(folder: str | os.PathLike, tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    """Raise ValueError unless tensors have exactly the names and shapes of `expected`, and finite values."""
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape
    )
    if wrong:
        raise ValueError(
            f"{str(Path(folder) / WEIGHTS_NAME)!r} does not fit {CONFIG_NAME}: {', '.join(wrong[:4])}"
            f"{', ...' if wrong[4:] else ''} missing, unexpected or of another shape. Save the model again."
        )
    wrong = sorted(name for name, tensor in tensors.items() if not tensor.isfinite().all())
    if wrong:
        raise ValueError(
            f"{str(Path(folder) / WEIGHTS_NAME)!r} holds values that are not finite: {', '.join(wrong[:4])}"
            f"{', ...' if wrong[4:] else ''}. Train the method again, with a lower learning rate."
        )


def _checksum(description: dict, weights: bytes) -> str:
    """Of the weights and of all that the description says, whatever its layout."""
    said = {key: value for key, value in description.items() if key != "sha256"}
    return checksum(checksum(weights).encode() + json.dumps(said, sort_keys=True).encode())


def _read_description(path: Path, weights: bytes) -> dict:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is damaged, or was not written by mop_t5.save.") from error
    if not isinstance(description, dict) or "format_version" not in description:
        raise ValueError(f"{str(path)!r} is damaged, or was not written by mop_t5.save.")
    version = description["format_version"]
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{str(path)!r} has format_version {version!r}; this mop_t5 reads {FORMAT_VERSION}. Use the version of "
            "mop_t5 that wrote it."
        )
    if description.get("sha256") != _checksum(description, weights):
        raise ValueError(
            f"{str(path.parent)!r} is damaged or was changed by hand: {CONFIG_NAME} and {WEIGHTS_NAME} do not have the "
            "checksum that they were saved with. Copy or save it again."
        )
    for key, kind in _KEYS.items():
        if not isinstance(description.get(key), kind):
            raise ValueError(f"{str(path)!r} has no {key}, so it was not written by mop_t5.save.")
    for key, kind in _BACKBONE_KEYS.items():
        if key not in description["backbone"] or not isinstance(description["backbone"][key], kind):
            raise ValueError(f"{str(path)!r} has no {key} of the backbone, so it was not written by mop_t5.save.")
    return description
