"""lowrank_phm_linear: values and all gradients, on every backend, within the error budget."""

import pytest
import torch
from judging import check_product
from products import LinearTests

import mop_kernels as mk
from mop_kernels import testing
from mop_kernels.testing import SHAPES, Shape


class TestLowrankPhmLinear(LinearTests):
    op = "lowrank_phm_linear"


def test_gradient_of_a_single_vector(dtype, backend):
    tensors = testing.lowrank_inputs(SHAPES["one_row"], dtype)
    grad = torch.randn(1, SHAPES["one_row"].d_out).to(dtype)

    def of_vector(x, *factors):
        return mk.lowrank_phm_linear(x[0], *factors, backend=backend)[None]

    def of_rows(*tensors):
        return mk.lowrank_phm_linear(*tensors, backend=backend)

    for a, b in zip(*(testing.value_and_gradients(f, tensors, [grad]) for f in (of_vector, of_rows))):
        assert all(torch.equal(s, t) for s, t in zip(a, b, strict=True))


@pytest.mark.parametrize(
    "shape",
    [
        Shape(70, 3, 3, 2, 5, 7, 2),  # too many rows for CUDA's one launch
        Shape(2, 2, 800, 800, 1, 3, 8),  # rules too large for its shared memory
        Shape(3, 2, 3, 2, 9, 200, 20),  # several chunks of v
    ],
    ids=str,
)
def test_every_way_of_lowrank_phm_linear(shape, backend):
    check_product("lowrank_phm_linear", backend, testing.lowrank_inputs(shape, torch.float32))
