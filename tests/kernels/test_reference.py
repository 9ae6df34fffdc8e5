"""reference.py against explicit torch.kron, and the tools of testing.py themselves."""

import pytest
import torch
from layouts import LAYOUTS, SHARINGS

from mop_kernels import reference, testing
from mop_kernels.testing import BANKS, SHAPES
from mop_kernels.truth import kron_linear, kron_lowrank_linear, kron_mop_ffn, kron_weight

# How far einsum in a dtype may be from float64, as a share of the largest value: some roundings a stage.
LIMITS = {torch.float64: 1e-14, torch.float32: 3e-6, torch.bfloat16: 4e-2, torch.float16: 5e-3}


def assert_near(actual, truth, dtype):
    for a, t in zip(actual, truth, strict=True):
        if t is not None and t.numel():
            assert (a.double() - t).abs().max().item() <= LIMITS[dtype] * t.abs().max().item()


def test_kron_weight_is_the_sum_of_kronecker_products():
    rule, local = torch.randn(2, 3, 4), torch.randn(2, 5, 6)
    expected = torch.kron(rule[0], local[0]) + torch.kron(rule[1], local[1])
    assert torch.equal(kron_weight(rule, local), expected)
    batched = kron_weight(rule.expand(7, 1, 2, 3, 4), local.expand(3, 2, 5, 6))
    assert torch.equal(batched, expected.expand(7, 3, 15, 24))


@pytest.mark.parametrize("name", SHAPES)
def test_phm_weight(name, dtype):
    _, rule, local, _ = testing.linear_inputs(SHAPES[name], dtype)
    actual = reference.phm_weight(rule, local)
    assert_near([actual], [kron_weight(rule.double(), local.double())], dtype)


@pytest.mark.parametrize("name", SHAPES)
def test_phm_linear(name, dtype):
    tensors = testing.linear_inputs(SHAPES[name], dtype)
    check(reference.phm_linear, kron_linear, tensors, dtype)


@pytest.mark.parametrize("name", SHAPES)
def test_lowrank_phm_linear(name, dtype):
    tensors = testing.lowrank_inputs(SHAPES[name], dtype)
    check(reference.lowrank_phm_linear, kron_lowrank_linear, tensors, dtype)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_mop_ffn(sharing):
    tensors = testing.mop_inputs(BANKS["small"], torch.float64, sharing=SHARINGS[sharing])
    check(
        lambda *t: reference.mop_ffn(*testing.as_mop_arguments(t), "tanh"),
        lambda *t: kron_mop_ffn(*testing.as_mop_arguments(t), "tanh"),
        tensors,
        torch.float64,
    )


def check(function, truth_function, tensors, dtype):
    with torch.no_grad():
        outputs = truth_function(*testing.in_float64(tensors))
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
    grads = [torch.randn_like(y) for y in outputs]
    values, gradients = testing.value_and_gradients(function, tensors, [g.to(dtype) for g in grads])
    truth = [g.to(dtype).double() for g in grads]
    true_values, true_gradients = testing.value_and_gradients(truth_function, testing.in_float64(tensors), truth)
    assert_near(values, true_values, dtype)
    assert_near(gradients, true_gradients, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_have_the_strides_they_promise(layout):
    tensor = torch.randn(3, 4, 5)
    laid_out = LAYOUTS[layout](tensor)
    assert laid_out.shape == tensor.shape
    assert laid_out.is_contiguous() == (layout in ("contiguous", "unaligned"))
    if layout not in ("expanded", "scalar"):
        assert torch.equal(laid_out, tensor)
    if layout == "unaligned":
        assert laid_out.data_ptr() % 16 != 0


def test_the_budget_rejects_what_it_should():
    truth = torch.ones(100, dtype=torch.float64)
    expected = truth.float()
    ulp = torch.finfo(torch.float32).eps
    testing.assert_within_budget([expected + 3 * ulp], [expected], [truth])
    testing.assert_within_budget([expected + 9 * ulp], [expected - 3 * ulp], [truth])
    one_wrong = expected.clone()
    one_wrong[17] += 5 * ulp
    for wrong in (one_wrong, expected + float("nan"), expected[:-1], expected.double(), None):
        with pytest.raises(AssertionError):
            testing.assert_within_budget([wrong], [expected], [truth])
    with pytest.raises(AssertionError):
        testing.assert_within_budget([expected], [None], [None])
    with pytest.raises(AssertionError):
        testing.assert_within_budget([expected, expected], [expected, expected], [truth, 0 * truth])
