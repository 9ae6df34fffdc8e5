"""Let the public operations take DTensors: compute on the local parts and return DTensors.

The local parts come from `redistribute` and `to_local`, the results go into `from_local`. These methods are public and
differentiable. Their third derivatives with a Partial gradient are wrong (torch 2.13). Rules for the ops themselves
cannot be given: torch's `register_sharding` takes no op that returns a list of tensors, and all gradient ops of this
package do.

Placements, per mesh dim:
    x sharded in a dim of its rows      x stays sharded. The results and the gradient of x have the same placement.
                                        Factors are replicated, and their gradients are summed over the mesh dim.
    any other placement                 All tensors are replicated, and so are the results.

torch.distributed.tensor is slow to import. This module uses it only when a DTensor has been met.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from types import NoneType

import torch
from torch import Tensor
from torch.nn import Parameter

_PLAIN = (Tensor, Parameter, NoneType)


def is_distributed(*arguments) -> bool:
    """Tell whether a DTensor is among the arguments, or within a tuple or list among them."""
    for value in arguments:
        if type(value) not in _PLAIN:
            return _holds_dtensor(arguments)
    return False


def _holds_dtensor(values: Sequence) -> bool:
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(t, module.DTensor) for _, t in _tensors("", values))


def _tensors(name: str, value) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a nested argument with their names."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, (tuple, list)):
        fields = getattr(value, "_fields", None)
        for k, part in enumerate(value):
            yield from _tensors(f"{name}[{k}]" if fields is None else f"{name}.{fields[k]}", part)


def _map(function: Callable, value):
    """Return the nested argument with `function` applied to its tensors."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (tuple, list)):
        parts = [_map(function, part) for part in value]
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    return value


def on_local_parts(
    operation: Callable,
    arguments: dict,
    options: dict,
    by_row: tuple[str, ...] = ("x",),
    row_dims: Sequence[int] | None = None,
):
    """Return operation(**arguments, **options), computed on the local parts of DTensors.

    Args:
        operation: A public operation of this package.
        arguments: Arguments by name. They may hold tensors, also within tuples and lists.
        options: Arguments that hold no tensors.
        by_row: Names of the arguments whose dims `row_dims` are rows. The first name decides the placements.
        row_dims: Dims of rows, in those arguments and in the results. None: all dims of the first but its last.

    Raises:
        TypeError: A floating-point tensor is not a DTensor. Integer and bool tensors are taken as replicated.
        ValueError: The DTensors have more than one mesh.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    mesh = _mesh_of(arguments, DTensor)
    replicated = [Replicate()] * mesh.ndim
    kept, x = replicated, arguments[by_row[0]] if by_row else None
    if isinstance(x, DTensor):
        dims = range(x.dim() - 1) if row_dims is None else row_dims
        kept = [p if type(p) is Shard and p.dim in dims else Replicate() for p in x.placements]
    summed = [Partial() if p.is_shard() else p for p in kept]

    def local(tensor: Tensor, placements: list, of_gradient: list) -> Tensor:
        if not isinstance(tensor, DTensor):
            tensor = DTensor.from_local(tensor, mesh, replicated)
        return tensor.redistribute(placements=placements).to_local(grad_placements=of_gradient)

    def distributed(y: Tensor) -> Tensor:
        shape = list(y.shape)
        for placement in kept:
            if placement.is_shard():
                shape[placement.dim] = x.shape[placement.dim]
        stride = tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))
        return DTensor.from_local(y, mesh, kept, shape=torch.Size(shape), stride=stride)

    parts = {
        name: _map(lambda t, of=(kept, kept) if name in by_row else (replicated, summed): local(t, *of), value)
        for name, value in arguments.items()
    }
    return _map(distributed, operation(**parts, **options))


def _mesh_of(arguments: dict, dtensor: type):
    meshes = {}
    named = [pair for argument, value in arguments.items() for pair in _tensors(argument, value)]
    for name, tensor in named:
        if isinstance(tensor, dtensor):
            meshes[tensor.device_mesh] = name
        elif tensor.is_floating_point():
            raise TypeError(
                f"all floating-point tensors of a call must be DTensors, or none; {name} is a {type(tensor).__name__}. "
                "Use torch.distributed.tensor.distribute_tensor."
            )
    if len(meshes) > 1:
        (first, first_name), (second, second_name) = list(meshes.items())[:2]
        raise ValueError(
            f"all DTensors of a call must have one mesh; {first_name} has {first}, {second_name} has {second}."
        )
    return next(iter(meshes))
