"""Judge accelerated models: a step of the library's own code, in the same dtype and in float64, against ours."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

import mop_kernels as mk
from mop_kernels import testing

PRODUCTS = {"phm_linear", "lowrank_phm_linear"}


def step(model: nn.Module, x: Tensor, seed: int = 0, parameters: nn.Module | None = None) -> dict[str, Tensor]:
    """Return the output of a step, and the gradients of x and of all trained parameters."""
    x = x.detach().requires_grad_()
    trained = {n: p for n, p in (parameters or model).named_parameters() if p.requires_grad}
    for p in trained.values():
        p.grad = None
    torch.manual_seed(seed)
    y = model(x)
    weights = torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view(y.shape)
    (y * weights.to(y.dtype)).sum().backward()
    gradients = {name: p.grad for name, p in trained.items() if p.grad is not None}
    return {"output": y.detach(), "x": x.grad, **gradients}


def kernels_called(call: Callable[[], object]) -> int:
    """Return the number of forward calls of the products of mop_kernels."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        call()
    return sum(e.count for e in seen.key_averages() if e.key.split("::")[-1].removesuffix("_cpu") in PRODUCTS)


def assert_as_the_library(
    model: nn.Module, x: Tensor, *, calls: int, autocast: torch.dtype | None = None, root: nn.Module | None = None
) -> None:
    """Accelerate a model and assert that its step stays within the error budget of the library's step.

    Args:
        model: Accelerated on return.
        x: The rows.
        calls: Number of calls of mop_kernels in a forward pass.
        autocast: The dtype of autocast, or None.
        root: The module that holds the layers, if they are no part of the model. Copied together with the model.
    """
    pair = nn.ModuleList([model] if root is None else [model, root])

    def run(pair: nn.ModuleList, x: Tensor) -> dict[str, Tensor]:
        with torch.autocast(
            "cpu", autocast or torch.bfloat16, enabled=autocast is not None and x.dtype != torch.float64
        ):
            return step(pair[0], x, parameters=pair)

    expected = run(pair, x)
    truth = run(copy.deepcopy(pair).double(), x.double())
    mk.accelerate(pair)
    found = run(pair, x)
    assert found.keys() == expected.keys() == truth.keys()
    testing.assert_within_budget(list(found.values()), list(expected.values()), list(truth.values()), list(found))
    assert kernels_called(lambda: run(pair, x)) == calls
