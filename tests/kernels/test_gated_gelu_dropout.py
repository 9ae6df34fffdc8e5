"""gated_gelu_dropout: values and gradients against the truth, rounding errors, the mask, and what is saved."""

import math

import pytest
import torch
from judging import RequestedGradients, assert_same, check
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
    "half_a_group": (5, 8),
    "many_rows": (131, 24),  # three blocks of rows
    "wide": (2, 1001),
    "no_rows": (2, 0, 24),
}


def gelu_tanh(gate):
    return gate * (1 + torch.tanh((gate + 0.044715 * gate**3) * math.sqrt(2 / math.pi))) / 2


def inputs(shape, dtype):
    g = torch.Generator().manual_seed(3)
    return [testing.normal(g, dtype, *shape) for _ in range(2)]


def judge(backend, tensors, layout="contiguous", p=P):
    of_call = factors(tensors[0].shape, SEED, p, tensors[0].device)
    seed = torch.tensor([SEED]) if p else None
    check(
        (
            lambda *t: mk.gated_gelu_dropout(*t, p, SEED, backend=backend),
            lambda *t: step_reference.gated_gelu_dropout(*t, seed, p),
            lambda gate, x: gelu_tanh(gate) * x * of_call,
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
@pytest.mark.parametrize("width", [1, 8, 17, 45, 64])
def test_named_widths_give_the_mask_of_the_definition(width, p, backend):
    """At 1024 the activation is its argument, and its slope is 1: nothing but the mask is left."""
    shape = (3, 5, width)
    expected = factors(shape, SEED, p, torch.get_default_device()).float()
    seed = torch.tensor([SEED]) if p else None
    gate, one = torch.full(shape, 1024.0), torch.ones(shape)
    assert torch.equal(ops.get("gated_gelu_dropout", backend)(gate, one, seed, p), 1024 * expected)
    of_gate, of_x = ops.get("gated_gelu_dropout_backward", backend)(one, gate, one, seed, p, 3)
    assert torch.equal(of_gate, expected)
    assert torch.equal(of_x, 1024 * expected)


def test_rounding_errors_of_every_element(backend):
    """Bound the errors in ulp of the gate. The CPU kernel is exact in the tail as well, where 1 + tanh(u) cancels."""
    tiny = 10.0 ** torch.arange(-30, 0)
    gate = torch.cat([torch.linspace(-20, 20, 4001), tiny, -tiny]).requires_grad_()
    y = mk.gated_gelu_dropout(gate, torch.ones_like(gate), backend=backend)
    (slope,) = torch.autograd.grad(y.sum(), gate)

    wide = gate.detach().double().requires_grad_()
    exponent = 2 * math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    exact = wide * exponent.sigmoid()  # (1 + tanh(u)) / 2 = sigmoid(2 u), without cancellation
    (exact_slope,) = torch.autograd.grad(exact.sum(), wide)
    eps = torch.finfo(torch.float32).eps
    error = (y - exact).abs()
    assert (error <= 2 * eps * wide.abs()).all()
    assert ((slope - exact_slope).abs() <= (3 if backend == "cpu" else 16) * eps).all()
    if backend == "cpu":
        assert (error <= 2 * eps * (1 + exponent.abs()) * exact.abs())[exponent > -80].all()


def test_numbers_that_overflow(backend):
    """The cube of a gate of 1e15 is infinite. So is the square of 1e30, where PyTorch's own gradient is NaN."""
    size = 1e15 if backend == "reference" else 1e30
    gate = torch.tensor([size, -size]).requires_grad_()
    y = mk.gated_gelu_dropout(gate, torch.ones(2), backend=backend)
    assert torch.equal(y, gate.relu())
    assert torch.equal(torch.autograd.grad(y.sum(), gate)[0], torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("place", [0, 1, 2], ids=["gate", "x", "grad"])
def test_a_nan_passes_unless_it_is_dropped(place, backend):
    keep = factors((4, 33), SEED, P, torch.get_default_device()) != 0
    tensors = [torch.ones(4, 33) for _ in range(3)]
    tensors[place].fill_(math.nan)
    *leaves, grad = tensors
    leaves = [t.requires_grad_() for t in leaves]
    y = mk.gated_gelu_dropout(*leaves, P, SEED, backend=backend)
    of_gate, of_x = torch.autograd.grad(y, leaves, grad)
    for t, is_nan in ((y, place != 2), (of_gate, True), (of_x, place != 1)):
        assert torch.equal(t.isnan(), keep & is_nan)
        assert not t[~keep].any()


@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["gate", "x"])
def test_what_is_asked_is_computed(needs, backend):
    tensors, grad = inputs(SHAPES["odd"], torch.float32), torch.randn(SHAPES["odd"])

    def gradients(asked):
        leaves = [t.detach().requires_grad_(flag) for t, flag in zip(tensors, asked)]
        y = mk.gated_gelu_dropout(*leaves, P, SEED, backend=backend)
        with RequestedGradients() as requested:
            found = torch.autograd.grad(y, [t for t in leaves if t.requires_grad], grad)
        return found, requested.seen

    both, seen = gradients((True, True))
    (alone,), seen_alone = gradients(needs)
    assert (seen, seen_alone) == ([3], [needs[0] + 2 * needs[1]])
    assert_same(alone, both[needs.index(True)], backend)


def test_gate_x_and_the_seed_are_saved(backend):
    saved, tensors = [], [t.requires_grad_() for t in inputs((6, 50), torch.float32)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        mk.gated_gelu_dropout(*tensors, P, SEED, backend=backend)
    assert sorted(t.numel() for t in saved) == [1, 300, 300]
    assert {t.data_ptr() for t in saved} > {t.data_ptr() for t in tensors}
