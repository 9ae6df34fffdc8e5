"""Let the public operations take DTensors: compute on the local parts and return DTensors.

The local parts come from `redistribute` and `to_local`, the results go into `from_local`. These methods are public and
differentiable. Their third derivatives with a Partial gradient are wrong (torch 2.13). Rules for the ops themselves
cannot be given: torch's `register_sharding` takes no op that returns a list of tensors, and all gradient ops of this
package do.

Placements per mesh dim:
    x sharded in a dim of its rows      x stays sharded. The results and the gradient of x have the same placement.
                                        Factors are replicated, and their gradients are summed over the mesh dim.
    any other placement                 All tensors and the results are replicated.

torch.distributed.tensor is slow to import. This module uses it only when a DTensor has been met.
"""

import math
import sys
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from .ops import PLAIN


def is_distributed(arguments: Sequence[object]) -> bool:
    """Tell whether a DTensor is among the arguments."""
    if all(type(t) in PLAIN for t in arguments):
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and any(isinstance(t, module.DTensor) for t in arguments)


def on_local_parts(
    function: Callable[[list], Sequence[Tensor]],
    names: Sequence[str],
    tensors: Sequence[Tensor | None],
    by_row: Collection[str],
    row_dims: Sequence[int] | None,
) -> tuple[Tensor, ...]:
    """Return function(tensors), computed on the local parts of DTensors.

    Args:
        function: An operation of this package, as a function of the list of its tensors.
        names: Names of the tensors.
        tensors: The tensors. Other arguments among them are passed on unchanged.
        by_row: Names of the tensors whose dims `row_dims` are rows. If the first tensor is among them, it decides the
            placements.
        row_dims: Dims that are rows, in these tensors and in the results. None: all dims of the first tensor but its
            last.

    Raises:
        TypeError: A floating-point tensor is not a DTensor. Integer and bool tensors are taken as replicated.
        ValueError: The DTensors have more than one mesh.
    """
    from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

    meshes = {}
    first_name = next(name for name, tensor in zip(names, tensors, strict=True) if isinstance(tensor, DTensor))
    for name, tensor in zip(names, tensors, strict=True):
        if isinstance(tensor, DTensor):
            meshes[tensor.device_mesh] = name
        elif isinstance(tensor, Tensor) and tensor.is_floating_point():
            raise TypeError(
                f"all floating-point tensors of a call must be DTensors, or none; {first_name} is a DTensor, {name} is "
                f"a {type(tensor).__name__}. Use torch.distributed.tensor.distribute_tensor, or full_tensor()."
            )
    if len(meshes) > 1:
        (first, _), (second, second_name) = list(meshes.items())[:2]
        raise ValueError(
            f"all DTensors of a call must have one mesh; {first_name} has {first}, {second_name} has {second}."
        )
    (mesh,) = meshes
    replicated: list[Placement] = [Replicate()] * mesh.ndim
    kept, x = replicated, tensors[0]
    sizes = torch.Size()
    if isinstance(x, DTensor) and names[0] in by_row:
        sizes = x.shape
        dims = range(len(sizes) - 1) if row_dims is None else row_dims
        kept = [p if type(p) is Shard and p.dim in dims else Replicate() for p in x.placements]
    summed = [Partial() if p.is_shard() else p for p in kept]

    def local(name: str, tensor: Tensor | None) -> Tensor | None:
        if not isinstance(tensor, Tensor):
            return tensor
        placements, of_gradient = (kept, kept) if name in by_row else (replicated, summed)
        if not isinstance(tensor, DTensor):
            tensor = DTensor.from_local(tensor, mesh, replicated)
        return tensor.redistribute(placements=placements).to_local(grad_placements=of_gradient)

    def distributed(y: Tensor) -> Tensor:
        shape = list(y.shape)
        for placement in kept:
            if isinstance(placement, Shard):
                shape[placement.dim] = sizes[placement.dim]
        stride = tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))
        return DTensor.from_local(y, mesh, kept, shape=torch.Size(shape), stride=stride)

    return tuple(map(distributed, function([local(name, t) for name, t in zip(names, tensors)])))
