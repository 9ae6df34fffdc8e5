"""Derivatives of plain PyTorch functions, for the rules of operations (rules.py, which states the conventions)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

Tensors = Sequence[Tensor | None]
Needs = Sequence[bool]
Dims = Sequence[int | None]
_AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality
PlainForm = Callable[..., Sequence[Tensor]]
AnyTensor = TypeVar("AnyTensor", Tensor, Tensor | None)
Item = TypeVar("Item")


def gradients_of(function: PlainForm, tensors: Tensors, needs: Needs, grads: Tensors) -> tuple[Tensor, ...]:
    """Return the gradients of sum(output * grad) in the requested tensors. A grad of None is zero.

    Use torch.func.vjp inside a transform of torch.func. Use torch.autograd.grad elsewhere, since torch.func refuses the
    hooks of saved tensors that may be active there (save_on_cpu, checkpoint).
    """
    places = places_of(needs)
    of_asked = _of_places(function, tensors, places)
    asked = [t for t, needed in zip(tensors, needs) if needed and t is not None]
    if not asked:
        return ()
    if torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():
        outputs, vjp, *_ = torch.func.vjp(of_asked, *asked)
        return vjp(_filled(grads, outputs))
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        leaves = [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in asked]
        outputs = of_asked(*leaves)
        pairs = [(y, g) for y, g in zip(outputs, _filled(grads, outputs)) if y.requires_grad]
        differentiable, given = zip(*pairs)
        return torch.autograd.grad(differentiable, leaves, given, create_graph=create_graph, materialize_grads=True)


def tangents_of(function: PlainForm, tensors: Tensors, tangents: Tensors) -> tuple[Tensor, ...]:
    """Return the tangents of the outputs. A tangent of None is zero.

    Use two backward passes, since PyTorch nests no forward mode: the gradients are linear in the gradients of the
    outputs, and the transpose of this linear function is the Jacobian.
    """
    needs = tuple(tangent is not None for tangent in tangents)
    zeros = [torch.zeros_like(y) for y in function(*tensors)]
    return gradients_of(
        lambda *grads: gradients_of(function, tensors, needs, grads),
        zeros,
        (True,) * len(zeros),
        [tangent for tangent in tangents if tangent is not None],
    )


def _filled(grads: Tensors, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(y) if g is None else g for y, g in zip(outputs, grads))


def _of_places(function: PlainForm, tensors: Tensors, places: Sequence[int]) -> PlainForm:
    """Return the function of the tensors at these places alone."""

    def inner(*given: Tensor) -> tuple[Tensor, ...]:
        every = list(tensors)
        for place, tensor in zip(places, given):
            every[place] = tensor
        return tuple(function(*every))

    return inner


def places_of(needs: Needs) -> list[int]:
    """Return the places of the set flags."""
    return [k for k, needed in enumerate(needs) if needed]


def bits_of(needs: Needs) -> int:
    """Return the flags as bits, which ops take."""
    bits = 0
    for k, needed in enumerate(needs):
        if needed:
            bits |= 1 << k
    return bits


def spread(gradients: Tensors, needs: Needs) -> list[Tensor | None]:
    """Put the requested gradients at the places of their tensors."""
    found = iter(gradients)
    return [next(found) if needed else None for needed in needs]


def in_front(dims: Dims, tensors: Sequence[AnyTensor]) -> list[AnyTensor]:
    """Return the tensors with the batch axis as dim 0. A tensor without a batch axis gets one of size 1."""
    return [None if t is None else t.unsqueeze(0) if d is None else t.movedim(d, 0) for d, t in zip(dims, tensors)]


def requested(items: Sequence[Item], needs: int) -> list[Item]:
    """Return the items, mostly tensors, whose bit is set. Ops take these bits as flags."""
    return [item for k, item in enumerate(items) if needs >> k & 1]


@contextmanager
def autograd_inside_an_op() -> Iterator[None]:
    """Include autograd again: under a TorchDispatchMode (a FLOP counter, selective checkpointing) ops run without."""
    excluded = torch._C._dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD)
    torch._C._dispatch_tls_set_dispatch_key_excluded(_AUTOGRAD, False)
    try:
        yield
    finally:
        torch._C._dispatch_tls_set_dispatch_key_excluded(_AUTOGRAD, excluded)
