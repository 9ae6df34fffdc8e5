"""Dense layers of a model into PHMLinear, and the checkpoints of Compacter and adapters."""

import re
from pathlib import Path

import pytest
import torch
from errors import raises
from safetensors.torch import load_file
from torch import nn

import mop_kernels as mk
from mop_kernels import PHMLinear, phm_linear_from_compacter, replace_linears

COMPACTER = load_file(Path(__file__).parents[1] / "golden" / "compacter_phm.safetensors")
CASES = ("plain", "factW_r1", "factW_r3", "factrule", "factboth_r2", "p1")
OURS = {
    "phm_rule": "rule",
    "phm_rule_left": "rule_in",
    "phm_rule_right": "rule_out",
    "W": "local",
    "W_left": "local_left",
    "W_right": "local_right",
    "b": "bias",
}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.wi = nn.Linear(8, 12)
        self.wo = nn.Linear(12, 8, bias=False)

    def forward(self, x):
        return x + self.wo(self.wi(x).relu())


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList([Block(), Block()])
        self.decoder = nn.Sequential(Block(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        for block in self.encoder:
            x = block(x)
        return self.head(self.decoder(x))


EVERY = [
    *("encoder.0.wi", "encoder.0.wo", "encoder.1.wi", "encoder.1.wo"),
    *("decoder.0.wi", "decoder.0.wo", "decoder.1", "head"),
]


def phm_names(model):
    return [name for name, m in model.named_modules() if isinstance(m, PHMLinear)]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("encoder.*.wi", ["encoder.0.wi", "encoder.1.wi"]),
        ("encoder.1*", ["encoder.1.wi", "encoder.1.wo"]),
        ("decoder.1", ["decoder.1"]),
        ("*[!d]", [name for name in EVERY if name != "head"]),
        (re.compile(r"(en|de)coder\.0\.w[io]"), ["encoder.0.wi", "encoder.0.wo", "decoder.0.wi", "decoder.0.wo"]),
        (re.compile("head"), ["head"]),
    ],
)
def test_what_matches_is_replaced(pattern, names):
    model = Model()
    assert replace_linears(model, pattern, terms=2) == names
    assert phm_names(model) == names
    assert model(torch.randn(3, 8)).shape == (3, 10)


def test_names_are_those_of_the_module_given():
    model = Model()
    assert replace_linears(model.encoder, "*.wi", terms=2) == ["0.wi", "1.wi"]
    assert phm_names(model) == ["encoder.0.wi", "encoder.1.wi"]


def test_a_fit_of_what_has_the_form_changes_nothing(backend, float64):
    model = Model().double()
    for block in model.encoder:
        block.wi = PHMLinear(8, 12, terms=2, dtype=float64).to_linear()
        block.wo = PHMLinear(12, 8, terms=2, bias=False, dtype=float64).to_linear()
    x = torch.randn(3, 8, dtype=float64)
    expected = model(x)
    replace_linears(model, "encoder.*", terms=2)
    with mk.use_backend(backend):
        torch.testing.assert_close(model(x), expected)


def test_a_fit_is_that_of_from_linear():
    model = Model()
    fitted = PHMLinear.from_linear(model.head, 2, 1, 2)
    replace_linears(model, "head", 2, 1, 2)
    assert model.head.state_dict().keys() == fitted.state_dict().keys()
    assert all(torch.equal(t, fitted.state_dict()[name]) for name, t in model.head.state_dict().items())


def test_new_starts():
    model = Model()
    torch.manual_seed(3)
    replace_linears(model, "*.wi", terms=2, rank=1, init="compacter")
    torch.manual_seed(3)
    expected = PHMLinear(8, 12, 2, 1, init="compacter")
    assert torch.equal(model.encoder[0].wi.rule_in, expected.rule_in)
    assert not model.encoder[0].wi.bias.any()
    replace_linears(model, "head", terms=2, init="variance_matched")
    assert model.head.init == "variance_matched"
    assert model.head.bias.any()


@pytest.mark.parametrize("init", ["fit", "variance_matched"])
def test_bias_dtype_device_and_mode_are_kept(init):
    model = Model().to(torch.bfloat16).eval()
    model.head.train()
    replace_linears(model, "*", terms=2, init=init)
    assert (model.encoder[0].wi.bias is None, model.encoder[0].wo.bias is None) == (False, True)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert (model.encoder[0].wi.training, model.head.training) == (False, True)
    on_meta = nn.Sequential(nn.Linear(8, 8, device="meta"))
    replace_linears(on_meta, "0", terms=2, init=init)
    assert {p.device.type for p in on_meta.parameters()} == {"meta"}


def test_a_layer_at_several_places_stays_one():
    model = Model()
    model.encoder[1] = model.encoder[0]
    model.decoder[1] = shared = nn.Linear(8, 8)
    model.again = shared
    assert replace_linears(model, "*.wi", terms=2) == ["encoder.0.wi", "encoder.1.wi", "decoder.0.wi"]
    assert model.encoder[0].wi is model.encoder[1].wi
    assert replace_linears(model, "again", terms=2) == ["decoder.1", "again"]
    assert model.again is model.decoder[1]
    assert isinstance(model.again, PHMLinear)


def test_subclasses_are_left_alone():
    attention = nn.MultiheadAttention(8, 2)
    with raises(ValueError, "'*'", "nn.Linear", "none"):
        replace_linears(attention, "*", terms=2)


def test_a_pattern_that_matches_nothing():
    with raises(ValueError, "'wi'", "encoder.0.wi, ", ", decoder.1, head"):
        replace_linears(Model(), "wi")
    with raises(ValueError, "'x+'", "0, 1, 2, 3, 4, 5, 6, 7", "4 more"):
        replace_linears(nn.Sequential(*(nn.Linear(4, 4) for _ in range(12))), re.compile("x+"))
    model = Model()
    replace_linears(model, "head", terms=2)
    with raises(ValueError, "'head'", "nn.Linear"):
        replace_linears(model, "head", terms=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"terms": 4}, ("head:", "out_features", "terms", "10", "4")),
        ({"terms": 3}, ("encoder.0.wi:", "in_features", "terms", "8", "3")),
        ({"terms": 0}, ("terms", "positive", "0")),
        ({"terms": 2, "rank": 0}, ("rank", "0")),
        ({"init": "zeros"}, ("init", "'fit'", "'variance_matched'", "'compacter'", "'zeros'")),
    ],
)
def test_nothing_is_replaced_where_anything_is_wrong(arguments, message):
    model = Model()
    with raises(ValueError, *message):
        replace_linears(model, "*", **arguments)
    assert phm_names(model) == []


def test_wrong_types():
    with raises(TypeError, "module", "torch.nn.Module", "list"):
        replace_linears([nn.Linear(4, 4)], "*")
    with raises(TypeError, "pattern", "re.Pattern", "list"):
        replace_linears(Model(), ["head"])
    with raises(ValueError, "module", "nn.Linear", "PHMLinear.from_linear"):
        replace_linears(nn.Linear(4, 4), "*")


# Checkpoints of Compacter and adapters.


def stored(case: str, kind: str = "param", dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    start = f"{case}.{kind}."
    device = torch.get_default_device()
    return {key.removeprefix(start): t.to(device, dtype) for key, t in COMPACTER.items() if key.startswith(start)}


def assert_is_the_case(layer, case, dtype, backend):
    """Output and all gradients that Compacter's own code gave."""

    def near(actual, name):
        tolerance = 1e-10 if dtype == torch.float64 else 2e-5
        torch.testing.assert_close(
            actual, COMPACTER[f"{case}.{name}"].to(x.device, dtype), rtol=tolerance, atol=tolerance
        )

    x = COMPACTER[f"{case}.x"].to(torch.get_default_device(), dtype, copy=True).requires_grad_()
    with mk.use_backend(backend):
        y = layer(x)
        with torch.no_grad():
            near(layer.eval()(x), "y")
    y.backward(COMPACTER[f"{case}.gy"].to(y))
    near(y, "y")
    near(x.grad, "gx")
    names = stored(case)
    assert {OURS[name] for name in names} == set(layer.state_dict())
    for name in names:
        near(getattr(layer, OURS[name]).grad, f"grad.{name}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", CASES)
def test_compacter(case, dtype, backend):
    state = {"encoder.adapter.down." + key: t for key, t in stored(case, dtype=dtype).items()}
    state["encoder.adapter.up.b"] = torch.zeros(3)
    for prefix in ("encoder.adapter.down.", "encoder.adapter.down"):
        assert_is_the_case(phm_linear_from_compacter(state, prefix), case, dtype, backend)
    assert_is_the_case(phm_linear_from_compacter(stored(case, dtype=dtype)), case, dtype, backend)


@pytest.mark.parametrize("case", CASES)
def test_shared_rule(case, backend, float64):
    own = stored(case)
    shared = {key: own.pop(key) for key in list(own) if key.startswith("phm_rule")}
    layer = phm_linear_from_compacter(own, shared=shared)
    assert_is_the_case(layer, case, float64, backend)
    own_rule_wins = phm_linear_from_compacter(stored(case), shared={"phm_rule": torch.zeros(1)})
    assert_is_the_case(own_rule_wins, case, float64, backend)


@pytest.mark.parametrize("position", ["down", "up"])
@pytest.mark.parametrize("case", CASES)
def test_everything_shared_as_adapters_does(case, position, backend, float64):
    own = stored(case)
    shared = {"W_other": torch.zeros(1), "W_down_left": torch.zeros(1), "W_up": torch.zeros(1)}
    shared = {key: t for key, t in shared.items() if not key.startswith(f"W_{position}")}
    for key in [key for key in own if key != "b"]:
        shared[key.replace("W", f"W_{position}", 1)] = own.pop(key)
    layer = phm_linear_from_compacter(own, shared=shared, position=position)
    assert_is_the_case(layer, case, float64, backend)


def test_a_higher_rule_rank_and_no_bias():
    source = PHMLinear(24, 12, rank=3, local_rank=2, bias=False)
    state = {key: source.state_dict()[name] for key, name in OURS.items() if name in source.state_dict()}
    layer = phm_linear_from_compacter(state)
    assert (layer.terms, layer.rank, layer.local_rank, layer.bias) == (4, 3, 2, None)
    torch.testing.assert_close(layer.weight_matrix(), source.weight_matrix())
    with torch.no_grad():
        layer.rule_in.zero_()
    assert source.rule_in.any(), "the state was copied"


def test_layers_can_share_a_rule_again():
    own = stored("plain")
    rule = {"phm_rule": own.pop("phm_rule")}
    one, other = (phm_linear_from_compacter(own, shared=rule) for _ in range(2))
    other.rule = one.rule
    x = torch.randn(2, 24, dtype=torch.float64)
    for layer in (one.eval(), other.eval()):
        with torch.no_grad():
            layer(x)
    with torch.no_grad():
        one.rule.mul_(2)
        assert torch.equal(one(x), other(x))


def without(key):
    return {name: t for name, t in stored("factboth_r2").items() if name != key}


def changed(key, tensor):
    return stored("factboth_r2") | {key: tensor}


F64 = {"dtype": torch.float64}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, ("phm_rule", "phm_rule", "phm_rule_left", "phm_rule_right", "none")),
        (
            without("phm_rule_left"),
            ("phm_rule_right", "''"),
        ),
        (
            without("W_right"),
            ("W", "W_left", "W_right", "W_left"),
        ),
        (changed("W", torch.ones(4, 6, 3)), ("W", "W", "W_left", "W_right")),
        (changed("bias", torch.ones(12)), ("state", "bias", "prefix=")),
        (changed("b", torch.ones(11, **F64)), ("b", "(out,)", "(12,)", "(11,)")),
        (changed("b", torch.ones(1, 12, **F64)), ("b", "(out,)", "(1, 12)")),
        (
            changed("phm_rule_left", torch.ones(4, 4, **F64)),
            ("phm_rule_left", "(terms, terms, rank)", "(4, 4)"),
        ),
        (
            changed("phm_rule_right", torch.ones(4, 2, 4, **F64)),
            ("phm_rule_right", "(terms, rank, terms)", "(4, 1, 4)", "(4, 2, 4)"),
        ),
        (
            changed("W_left", torch.ones(2, 6, 2, **F64)),
            ("phm_rule_left", "(terms, terms, rank)", "(2, 2, 1)", "(4, 4, 1)"),
        ),
        (
            changed("W_right", torch.ones(4, 2, 0, **F64)),
            ("W_right", "shape", "(4, 2, 0)"),
        ),
    ],
)
def test_messages(state, message):
    with raises(ValueError, *message):
        phm_linear_from_compacter(state)


def test_more_messages():
    state = {"a.b." + key: t for key, t in stored("plain").items()}
    with raises(ValueError, "state", "'a.c.'", "a.b.W"):
        phm_linear_from_compacter(state, "a.c")
    with raises(ValueError, "state", "a.b.W", "prefix="):
        phm_linear_from_compacter(state)
    with raises(ValueError, "position", "'down'", "'up'", "'left'"):
        phm_linear_from_compacter(stored("plain"), position="left")
    with raises(ValueError, "phm_rule", "cpu", "b", "meta"):
        phm_linear_from_compacter(stored("plain") | {"b": torch.ones(12, device="meta", dtype=torch.float64)})
    with raises(TypeError, "state", "Linear"):
        phm_linear_from_compacter(nn.Linear(4, 4))
    with raises(TypeError, "shared", "Tensor"):
        phm_linear_from_compacter(stored("plain"), shared=torch.ones(4, 4, 4))
    with raises(TypeError, "phm_rule", "torch.float64", "b", "torch.float32"):
        phm_linear_from_compacter(stored("plain") | {"b": torch.ones(12)})
    for wrong, got in ((torch.ones(12).int(), "torch.int32"), ([0.0] * 12, "list")):
        with raises(TypeError, "b", got):
            phm_linear_from_compacter(stored("plain") | {"b": wrong})
