"""rms_norm: values and gradients against the truth, special numbers, and what is computed."""

import math

import pytest
import torch
from judging import assert_same, check
from layouts import LAYOUTS

import mop_kernels as mk
from mop_kernels import ops, step_reference, testing

EPS = 1e-6
SHAPES = {  # of x
    "one": (1, 1),
    "vector": (19,),
    "odd": (3, 5, 37),
    "aligned": (4, 64),
    "many_rows": (131, 40),  # three blocks of rows
    "wide": (2, 20001),  # several stretches of columns
    "no_rows": (2, 0, 24),
}


def truth(x, weight, eps=EPS):
    return weight * x / torch.sqrt((x * x).sum(-1, keepdim=True) / max(x.shape[-1], 1) + eps)


def inputs(shape, dtype):
    g = torch.Generator().manual_seed(3)
    return [testing.normal(g, dtype, *shape), testing.normal(g, dtype, shape[-1])]


def judge(backend, tensors, layout="contiguous", eps=EPS):
    check(
        (
            lambda *t: mk.rms_norm(*t, eps, backend=backend),
            lambda *t: step_reference.rms_norm(*t, eps),
            lambda *t: truth(*t, eps),
        ),
        tensors,
        (layout,),
    )


@pytest.mark.parametrize("name", SHAPES)
def test_named_shapes(name, dtype, backend):
    judge(backend, inputs(SHAPES[name], dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_inputs(layout, backend):
    judge(backend, [LAYOUTS[layout](t) for t in inputs(SHAPES["odd"], torch.float32)])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_output_gradients(layout, backend):
    judge(backend, inputs(SHAPES["odd"], torch.float32), layout)


@pytest.mark.parametrize("eps", [0.0, 1e-3, 2.0])
def test_eps(eps, backend):
    judge(backend, inputs(SHAPES["odd"], torch.float32), eps=eps)


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1e3, 1e15])
def test_rows_of_any_size(scale, backend):
    """1e-18 squared is the smallest float32 but one digit, 1e15 cubed is beyond the largest."""
    x, weight = inputs(SHAPES["odd"], torch.float32)
    judge(backend, [x * scale, weight])


def test_errors_of_the_hidden_rows_of_a_model(backend):
    g = torch.Generator().manual_seed(7)
    x, grad = (testing.normal(g, torch.float32, 256, 512) for _ in range(2))
    weight = torch.rand(512, generator=g, device="cpu").to(x)
    values, gradients = testing.value_and_gradients(
        lambda *t: mk.rms_norm(*t, backend=backend), [x, weight], [grad], [True, False]
    )
    exact = testing.value_and_gradients(truth, testing.in_float64([x, weight]), [grad.double()], [True, False])
    assert (values[0] - exact[0][0]).abs().max() <= 1e-6
    assert (gradients[0] - exact[1][0]).abs().max() <= 1e-6


def test_special_numbers_are_those_of_pytorch(backend):
    x, weight = inputs((6, 21), torch.float32)
    x[0, 3], x[1, 20], x[2, 7], x[4] = math.nan, math.inf, -math.inf, 0
    x[3] = 1e30  # its square is infinite
    weight[9] = math.nan
    grad = torch.ones_like(x)
    grad[5, 2] = math.inf
    found = testing.value_and_gradients(lambda *t: mk.rms_norm(*t, backend=backend), [x, weight], [grad])
    expected = testing.value_and_gradients(
        lambda x, w: torch.nn.functional.rms_norm(x, (21,), w, EPS), [x, weight], [grad]
    )
    for a, e in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        torch.testing.assert_close(a, e, equal_nan=True)


def test_what_is_asked_is_computed(backend):
    x, weight = inputs(SHAPES["many_rows"], torch.float32)
    backward = ops.get("rms_norm_backward", backend)
    both = backward(x, x, weight, EPS, 3)
    assert [t.shape for t in both] == [x.shape, weight.shape]
    for k in range(2):
        (alone,) = backward(x, x, weight, EPS, 1 << k)
        assert_same(alone, both[k], backend)
