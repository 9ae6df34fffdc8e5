"""BitFit against a T5 whose linear maps have biases of their own, and the size that the public code gives."""

import mop_t5
import pytest
import torch
from errors import raises
from t5_oracle import batch, randomised, same_gradients, tiny

SCENARIOS = ["a", "b", "c"]
IDS = torch.tensor([2, 0, 2, 1])
LAYERS = {"self_attention": (0, "SelfAttention"), "cross_attention": (1, "EncDecAttention")}


def with_biases(model, method, scenario=0):
    """A plain T5 with the biases of the method, in torch's own way where it has one."""

    def put(module, stack, place, layer):
        bias = method.adapters[stack][place]["bias"][layer, scenario]
        if isinstance(module, torch.nn.Linear):
            del module.bias
            module.bias = bias  # a tensor that has a gradient, not a parameter
        else:
            module.register_forward_hook(lambda _, args, output: output + bias)

    for stack in ("encoder", "decoder"):
        for layer, block in enumerate(getattr(model, stack).block):
            for place, (position, name) in LAYERS.items():
                if (stack, place) != ("encoder", "cross_attention"):
                    attention = getattr(block.layer[position], name)
                    put(block.layer[position].layer_norm, stack, f"{place}_layer_norm", layer)
                    put(attention.o, stack, place, layer)
                    for part in "qkv":
                        put(getattr(attention, part), stack, f"{place}_{part}", layer)
            network = block.layer[-1].DenseReluDense
            put(block.layer[-1].layer_norm, stack, "feed_forward_layer_norm", layer)
            put(network.wo, stack, "feed_forward", layer)
            for part in ("wi", "wi_0", "wi_1"):
                if hasattr(network, part):
                    put(getattr(network, part), stack, f"feed_forward_{part}", layer)
    put(model.lm_head, "decoder", "lm_head", 0)
    return model


@pytest.mark.parametrize("kind", ["t5", "t5_gated", "umt5"])
def test_oracle(kind):
    model, inputs = mop_t5.attach(tiny(kind), "bitfit"), batch("decoder")
    randomised(model.mop)
    ours, theirs = model(**inputs).logits, with_biases(tiny(kind), model.mop)(**inputs).logits
    torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-9)
    # the softmax cancels the bias of k
    effective = [p for name, p in model.mop.named_parameters() if "_k." not in name]
    assert len(effective) == len(list(model.mop.parameters())) - 3
    same_gradients(ours, theirs, effective)


def test_the_bias_of_k_has_no_effect():
    model, inputs = mop_t5.attach(tiny(), "bitfit"), batch()
    randomised(model.mop)
    expected = model(**inputs).logits
    expected.sum().backward()
    for stack, place in model.mop.adapter_places:
        bias = model.mop.adapters[stack][place]["bias"]
        if place.endswith("_k"):
            assert bias.grad.abs().max() < 1e-12
            with torch.no_grad():
                bias.add_(1)
        else:
            assert bias.grad.abs().max() > 1e-6, place
    torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-11, rtol=1e-9)


def test_each_example_of_a_mixed_batch_has_the_biases_of_its_scenario():
    model, inputs = mop_t5.attach(tiny(), "bitfit", scenarios=SCENARIOS, per_scenario=True), batch("decoder")
    got = model(**inputs, scenario_ids=IDS).logits
    assert torch.equal(got, tiny()(**inputs).logits), "biases start at 0"
    randomised(model.mop)
    got = model(**inputs, scenario_ids=IDS).logits
    for scenario in range(3):
        alone = with_biases(tiny(), model.mop, scenario)(**inputs).logits
        rows = scenario == IDS
        torch.testing.assert_close(got[rows], alone[rows], atol=1e-11, rtol=1e-9)
        assert (got[~rows] - alone[~rows]).abs().max() > 1e-3
    tensors = model.mop.additions(torch.tensor([2, 0, 2])).adapter("decoder", "cross_attention_v", 1).args[0]
    assert tensors["bias"].shape == (2, 32)


@pytest.mark.parametrize(("backbone", "tokens"), [("t5-base", 32128), ("mt5-base", 250112), ("t5-pegasus-base", 50000)])
def test_without_the_head(backbone, tokens):
    sizes = []
    for lm_head in (True, False):
        model = mop_t5.attach(mop_t5.build_backbone(backbone, device="meta"), "bitfit", lm_head=lm_head)
        sizes.append(mop_t5.count_parameters(model).trained)
    assert sizes[0] - sizes[1] == tokens


def test_size_of_the_public_code_on_t5_base():
    model = mop_t5.attach(mop_t5.build_backbone("t5-base", device="meta"), "bitfit")
    encoder = 4 * 768 + (3072 + 768) + 2 * 768  # q k v o, wi wo, two LayerNorms
    decoder = 8 * 768 + (3072 + 768) + 3 * 768
    assert mop_t5.count_parameters(model).trained == 12 * (encoder + decoder) + 32_128 == 280_960


def test_modules_called_alone_are_refused_and_detached_ones_are_plain():
    model, inputs = mop_t5.attach(tiny(), "bitfit"), batch()
    randomised(model.mop)
    model(**inputs)  # after which nothing may be left behind
    hidden = torch.zeros(1, 2, 24, dtype=torch.float64)
    attention = model.decoder.block[1].layer[1]
    for place, module in (
        ("lm_head of decoder layer 0", model.lm_head),
        ("cross_attention_q of decoder layer 1", attention.EncDecAttention.q),
        ("cross_attention_layer_norm of decoder layer 1", attention.layer_norm),
    ):
        with raises(RuntimeError, place, "mop_additions"):
            module(hidden)
    mop_t5.detach(model)
    assert torch.equal(model(**inputs).logits, tiny()(**inputs).logits)
    model.lm_head(hidden)


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (ValueError, ("scenarios", "none"), {"per_scenario": True}),
        (TypeError, ("lm_head", "None"), {"lm_head": None}),
    ],
)
def test_errors(error, message, given):
    with raises(error, *message):
        mop_t5.attach(tiny(), "bitfit", **given)
