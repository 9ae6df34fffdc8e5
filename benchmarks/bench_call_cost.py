"""What one call costs the host: tensors so small that nothing else counts, gradients on, in microseconds."""

import pytest
import torch
from torch.nn import functional as F

import mop_kernels as mk
from benchmarks.support import layer_forms
from benchmarks.support.cases import mop_arguments
from mop_kernels import testing
from mop_kernels.testing import Shape

SMALL = Shape(4, 4, 4, 4, 4, 4, 1)
LINEAR = testing.linear_inputs(SMALL, torch.float32)
LOW_RANK = testing.lowrank_inputs(SMALL, torch.float32)
BANK = testing.mop_inputs(testing.BANKS["one_row"], torch.float32)
by_one_product, _ = layer_forms.linear_by(layer_forms.one_product)

CALLS = {
    "mop_kernels phm_linear": (mk.phm_linear, LINEAR),
    "mop_kernels lowrank_phm_linear": (mk.lowrank_phm_linear, LOW_RANK),
    "mop_kernels phm_weight": (mk.phm_weight, LINEAR[1:3]),
    "mop_kernels mop_ffn, 2 pairs": (lambda *t: mk.mop_ffn(*mop_arguments(*t)), BANK),
    "F.linear": (F.linear, [LINEAR[0], torch.randn(16, 16), LINEAR[3]]),
    "phm_linear, W as one product": (by_one_product, LINEAR),
    "lowrank_phm_linear, three stages": (layer_forms.three_stages, LOW_RANK),
}


@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
@pytest.mark.parametrize("name", CALLS)
def test_host_cost(name, direction, full_size, timed):
    function, tensors = CALLS[name]
    leaves = [t.clone().requires_grad_() for t in tensors]
    outputs = function(*leaves)
    grads = torch.ones_like(outputs) if isinstance(outputs, torch.Tensor) else [torch.ones_like(y) for y in outputs]

    def both():
        return torch.autograd.grad(function(*leaves), leaves, grads)

    call = both if direction == "forward + backward" else lambda: function(*leaves)
    kind = "ours" if name == "mop_kernels phm_linear" else "form"  # the one that the others are ratios to
    group = f"host cost of a call with gradients on (16 -> 16, 4 rows): {direction}"
    timed(call, group, name, kind=kind, calls=200 if full_size else 1)
