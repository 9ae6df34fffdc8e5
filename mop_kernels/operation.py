"""Run a call of a public operation in four steps: validate, remember, choose the backend, differentiate.

Validation reports the errors of users, once for all backends. A repeated call skips validation: programs call an
operation with the same shapes again and again, and a look at each shape takes longer than a small call on a GPU. A
repeated call of a CPU kernel goes straight to its op, whose own guards find a wrong shape.
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

# looked up once: each look into torch takes a few hundredths of a microsecond
_is_compiling, _is_tracing = torch.compiler.is_compiling, torch._C._get_tracing_state
_autocast_is_on, _unwrap_if_dead = torch._C._is_any_autocast_enabled, torch._C._functorch.unwrap_if_dead
_MOST_REMEMBERED = 1000
_passed: dict[tuple, int] = {}  # multiply-adds of the calls that passed validation, by kind of call
_ready: dict[tuple, autograd.Ready] = {}  # calls of CPU kernels, by operation, backend and the dtypes of the tensors


# The arguments of the kernels: the tensors in the order of the operation's rule (rules.py), all other arguments
# (`rules.Call`), and the multiply-adds of the call.
Prepared = tuple[Sequence[Tensor | None], tuple, int]


class Operation(NamedTuple):
    """A public operation.

    name: Name of the operation.
    names: Names of its floating-point tensors, or a function that gives them for a number of tensors.
    check: check(*tensors) raises an error for a wrong shape. It may return other tensors to use instead.
    multiply_adds: multiply_adds(*tensors) gives the size of the call. Zero where a GPU has no choice of kernels.
    prepare: prepare(tensors, others, settings, multiply_adds) makes the checks that every call needs, and returns the
        arguments of the kernels. None: the kernels get the tensors.
    optional: Names of the tensors that may be None, without the name of their map. A bias always may.
    others: Names of its other tensors.
    by_row: Names of the tensors whose dims `row_dims` are rows, for DTensors.
    row_dims: Dims of rows in these tensors and in the results. None: all dims of the first tensor but its last.
    """

    name: str
    names: tuple[str, ...] | Callable[[int], Sequence[str]]
    check: Callable[..., Sequence[Tensor] | None]
    multiply_adds: Callable[..., int] = lambda *tensors: 0
    prepare: Callable[[Sequence, Sequence, tuple, int], Prepared] | None = None
    optional: tuple[str, ...] = ("bias",)
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
    requested = backends.requested(backend)[0]
    key = _key_of_plain(operation.name, requested, tensors) if operation.prepare is None else None
    ready = None if key is None else _ready.get(key)
    if ready is not None:
        try:
            return autograd.compute_ready(ready, tensors)
        except RuntimeError:  # most probably of a guard; validation explains it
            pass
    kind = _kind_of_call(operation.name, requested, tensors, others)
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
            if len(_passed) == _MOST_REMEMBERED:
                _passed.clear()
            _passed[kind] = size
    static: tuple = ()
    if operation.prepare is not None:
        tensors, static, size = operation.prepare(tensors, others, settings, size)
    first = tensors[0]
    assert first is not None
    backend = backends.resolve(backend, first.device, first.dtype, operation.name, size)
    call = Call(operation.name, backend, static)
    if key is not None and backend == "cpu" and kind in _passed:
        ready = autograd.ready(call, first.dtype)
        if ready is not None:
            _ready[key] = ready
    return autograd.compute(call, *tensors)


def _key_of_plain(name: str, backend: str, tensors: Sequence[Tensor | None]) -> tuple | None:
    """Return the key of a call in `_ready`. Return None unless all its tensors are plain ones on a CPU.

    Return None, too, if anything has to see the call: compilers, autocast, transforms, and the modes of torch.
    """
    if _is_compiling() or _is_tracing() is not None or _autocast_is_on() or autograd.anything_looks_on():
        return None
    key: list[object] = [name, backend]
    for t in tensors:
        if t is None:
            key.append(None)
        elif type(t) in PLAIN and t.is_cpu and _unwrap_if_dead(t) is t:
            key.append(t.dtype)
        else:
            return None
    return tuple(key)


def _kind_of_call(
    name: str, backend: str, tensors: Sequence[Tensor | None], others: Sequence[Tensor | None]
) -> tuple | None:
    """Return the kind of a call.

    The kind is the operation, the requested backend, the dtype, and the shapes. These decide whether the call is valid.
    The kind is None if more decides: a tensor needs a cast, its dtype or device differs from the rest, or its sizes are
    not numbers.
    """
    first = tensors[0]
    if first is None or type(first) not in PLAIN or _is_compiling() or _is_tracing() is not None:
        return None
    dtype, on_cpu = first.dtype, first.is_cpu
    if _autocast_is_on() and dtype_of_call(first) is not dtype:
        return None
    device = None if on_cpu else first.device  # two devices take a while to compare
    kind: list[object] = [name, backend, dtype]
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
