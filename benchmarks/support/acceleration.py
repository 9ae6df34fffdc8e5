"""A layer of another library beside its accelerated copy: proven right, then timed forward and backward."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import mop_kernels as mk
from mop_kernels import testing

OURS = "accelerated"


class Layer(NamedTuple):
    """A layer, and the function of its rows that is compared.

    Attributes:
        module: Holds the layer and its parameters.
        call: call(module, x) returns the output.
        width: Width of x.
    """

    module: nn.Module
    call: Callable[[Any, Tensor], Tensor]
    width: int


def step(layer: Layer, x: Tensor, grad: Tensor | None = None) -> list[Tensor]:
    """Return the output, and the gradients of x and of all trained parameters."""
    leaves = [x, *(p for p in layer.module.parameters() if p.requires_grad)]
    y = layer.call(layer.module, x)
    return [y, *torch.autograd.grad(y, leaves, torch.ones_like(y) if grad is None else grad)]


def rows_of(layer: Layer, rows: int) -> Tensor:
    """Return random rows that require gradients."""
    return torch.randn(rows, layer.width, generator=torch.Generator().manual_seed(1)).requires_grad_()


def accelerated(layer: Layer) -> Layer:
    """Return an accelerated copy, or raise AssertionError if nothing was recognised."""
    ours = layer._replace(module=copy.deepcopy(layer.module))
    report = mk.accelerate(ours.module)
    assert report.accelerated, report
    assert not report.left, report
    return ours


def prove(plain: Layer, ours: Layer, rows: int) -> None:
    """Assert that a step of `ours` is within the error budget of `plain` against float64."""
    x = rows_of(plain, rows)
    grad = torch.randn(plain.call(plain.module, x).shape, generator=torch.Generator().manual_seed(2))
    exact = plain._replace(module=copy.deepcopy(plain.module).double())
    truth = step(exact, x.detach().double().requires_grad_(), grad.double())
    testing.assert_within_budget(step(ours, x, grad), step(plain, x, grad), truth)


def compare(timed: Callable[..., None], group: str, name: str, plain: Layer, rows: int) -> None:
    """Prove the accelerated copy of a layer, then time the copy if `name` is OURS, otherwise the layer."""
    ours = accelerated(plain)
    prove(plain, ours, rows)
    layer, kind = (ours, "ours") if name == OURS else (plain, "form")
    x = rows_of(layer, rows)
    timed(lambda: step(layer, x), group, name, kind=kind)
