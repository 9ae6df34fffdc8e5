"""The registry, the configs, and what every method must offer."""

import ast
import inspect
from dataclasses import dataclass, fields

import mop_t5
import pytest
import torch
from errors import raises
from method_cases import SMALL
from mop_t5.attachment.additions import Additions
from mop_t5.attachment.method import Method, MethodConfig
from mop_t5.methods import _METHODS, get, method_names, register
from mop_t5.methods.mop.method import MOPConfig
from mop_t5.methods.prefix_tuning import PrefixTuningConfig
from t5_oracle import batch, tiny


def test_names():
    assert mop_t5.methods() == method_names()
    assert {"mop", "prefix_tuning"} <= set(mop_t5.methods())
    assert all(get(name).name == name for name in method_names())
    assert mop_t5.methods.get("mop").Config is get("mop").Config  # the package, which can be called


def test_type_checkers_see_the_public_names():
    (block,) = (node for node in ast.parse(inspect.getsource(mop_t5)).body if isinstance(node, ast.If))
    seen = {alias.name: node.module.removeprefix("mop_t5.") for node in block.body for alias in node.names}
    assert seen == mop_t5._WHERE


@pytest.mark.parametrize("name", method_names())
def test_every_field_is_documented(name):
    config = get(name).Config
    text = (config.__doc__ or "") + (MethodConfig.__doc__ or "")
    for field in fields(config):
        assert field.name in text, f"{name}.{field.name} has no documentation"


@pytest.mark.parametrize("name", SMALL)
def test_parameter_groups_partition_the_parameters(name):
    model = mop_t5.attach(tiny(), name, **SMALL[name])
    grouped = [id(p) for group in model.mop.parameter_groups().values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in model.mop.parameters())
    parameters = {id(p) for p in model.mop.parameters()}
    for parameter, dim in model.mop.expert_parameters():
        assert id(parameter) in parameters
        assert parameter.shape[dim] == len(model.scenarios)


def test_attach_by_config_object():
    config = PrefixTuningConfig(prefix_length=3, d_mid=4)
    model = mop_t5.attach(tiny(), config)
    assert model.mop.config == config
    with raises(ValueError, "fields (d_mid)", "config object"):
        mop_t5.attach(tiny(), config, d_mid=5)


def test_attach_errors_list_what_is_valid():
    model = tiny()
    with raises(ValueError, "method 'lora'", "mop,", "prefix_tuning"):
        mop_t5.attach(model, "lora")
    with raises(ValueError, "field prefix_len", "PrefixTuningConfig", "scenarios, prefix_length"):
        mop_t5.attach(model, "prefix_tuning", prefix_len=3)
    with raises(TypeError, "method", "int"):
        mop_t5.attach(model, 3)

    @dataclass(frozen=True)
    class Stranger(MethodConfig):
        """Not registered."""

    with raises(TypeError, "config object", "Stranger"):
        mop_t5.attach(model, Stranger())
    assert not mop_t5.is_attached(model)


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (TypeError, ("prefix_length", "int", "4.0"), {"prefix_length": 4.0}),
        (TypeError, ("prefix_length", "int", "True"), {"prefix_length": True}),
        (ValueError, ("prefix_length", "0", "-1"), {"prefix_length": -1}),
        (ValueError, ("d_mid", "1", "0"), {"d_mid": 0}),
        (ValueError, ("activation", "'tanh'", "'swish'"), {"activation": "swish"}),
        (TypeError, ("activation", "string", "3"), {"activation": 3}),
        (ValueError, ("dropout", "0", "1", "1"), {"dropout": 1}),
        (TypeError, ("dropout", "number", "'x'"), {"dropout": "x"}),
        (TypeError, ("scenarios", "list", "'taxi'"), {"scenarios": "taxi"}),
        (TypeError, ("scenarios", "list", "[1]"), {"scenarios": [1]}),
        (ValueError, ("scenarios", "distinct", "got a"), {"scenarios": ["a", "b", "a"]}),
    ],
)
def test_prefix_tuning_config_errors(error, message, given):
    with raises(error, *message):
        PrefixTuningConfig(**given)


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (ValueError, ("scenarios", "none"), {"scenarios": []}),
        (ValueError, ("terms_up", "1", "0"), {"terms_up": 0}),
        (ValueError, ("reading", "'A', 'B'", "'C'"), {"reading": "C"}),
        (ValueError, ("routing", "'scenario', 'xmoe_top2'", "'top2'"), {"routing": "top2"}),
        (ValueError, ("rule", "'low_rank', 'full', 'dense'"), {"rule": "none"}),
        (ValueError, ("rule_scope", "'global', 'layer', 'layer_expert'"), {"rule_scope": "expert"}),
        (ValueError, ("bias", "'layer', 'expert', 'layer_expert', None", "'map'"), {"bias": "map"}),
        (ValueError, ("kv_maps", "'separate', 'joint', 'separate_down'"), {"kv_maps": "both"}),
        (ValueError, ("input_scope", "'shared', 'expert'", "'layer'"), {"input_scope": "layer"}),
        (TypeError, ("share_lorl", "1"), {"share_lorl": 1}),
        (TypeError, ("drop_lorl", "'yes'"), {"drop_lorl": "yes"}),
        (ValueError, ("preset", "None, 'paper', 'xmoe_top2'", "'papers'"), {"preset": "papers"}),
        (TypeError, ("attention", "list", "'cross'"), {"attention": "cross"}),
        (ValueError, ("attention", "non-empty", "decoder"), {"attention": ["decoder"]}),
        (ValueError, ("attention", "non-empty", "none", "no MOP"), {"attention": []}),
        (ValueError, ("num_experts", "None, 2", "1", "3"), {"num_experts": 3}),
        (TypeError, ("layers", "list", "6"), {"layers": 6}),
        (ValueError, ("layers", "at least one"), {"layers": []}),
        (ValueError, ("layers", "0", "-1"), {"layers": [-1]}),
    ],
)
def test_mop_config_errors(error, message, given):
    with raises(error, *message):
        MOPConfig(**{"scenarios": ["a", "b"], **given})


@pytest.mark.parametrize(
    ("message", "given"),
    [
        (("terms_down", "d_model = 24", "16"), {"terms_down": 16}),
        (("terms_down", "d_mid = 8", "3"), {"terms_down": 3}),
        (("terms_up", "d_mid = 8", "5"), {"terms_up": 5}),
        (("terms_up", "num_heads*d_kv = 32", "6"), {"terms_up": 6, "d_mid": 12}),
        (("terms_up", "2*num_heads*d_kv = 64", "6"), {"terms_up": 6, "d_mid": 12, "kv_maps": "joint"}),
        (("layers", "0 to 2", "decoder_self", "3"), {"layers": [0, 3]}),
    ],
)
def test_mop_errors_that_need_the_backbone(message, given):
    with raises(ValueError, *message):
        mop_t5.attach(tiny(), "mop", **{**SMALL["mop"], **given})


def test_preset_fills_in_and_given_fields_win():
    config = MOPConfig(scenarios=["a"], preset="paper", share_lorl=False, rank=2)
    assert (config.terms_down, config.terms_up, config.reading, config.rank) == (16, 8, "A", 2)
    assert config.share_lorl is False


def test_scenario_ids_from_names():
    model = mop_t5.attach(tiny(), "mop", **SMALL["mop"])
    ids = mop_t5.scenario_ids(model, ["food", "taxi", "food"])
    assert ids.dtype == torch.int64
    assert ids.tolist() == [2, 0, 2]
    assert mop_t5.scenario_ids(model, "ticket").tolist() == [1]
    with raises(ValueError, "scenario hotel", "taxi, ticket, food"):
        mop_t5.scenario_ids(model, ["taxi", "hotel"])
    with raises(RuntimeError, "model", "mop_t5.attach"):
        mop_t5.scenario_ids(tiny(), ["taxi"])


def test_one_scenario_needs_no_ids():
    model = mop_t5.attach(tiny(), "mop", **{**SMALL["mop"], "scenarios": ["only"]})
    with torch.no_grad():
        assert torch.equal(model(**batch()).logits, model(**batch(), scenario_ids=0).logits)


def test_shared_control_ignores_the_scenario():
    model = mop_t5.attach(tiny(), "mop", **SMALL["mop"], num_experts=1)
    assert list(model.mop.expert_parameters()) == []
    with torch.no_grad():
        expected = model(**batch(), scenario_ids=[0, 1, 2, 0]).logits
        assert torch.equal(model(**batch(), scenario_ids=[2, 2, 0, 1]).logits, expected)
        assert torch.equal(model(**batch()).logits, expected)


def test_parameters_are_float64_only_for_a_float64_backbone():
    for dtype, expected in (
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ):
        model = mop_t5.attach(tiny(dtype=dtype), "prefix_tuning", **SMALL["prefix_tuning"])
        assert {p.dtype for p in model.mop.parameters()} == {expected}


def test_a_new_method_is_one_class(tmp_path):
    """A table of keys and values for the cross-attention, and the last LayerNorm of the backbone trained with it."""

    @dataclass(frozen=True)
    class TableConfig(MethodConfig):
        """rows: of the table."""

        rows: int = 3

    class Table(Method):
        name = "table_for_a_test"
        Config = TableConfig

        def __init__(self, config, shape, device=None, dtype=None):
            super().__init__(config, shape)
            size = (2, shape.num_decoder_layers, 1, shape.num_heads, config.rows, shape.d_kv)
            self.table = torch.nn.Parameter(torch.ones(size, device=device, dtype=dtype))

        def additions(self, scenario_ids=None):
            return Additions({"cross": tuple(zip(*(t.unbind(0) for t in self.table.unbind(0)), strict=True))})

        def trains_backbone(self, parameter_name):
            return parameter_name == "decoder.final_layer_norm.weight"

    register(Table)
    try:
        assert "table_for_a_test" in mop_t5.methods()
        model, inputs = tiny(), batch()
        with torch.no_grad():
            plain = model(**inputs).logits
        mop_t5.attach(model, "table_for_a_test", rows=4)
        norm = model.decoder.final_layer_norm.weight
        counted = mop_t5.count_parameters(model)
        assert counted.trained == model.mop.table.numel() + norm.numel()
        assert counted.total == counted.backbone + model.mop.table.numel()
        model(**inputs, labels=inputs["decoder_input_ids"]).loss.backward()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
        with torch.no_grad():
            trained = model(**inputs).logits
        assert (trained - plain).abs().max() > 1e-3

        mop_t5.save(model, tmp_path)
        with torch.no_grad():
            assert torch.equal(mop_t5.load(tiny(), tmp_path)(**inputs).logits, trained)
        mop_t5.detach(model)
        assert not norm.requires_grad
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, plain), "detach must restore what the method trained"

        class Other(Table):
            pass

        with raises(ValueError, "method name", "'table_for_a_test'"):
            register(Other)
    finally:
        del _METHODS["table_for_a_test"]
