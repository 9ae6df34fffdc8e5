"""The host's cost of one call in microseconds, with gradients on. The tensors are so small that nothing else counts."""

import pytest
import torch
from torch.nn import functional as F

import mop_kernels as mk
from benchmarks.support.contenders import FORMS, Function
from benchmarks.support.goals import HOST
from benchmarks.support.work import BANKS, BOTH, DIRECTIONS, FORWARD, Shape, Work, listed, public_arguments

SMALL = Shape(4, 4, 4, 4, 4, 4, 1)
LINEAR, LOW_RANK, WEIGHT = (
    Work(op, "", SMALL).inputs(torch.float32) for op in ("phm_linear", "lowrank_phm_linear", "phm_weight")
)
BANK = Work("mop_ffn", "", BANKS["one_row"]).inputs(torch.float32)
CALLS: dict[str, tuple[Function, list[torch.Tensor]]] = {
    "mop_kernels phm_linear": (mk.phm_linear, LINEAR),
    "mop_kernels lowrank_phm_linear": (mk.lowrank_phm_linear, LOW_RANK),
    "mop_kernels phm_weight": (mk.phm_weight, WEIGHT),
    "mop_kernels mop_ffn, 2 pairs": (lambda *tensors: mk.mop_ffn(*public_arguments("mop_ffn", tensors)), BANK),
    "F.linear": (F.linear, [LINEAR[0], torch.randn(16, 16), LINEAR[3]]),
    "phm_linear, W as one product": (FORMS["phm_linear"]["W as one product"], LINEAR),
    "lowrank_phm_linear, three stages": (FORMS["lowrank_phm_linear"]["three stages"], LOW_RANK),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", CALLS)
def test_host_cost(name, direction, full_size, timed):
    function, tensors = CALLS[name]
    leaves = [t.clone().requires_grad_() for t in tensors]
    grads = [torch.ones_like(y) for y in listed(function(*leaves))]
    calls = {FORWARD: lambda: function(*leaves), BOTH: lambda: torch.autograd.grad(function(*leaves), leaves, grads)}
    kind = "ours" if name == "mop_kernels phm_linear" else "form"  # the call that the ratios compare with
    timed(calls[direction], f"{HOST}{direction}", name, kind=kind, calls=200 if full_size else 1)
