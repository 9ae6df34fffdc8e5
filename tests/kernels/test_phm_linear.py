"""phm_linear: values and all gradients, on every backend, within the error budget."""

import pytest
import torch
from judging import check_product
from products import LinearTests

import mop_kernels as mk
from mop_kernels import backends, testing
from mop_kernels.testing import Shape


class TestPhmLinear(LinearTests):
    op = "phm_linear"


WAYS = {  # shape: what the cpu backend's cost model takes for it, forward and backward
    Shape(9, 2, 2, 6, 60, 50, 1): ("local first", "rule first"),  # columns in two tasks
    Shape(20, 2, 2, 6, 60, 50, 1): ("local first", "rule first"),  # rows in three
    Shape(5, 4, 4, 4, 100, 100, 1): ("rule first", "rule first"),
    Shape(21, 4, 4, 4, 100, 100, 1): ("rule first", "rule first"),  # more rows than a local is wide: other products
    Shape(700, 1, 4, 4, 33, 40, 1): ("rule first", "rule first"),  # large tasks, chunks of several blocks
    Shape(135, 1, 8, 8, 60, 70, 1): ("rule first", "rule first"),  # two chunks
    Shape(300, 2, 8, 8, 64, 64, 1): ("rule first", "rule first"),  # two terms: parts of x, too
    Shape(40, 16, 16, 16, 48, 8, 1): ("local first", "W built once"),
    Shape(200, 4, 4, 4, 24, 40, 1): ("W built once", "W built once"),
}


@pytest.mark.parametrize("shape", WAYS, ids=str)
def test_every_way_of_phm_linear(shape, backend):
    if backend == "cpu":
        costs = backends.plan_phm_linear(shape.rows, *shape[1:6])
        assert tuple(min(costs[k], key=costs[k].get) for k in ("forward", "backward")) == WAYS[shape]
    tensors = testing.linear_inputs(shape, torch.float32)
    check_product("phm_linear", backend, tensors)
    grad = testing.normal(torch.Generator().manual_seed(9), torch.float32, shape.rows, shape.d_out)

    def gradients(needs):
        return testing.value_and_gradients(lambda *t: mk.phm_linear(*t, backend=backend), tensors, [grad], needs)[1]

    together = gradients([True] * 4)
    for k in range(4):
        alone = gradients([j == k for j in range(4)])
        torch.testing.assert_close(alone[k], together[k])
        assert alone[:k] + alone[k + 1 :] == [None] * 3
