"""What the public functions check of any tensor, and the dtype that autocast gives a call.

Errors: TypeError for something that is no tensor, no floating-point tensor, or of another dtype than the rest;
ValueError for a shape or a device.
"""

import torch
from torch import Tensor

from .ops import autocast_is_on


def dtype_of_call(tensor: Tensor) -> torch.dtype:
    """The tensor's dtype, or the one that autocast makes of it: float64 is left alone, as in F.linear."""
    dtype = tensor.dtype
    if dtype is torch.float64 or not autocast_is_on(tensor):
        return dtype
    return torch.get_autocast_dtype(tensor.device.type)


def alike(values: list) -> bool:
    """Whether all are floating-point tensors of one dtype, which autocast leaves alone, on one device."""
    first = values[0]
    if not (isinstance(first, Tensor) and first.is_floating_point() and dtype_of_call(first) is first.dtype):
        return False
    dtype, device = first.dtype, first.device
    for t in values[1:]:  # noqa: SIM110 a generator costs every call half a microsecond
        if not isinstance(t, Tensor) or t.dtype is not dtype or t.device != device:
            return False
    return True


def same_kind(tensors: dict[str, Tensor | None], *, cast: bool = True) -> list[Tensor | None]:
    """Check that all tensors are floating point, of one dtype and on one device, and return them.

    Args:
        tensors: By name. Only "bias" may be None.
        cast: Under autocast, return the tensors as F.linear would cast its own.
    """
    values = list(tensors.values())
    if alike(values[:-1] if values[-1] is None and "bias" in tensors else values):
        return values  # the common case, told in a microsecond; whatever is unusual is looked at, and explained, below
    first_name = first = first_dtype = None
    result = []
    for name, tensor in tensors.items():
        if tensor is None and name == "bias":  # of mop_ffn only the tensors that are there come here
            result.append(None)
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor; got {type(tensor).__name__}.")
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor; got {tensor.dtype}. Cast it: {name}.float().")
        dtype = dtype_of_call(tensor)
        if first is None:
            first_name, first, first_dtype = name, tensor, dtype
        if dtype != first_dtype:
            raise TypeError(
                f"all tensors of a call must have one dtype; {first_name} has {first_dtype}, {name} has {dtype}. Cast "
                "one, or use torch.autocast."
            )
        if tensor.device != first.device:
            raise ValueError(
                f"all tensors of a call must be on one device; {first_name} is on {first.device}, {name} on "
                f"{tensor.device}. Move it: {name}.to({str(first.device)!r})."
            )
        result.append(tensor.to(dtype) if cast else tensor)
    return result


def readable_ids(ids: Tensor) -> Tensor | None:
    """Return the ids as a tensor whose values the host may read, with the batch axes of torch.func.

    None on a GPU, whose values would have to be waited for, and under torch.compile.
    """
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    while torch._C._functorch.is_functorch_wrapped_tensor(ids):
        ids = torch._C._functorch.get_unwrapped(ids)
    return ids


def check_ids(name: str, ids: Tensor, end: int, what: str = "") -> None:
    """Raise ValueError where an id lies outside 0..end-1, as far as the host may read them."""
    values = readable_ids(ids)
    if values is not None:
        bad = [i for i in values.flatten().tolist() if not 0 <= i < end]
        if bad:
            raise ValueError(f"{name} must lie in 0..{end - 1}{what}; got {bad[0]}.")


def check_dims(
    name: str,
    tensor: Tensor,
    shape: str,
    *,
    cure: str,
    exactly: int | None = None,
    at_least: int = 0,
    filled: int | None = None,
) -> None:
    """The number of dims, and that the first `filled` of them (all by default) are not empty."""
    wrong = tensor.dim() < at_least if exactly is None else tensor.dim() != exactly
    if wrong:
        raise ValueError(f"{name} must have shape {shape}; got {tuple(tensor.shape)}. Add a dimension: {cure}.")
    if 0 in tensor.shape[:filled]:
        raise ValueError(f"{name} must have no empty dimension; got shape {tuple(tensor.shape)}.")


def check_equal(name: str, tensor: Tensor, dim: int, size: int, of: str) -> None:
    if tensor.shape[dim] != size:
        raise ValueError(f"dim {dim} of {name} must equal the {of}, {size}; got {name} of shape {tuple(tensor.shape)}.")
