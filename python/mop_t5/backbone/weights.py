"""The weights of a backbone, wherever they lie: in memory, quantised, or offloaded by accelerate."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class Weights(Mapping[str, Tensor]):
    """Tensors by name. An offloaded tensor is read each time it is asked for, so that memory holds one at a time.

    Args:
        present: The tensors in memory.
        offloaded: Functions that read other tensors. A tensor in memory goes before an offloaded tensor of its name.
    """

    def __init__(self, present: Mapping[str, Tensor], offloaded: Mapping[str, Callable[[], Tensor]]):
        self._present, self._offloaded = dict(present), dict(offloaded)

    def __getitem__(self, name: str) -> Tensor:
        return self._present[name] if name in self._present else self._offloaded[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._present | self._offloaded)

    def __len__(self) -> int:
        return len(self._present | self._offloaded)

    @property
    def present(self) -> dict[str, Tensor]:
        """The tensors in memory."""
        return dict(self._present)

    def updated(self, values: Mapping[str, Tensor]) -> "Weights":
        """Return the same weights with other values for some names."""
        return Weights(self._present | dict(values), self._offloaded)


def weights_of(model: nn.Module, *, without: str | None = None) -> Weights:
    """Return parameters, persistent buffers and other saved tensors by name, each tied tensor once.

    T5 has no buffers. The layers of some quantisers keep their weights in buffers. The scales that bitsandbytes saves
    are neither parameters nor buffers.

    Args:
        model: The model.
        without: Leave out the names that begin with this prefix.
    """
    state = model.state_dict(keep_vars=True)
    parameters = dict(model.named_parameters())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in state}
    registered = {n for n, _ in model.named_parameters(remove_duplicate=False)}
    registered |= {n for n, _ in model.named_buffers(remove_duplicate=False)}
    others = {n: t for n, t in state.items() if n not in registered and isinstance(t, Tensor)}
    present = parameters | buffers | others
    offloaded = dict(_offloaded(model))
    # an offloaded tied weight is a tensor of its own under each of its names
    ties = getattr(model, "all_tied_weights_keys", {})
    tied = {name for name, source in ties.items() if name in offloaded or source in offloaded}
    left_out = tied | {n for n in present.keys() | offloaded.keys() if without is not None and n.startswith(without)}
    present = {name: tensor for name, tensor in present.items() if name not in left_out | offloaded.keys()}
    return Weights(present, {name: read for name, read in offloaded.items() if name not in left_out})


def offloads(model: nn.Module) -> bool:
    """Return whether accelerate keeps weights of the model in the memory of the host or on the disk."""
    return next(_offloaded(model), None) is not None


def _offloaded(model: nn.Module) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield the name of each offloaded parameter, and a function that reads it."""
    for prefix, module in model.named_modules():
        for hook in offloading_hooks(module):
            for name, parameter in module.named_parameters(recurse=hook.place_submodules):
                if parameter.is_meta:
                    yield f"{prefix}.{name}" if prefix else name, partial(hook.weights_map.__getitem__, name)


def offloading_hooks(module: nn.Module) -> list[Any]:
    """Return the hooks of accelerate that bring the weights of a module for each call. `weights_map` holds them."""
    return [hook for hook in _hooks(module) if getattr(hook, "offload", False) and hook.weights_map is not None]


def device_of(module: nn.Module) -> torch.device:
    """Return the device on which a module computes: for offloaded weights another device than they lie on."""
    for hook in _hooks(module):
        if getattr(hook, "execution_device", None) is not None:
            return torch.device(hook.execution_device)
    return next(module.parameters()).device


def _hooks(module: nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    return getattr(hook, "hooks", [hook])  # a SequentialHook has several hooks


def is_quantised(tensor: Tensor) -> bool:
    """Return whether a weight is quantised: of an integer type, or a tensor subclass that wraps other tensors."""
    return not tensor.is_floating_point() or is_traceable_wrapper_subclass(tensor)


def size_of(tensor: Tensor) -> int:
    """Return the number of values of a weight. bitsandbytes packs two 4-bit values into one element."""
    packed = getattr(tensor, "quant_state", None)
    return tensor.numel() if packed is None else math.prod(packed.shape)


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of a weight. A 4-bit weight of bitsandbytes has it if it holds as many values."""
    packed = getattr(tensor, "quant_state", None)
    if packed is not None and 2 * tensor.numel() * tensor.element_size() == math.prod(packed.shape):
        return tuple(packed.shape)
    return tuple(tensor.shape)


def plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensors that a weight consists of: the inner tensors of a subclass that wraps others, or itself."""
    if is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from plain_parts(getattr(tensor, name))
    else:
        yield tensor
