"""Run a call of a public operation in four steps: validate, remember, choose the backend, differentiate.

Validation reports the errors of users, once for all backends. A repeated call skips validation: programs call an
operation with the same shapes again and again, and a look at each shape takes longer than a small call on a GPU.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import autograd, backends
from .ops import PLAIN
from .rule import Call
from .sharding import is_distributed, on_local_parts
from .validation import check_kind, dtype_of_call

_MOST_PASSED = 1000
_passed: dict[tuple, int] = {}  # multiply-adds of the calls that passed validation, by kind of call


# The arguments of the kernels: the tensors in the order of the operation's rule (rules.py), all other arguments
# (`rules.Call`), and the multiply-adds of the call.
Prepared = tuple[Sequence[Tensor | None], tuple, int]


class Operation(NamedTuple):
    """A public operation.

    name: Name of the operation.
    names: Names of its floating-point tensors, or a function that gives them for a number of tensors.
    check: check(*tensors) raises an error for a wrong shape. It may return other tensors to use instead.
    multiply_adds: multiply_adds(*tensors) gives the size of the call.
    prepare: prepare(tensors, others, settings, multiply_adds) makes the checks that every call needs, and returns the
        arguments of the kernels. None: the kernels get the tensors.
    optional: Names of the tensors that may be None, without the name of their map.
    others: Names of its other tensors.
    by_row: Names of the tensors whose dims `row_dims` are rows, for DTensors.
    row_dims: Dims of rows in these tensors and in the results. None: all dims of the first tensor but its last.
    """

    name: str
    names: tuple[str, ...] | Callable[[int], Sequence[str]]
    check: Callable[..., Sequence[Tensor] | None]
    multiply_adds: Callable[..., int]
    prepare: Callable[[Sequence, Sequence, tuple, int], Prepared] | None = None
    optional: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    by_row: tuple[str, ...] = ("x",)
    row_dims: tuple[int, ...] | None = None


def run(
    operation: Operation,
    backend: str | None,
    tensors: Sequence[Tensor | None],
    others: Sequence[Tensor | None] = (),
    settings: tuple = (),
    cast: bool = True,
) -> tuple[Tensor, ...]:
    """Return the outputs of an operation.

    Args:
        operation: The operation.
        backend: The name that the caller gave.
        tensors: Floating-point tensors, in the order of `operation.names`.
        others: Other tensors, in the order of `operation.others`.
        settings: Arguments that are no tensors, for `operation.prepare`.
        cast: Cast the tensors to the dtype of autocast. False if `operation.prepare` does.
    """
    kind = _kind_of_call(operation.name, tensors, others)
    size = None if kind is None else _passed.get(kind)
    if size is None:
        names = operation.names if isinstance(operation.names, tuple) else operation.names(len(tensors))
        if is_distributed((*tensors, *others)):
            return on_local_parts(
                lambda parts: run(operation, backend, parts[: len(tensors)], parts[len(tensors) :], settings, cast),
                (*names, *operation.others),
                (*tensors, *others),
                operation.by_row,
                operation.row_dims,
            )
        dtype = check_kind(names, tensors, operation.optional)
        if cast:
            tensors = [None if t is None else t.to(dtype) for t in tensors]
        changed = operation.check(*tensors)
        tensors = tensors if changed is None else changed
        size = operation.multiply_adds(*tensors)
        if kind is not None and changed is None:
            if len(_passed) == _MOST_PASSED:
                _passed.clear()
            _passed[kind] = size
    static: tuple = ()
    if operation.prepare is not None:
        tensors, static, size = operation.prepare(tensors, others, settings, size)
    first = tensors[0]
    assert first is not None
    backend = backends.resolve(backend, first.device, first.dtype, operation.name, size)
    return autograd.compute(Call(operation.name, backend, static), *tensors)


def _kind_of_call(name: str, tensors: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> tuple | None:
    """Return the kind of a call: the operation and the shapes, which decide whether the call is valid.

    Return None if more decides: a tensor needs a cast, its dtype or device differs from the rest, or its sizes are not
    numbers.
    """
    first = tensors[0]
    if first is None or type(first) not in PLAIN or torch.compiler.is_dynamo_compiling():
        return None
    if torch._C._get_tracing_state() is not None:  # sizes are tensors then
        return None
    dtype, on_cpu = first.dtype, first.is_cpu
    if torch._C._is_any_autocast_enabled() and dtype_of_call(first) is not dtype:
        return None
    device = None if on_cpu else first.device  # two devices take a while to compare
    kind: list[object] = [name, dtype.is_floating_point]
    for t in tensors:
        if t is None:
            kind.append(None)
        elif type(t) in PLAIN and t.dtype is dtype and (t.is_cpu if on_cpu else t.device == device):
            kind.append(t.shape)
        else:
            return None
    for t in others:
        if type(t) not in PLAIN:
            return None
    return tuple(kind)
