"""Where the layers of a backbone lie: several GPUs, the memory of the host, the disk. accelerate moves the data."""

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel

from mop_t5.backbone.weights import offloading_hooks, offloads
from mop_t5.files import StrPath

DeviceMap: TypeAlias = str | int | torch.device | Mapping[str, int | str | torch.device] | None
PLANS = ("auto", "balanced", "balanced_low_0", "sequential")
_OFFLOADED = ("disk",)


def check_placement(
    device_map: DeviceMap, max_memory: Mapping[Any, int | str] | None, offload_folder: StrPath | None
) -> None:
    """Check the arguments that say where the layers lie.

    Raises:
        TypeError: An argument has a wrong type.
        ValueError: An argument names no device, or is of no use without another argument.
    """
    if isinstance(device_map, bool) or not isinstance(device_map, str | int | torch.device | Mapping | None):
        raise TypeError(f"device_map must be {', '.join(PLANS)}, a device or a dict; got {device_map!r}.")
    if isinstance(device_map, Mapping):
        if not device_map or not all(isinstance(name, str) for name in device_map):
            raise ValueError(
                f"device_map must map names of modules to devices, such as {{'encoder': 0, 'decoder': 1, ...}}; got "
                f"{dict(device_map)!r}."
            )
        for name, device in device_map.items():
            _check_device(f"device_map[{name!r}]", device, _OFFLOADED)
    elif device_map is not None:
        _check_device("device_map", device_map, PLANS)
    if max_memory is not None:
        if not isinstance(max_memory, Mapping) or not max_memory:
            raise TypeError(f"max_memory must be a dict from devices to sizes such as '20GiB'; got {max_memory!r}.")
        if device_map not in PLANS:
            raise ValueError(f"max_memory needs device_map to be one of {', '.join(PLANS)}; got {device_map!r}.")
        for device, size in max_memory.items():
            _check_device(f"the key {device!r} of max_memory", device, _OFFLOADED)
            _check_size(f"max_memory[{device!r}]", size)
    if offload_folder is not None and not isinstance(offload_folder, (str, os.PathLike)):
        raise TypeError(f"offload_folder must be a path; got {offload_folder!r}.")


def _check_device(name: str, device: object, others: tuple[str, ...]) -> None:
    if device in others:
        return
    try:
        if isinstance(device, bool) or not isinstance(device, (int, str, torch.device)):
            raise TypeError
        found = torch.device(with_devices(device))
        if found.type == "meta":
            raise TypeError
    except (RuntimeError, TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} must be a device or one of {', '.join(others)}; got {device!r}.") from None
    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    if found.type != "cpu" and (found.index or 0) >= count:
        raise ValueError(f"{name} is {device!r}, and this machine has {count} GPUs. Choose another device.")


def _check_size(name: str, size: object) -> None:
    from accelerate.utils import convert_file_size_to_int

    try:
        if isinstance(size, bool) or not isinstance(size, (int, str)) or convert_file_size_to_int(size) < 0:
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f"{name} must be a number of bytes or a size such as '20GiB'; got {size!r}.") from None


def with_devices(devices: Any) -> Any:
    """Return a device, device_map or max_memory with numbers for the texts of numbers, which JSON has as keys."""
    if isinstance(devices, Mapping):
        return {with_devices(name): with_devices(device) for name, device in devices.items()}
    return int(devices) if isinstance(devices, str) and devices.isdecimal() else devices


def check_modules(model: PreTrainedModel, device_map: DeviceMap) -> None:
    """Raise ValueError if a device_map names an unknown module of the model, or has no device for a weight."""
    if not isinstance(device_map, Mapping) or "" in device_map:
        return
    modules = dict(model.named_modules())
    unknown = [name for name in device_map if name not in modules]
    if unknown:
        raise ValueError(
            f"device_map names {', '.join(unknown)}, and the backbone has no such module. Its modules are "
            f"{', '.join(name for name, _ in model.named_children())} and those inside, such as encoder.block.0."
        )
    covered = tuple(f"{name}." for name in device_map)
    left = [name for name in model.state_dict() if not name.startswith(covered)]
    if left:
        raise ValueError(
            f"device_map has no device for {', '.join(left[:4])}{', ...' if left[4:] else ''}. Name the modules, or "
            "give '' a device, which is the rest."
        )


def check_embeddings(model: PreTrainedModel) -> None:
    """Raise ValueError if accelerate offloads the embeddings. Methods start from them, and use them in every batch."""
    if offloads(model.get_input_embeddings()):
        raise ValueError(
            "device_map keeps the embeddings (shared) of the backbone in the memory of the host or on the disk, and a "
            "method needs them where it computes. Put shared, encoder.embed_tokens, decoder.embed_tokens and lm_head "
            "on a GPU, or raise max_memory of the first GPU."
        )


def check_ties(model: PreTrainedModel) -> None:
    """Raise ValueError if the shared embeddings lie on the disk under one of their names and elsewhere under another.

    The file has them under one name, so the first forward would raise a KeyError.
    """
    for name in model.all_tied_weights_keys:
        module, _, own = name.rpartition(".")
        for hook in offloading_hooks(model.get_submodule(module)):
            try:
                hook.weights_map[own]
            except KeyError:
                raise ValueError(
                    f"device_map puts {name} on the disk, and the embeddings that encoder, decoder and head share lie "
                    "elsewhere. Name decoder.block and decoder.embed_tokens instead of decoder, and give "
                    "encoder.embed_tokens, decoder.embed_tokens and lm_head the device of shared."
                ) from None
