"""Accelerate the Kronecker layers of other libraries, instance by instance and reversibly.

The class of a recognised layer becomes a subclass of its own class, which applies the factors instead of building their
Kronecker product. The library keeps everything else: parameters, state dicts, merging, saving. No class or module of a
library is changed.
"""

import warnings
from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from .recognise import Known, known_class, untested_version
from .runtime_class import Accelerated, accelerated_class

_NAMES_SHOWN = 4


class Acceleration(NamedTuple):
    """What `accelerate` did to a model.

    accelerated: Names of the layers that compute by their factors.
    left: Why each other layer of a known library stays as it is, by its name.
    """

    accelerated: tuple[str, ...]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"accelerated: {_some(self.accelerated)}"]
        for reason in dict.fromkeys(self.left.values()):
            lines.append(f"left, because {reason}: {_some([n for n, r in self.left.items() if r == reason])}")
        return "\n".join(lines)


def accelerate(model: nn.Module) -> Acceleration:
    """Let the Kronecker layers of PEFT, LyCORIS and adapters compute by their factors, in place.

    Recognised are LoKr of linear layers (PEFT 0.21, LyCORIS 4.1) and the PHM layers of Compacter (adapters 1.3). They
    build the Kronecker product in every step. The factors need a fraction of its arithmetic and of its memory.
    Parameters, state dicts, optimizers, merging and saving stay the library's own, and results agree with the
    library's within rounding. Where no kernel of mop_kernels runs, the layer runs the library's code.

    Layers that other code adds later are taken by another call. A second call changes nothing else.

    Args:
        model: The model that the library returned, or any module that holds its layers. LyCORIS's modules are found
            from its network, and from the layers to which they are applied.

    Returns:
        The names of the layers that are accelerated, and the reasons why others are not.

    Raises:
        TypeError: `model` is no module.
    """
    accelerated: list[str] = []
    left: dict[str, str] = {}
    untested: dict[str, str | None] = {}  # by library: looking for a version takes a while
    for name, layer in _layers(model):
        found = known_class(type(layer))
        if found is None:
            continue
        if not isinstance(layer, Accelerated):
            entry, base = found
            if entry.distribution not in untested:
                untested[entry.distribution] = untested_version(entry)
            reason = untested[entry.distribution] or _objection(layer, entry, base)
            if reason is not None:
                left[name] = reason
                continue
            assert entry.mixin is not None
            layer.__class__ = accelerated_class(entry.mixin, type(layer))
        accelerated.append(name)
    for what in filter(None, untested.values()):
        warnings.warn(f"mop_kernels.accelerate leaves layers as they are: {what}.", stacklevel=2)
    return Acceleration(tuple(accelerated), left)


def _objection(layer: nn.Module, entry: Known, base: type) -> str | None:
    """Return why a layer of a tested version stays as it is, or None."""
    if entry.mixin is None:
        return entry.reason
    if base is not type(layer):
        return f"its class {type(layer).__name__} changes {base.__module__}.{base.__qualname__}"
    return entry.mixin.objection(layer)


def restore(model: nn.Module) -> tuple[str, ...]:
    """Give the layers that `accelerate` changed their own classes back, in place.

    Args:
        model: As in `accelerate`.

    Returns:
        The names of the restored layers.

    Raises:
        TypeError: `model` is no module.
        RuntimeError: Other code changed the class of a layer again. Nothing is restored.
    """
    layers = {name: layer for name, layer in _layers(model) if isinstance(layer, Accelerated)}
    for name, layer in layers.items():
        if type(layer) is not accelerated_class(*layer._made_of):
            raise RuntimeError(
                f"{name} must have the class that accelerate gave it; got {type(layer).__name__}, a further subclass. "
                "Undo what changed its class first (fully_shard cannot be undone)."
            )
    for layer in layers.values():
        layer.__class__ = layer._made_of[1]  # type: ignore[assignment]
    return tuple(layers)


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, module) of all modules, and of LyCORIS's modules, which the layers keep in a list."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
    seen: set[nn.Module] = set()
    for name, module in model.named_modules():
        path = f"{name}._lycoris_wrappers" if name else "_lycoris_wrappers"
        wrappers = {f"{path}[{k}]": w for k, w in enumerate(module.__dict__.get("_lycoris_wrappers", ()))}
        for label, layer in ({name: module} | wrappers).items():
            if layer not in seen:
                seen.add(layer)
                yield label, layer


def _some(names: tuple[str, ...] | list[str]) -> str:
    """Return the number of layers and the first names."""
    shown = ", ".join(name or "the model itself" for name in names[:_NAMES_SHOWN])
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{len(names)} layer{'' if len(names) == 1 else 's'}{f' ({shown}{more})' if names else ''}"
