"""Read the tensors of safetensors files. Such a file holds numbers only: nothing in it can run."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from mop_t5.files import StrPath


def read_tensors(path: StrPath, content: bytes | None = None) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, by name, on the CPU.

    The library checks that the header fits the file: shapes, offsets and data types agree, and no tensors overlap.

    Args:
        path: The file.
        content: The bytes of the file, if they have been read.

    Raises:
        OSError: The file cannot be read, or is a pipe or a device.
        ValueError: The file is damaged, or holds numbers of a kind that torch does not have.
    """
    path = Path(path)
    if content is None and not path.is_file():
        raise OSError(f"{path} is no file. Give the path of a safetensors file.")
    try:
        return load_file(path) if content is None else load(content)
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"{str(path)!r} is not a safetensors file that torch can read ({error}).") from error


def check_floating(path: StrPath, tensors: Mapping[str, Tensor], dtype: Mapping[str, torch.dtype]) -> None:
    """Check that tensors are floating point, and finite in the data type that they will have.

    torch would turn integers and complex numbers into floating point without a message.

    Args:
        path: The file of the tensors, for messages.
        tensors: The tensors by name.
        dtype: The data type that each will have.

    Raises:
        ValueError: A tensor holds other numbers, or a number is not finite.
    """
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.itemsize < 2:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(f"{str(path)!r} holds {name} in {kind}; expected floating point. Save it again.")
    infinite = sorted(name for name, tensor in tensors.items() if not tensor.to(dtype[name]).isfinite().all())
    if infinite:
        shown = ", ".join(infinite[:4]) + (", ..." if len(infinite) > 4 else "")
        raise ValueError(
            f"{str(path)!r} holds values that are not finite: {shown}. Train the method again with a lower learning "
            "rate."
        )
