"""relu_dropout: values and gradients against the truth, the saved bits, and special numbers."""

import math

import pytest
import torch
from judging import check
from layouts import LAYOUTS

import mop_kernels as mk
from mop_kernels import ops, step_reference, testing
from mop_kernels.step_truth import factors

SEED, P = 1234567, 0.3
SHAPES = {  # of x
    "one": (1, 1),
    "vector": (19,),
    "odd": (3, 5, 37),
    "aligned": (4, 64),
    "one_byte": (5, 8),
    "nine": (6, 9),
    "many_rows": (131, 24),  # three blocks of rows
    "wide": (2, 1001),
    "no_rows": (2, 0, 24),
}


def inputs(shape, dtype):
    return [testing.normal(torch.Generator().manual_seed(3), dtype, *shape)]


def judge(backend, tensors, layout="contiguous", p=P):
    of_call = factors(tensors[0].shape, SEED, p, tensors[0].device)
    seed = torch.tensor([SEED]) if p else None
    check(
        (
            lambda x: mk.relu_dropout(x, p, SEED, backend=backend),
            lambda x: torch.where(x > 0, 1, 0) * step_reference.dropout_add(x, None, seed, p) if p else x.relu(),
            lambda x: torch.where(x > 0, x, 0) * of_call,
        ),
        tensors,
        (layout,),
    )


@pytest.mark.parametrize("p", [P, 0.0])
@pytest.mark.parametrize("name", SHAPES)
def test_named_shapes(name, p, dtype, backend):
    judge(backend, inputs(SHAPES[name], dtype), p=p)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_inputs(layout, backend):
    judge(backend, [LAYOUTS[layout](t) for t in inputs(SHAPES["odd"], torch.float32)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_output_gradients(layout, backend):
    judge(backend, inputs(SHAPES["odd"], torch.float32), layout)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999, 1 - 2**-18])
@pytest.mark.parametrize("width", [1, 7, 8, 9, 16, 17, 45, 64])
def test_named_widths_give_the_bits_of_the_definition(width, p, backend):
    x = testing.normal(torch.Generator().manual_seed(width), torch.float32, 3, 5, width)
    x[0, 0, 0], x[-1, -1, -1] = 0, -0.0
    kept = factors(x.shape, SEED, p, x.device).float()
    y, bits = ops.get("relu_dropout", backend)(x, torch.tensor([SEED]) if p else None, p)
    assert torch.equal(y, x.relu() * kept)
    assert (bits.shape, bits.dtype) == ((3, 5, (width + 7) // 8), torch.uint8)
    set_bits = (bits.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1).flatten(-2)
    assert torch.equal(set_bits[..., :width] != 0, (x > 0) & (kept > 0))
    assert not set_bits[..., width:].any()


def test_one_bit_per_element_is_saved(backend):
    saved = []
    x = inputs((6, 50), torch.float32)[0].requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        mk.relu_dropout(x, P, SEED, backend=backend)
    assert sum(t.numel() * t.itemsize for t in saved) <= 6 * 7 + 8  # bits, and at most a seed


def test_special_numbers(backend):
    """NaN passes where it is kept, as torch.relu passes it, and gets no gradient. What is dropped is zero."""
    x = torch.zeros(4, 33)
    x[0], x[1], x[2] = math.nan, math.inf, -math.inf
    keep = factors(x.shape, SEED, P, x.device) != 0
    leaf = x.clone().requires_grad_()
    y = mk.relu_dropout(leaf, P, SEED, backend=backend)
    torch.testing.assert_close(y, torch.where(keep, x.relu(), 0), equal_nan=True)
    (gradient,) = torch.autograd.grad(y, leaf, torch.ones_like(y))
    assert torch.equal(gradient != 0, keep & (x == math.inf))
    grad = torch.full_like(y, math.nan)
    (gradient,) = torch.autograd.grad(mk.relu_dropout(leaf, P, SEED, backend=backend), leaf, grad)
    assert torch.equal(gradient.isnan(), keep & (x == math.inf))
