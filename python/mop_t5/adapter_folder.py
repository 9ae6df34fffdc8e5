"""The folder of a saved method: model.safetensors and mop_config.json, nothing that can run code.

The weights file has the name that Trainer looks for when it resumes. There is no config.json: with one,
from_pretrained(folder) would build a T5 with random weights.
"""

import json
import os
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

CONFIG_NAME = "mop_config.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT_VERSION = 1


def write(folder: str | os.PathLike, description: dict, tensors: dict[str, torch.Tensor]) -> None:
    """Write both files. Each is complete on disk before either takes the place of an older one."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"folder {str(folder)!r} is a file. Give a directory to write into.")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"format_version": FORMAT_VERSION, **description}, indent=2, ensure_ascii=False) + "\n"
    waiting = []
    try:
        for content in (to_bytes(tensors, metadata={"format": "pt"}), text.encode()):
            waiting.append(_write_beside(folder, content))
        # without its JSON a folder is refused, so new weights never meet an old config
        (folder / CONFIG_NAME).unlink(missing_ok=True)
        for path, name in zip(list(waiting), (WEIGHTS_NAME, CONFIG_NAME), strict=True):
            os.replace(path, folder / name)
            waiting.remove(path)
    finally:
        for path in waiting:
            os.unlink(path)


def read_description(folder: str | os.PathLike) -> dict:
    """The JSON of the folder: format_version, method, config (with the scenarios), backbone."""
    folder = Path(folder)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{str(folder)!r} has no {name}; expected a folder written by mop_t5.save.")
    try:
        description = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        version = description["format_version"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{str(folder / CONFIG_NAME)!r} is not a description written by mop_t5.save.") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{str(folder / CONFIG_NAME)!r} has format_version {version!r}; this mop_t5 reads {FORMAT_VERSION}. Use "
            "the version of mop_t5 that wrote it."
        )
    return description


def read_tensors(folder: str | os.PathLike, expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of the folder, on the CPU, if they have exactly the names and shapes of `expected`."""
    path = Path(folder) / WEIGHTS_NAME
    tensors = load_file(path)
    wrong = sorted(
        name
        for name in expected.keys() | tensors.keys()
        if name not in expected or name not in tensors or expected[name].shape != tensors[name].shape
    )
    if wrong:
        raise ValueError(
            f"{str(path)!r} does not fit {CONFIG_NAME}: {', '.join(wrong[:4])}{', ...' if wrong[4:] else ''} missing, "
            "unexpected or of another shape. Save the model again."
        )
    return tensors


def _write_beside(folder: Path, content: bytes) -> str:
    """Write to a temporary file in folder, so that os.replace stays within one file system. Returns its path."""
    handle, path = tempfile.mkstemp(dir=folder, prefix=".saving-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(path, 0o666 & ~_umask())  # mkstemp makes files that only their owner can read
    except BaseException:
        os.unlink(path)
        raise
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
