"""Bottleneck adapters and AdapterDrop against adapters written out in a whole model, and their published sizes."""

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.methods.adapter import AdapterConfig
from t5_oracle import adapt_by_hand, batch, randomised, same_gradients, tiny

SCENARIOS = ["a", "b", "c"]
IDS = torch.tensor([2, 0, 2, 1])
ACTIVATIONS = {
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)),
    "relu": lambda x: x.clamp(min=0),
}
VARIANTS = [
    {},
    {"per_scenario": True},
    {"per_scenario": True, "drop_layers": 1, "activation": "gelu"},
    {"places": ["feed_forward"]},
    {"places": ["feed_forward", "cross_attention"], "activation": "relu"},
]


def attached(fields):
    model = mop_t5.attach(tiny(dropout_rate=0.0), "adapter", **{"scenarios": SCENARIOS, "reduction": 4, **fields})
    randomised(model.mop)
    return model


def logits_by_hand(method, inputs, dropped):
    """Of a plain T5 with the method's adapters, example by example, in all layers but the first `dropped`."""
    own = method.config.per_scenario
    missing = 0 if method.config.drop_up_to else method.config.drop_layers

    def adapt(stack, place, layer, hidden):
        if place not in method.config.places or layer < dropped:
            return hidden
        p, rows = method.adapters[stack][place], []
        for x, scenario in zip(hidden, IDS.tolist() if own else [0] * len(hidden), strict=True):
            at = (layer - missing, scenario)
            mid = ACTIVATIONS[method.config.activation](x @ p["down"][at].T + p["down_bias"][at])
            rows.append(x + mid @ p["up"][at].T + p["up_bias"][at])
        return torch.stack(rows)

    return adapt_by_hand(tiny(), adapt)(**inputs).logits


@pytest.mark.parametrize("fields", VARIANTS, ids=lambda f: "-".join(map(str, f)) or "default")
def test_oracle(fields):
    model, inputs = attached(fields), batch("decoder")
    places = fields.get("places", ["self_attention", "feed_forward"])
    assert {place for _, place in model.mop.adapter_places} == set(places)
    ours = model(**inputs, scenario_ids=IDS).logits
    theirs = logits_by_hand(model.mop, inputs, fields.get("drop_layers", 0))
    torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-9)
    same_gradients(ours, theirs, list(model.mop.parameters()))


def test_a_batch_makes_the_adapters_of_its_scenarios_only():
    method = attached({"per_scenario": True}).mop
    additions = method.additions(torch.tensor([2, 0, 2]))
    assert additions.scenarios.tolist() == [0, 2]
    tensors = additions.adapter("decoder", "feed_forward", 2).args[0]
    assert {len(t) for t in tensors.values()} == {2}
    assert attached({}).mop.additions(torch.tensor([2, 0, 2])).scenarios is None


def test_start_is_that_of_the_public_code():
    torch.manual_seed(0)
    backbone = mop_t5.build_backbone("t5-small", vocab_size=10)
    ids = {"input_ids": torch.tensor([[3, 4]]), "decoder_input_ids": torch.tensor([[0, 5]])}
    with torch.no_grad():
        expected = backbone(**ids).logits
        model = mop_t5.attach(backbone, "adapter")
        assert 0 < (model(**ids).logits - expected).abs().max() < 0.05 * expected.abs().max()
    for name, parameter in model.mop.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert 0.0098 < parameter.std() < 0.0102
    assert model.mop.adapters["encoder"]["feed_forward"]["down"].shape == (6, 1, 16, 512)


def test_robust_adapterdrop_draws_in_training_and_drops_what_it_is_told_in_evaluation(tmp_path):
    model, inputs = attached({"drop_up_to": 2}), batch()
    expected = [logits_by_hand(model.mop, inputs, dropped) for dropped in range(3)]
    drawn = []
    model.train()
    torch.manual_seed(0)
    for _ in range(20):
        got = model(**inputs).logits
        (dropped,) = [n for n, e in enumerate(expected) if torch.allclose(got, e, atol=1e-11, rtol=1e-9)]
        drawn.append(dropped)
        if drawn.count(dropped) == 1:
            model.zero_grad()
            got.square().sum().backward()
            for stack, place in model.mop.adapter_places:
                for parameter in model.mop.adapters[stack][place].values():
                    assert not parameter.grad[:dropped].any()
                    assert parameter.grad[dropped:].flatten(1).any(1).all()
    assert set(drawn) == {0, 1, 2}

    model.eval()
    for dropped in (1, 2, 0, 2):
        model.mop.drop(dropped)
        torch.testing.assert_close(model(**inputs).logits, expected[dropped], atol=1e-11, rtol=1e-9)
        assert torch.equal(model(**inputs).logits, model(**inputs).logits)
    mop_t5.save(model, tmp_path)
    loaded = mop_t5.load(tiny(), tmp_path)
    assert loaded.mop.config.drop_layers == 2
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    with raises(ValueError, "layers", "drop_up_to = 2", "3"):
        model.mop.drop(3)
    with raises(ValueError, "layers", "drop_up_to = None"):
        attached({"drop_layers": 1}).mop.drop(1)


@pytest.mark.parametrize(
    ("fields", "trained"),
    [
        ({}, 1_855_104),  # 48 (2 * 768 * 24 + 24 + 768) and 62 LayerNorms of 768
        ({"drop_layers": 5}, 1_101_984),
        ({"drop_layers": 5, "drop_up_to": 11}, 1_855_104),
        ({"places": ["feed_forward"]}, 951_360),
        ({"per_scenario": True}, 5 * 1_807_488 + 47_616),
        ({"layer_norms": False}, 1_807_488),
    ],
)
def test_sizes_on_t5_base(fields, trained):
    model = mop_t5.build_backbone("t5-base", device="meta")
    mop_t5.attach(model, "adapter", scenarios=list("abcde"), **fields)
    assert mop_t5.count_parameters(model).trained == trained


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (ValueError, ("scenarios", "none"), {"per_scenario": True}),
        (TypeError, ("per_scenario", "1"), {"per_scenario": 1}),
        (TypeError, ("places", "list", "'cross"), {"places": "cross"}),
        (ValueError, ("places", "self_attention", "head"), {"places": ["feed_forward", "head"]}),
        (ValueError, ("places", "none"), {"places": []}),
        (ValueError, ("reduction", "1", "0"), {"reduction": 0}),
        (ValueError, ("activation", "'gelu_new'"), {"activation": "gelu_new"}),
        (TypeError, ("layer_norms", "'no'"), {"layer_norms": "no"}),
        (ValueError, ("drop_layers", "0", "-1"), {"drop_layers": -1}),
        (ValueError, ("drop_up_to", "3", "2"), {"drop_layers": 3, "drop_up_to": 2}),
    ],
)
def test_config_errors(error, message, given):
    with raises(error, *message):
        AdapterConfig(**given)


@pytest.mark.parametrize(
    ("message", "given"),
    [
        (("reduction", "d_model = 24", "32"), {}),
        (("drop_layers", "2", "drop_up_to", "2 and None"), {"drop_layers": 2}),
        (("drop_up_to", "0 and 3"), {"drop_up_to": 3}),
    ],
)
def test_errors_that_need_the_backbone(message, given):
    with raises(ValueError, *message):
        mop_t5.attach(tiny(), "adapter", **({"reduction": 4} if given else {}), **given)
