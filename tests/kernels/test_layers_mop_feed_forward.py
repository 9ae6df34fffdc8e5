"""MOPFeedForward: both readings, every ablation, parameter counts, its start, the dense weights it stands for."""

import copy
import math

import pytest
import torch
from errors import raises
from paper_sizes import ABLATIONS, BACKBONE, SIZES_OF_MOP

import mop_kernels as mk
from mop_kernels import MOPFeedForward, reference
from mop_kernels.truth import kron_weight

SIZES = {"num_layers": 2, "num_experts": 3, "d_in": 24, "d_mid": 16, "d_out": 40, "terms_down": 4, "terms_up": 2}
FORMS = {
    "A": {},
    "B": {"reading": "B"},
    "rank 3": {"rank": 3},
    "w/o LoRL": {"share_lorl": False},
    "w/o LoRE": {"share_lore": False},
    "w/o both": {"share_lorl": False, "share_lore": False, "reading": "B"},
    "full rule": {"rule": "full"},
    "full rule a layer": {"rule": "full", "rule_scope": "layer", "reading": "B"},
    "full rule a pair": {"rule": "full", "rule_scope": "layer_expert"},
    "LoRL fixed to ones": {"drop_lorl": True, "rank": 2},
    "LoRL fixed to ones, B": {"drop_lorl": True, "share_lore": False, "reading": "B"},
    "dense": {"rule": "dense"},
    "bias an expert": {"bias": "expert"},
    "bias a pair": {"bias": "layer_expert"},
    "no bias": {"bias": None, "activation": "gelu"},
    "one map": {"num_maps": 1, "activation": "tanh"},
    "one pair": {"num_layers": 1, "num_experts": 1, "num_maps": 3},
}
MLP = 2 * 2_506_880  # the two attentions that keep the MLP generator


def bank(**form) -> MOPFeedForward:
    torch.manual_seed(0)
    layer = MOPFeedForward(**(SIZES | form), dtype=torch.float64)
    with torch.no_grad():  # biases start at zero, where a mistake would not show
        for name, p in layer.named_parameters():
            if name.endswith("bias"):
                p.normal_()
    return layer


def pair(tensor, layer, expert):
    return tensor[layer if tensor.shape[0] > 1 else 0, expert if tensor.shape[1] > 1 else 0]


def kron(phm, layer, expert):
    local = pair(phm.local, layer, expert)
    if phm.rule_out is None:
        # no rule at all: a plain matrix
        return local[0] if phm.rule_in is None else kron_weight(pair(phm.rule_in, layer, expert), local)
    rule_out = pair(phm.rule_out, layer, expert)
    if phm.rule_in is None:
        terms, rank, _ = rule_out.shape
        rule_in = torch.ones(terms, phm.weight_matrix(0, 0).shape[0] // local.shape[1], rank, dtype=local.dtype)
    else:
        rule_in = pair(phm.rule_in, layer, expert)
    return kron_weight(rule_in @ rule_out, local)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("rows", ["shared", "per expert"])
def test_forward_is_two_dense_maps_a_pair(form, rows, backend, float64):
    mop = bank(**form)
    x = torch.randn(*([mop.num_experts] if rows == "per expert" else []), 5, 24, dtype=torch.float64)
    with mk.use_backend(backend):
        outputs = mop(x)
    assert len(outputs) == len(mop.ups)
    for layer in range(mop.num_layers):
        for expert in range(mop.num_experts):
            own = x if rows == "shared" else x[expert]
            hidden = own @ mop.weight_matrix(layer, expert, "down")
            hidden = hidden if mop.down.bias is None else hidden + pair(mop.down.bias, layer, expert)
            hidden = reference.ACTIVATIONS[mop.activation](hidden)
            for k, (y, up) in enumerate(zip(outputs, mop.ups, strict=True)):
                expected = hidden @ mop.weight_matrix(layer, expert, k)
                expected = expected if up.bias is None else expected + pair(up.bias, layer, expert)
                torch.testing.assert_close(y[layer, expert], expected)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_weight_matrix_is_the_kronecker_sum(form, backend, float64):
    mop = bank(**form)
    layer, expert = mop.num_layers - 1, mop.num_experts - 1
    with mk.use_backend(backend):
        torch.testing.assert_close(mop.weight_matrix(layer, expert, "down"), kron(mop.down, layer, expert))
        for k, up in enumerate(mop.ups):
            assert mop.weight_matrix(layer, expert, k).shape == (16, 40)
            torch.testing.assert_close(mop.weight_matrix(layer, expert, k), kron(up, layer, expert))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_parameter_learns(form, backend, float64):
    mop = bank(**form)
    with mk.use_backend(backend):
        sum(y.square().sum() for y in mop(torch.randn(5, 24, dtype=torch.float64))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mop.parameters())


def test_parameter_shapes_of_both_readings():
    a = {name: tuple(p.shape) for name, p in bank().named_parameters() if name.startswith("down")}
    assert a == {
        "down.rule_in": (1, 3, 4, 4, 1),
        "down.rule_out": (2, 1, 4, 1, 4),
        "down.local": (2, 3, 4, 6, 4),
        "down.bias": (2, 1, 16),
    }
    b = {name: tuple(p.shape) for name, p in bank(reading="B").named_parameters() if name.startswith("ups.1")}
    assert b == {
        "ups.1.rule_in": (1, 3, 2, 8, 1),
        "ups.1.rule_out": (2, 1, 2, 1, 20),
        "ups.1.local": (2, 3, 2, 2, 2),
        "ups.1.bias": (2, 1, 40),
    }


@pytest.mark.parametrize(
    ("form", "shapes"),
    [
        ({"rule": "full"}, {"rule_in": (1, 1, 4, 4, 4)}),
        ({"rule": "full", "rule_scope": "layer"}, {"rule_in": (2, 1, 4, 4, 4)}),
        ({"rule": "full", "rule_scope": "layer_expert"}, {"rule_in": (2, 3, 4, 4, 4)}),
        ({"rule": "dense"}, {"local": (2, 3, 1, 24, 16)}),
        ({"drop_lorl": True, "rank": 2}, {"rule_out": (2, 1, 4, 2, 4)}),
        ({"share_lorl": False}, {"rule_in": (2, 3, 4, 4, 1), "rule_out": (2, 1, 4, 1, 4)}),
        ({"share_lore": False}, {"rule_in": (1, 3, 4, 4, 1), "rule_out": (2, 3, 4, 1, 4)}),
        ({"bias": "expert"}, {"rule_in": (1, 3, 4, 4, 1), "rule_out": (2, 1, 4, 1, 4), "bias": (1, 3, 16)}),
    ],
)
def test_parameter_shapes_of_the_ablations(form, shapes):
    down = {name: tuple(p.shape) for name, p in bank(**form).down.named_parameters()}
    assert down == {"local": (2, 3, 4, 6, 4), "bias": (2, 1, 16)} | shapes


@pytest.mark.parametrize("reading", SIZES_OF_MOP)
def test_parameter_counts_of_the_paper(reading):
    name, terms_down, terms_up = reading
    total, *percents = SIZES_OF_MOP[reading]
    for ablation, percent in zip(ABLATIONS, percents, strict=True):
        mop = MOPFeedForward(
            12, 5, 768, 128, 768, terms_down=terms_down, terms_up=terms_up, reading=name, **ablation, device="meta"
        )
        count = sum(p.numel() for p in mop.parameters()) + 40 * 768
        assert count == total or ablation
        assert round(100 * (count + MLP) / BACKBONE, 4) == percent


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"reading": "B"},
        {"rank": 4},
        {"rule": "full"},
        {"rule": "full", "rule_scope": "layer_expert"},
        {"rule": "dense"},
        {"share_lore": False},
        {"drop_lorl": True},
        {"drop_lorl": True, "rank": 4},
    ],
)
def test_starts_at_glorot_scale(form):
    """Var(W) = 2/(in + out) for every map, over the pairs of a bank."""
    torch.manual_seed(0)
    mop = MOPFeedForward(6, 6, 96, 48, 192, terms_down=8, terms_up=4, **form)
    for which, variance in (("down", 2 / 144), (0, 2 / 240), (1, 2 / 240)):
        mean_square = (
            sum(mop.weight_matrix(i, j, which).square().mean().item() for i in range(6) for j in range(6)) / 36
        )
        assert math.isclose(mean_square, variance, rel_tol=0.3)
    assert not any(p.any() for name, p in mop.named_parameters() if name.endswith("bias"))


def test_compacter_start():
    torch.manual_seed(0)
    mop = MOPFeedForward(12, 5, 96, 48, 192, terms_down=8, terms_up=4, init="compacter")
    assert math.isclose(mop.down.rule_in.std().item(), 0.01, rel_tol=0.2)
    assert math.isclose(mop.ups[1].rule_out.std().item(), 0.01, rel_tol=0.2)
    assert math.isclose(mop.down.local.square().mean().item(), 4 / (12 + 6), rel_tol=1e-4)


def test_start_with_zero_up_maps():
    torch.manual_seed(0)
    mop = MOPFeedForward(12, 8, 96, 64, 192, terms_down=16, terms_up=32, bias="layer_expert", init="zero_up")
    assert not any(y.any() for y in mop(torch.randn(5, 96)))
    for rule in (mop.down.rule_in, mop.ups[0].rule_out):
        assert math.isclose(rule.std().item(), 1e-4, rel_tol=0.1)
    # uniform; Glorot's bound, gain sqrt(2), of a matrix (16*6, 4)
    assert math.isclose(mop.down.local.abs().max().item(), math.sqrt(2 * 6 / (96 + 4)), rel_tol=1e-3)
    assert math.isclose(mop.down.local.square().mean().item(), 4 / (96 + 4), rel_tol=0.02)
    assert not any(up.local.any() for up in mop.ups)
    assert not any(p.any() for name, p in mop.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"share_lore": False, "bias": "layer_expert"},
        {"rule": "full"},
        {"rule": "full", "rule_scope": "layer_expert", "bias": "expert"},
        {"rule": "dense"},
        {"drop_lorl": True},
    ],
)
def test_experts(form, backend, float64):
    mop = bank(**form)
    x = torch.randn(5, 24, dtype=torch.float64)
    with mk.use_backend(backend):
        for whole, part in zip(mop(x), mop(x, experts=torch.tensor([2, 0])), strict=True):
            torch.testing.assert_close(part, whole[:, [2, 0]])
        (own,) = bank(num_maps=1)(x.expand(3, 5, 24), experts=torch.tensor([1]))
    assert own.shape == (2, 1, 5, 40)


def test_deepcopy_and_state_dict(backend, float64):
    mop, x = bank(), torch.randn(5, 24, dtype=torch.float64)
    copied = copy.deepcopy(mop)
    with mk.use_backend(backend):
        expected = mop(x)
        assert all(torch.equal(a, b) for a, b in zip(copied(x), expected, strict=True))
        for p in copied.parameters():
            p.data.add_(1)
        assert not any(torch.equal(a, b) for a, b in zip(copied(x), expected, strict=True))
        copied.load_state_dict(mop.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(copied(x), expected, strict=True))
    with pytest.raises(RuntimeError, match="size mismatch"):
        bank(terms_down=8).load_state_dict(mop.state_dict())


def test_dtype_device_and_seed():
    mop = MOPFeedForward(**SIZES, dtype=torch.bfloat16)
    assert {p.dtype for p in mop.parameters()} == {torch.bfloat16}
    assert all(y.dtype == torch.bfloat16 for y in mop(torch.randn(3, 24).bfloat16()))
    assert all(torch.equal(a, b) for a, b in zip(bank().parameters(), bank().parameters(), strict=True))


def test_terms_need_not_divide_a_dense_experts_sizes():
    mop = bank(rule="dense", terms_down=5, terms_up=7, reading="B")
    assert tuple(mop.ups[0].local.shape) == (2, 3, 1, 16, 40)


def test_repr_names_the_sizes():
    assert "num_layers=2, num_experts=3, d_in=24, d_mid=16, d_out=40, activation='relu'" in repr(bank())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": 0}, ("num_layers", "0")),
        ({"rank": 0}, ("rank", "0")),
        ({"num_maps": None}, ("num_maps", "None")),
        ({"terms_down": 5}, ("d_in", "24", "5")),
        ({"terms_down": 3}, ("d_mid", "16", "3")),
        ({"terms_up": 16}, ("d_out", "40", "16")),
        ({"reading": "C"}, ("reading", "'A'", "'B'", "'C'")),
        ({"rule": "none"}, ("rule", "'low_rank'", "'full'", "'dense'", "'none'")),
        ({"rule_scope": "expert"}, ("rule_scope", "'global'", "'layer'", "'layer_expert'", "'expert'")),
        ({"bias": True}, ("bias", "'layer'", "'expert'", "'layer_expert'", "True")),
        ({"activation": "swish"}, ("activation", "'relu'", "'swish'")),
        ({"init": "xavier"}, ("init", "'variance_matched'", "'compacter'", "'zero_up'", "'xavier'")),
    ],
)
def test_messages_of_the_constructor(arguments, message):
    with raises(ValueError, *message):
        MOPFeedForward(**(SIZES | arguments))


def test_messages_of_calls():
    mop = bank()
    x = torch.randn(5, 24, dtype=torch.float64)
    with raises(ValueError, "x", "(n, 24)", "(3, n, 24)", "(1, 3, 5, 24)"):
        mop(x.expand(1, 3, 5, 24))
    with raises(ValueError, "x", "g_in*loc_in", "down", "24", "23"):
        mop(x[:, 1:])
    with raises(ValueError, "map", "'down'", "0..1", "2"):
        mop.weight_matrix(0, 0, 2)
    with raises(ValueError, "layer", "0..1", "2"):
        mop.weight_matrix(2, 0, "down")
    with raises(ValueError, "expert", "0..2", "-1"):
        mop.weight_matrix(0, -1, 0)


@pytest.mark.parametrize("count", [2, 4])
def test_rows_of_another_number_of_experts(count):
    with raises(ValueError, "x", "(n, 24)", "(3, n, 24)", f"({count}, 5, 24)"):
        bank()(torch.randn(count, 5, 24, dtype=torch.float64))
    with raises(ValueError, "x", "(n, 24)", "(1, n, 24)"):
        bank(num_experts=1)(torch.randn(count, 5, 24, dtype=torch.float64))
