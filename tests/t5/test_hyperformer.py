"""HyperFormer against golden tensors of the public code, a from-scratch oracle, and hand formulas of its size."""

import math

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.methods.hyperformer import HyperFormerConfig
from safetensors.torch import load_file
from t5_oracle import adapt_by_hand, batch, randomised, tiny

GOLDEN = __file__.rsplit("/", 2)[0] + "/golden/hfpp.safetensors"
SMALL = {"scenarios": ["a", "b", "c"], "d_embedding": 8, "d_hidden": 10, "d_projected": 6, "reduction": 4}
VARIANTS = [
    {},
    {"pre_norm": True, "activation": "silu"},
    {"variant": "unique", "activation": "relu"},
    {"variant": "per_layer"},
    {"variant": "per_layer", "pre_norm": True, "conditional_layer_norm": False},
    {"variant": "per_layer", "embedding_network": True},
]
IDS = torch.tensor([2, 0, 2, 1])


NAMES = {  # of our parameters of one stack, in the golden file
    "layer_embeddings.weight": "layer_id_embeddings.weight",
    "kind_embeddings.weight": "adapters_block_type.weight",
    "network.0": "task_hypernet.task_embeding_generator.0",
    "network.2": "task_hypernet.task_embeding_generator.2",
    "norm": "LayerNorm",
    "adapters.0.maps.down": "down_sampler_hyper_net.weight_generator.0",
    "adapters.0.maps.down_bias": "down_sampler_hyper_net.bias_generator.0",
    "adapters.0.maps.up": "up_sampler_hyper_net.weight_generator.0",
    "adapters.0.maps.up_bias": "up_sampler_hyper_net.bias_generator.0",
    "adapters.0.maps.post": "post_layernorm_hypernet.weight_generator",
    "adapters.0.maps.post_bias": "post_layernorm_hypernet.bias_generator",
}


def golden_name(name):
    if name in NAMES:
        return NAMES[name]
    module, kind = name.rsplit(".", 1)
    return f"{NAMES[module]}.{kind}"


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_golden(stack):
    stored = {name: tensor.double() for name, tensor in load_file(GOLDEN).items()}
    model = mop_t5.attach(tiny(num_layers=3), "hyperformer", **{**SMALL, "scenarios": ["t0", "t1", "t2"]})
    method, network = model.mop, model.mop.hypernetworks[stack]
    tasks = [f"task.task_to_embeddings.t{task}" for task in range(3)]
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(stored[f"param.{golden_name(name)}"])
        method.scenario_embeddings.copy_(torch.stack([stored[name] for name in tasks]))

    made = network(method.scenario_embeddings)
    ours = {"down": "down_w", "down_bias": "down_b", "up": "up_w", "up_bias": "up_b", "post": "post_w"}
    ours["post_bias"] = "post_b"
    x = stored["x"].requires_grad_()
    additions, loss = method.additions(), 0
    for task in (0, 2):
        ids = torch.tensor([task, task])
        for layer in (0, 2):
            for place, short in (("feed_forward", "ff"), ("self_attention", "sa")):
                for name, key in ours.items():
                    expected = stored[f"t{task}.layer{layer}.{short}.{key}"]
                    torch.testing.assert_close(made[place][layer][name][task], expected, atol=1e-7, rtol=1e-6)
                y = additions.adapter(stack, place, layer)(x, ids)
                expected = stored[f"t{task}.layer{layer}.{short}.y"]
                torch.testing.assert_close(y, expected, atol=1e-6, rtol=1e-6)
                loss = loss + y.square().sum()
    torch.testing.assert_close(loss, stored["loss"], atol=0, rtol=1e-7)

    loss.backward()
    torch.testing.assert_close(x.grad, stored["grad.x"], atol=2e-5, rtol=2e-6)
    for task, name in enumerate(tasks):
        got, expected = method.scenario_embeddings.grad[task], stored[f"grad.{name}"]
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=2e-6)
    assert method.scenario_embeddings.grad[1].abs().max() == 0, "no output of t1 is in the loss"
    for name, parameter in network.named_parameters():
        expected = stored[f"grad.{golden_name(name)}"]
        torch.testing.assert_close(parameter.grad, expected, atol=2e-5, rtol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


def activated(name, x):
    if name == "gelu_tanh":
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / (1 + torch.exp(-x)) if name == "silu" else x.clamp(min=0)


def normed(x, eps):
    centred = x - x.mean()
    return centred / (centred.square().mean() + eps).sqrt()


def network(parameters, name, x):
    hidden = (parameters[f"{name}.0.weight"] @ x + parameters[f"{name}.0.bias"]).clamp(min=0)
    return parameters[f"{name}.2.weight"] @ hidden + parameters[f"{name}.2.bias"]


def oracle(method, stack, place, layer, hidden, scenario_ids):
    """The adapter written out token by token, on the parameters by their names."""
    parameters, config = dict(method.named_parameters()), method.config
    of_stack = f"hypernetworks.{stack}"
    kind = {"feed_forward": 0, "self_attention": 1}[place]
    layers = method.shape.num_layers if stack == "encoder" else method.shape.num_decoder_layers
    out = []
    for row, scenario in zip(hidden, scenario_ids.tolist(), strict=True):
        e = parameters["scenario_embeddings"][scenario]
        if config.variant == "per_layer":
            index = kind * layers + layer
            if config.embedding_network:
                e = network(parameters, "embedding_network", e)
        else:
            index = kind if config.variant == "unique" else 0
            parts = [e, parameters[f"{of_stack}.layer_embeddings.weight"][layer]]
            if config.variant == "plus_plus":
                parts.append(parameters[f"{of_stack}.kind_embeddings.weight"][kind])
            e = normed(network(parameters, f"{of_stack}.network", torch.cat(parts)), 1e-6)
            e = e * parameters[f"{of_stack}.norm.weight"] + parameters[f"{of_stack}.norm.bias"]
        d, a = method.shape.d_model, method.shape.d_model // config.reduction

        def made(name, *shape, e=e, index=index):
            maps = f"{of_stack}.adapters.{index}"
            if f"{maps}.norms.{name}" in parameters:
                return parameters[f"{maps}.norms.{name}"]
            return (parameters[f"{maps}.maps.{name}.weight"] @ e + parameters[f"{maps}.maps.{name}.bias"]).view(shape)

        for token in row:
            x = normed(token, 1e-5) * made("pre", d) + made("pre_bias", d) if config.pre_norm else token
            x = activated(config.activation, made("down", a, d) @ x + made("down_bias", a))
            x = made("up", d, a) @ x + made("up_bias", d)
            out.append(token + normed(x, 1e-5) * made("post", d) + made("post_bias", d))
    return torch.stack(out).view(hidden.shape)


@pytest.mark.parametrize("tokens", [3, 1])
@pytest.mark.parametrize("fields", VARIANTS, ids=lambda f: "-".join(map(str, f.values())) or "plus_plus")
def test_oracle(fields, tokens):
    method = randomised(mop_t5.attach(tiny(), "hyperformer", **SMALL, **fields).mop)
    hidden = torch.randn(4, tokens, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hidden.requires_grad_()
    weights = torch.linspace(-1, 1, hidden.numel(), dtype=torch.float64).view(hidden.shape)
    layers = {"encoder": 2, "decoder": 3}
    for ids in (IDS, torch.tensor([1, 1, 1, 1]), torch.tensor([0, 2, 2, 0])):
        additions, got, expected = method.additions(ids), 0, 0
        for stack, place in method.adapter_places:
            for layer in range(layers[stack]):
                y = additions.adapter(stack, place, layer)(hidden, ids)
                by_hand = oracle(method, stack, place, layer, hidden, ids)
                torch.testing.assert_close(y, by_hand, atol=1e-12, rtol=1e-10)
                got, expected = got + (y * weights).sum(), expected + (by_hand * weights).sum()
        wanted = [hidden, *method.parameters()]
        ours, theirs = (torch.autograd.grad(loss, wanted) for loss in (got, expected))
        for gradient, by_hand in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient, by_hand, atol=1e-9, rtol=1e-9)


def test_adapters_stand_after_self_attention_and_feed_forward_of_a_whole_model():
    inputs = batch("decoder")
    model = mop_t5.attach(tiny(), "hyperformer", **SMALL)
    randomised(model.mop)

    def adapt(stack, place, layer, hidden):
        return hidden if place == "cross_attention" else oracle(model.mop, stack, place, layer, hidden, IDS)

    with torch.no_grad():
        got, expected = model(**inputs, scenario_ids=IDS).logits, adapt_by_hand(tiny(), adapt)(**inputs).logits
    torch.testing.assert_close(got, expected, atol=1e-11, rtol=1e-9)


def test_a_mixed_batch_generates_what_each_scenario_does_alone():
    model = mop_t5.attach(tiny(), "hyperformer", **SMALL)
    randomised(model.mop, scale=1)
    inputs, options = batch(), {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": 3}
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    together = model.generate(ids, attention_mask=mask, scenario_ids=IDS, **options)
    for row, scenario in enumerate(IDS.tolist()):
        alone = model.generate(ids[row, None], attention_mask=mask[row, None], scenario_ids=scenario, **options)
        assert torch.equal(together[row], alone[0])
    assert len({tuple(model.generate(ids[:1], scenario_ids=s, **options)[0].tolist()) for s in range(3)}) > 1


def test_only_the_scenarios_of_a_batch_are_made():
    method = mop_t5.attach(tiny(), "hyperformer", **SMALL).mop
    for ids, scenarios, rows in (([2, 0, 2], [0, 2], 2), ([1, 1], [1], 1), ([0, 1, 2], None, 3)):
        additions = method.additions(torch.tensor(ids))
        assert (additions.scenarios if scenarios is None else additions.scenarios.tolist()) == scenarios
        tensors = additions.adapter("decoder", "feed_forward", 0).args[0]
        assert {len(t) for t in tensors.values()} == {rows}


def test_start_is_that_of_the_public_code():
    torch.manual_seed(0)
    backbone = mop_t5.build_backbone("t5-small", vocab_size=10, num_layers=1, num_decoder_layers=1)
    method = mop_t5.attach(backbone, "hyperformer", scenarios=list("abcdefgh")).mop
    for name, parameter in method.named_parameters():
        if name.endswith("norm.weight"):
            assert (parameter == 1).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            embedding = "embeddings" in name
            expected, tolerance = (1, 0.2) if embedding else (0.01, 0.0003)
            assert abs(parameter.std().item() - expected) < tolerance, name


def linear(d_in, d_out):
    return d_in * d_out + d_out


@pytest.mark.parametrize("backbone", ["t5-base", "t5-large", "mt5-base", "t5-pegasus-base"])
@pytest.mark.parametrize("fields", VARIANTS, ids=lambda f: "-".join(map(str, f.values())) or "plus_plus")
def test_parameter_counts(backbone, fields):
    scenarios, reduction, t, h, p = 5, 16, 48, 96, 40
    d, layers = (1024, 24) if backbone == "t5-large" else (768, 12)
    a, norms = d // reduction, 2 if fields.get("pre_norm") else 1
    variant = fields.get("variant", "plus_plus")
    width = t if variant == "per_layer" and not fields.get("embedding_network") else p
    adapter = linear(width, a * d) + linear(width, a) + linear(width, d * a) + linear(width, d)
    adapter += norms * (2 * d if fields.get("conditional_layer_norm") is False else 2 * linear(width, d))
    if variant == "plus_plus":
        stack = layers * t + 2 * t + linear(3 * t, h) + linear(h, p) + 2 * p + adapter
    elif variant == "unique":
        stack = layers * t + linear(2 * t, h) + linear(h, p) + 2 * p + 2 * adapter
    else:
        stack = 2 * layers * adapter
    expected = scenarios * t + 2 * stack + (5 * layers + 2) * d
    expected += linear(t, h) + linear(h, p) if fields.get("embedding_network") else 0
    model = mop_t5.build_backbone(backbone, device="meta")
    sizes = {"d_embedding": t, "d_hidden": h, "d_projected": p, "reduction": reduction}
    mop_t5.attach(model, "hyperformer", scenarios=list("abcde"), **sizes, **fields)
    assert mop_t5.count_parameters(model).trained == expected


@pytest.mark.parametrize(
    ("fields", "trained", "percent"),
    [
        ({"preset": "published"}, 5_210_864, 1.8947),
        ({"preset": "published", "layer_norms": False}, 5_163_248, 1.8773),
        ({"preset": "published", "layer_norms": False, "reduction": 16}, 9_958_688, 3.6210),
        ({"preset": "table4"}, 6_381_232, 2.3202),
        ({"preset": "table4", "layer_norms": False}, 6_333_616, 2.3029),
    ],
)
def test_parameter_counts_of_the_presets(fields, trained, percent):
    model = mop_t5.build_backbone("t5-pegasus-base", device="meta")
    counted = mop_t5.count_parameters(mop_t5.attach(model, "hyperformer", scenarios=list("abcde"), **fields))
    assert (counted.trained, round(100 * counted.share, 4)) == (trained, percent)


def test_a_given_field_wins_over_the_preset():
    config = HyperFormerConfig(scenarios=["a"], preset="table4", d_hidden=99)
    assert (config.d_embedding, config.d_hidden, config.d_projected) == (768, 99, 64)


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (ValueError, ("scenarios", "none"), {"scenarios": []}),
        (ValueError, ("variant", "'plus_plus', 'unique', 'per_layer'", "'++'"), {"variant": "++"}),
        (ValueError, ("d_embedding", "1", "0"), {"d_embedding": 0}),
        (TypeError, ("reduction", "int", "2.0"), {"reduction": 2.0}),
        (ValueError, ("activation", "'gelu_tanh'", "'swish'"), {"activation": "swish"}),
        (TypeError, ("layer_norms", "None"), {"layer_norms": None}),
        (ValueError, ("preset", "None, 'published', 'table4'", "'table3'"), {"preset": "table3"}),
        (
            ValueError,
            ("conditional_layer_norm", "variant='plus_plus'", "False", "variant='per_layer'"),
            {"conditional_layer_norm": False},
        ),
        (
            ValueError,
            ("embedding_network", "variant='unique'", "True"),
            {"embedding_network": True, "variant": "unique"},
        ),
    ],
)
def test_config_errors(error, message, given):
    with raises(error, *message):
        HyperFormerConfig(**{"scenarios": ["a", "b"], **given})


def test_errors_that_need_the_model():
    with raises(ValueError, "reduction", "d_model = 24", "32"):
        mop_t5.attach(tiny(), "hyperformer", scenarios=["a"])
    model = mop_t5.attach(tiny(), "hyperformer", **SMALL)
    with raises(ValueError, "scenario_ids", "missing", "hyperformer"):
        model(**batch())
    with raises(RuntimeError, "scenario_ids", "missing", "3 scenarios"):
        model.mop.additions().adapter("encoder", "feed_forward", 0)(torch.zeros(1, 1, 24, dtype=torch.float64), None)
