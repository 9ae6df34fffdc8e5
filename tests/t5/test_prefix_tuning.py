"""What the methods generate: golden tensors, parameter counts of the paper, sharing, layers and attentions."""

import mop_t5
import pytest
import torch
from mop_t5.attachment.additions import ATTENTIONS
from safetensors.torch import load_file
from t5_oracle import batch, tiny

GOLDEN = __file__.rsplit("/", 2)[0] + "/golden/"
SMALL = {"scenarios": ["a", "b", "c"], "prefix_length": 5, "d_mid": 8, "terms_down": 4, "terms_up": 4}


def golden(name, prefix):
    tensors = load_file(GOLDEN + name)
    return {n.removeprefix(prefix): t.double() for n, t in tensors.items() if n.startswith(prefix)}


def golden_backbone():
    """The shape of the golden files: d_model 12, three heads of 4, two layers."""
    return tiny(d_model=12, d_kv=4, num_heads=3, num_layers=2, num_decoder_layers=2)


def test_golden_mlp_generator():
    model = mop_t5.attach(golden_backbone(), "prefix_tuning", prefix_length=5, d_mid=7)
    short = {"decoder_self": "dec_self.", "cross": "cross.", "encoder_self": "enc_self."}
    with torch.no_grad():
        for attention, name in short.items():
            stored, generator = golden("prefix_mlp_generator.safetensors", name), model.mop.generators[attention]
            for parameter, key in (
                (generator.embedding, "embed"),
                (generator.down.weight, "down_w"),
                (generator.down.bias, "down_b"),
                (generator.up.weight, "up_w"),
                (generator.up.bias, "up_b"),
            ):
                parameter.copy_(stored[key])
    prefixes = model.mop.additions()
    for attention, name in short.items():
        stored = golden("prefix_mlp_generator.safetensors", name)
        for layer in range(2):
            keys, values = prefixes.prefix(attention, layer)
            torch.testing.assert_close(keys.expand(2, -1, -1, -1), stored[f"layer{layer}.k"], atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(values.expand(2, -1, -1, -1), stored[f"layer{layer}.v"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("file", "mode", "fields"),
    [
        ("mop_readingA_p4q2r1", "full", {}),
        ("mop_readingA_p4q2r1", "no_lorl", {"share_lorl": False}),
        ("mop_readingA_p4q2r1", "no_lore", {"share_lore": False}),
        ("mop_readingA_p4q2r1", "no_both", {"share_lorl": False, "share_lore": False}),
        ("mop_readingA_p4q2r1", "no_lowrank", {"rule": "full"}),
        ("mop_readingB_p2q4r2", "full", {"reading": "B", "terms_down": 2, "terms_up": 4, "rank": 2}),
    ],
)
def test_golden_mop(file, mode, fields):
    stored = golden(f"{file}.safetensors", f"{mode}.")
    fields = {**SMALL, "terms_down": 4, "terms_up": 2, **fields}
    mop = mop_t5.attach(golden_backbone(), "mop", **fields).mop
    experts = mop.experts["decoder_self"]
    pairs = [(mop.input, "X")]
    for name, factors in (("down", experts.down), ("upk", experts.ups[0]), ("upv", experts.ups[1])):
        pairs += [(factors.local, f"{name}.local"), (factors.bias, f"{name}.b")]
        pairs += [(factors.rule_in, f"{name}.G" if mode == "no_lowrank" else f"{name}.l")]
        pairs += [] if mode == "no_lowrank" else [(factors.rule_out, f"{name}.e")]
    with torch.no_grad():
        for parameter, key in pairs:
            parameter.copy_(stored[f"param.{key}"].reshape(parameter.shape))
    prefixes = mop.additions()
    rows = [
        torch.stack([prefixes.prefix("decoder_self", layer)[kv].transpose(1, 2).flatten(2) for layer in range(2)])
        for kv in range(2)
    ]
    loss = 0
    for got, key in zip(rows, "KV", strict=True):
        torch.testing.assert_close(got, stored[key], atol=1e-5, rtol=1e-5)
        loss = loss + (got * stored[f"g{key}"]).sum()
    gradients = torch.autograd.grad(loss, [p for p, _ in pairs])
    for got, (_, key) in zip(gradients, pairs, strict=True):
        expected = stored[f"grad.{key}"].reshape(got.shape)
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    ("method", "fields", "trained", "percent"),
    [
        ("prefix_tuning", {}, 7_520_640, 2.7345),
        ("mop", {"preset": "paper"}, 6_914_176, 2.5140),
    ],
)
def test_parameter_counts_of_the_paper(method, fields, trained, percent):
    model = mop_t5.build_backbone("t5-pegasus-base", device="meta")
    if method == "mop":
        fields = {"scenarios": ["Taxi", "Ticket", "E-Commerce", "Take-out", "Food"], **fields}
    counted = mop_t5.count_parameters(mop_t5.attach(model, method, **fields))
    assert counted.backbone == 275_029_248
    assert counted.total == counted.backbone + counted.trained
    assert round(100 * counted.share, 4) == percent
    assert counted.trained == trained
    assert {p.device.type for p in model.mop.parameters()} == {"meta"}


def test_parameters_of_prefix_tuning_by_length():
    for length in (5, 80):
        model = mop_t5.build_backbone("t5-pegasus-base", device="meta")
        mop_t5.attach(model, "prefix_tuning", prefix_length=length)
        assert mop_t5.count_parameters(model).trained == 2_304 * length + 7_428_480


@pytest.mark.parametrize("attention", [("cross",), ("encoder_self", "cross"), ATTENTIONS])
def test_named_attentions_differ_by_scenario_the_others_do_not(attention):
    model = mop_t5.attach(tiny(), "mop", **SMALL, attention=attention)
    prefixes = model.mop.additions()
    for name in ATTENTIONS:
        for layer in range(2 if name == "encoder_self" else 3):
            for rows in prefixes.prefix(name, layer):
                assert rows.shape == (3 if name in attention else 1, 4, 5, 8)
                if name in attention:
                    assert (rows[0] - rows[1]).abs().max() > 1e-3


def test_layers_get_mop_or_the_generator():
    model = mop_t5.attach(tiny(), "mop", **SMALL, layers=[2, 0])
    assert model.mop.config.layers == (0, 2)
    rows = [model.mop.additions().prefix("decoder_self", layer)[0].shape[0] for layer in range(3)]
    assert rows == [3, 1, 3]
    inputs = batch()
    out = model(**inputs, labels=inputs["decoder_input_ids"], scenario_ids=[0, 1, 2, 0])
    out.loss.backward()
    assert all(p.grad is not None for p in model.mop.parameters())


def test_dropout_of_the_generator_acts_in_training_only():
    model = mop_t5.attach(tiny(), "prefix_tuning", prefix_length=5, d_mid=8, dropout=0.5)

    def keys():
        return model.mop.additions().prefix("cross", 0)[0]

    assert torch.equal(keys(), keys())
    model.train()
    assert not torch.equal(keys(), keys())
    assert (keys() == 0).any()


def test_initial_scale():
    """variance_matched starts the generated rows near unit variance; compacter near zero."""
    torch.manual_seed(0)
    sizes = {"d_model": 64, "d_kv": 16, "num_heads": 4}
    std = {}
    for init in ("variance_matched", "compacter"):
        model = mop_t5.attach(tiny(**sizes), "mop", **{**SMALL, "d_mid": 64, "prefix_length": 40}, init=init)
        std[init] = model.mop.additions().prefix("decoder_self", 0)[0].std()
    assert 0.3 < std["variance_matched"] < 2
    assert std["compacter"] < 1e-3


def test_prefixes_of_a_batch_are_rows_of_all():
    mop = mop_t5.attach(tiny(), "mop", **SMALL).mop
    every, some = mop.additions(), mop.additions(torch.tensor([2, 0, 2]))
    assert some.scenarios.tolist() == [0, 2]
    torch.testing.assert_close(
        some.prefix("decoder_self", 1)[1], every.prefix("decoder_self", 1)[1][[0, 2]], atol=1e-14, rtol=1e-12
    )
    assert mop.additions(torch.tensor([1, 2, 0])).scenarios is None
