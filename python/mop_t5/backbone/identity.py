"""Describe a backbone by a name for people, its shape, and a hash of its weights, and compare it with a description."""

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import PreTrainedModel

from mop_t5.backbone.load import BackboneShape
from mop_t5.backbone.weights import weights_of
from mop_t5.files import StrPath, checksum

__all__ = ["check_readable", "check_same_backbone", "describe_backbone", "hash_weights", "weights_of"]

_SAMPLE = 4096  # values of a parameter that enter the hash
_ONE_HASH = (torch.float64, torch.float32, torch.bfloat16)  # dtypes in which a backbone has the same hash


def describe_backbone(model: PreTrainedModel, parameters: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the description of a backbone for an adapter folder.

    Args:
        model: The backbone.
        parameters: The parameters and buffers of the backbone by name, with the backbone's own values.

    Raises:
        ValueError: A parameter has no values, or they cannot be read.
    """
    name = model.config._name_or_path or None
    if name is not None and (os.path.exists(name) or os.path.isabs(name)):  # the folder may have gone
        name = os.path.basename(os.path.abspath(name))  # the path on this machine is private
    return {"name": name, "shape": asdict(BackboneShape.of(model)), "sha256": hash_weights(parameters)}


def check_same_backbone(
    model: PreTrainedModel, saved: Mapping[str, Any], parameters: Mapping[str, torch.Tensor], folder: StrPath
) -> None:
    """Check that a backbone has the saved shape and weights.

    Args:
        model: The backbone.
        saved: The description from `describe_backbone`.
        parameters: The parameters and buffers of the backbone by name, with the backbone's own values.
        folder: The folder of the description, for messages.

    Raises:
        ValueError: The shape or the weights differ.
    """
    differences = BackboneShape.of(model).differences(saved["shape"])
    if not differences and hash_weights(parameters) != saved["sha256"]:
        differences = ["the same shape with other weights"]
    if differences:
        trained_on = f"another backbone than this one, {saved['name']!r}" if saved["name"] else "another backbone"
        raise ValueError(f"{str(folder)!r} was trained on {trained_on} ({'; '.join(differences)}). Load that backbone.")


def check_readable(parameters: Mapping[str, torch.Tensor]) -> None:
    """Check that `hash_weights` can read every tensor subclass.

    Plain tensors are not read here, and neither are tensors without values (meta, fake).

    Raises:
        ValueError: A tensor subclass cannot be read.
    """
    for name, values in parameters.items():
        if not values.is_meta and not isinstance(values, FakeTensor) and _has_own_dispatch(values):
            list(_content(name, values))


def hash_weights(parameters: Mapping[str, torch.Tensor], *, whole: bool = False) -> str:
    """Return the SHA-256 of the name, the shape and up to 4096 evenly spread values of every parameter.

    Any other checkpoint differs in many of these values. Reading them costs milliseconds, whatever the size of the
    model. The hash may miss a change of only a few rows of a large matrix. The values are rounded to bfloat16 first, so
    a backbone has the same hash in float32, float64 and bfloat16, and on every device. (float16 gives another hash,
    because rounding twice differs from rounding once.)

    A tensor subclass that wraps other tensors (torchao's quantised weights) enters with its class name, its metadata
    and the values of its inner tensors. A replicated DTensor enters as the tensor that it replicates.

    Args:
        parameters: The parameters and buffers by name.
        whole: Read all values in their own dtype, so that any change of any value gives another hash.

    Raises:
        ValueError: A parameter lies on device "meta", is sharded over processes, or cannot be read.
    """
    for name, values in parameters.items():
        if getattr(values, "ds_numel", 0) > values.numel():
            raise ValueError(
                f"parameter {name} of the backbone is sharded by DeepSpeed ZeRO-3, so no process has all its values. "
                "Attach, save and load before the backbone is sharded."
            )
    return checksum(part for name in sorted(parameters) for part in _content(name, parameters[name], whole))


def _content(name: str, values: torch.Tensor, whole: bool = False) -> Iterator[bytes]:
    """Yield the bytes of a parameter that enter the hash."""
    if values.is_meta:
        raise ValueError("model lies on device 'meta' and has no values to save or to compare. Load its weights first.")
    values = _whole(name, values.detach())
    if is_traceable_wrapper_subclass(values):
        inner, metadata = values.__tensor_flatten__()
        yield f"{name} {type(values).__qualname__} {tuple(values.shape)} {_as_text(metadata)}\n".encode()
        for attribute in sorted(inner):
            yield from _content(f"{name}.{attribute}", getattr(values, attribute), whole)
        return
    # an odd step visits all columns of a matrix; an even step could stay in a single column
    step = 1 if whole else math.ceil(values.numel() / _SAMPLE) | 1
    try:
        sampled = values.reshape(-1)[::step].to(values.dtype if whole else torch.bfloat16).cpu().contiguous()
        sample = sampled.view(torch.uint8).numpy().tobytes()
    except (NotImplementedError, RuntimeError, TypeError) as error:
        if not _has_own_dispatch(values):
            raise
        reason = str(error).partition("\n")[0][:120]
        raise ValueError(
            f"parameter {name} of the backbone has the class {type(values).__name__}, whose values cannot be read "
            f"({reason}). mop_t5 reads them to tell one backbone from another. Use a backbone of plain tensors, or of "
            "a subclass that has __tensor_flatten__."
        ) from error
    yield f"{name} {tuple(values.shape)}{f' {values.dtype}' if whole else ''}\n".encode()
    yield sample


def _has_own_dispatch(values: torch.Tensor) -> bool:
    return type(values).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__


def _whole(name: str, values: torch.Tensor) -> torch.Tensor:
    """Return the local tensor of a DTensor that is not sharded, and any other tensor unchanged.

    Gathering the shards would need every process, and only the main process saves.
    """
    if not _has_own_dispatch(values) or not torch.distributed.is_available():
        return values
    from torch.distributed.tensor import DTensor

    if not isinstance(values, DTensor):
        return values
    mesh = values.device_mesh
    if not all(p.is_replicate() or mesh.size(dim) == 1 for dim, p in enumerate(values.placements)):
        raise ValueError(
            f"parameter {name} of the backbone is sharded over {mesh.size()} processes (DTensor), so no process has "
            "all its values. Attach, save and load before the backbone is sharded."
        )
    return values.to_local()


def _as_text(value: object) -> str:
    """Return the metadata of a tensor subclass as a text that is equal in every process.

    float64, float32 and bfloat16 are all written as "float", and a device as its class, because the weights do not
    depend on them. Options that are None or False are left out, so a library may add an option. Any other object is
    written as its class.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return type(value).__qualname__ + _as_text({field.name: getattr(value, field.name) for field in fields(value)})
    if isinstance(value, Mapping):
        texts = {str(key): _as_text(option) for key, option in value.items() if option is not None}
        return str({key: text for key, text in sorted(texts.items()) if text != "False"})
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_as_text, value))}]"
    if isinstance(value, torch.dtype):
        return "float" if value in _ONE_HASH else str(value)
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    return repr(value) if value is None or isinstance(value, (bool, int, float, str)) else type(value).__qualname__
