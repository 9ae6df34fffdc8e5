"""PHMLinear: the function it computes, its scale at the start, and the way from and to nn.Linear."""

import copy
import math

import pytest
import torch
from errors import raises
from torch import nn

import mop_kernels as mk
from mop_kernels import PHMLinear
from mop_kernels.truth import kron_weight

FORMS = [
    {},
    {"rank": 1},
    {"rank": 5},  # more than terms
    {"local_rank": 2},
    {"rank": 2, "local_rank": 1},
    {"terms": 1},
    {"terms": 12, "rank": 1, "bias": False},
]


def own_weight(layer: PHMLinear) -> torch.Tensor:
    rule = layer.rule if layer.rank is None else layer.rule_in @ layer.rule_out
    local = layer.local if layer.local_rank is None else layer.local_left @ layer.local_right
    return kron_weight(rule, local)


@pytest.mark.parametrize("form", FORMS)
def test_forward_is_the_dense_layer(form, backend, float64):
    layer = PHMLinear(24, 36, dtype=float64, **form)
    x = torch.randn(2, 5, 24, dtype=float64)
    with mk.use_backend(backend):
        expected = x @ own_weight(layer) + (0 if layer.bias is None else layer.bias)
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer.weight_matrix(), own_weight(layer))
        dense = layer.to_linear()
    assert isinstance(dense, nn.Linear)
    torch.testing.assert_close(dense(x), expected)
    assert (dense.bias is None) == (layer.bias is None)


@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_learns(form, backend):
    layer = PHMLinear(24, 36, **form)
    with mk.use_backend(backend):
        layer(torch.randn(7, 24)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_parameter_shapes():
    shapes = {name: tuple(p.shape) for name, p in PHMLinear(24, 36).named_parameters()}
    assert shapes == {"rule": (4, 4, 4), "local": (4, 6, 9), "bias": (36,)}
    shapes = {name: tuple(p.shape) for name, p in PHMLinear(24, 36, 2, 3, 5, bias=False).named_parameters()}
    assert shapes == {"rule_in": (2, 2, 3), "rule_out": (2, 3, 2), "local_left": (2, 12, 5), "local_right": (2, 5, 18)}


@pytest.mark.parametrize("form", FORMS)
def test_starts_at_the_scale_of_a_dense_layer(form):
    """Not by chance: the product's mean square is set, as far as rules and locals are independent."""
    torch.manual_seed(0)
    scale = [PHMLinear(240, 120, **form).weight_matrix().square().mean().item() for _ in range(8)]
    assert math.isclose(sum(scale) / 8, 1 / (3 * 240), rel_tol=0.25)


def test_full_rule_is_scaled_exactly():
    layer = PHMLinear(240, 120)
    variance = 4 * layer.rule.square().mean() * layer.local.square().mean()
    torch.testing.assert_close(variance.item(), 1 / (3 * 240), rtol=1e-5, atol=0)
    assert layer.bias.abs().max() <= 240**-0.5
    assert layer.bias.std() > 0.3 * 240**-0.5


def test_compacter_start():
    torch.manual_seed(0)
    layer = PHMLinear(240, 120, terms=12, init="compacter")
    assert math.isclose(layer.rule.std().item(), 0.01, rel_tol=0.1)
    assert math.isclose(layer.local.square().mean().item(), 4 / (20 + 10), rel_tol=1e-4)
    assert not layer.bias.any()


def test_reset_parameters_draws_again_and_repeats_with_the_seed():
    layer = PHMLinear(24, 36, rank=1)
    torch.manual_seed(5)
    layer.reset_parameters()
    first = copy.deepcopy(layer.state_dict())
    layer.reset_parameters()
    assert not torch.equal(layer.local, first["local"])
    torch.manual_seed(5)
    layer.reset_parameters()
    assert all(torch.equal(layer.state_dict()[name], first[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_device_and_dtype(dtype):
    layer = PHMLinear(24, 36, rank=1, local_rank=2, dtype=dtype)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert {p.device.type for p in PHMLinear(24, 36, device="meta", dtype=dtype).parameters()} == {"meta"}


@pytest.mark.parametrize("form", [{}, {"rank": 1}, {"local_rank": 2}, {"rank": 2, "local_rank": 1}, {"terms": 6}])
@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_is_exact_where_the_weight_has_the_form(form, bias):
    source = PHMLinear(24, 36, bias=bias, dtype=torch.float64, **form)
    if form.get("rank") or form.get("local_rank"):
        # an SVD recovers each term itself, and so its factors' ranks, only where the terms are orthogonal
        with torch.no_grad():
            orthogonal_terms(source)
    linear = source.to_linear()
    fitted = PHMLinear.from_linear(linear, source.terms, source.rank, source.local_rank)
    torch.testing.assert_close(fitted.weight_matrix(), source.weight_matrix())
    x = torch.randn(3, 24, dtype=torch.float64)
    torch.testing.assert_close(fitted(x), linear(x))
    assert (fitted.bias is None) == (not bias)


def orthogonal_terms(layer):
    """Rules and locals of different terms in disjoint places, with different norms."""
    rules = [layer.rule] if layer.rank is None else [layer.rule_in, layer.rule_out]
    locals_ = [layer.local] if layer.local_rank is None else [layer.local_left, layer.local_right]
    for i in range(layer.terms):
        keep = torch.zeros(layer.terms, dtype=layer.bias.dtype if layer.bias is not None else torch.float64)
        keep[i] = 1 + i
        rules[0][i] *= keep[:, None]  # term i uses input block i only
        rows = torch.arange(locals_[0].shape[1]) % layer.terms == i
        locals_[0][i] *= rows[:, None]


def test_from_linear_is_the_nearest():
    """What is lost is what the singular values after the first `terms` hold."""
    linear = nn.Linear(12, 12, dtype=torch.float64)
    fitted = PHMLinear.from_linear(linear, terms=3)
    error = (fitted.weight_matrix() - linear.weight.T).square().sum()
    blocks = linear.weight.T.reshape(3, 4, 3, 4).permute(0, 2, 1, 3).reshape(9, 16)
    expected = torch.linalg.svdvals(blocks)[3:].square().sum()
    torch.testing.assert_close(error, expected)


def test_from_linear_with_more_terms_than_a_weight_can_have():
    linear = nn.Linear(8, 8, dtype=torch.float64)  # terms 8: the locals are 1 x 1
    with torch.no_grad():
        linear.weight.copy_(torch.outer(torch.arange(8.0), torch.ones(8)))
    fitted = PHMLinear.from_linear(linear, terms=8)
    torch.testing.assert_close(fitted.weight_matrix(), linear.weight.T)


def test_from_linear_keeps_dtype():
    fitted = PHMLinear.from_linear(nn.Linear(8, 8, dtype=torch.bfloat16), terms=2)
    assert {p.dtype for p in fitted.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in fitted.parameters())


def test_drop_in_for_linear(backend):
    model = nn.Sequential(PHMLinear(24, 24, rank=1), nn.ReLU(), PHMLinear(24, 4, terms=2))
    copied = copy.deepcopy(model)
    x = torch.randn(3, 24)
    with mk.use_backend(backend):
        assert torch.equal(model(x), copied(x))
        with torch.no_grad():
            copied[0].local.add_(1)
        assert not torch.equal(model(x), copied(x))
        copied.load_state_dict(model.state_dict())
        assert torch.equal(model(x), copied(x))
        assert backend in ("triton", "cuda") or model.double()(x.double()).dtype == torch.float64


def test_repr_names_the_sizes():
    assert "in_features=24, out_features=36, terms=4, rank=1, local_rank=None, bias=True" in repr(
        PHMLinear(24, 36, rank=1)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 25}, ("in_features", "terms", "25", "4")),
        ({"out_features": 10}, ("out_features", "terms", "10", "4")),
        ({"terms": 0}, ("terms", "positive", "0")),
        ({"in_features": 0}, ("in_features", "0")),
        ({"out_features": -4}, ("out_features", "-4")),
        ({"rank": 0}, ("rank", "0")),
        ({"local_rank": 1.5}, ("local_rank", "1.5")),
        ({"init": "zeros"}, ("init", "'variance_matched'", "'compacter'", "'zeros'")),
    ],
)
def test_messages(arguments, message):
    with raises(ValueError, *message):
        PHMLinear(**({"in_features": 24, "out_features": 36} | arguments))


def test_from_linear_message():
    with raises(TypeError, "linear", "torch.nn.Linear", "ReLU"):
        PHMLinear.from_linear(nn.ReLU())
    with raises(ValueError, "in_features", "terms", "10", "4"):
        PHMLinear.from_linear(nn.Linear(10, 8))
