"""Which dims tensors share, and how they lie in memory: what an operation must not depend on."""

from collections.abc import Callable

import torch
from torch import Tensor

from mop_kernels.testing import MOP_SHARING

# Leading group dims (layers, experts) of every tensor: True is full, False is 1. MOP itself, its ablations, and x of
# each expert's or each pair's own.
SHARINGS = {
    "mop": MOP_SHARING,
    "no_lorl": MOP_SHARING | {"rule_in": (True, True)},
    "no_lore": MOP_SHARING | {"rule_out": (True, True)},
    "no_both": MOP_SHARING | {"rule_in": (True, True), "rule_out": (True, True)},
    "rules_for_all": MOP_SHARING | {"rule_in": (False, False), "rule_out": (False, False)},
    "swapped": MOP_SHARING | {"rule_in": (True, False), "rule_out": (False, True)},
    "bias_per_pair": MOP_SHARING | {"bias": (True, True)},
    "bias_per_expert": MOP_SHARING | {"bias": (False, True)},
    "x_per_expert": MOP_SHARING | {"x": (False, True)},
    "x_per_layer": MOP_SHARING | {"x": (True, False)},
    "x_per_pair": MOP_SHARING | {"x": (True, True), "bias": (False, False)},
    "local_per_layer": MOP_SHARING | {"local": (True, False)},
    "local_per_expert": MOP_SHARING | {"local": (False, True)},
    "only_x_per_pair": dict.fromkeys(MOP_SHARING, (False, False)) | {"x": (True, True)},
}


# Layouts: the same shape in other strides, or at another address. All but the last two keep the values as well.


def transposed(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else sliced(tensor)


def sliced(tensor: Tensor) -> Tensor:
    """Every second number of a storage whose others are NaN, from offset 1: nothing is aligned or adjacent."""
    shape = (*tensor.shape[:-1], 2 * tensor.shape[-1] + 1)
    storage = torch.full(shape, float("nan"), dtype=tensor.dtype, device=tensor.device)
    view = storage[..., 1::2]
    return view.copy_(tensor)


def unaligned(tensor: Tensor) -> Tensor:
    """Contiguous, but one element after a whole address: what reads 16 bytes at once must not."""
    storage = torch.full((tensor.numel() + 1,), float("nan"), dtype=tensor.dtype, device=tensor.device)
    return storage[1:].view(tensor.shape).copy_(tensor)


def expanded(tensor: Tensor) -> Tensor:
    """Stride 0 in the last dim but one: all rows equal the first."""
    if tensor.dim() < 2:
        return tensor[:1].expand_as(tensor)
    return tensor[..., :1, :].expand_as(tensor)


def scalar(tensor: Tensor) -> Tensor:
    """Stride 0 everywhere: the gradient that sum() gives."""
    return tensor.flatten()[0].expand_as(tensor)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda tensor: tensor.contiguous(),
    "transposed": transposed,
    "sliced": sliced,
    "unaligned": unaligned,
    "expanded": expanded,
    "scalar": scalar,
}
