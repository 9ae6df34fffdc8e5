"""HyperPrefix against its equations written out, in a whole model too, and against hand formulas of its size."""

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.attachment.additions import ATTENTIONS
from mop_t5.methods.hyper_prefix import HyperPrefixConfig
from t5_oracle import batch, logits, tiny

SMALL = {"scenarios": ["a", "b", "c"], "prefix_length": 5, "d_embedding": 8, "d_hidden": 10, "d_projected": 6}
LAYERS = {"encoder_self": 2, "decoder_self": 3, "cross": 3}
IDS = torch.tensor([2, 0, 2, 1])


def oracle(method):
    """{attention: one (keys, values) a layer} of all scenarios, prefix row by prefix row."""
    p, shape = dict(method.named_parameters()), method.shape
    prefixes = {}
    for number, attention in enumerate(ATTENTIONS):
        prefixes[attention] = []
        for layer in range(LAYERS[attention]):
            table = torch.zeros(2, 3, shape.num_heads, 5, shape.d_kv, dtype=torch.float64)
            for scenario in range(3):
                for row in range(5):
                    joined = torch.cat(
                        [
                            p["scenario_embeddings"][scenario, row],
                            p["layer_embeddings"][layer, row],
                            p["attention_embeddings"][number, row],
                        ]
                    )
                    hidden = (p["hidden.weight"] @ joined + p["hidden.bias"]).clamp(min=0)
                    projected = p["projection.weight"] @ hidden + p["projection.bias"]
                    made = p["prefix.weight"] @ projected + p["prefix.bias"]
                    table[:, scenario, :, row] = made.view(2, shape.num_heads, shape.d_kv)
            prefixes[attention].append((table[0], table[1]))
    return prefixes


def test_oracle():
    model = mop_t5.attach(tiny(), "hyper_prefix", **SMALL)
    expected, inputs = oracle(model.mop), batch("decoder")
    prefixes = model.mop.additions().prefixes
    for attention in ATTENTIONS:
        assert len(prefixes[attention]) == LAYERS[attention]
        for got, by_hand in zip(prefixes[attention], expected[attention], strict=True):
            for rows, table in zip(got, by_hand, strict=True):
                torch.testing.assert_close(rows, table, atol=1e-13, rtol=1e-11)
    ours, theirs = model(**inputs, scenario_ids=IDS).logits, logits(model, inputs, expected, IDS)
    torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-9)
    weights = torch.linspace(-1, 1, ours.numel(), dtype=torch.float64).view(ours.shape)
    gradients = [torch.autograd.grad((out * weights).sum(), list(model.mop.parameters())) for out in (ours, theirs)]
    for got, by_hand in zip(*gradients, strict=True):
        assert by_hand.abs().max() > 1e-6
        torch.testing.assert_close(got, by_hand, atol=1e-10, rtol=1e-8)


def test_only_the_scenarios_of_a_batch_are_made():
    method = mop_t5.attach(tiny(), "hyper_prefix", **SMALL).mop
    every = method.additions()
    for ids, scenarios in (([2, 0, 2], [0, 2]), ([1, 1], [1])):
        some = method.additions(torch.tensor(ids))
        assert some.scenarios.tolist() == scenarios
        for attention in ATTENTIONS:
            for got, expected in zip(some.prefix(attention, 1), every.prefix(attention, 1), strict=True):
                torch.testing.assert_close(got, expected[scenarios], atol=1e-14, rtol=1e-12)
    assert method.additions(torch.tensor([1, 2, 0])).scenarios is None


def test_prefixes_differ_by_scenario_layer_and_attention_from_the_start():
    method = mop_t5.attach(tiny(), "hyper_prefix", **SMALL).mop
    prefixes = method.additions().prefixes
    tables = [torch.stack(pair) for layers in prefixes.values() for pair in layers]
    for i, table in enumerate(tables):
        assert 0.05 < table.std() < 2
        assert (table[:, 0] - table[:, 1]).abs().max() > 1e-2
        assert all((table - other).abs().max() > 1e-2 for other in tables[:i])


def test_prefix_length_zero_is_the_plain_model():
    inputs = batch()
    model = mop_t5.attach(tiny(), "hyper_prefix", **{**SMALL, "prefix_length": 0})
    with torch.no_grad():
        assert torch.equal(model(**inputs, scenario_ids=IDS).logits, tiny()(**inputs).logits)


@pytest.mark.parametrize(
    ("backbone", "d", "layers"),
    [("t5-base", 768, 12), ("t5-large", 1024, 24), ("mt5-base", 768, 12), ("t5-pegasus-base", 768, 12)],
)
def test_parameter_counts(backbone, d, layers):
    c, h, p, n = 48, 96, 40, 20
    expected = n * c * (5 + layers + 3) + (3 * c * h + h) + (h * p + p) + (p * 2 * d + 2 * d)
    for layer_norms in (False, True):
        model = mop_t5.build_backbone(backbone, device="meta")
        sizes = {"prefix_length": n, "d_embedding": c, "d_hidden": h, "d_projected": p, "layer_norms": layer_norms}
        mop_t5.attach(model, "hyper_prefix", scenarios=list("abcde"), **sizes)
        assert mop_t5.count_parameters(model).trained == expected + layer_norms * (5 * layers + 2) * d


@pytest.mark.parametrize(
    ("fields", "trained", "percent"),
    [
        ({"preset": "small"}, 231_616, 0.0842),
        ({"preset": "small", "layer_norms": False}, 184_000, 0.0669),
        ({"preset": "matched"}, 6_919_752, 2.5160),
    ],
)
def test_parameter_counts_of_the_presets(fields, trained, percent):
    model = mop_t5.build_backbone("t5-pegasus-base", device="meta")
    counted = mop_t5.count_parameters(mop_t5.attach(model, "hyper_prefix", scenarios=list("abcde"), **fields))
    assert (counted.trained, round(100 * counted.share, 4)) == (trained, percent)


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (ValueError, ("scenarios", "none"), {"scenarios": []}),
        (ValueError, ("prefix_length", "0", "-1"), {"prefix_length": -1}),
        (ValueError, ("d_projected", "1", "0"), {"d_projected": 0}),
        (TypeError, ("d_hidden", "int", "'8'"), {"d_hidden": "8"}),
        (TypeError, ("layer_norms", "1"), {"layer_norms": 1}),
        (ValueError, ("preset", "None, 'small', 'matched'", "'paper'"), {"preset": "paper"}),
    ],
)
def test_config_errors(error, message, given):
    with raises(error, *message):
        HyperPrefixConfig(**{"scenarios": ["a", "b"], **given})
