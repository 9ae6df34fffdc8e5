"""dropout_add: values and gradients against the truth, the mask bit for bit, and special numbers."""

import math

import pytest
import torch
from errors import raises
from judging import check
from layouts import LAYOUTS

import mop_kernels as mk
from mop_kernels import ops, step_reference, testing
from mop_kernels.step_truth import drops, factors

SEED, P = 1234567, 0.3
SHAPES = {  # of x
    "one": (1, 1),
    "vector": (19,),
    "odd": (3, 5, 37),
    "aligned": (4, 64),
    "half_a_group": (5, 8),
    "many_rows": (131, 24),  # three blocks of rows
    "wide": (2, 1001),
    "no_rows": (2, 0, 24),
}


def inputs(shape, dtype, residual=True):
    g = torch.Generator().manual_seed(3)
    return [testing.normal(g, dtype, *shape) for _ in range(1 + residual)]


def judge(backend, tensors, layout="contiguous"):
    of_call = factors(tensors[0].shape, SEED, P, tensors[0].device)
    seed = torch.tensor([SEED])

    def truth(x, residual=None):
        return x * of_call if residual is None else residual + x * of_call

    def call(x, residual=None):
        return mk.dropout_add(x, residual, P, SEED, backend=backend)

    def plain(x, residual=None):
        return step_reference.dropout_add(x, residual, seed, P)

    check((call, plain, truth), tensors, (layout,))


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
@pytest.mark.parametrize("name", SHAPES)
def test_named_shapes(name, residual, dtype, backend):
    judge(backend, inputs(SHAPES[name], dtype, residual))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_inputs(layout, backend):
    judge(backend, [LAYOUTS[layout](t) for t in inputs(SHAPES["odd"], torch.float32)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_output_gradients(layout, backend):
    judge(backend, inputs(SHAPES["odd"], torch.float32), layout)


# p: the first drops one of 65536 values of an element's bits, the second none, the last all.
@pytest.mark.parametrize("p", [2**-16, 2**-18, 0.1, 0.5, 0.999, 1 - 2**-18])
@pytest.mark.parametrize("seed", [0, 1, 2**32 + 5, 2**63 - 1, -1])
def test_named_seeds_give_the_mask_of_the_definition(seed, p, backend):
    """Draw one mask for x and for its gradient, equal to plain integer arithmetic in every element."""
    shape = (3, 7, 45)
    expected = factors(shape, seed % 2**64, p, torch.get_default_device()).float()
    x = torch.ones(shape, requires_grad=True)
    y = ops.get("dropout_add", backend)(x, None, torch.tensor([seed]), p)
    assert torch.equal(y, expected)
    assert torch.equal(torch.autograd.grad(y, x, torch.ones_like(y))[0], expected)


def test_named_rows_far_down_have_the_mask_of_the_definition(backend):
    """Row numbers go on through the blocks of rows."""
    rows = 5000
    kept = mk.dropout_add(torch.ones(rows, 17), None, 0.5, SEED, backend=backend) != 0
    for row in (0, 63, 64, 65, 2049, rows - 1):
        assert kept[row].tolist() == [not drops(SEED, row, c, 0.5) for c in range(17)]


def test_the_share_that_is_kept(backend):
    """300,000 elements: five standard deviations are 0.0027."""
    kept = mk.dropout_add(torch.ones(600, 500), None, 0.1, SEED, backend=backend) != 0
    assert kept.float().mean().item() == pytest.approx(0.9, abs=0.0027)
    assert kept.float().mean(0).sub(0.9).abs().max() < 0.062  # columns, rows: five standard deviations each
    assert kept.float().mean(1).sub(0.9).abs().max() < 0.068


def test_the_residual_gets_the_gradient_itself(backend):
    x, residual = inputs(SHAPES["odd"], torch.float32)
    leaf = residual.requires_grad_()
    y = mk.dropout_add(x, leaf, P, SEED, backend=backend)
    grad = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, leaf, grad)[0], grad)


def test_a_nan_or_an_infinity_that_is_dropped_is_zero(backend):
    keep = factors((4, 33), SEED, P, torch.get_default_device()) != 0
    for special in (math.nan, math.inf, -math.inf):
        x = torch.full((4, 33), special)
        y = mk.dropout_add(x, None, P, SEED, backend=backend)
        torch.testing.assert_close(y, torch.where(keep, x, 0), equal_nan=True)


def test_torchs_generator_repeats_a_run(backend):
    x = torch.ones(5, 40)

    def draw():
        return mk.dropout_add(x, None, 0.5, backend=backend)

    torch.manual_seed(4)
    first, second = draw(), draw()
    torch.manual_seed(4)
    assert torch.equal(draw(), first)
    assert torch.equal(draw(), second)
    assert not torch.equal(first, second)


def test_arguments_are_checked_where_nothing_is_dropped(backend):
    x = torch.ones(2, 3)
    assert torch.equal(mk.dropout_add(x, x, 0.0, backend=backend), 2 * x)
    with raises(ValueError, "residual", "(2, 3)", "(3,)"):
        mk.dropout_add(x, torch.ones(3), 0.0, backend=backend)
    with raises(TypeError, "x", "torch.float32", "residual", "torch.float64"):
        mk.dropout_add(x, x.double(), 0.0, backend=backend)
