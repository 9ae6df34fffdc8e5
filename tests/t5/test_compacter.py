"""Compacter adapters against golden tensors, explicit Kronecker products in a whole model, and their paper's sizes."""

import mop_t5
import pytest
import torch
import torch.nn.functional as F
from errors import raises
from mop_t5.methods.compacter import CompacterConfig
from safetensors.torch import load_file
from t5_oracle import adapt_by_hand, batch, randomised, same_gradients, tiny

GOLDEN = __file__.rsplit("/", 2)[0] + "/golden/compacter_phm.safetensors"
VARIANTS = [
    {},
    {"local_rank": 2, "activation": "relu"},
    {"local_rank": None},
    {"variant": "plus_plus", "terms": 2, "reduction": 4},
]
LAYERS = {"encoder": 2, "decoder": 3}


@pytest.mark.parametrize(("case", "local_rank"), [("plain", None), ("factW_r1", 1), ("factW_r3", 3)])
def test_golden_down_map(case, local_rank):
    stored = {n.removeprefix(f"{case}."): t for n, t in load_file(GOLDEN).items() if n.startswith(f"{case}.")}
    method = mop_t5.attach(tiny(), "compacter", reduction=2, local_rank=local_rank).mop  # 24 -> 12, as stored
    down, layer = method.adapters["decoder"]["feed_forward"].down, 1
    names = ["W"] if local_rank is None else ["W_left", "W_right"]
    with torch.no_grad():
        method.rule.copy_(stored["param.phm_rule"])
        down.bias[layer] = stored["param.b"]
        for factor, name in zip(down.factors, names, strict=True):
            factor[layer] = stored[f"param.{name}"]
    x = stored["x"].requires_grad_()
    y = F.linear(x, down.weights(method.rule)[layer], down.bias[layer])
    y.backward(stored["gy"])
    gradients = {"phm_rule": method.rule.grad, "b": down.bias.grad[layer]}
    gradients |= {name: factor.grad[layer] for factor, name in zip(down.factors, names, strict=True)}
    torch.testing.assert_close(y, stored["y"], atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(x.grad, stored["gx"], atol=1e-12, rtol=1e-10)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, stored[f"grad.{name}"], atol=1e-12, rtol=1e-10)


def attached(fields):
    """A tiny model with adapters of hidden width 8 (or 6) and parameters far from their start."""
    model = mop_t5.attach(tiny(), "compacter", **{"reduction": 3, **fields})
    randomised(model.mop, scale=0.5)
    return model


def oracle(method, stack, place, layer, hidden):
    """The adapter with every W summed up from torch.kron."""
    p, of_place = dict(method.named_parameters()), f"adapters.{stack}.{place}"

    def through(name, x):
        count = 1 if method.config.local_rank is None else 2
        factors = [p[f"{of_place}.{name}.factors.{i}"][layer] for i in range(count)]
        local = factors[0] if len(factors) == 1 else torch.stack([a @ b for a, b in zip(*factors, strict=True)])
        weight = sum(torch.kron(rule, own) for rule, own in zip(p["rule"], local, strict=True))
        return x @ weight + p[f"{of_place}.{name}.bias"][layer]

    mid = through("down", hidden)
    mid = F.gelu(mid, approximate="tanh") if method.config.activation == "gelu_tanh" else mid.clamp(min=0)
    return hidden + through("up", mid)


@pytest.mark.parametrize("fields", VARIANTS, ids=lambda f: "-".join(map(str, f.values())) or "compacter")
def test_oracle(fields):
    model, inputs = attached(fields), batch("decoder")
    places = ["feed_forward"] if fields.get("variant") == "plus_plus" else ["self_attention", "feed_forward"]
    assert model.mop.adapter_places == tuple((stack, place) for stack in LAYERS for place in places)

    def adapt(stack, place, layer, hidden):
        return oracle(model.mop, stack, place, layer, hidden) if place in places else hidden

    ours, theirs = model(**inputs).logits, adapt_by_hand(tiny(), adapt)(**inputs).logits
    torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-9)
    same_gradients(ours, theirs, list(model.mop.parameters()))


def test_adapters_start_as_the_identity_with_the_locals_at_their_scale():
    torch.manual_seed(0)
    backbone = mop_t5.build_backbone("t5-small", vocab_size=10)
    with torch.no_grad():
        expected = backbone(input_ids=torch.tensor([[3, 4]]), decoder_input_ids=torch.tensor([[0, 5]])).logits
    method = mop_t5.attach(backbone, "compacter").mop
    with torch.no_grad():
        got = backbone(input_ids=torch.tensor([[3, 4]]), decoder_input_ids=torch.tensor([[0, 5]])).logits
    assert 0 < (got - expected).abs().max() < 1e-3 * expected.abs().max()
    assert 0.7e-4 < method.rule.std() < 1.3e-4
    left, right = method.adapters["encoder"]["feed_forward"].down.factors
    assert left.shape == (6, 4, 128, 1)
    assert right.shape == (6, 4, 1, 4)
    for factor in (left, right):  # Glorot with gain sqrt(2)
        bound = (12 / sum(factor.shape[-2:])) ** 0.5
        assert 0.9 * bound < factor.abs().max() <= bound


def test_scenarios_share_the_adapters():
    model, inputs = attached({"scenarios": ["a", "b", "c"]}), batch()
    with torch.no_grad():
        assert torch.equal(model(**inputs, scenario_ids=[0, 1, 2, 0]).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    ("backbone", "d", "layers"),
    [("t5-base", 768, 12), ("t5-large", 1024, 24), ("mt5-base", 768, 12), ("t5-pegasus-base", 768, 12)],
)
@pytest.mark.parametrize("fields", VARIANTS, ids=lambda f: "-".join(map(str, f.values())) or "compacter")
def test_parameter_counts(backbone, d, layers, fields):
    fields = {"reduction": 32, **fields}
    terms, a, rank = fields.get("terms", 4), d // fields["reduction"], fields.get("local_rank", 1)
    local = d * a // terms if rank is None else rank * (d + a)  # of terms matrices (d/terms, a/terms), or their factors
    adapter = 2 * local + a + d
    places = 1 if fields.get("variant") == "plus_plus" else 2
    model = mop_t5.attach(mop_t5.build_backbone(backbone, device="meta"), "compacter", **fields)
    expected = terms**3 + 2 * layers * places * adapter + (5 * layers + 2) * d
    assert mop_t5.count_parameters(model).trained == expected


@pytest.mark.parametrize(
    ("variant", "trained", "percent"), [("compacter", 161_728, 0.073), ("plus_plus", 104_704, 0.047)]
)
def test_sizes_of_its_paper_on_t5_base(variant, trained, percent):
    counted = mop_t5.count_parameters(
        mop_t5.attach(mop_t5.build_backbone("t5-base", device="meta"), "compacter", variant=variant)
    )
    assert (counted.trained, round(100 * counted.share, 3)) == (trained, percent)


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (ValueError, ("variant", "'compacter', 'plus_plus'", "'++'"), {"variant": "++"}),
        (ValueError, ("terms", "1", "0"), {"terms": 0}),
        (ValueError, ("reduction", "1", "0"), {"reduction": 0}),
        (ValueError, ("local_rank", "1", "0"), {"local_rank": 0}),
        (ValueError, ("rule_std", "0", "0"), {"rule_std": 0}),
        (ValueError, ("rule_std", "nan"), {"rule_std": float("nan")}),
        (TypeError, ("rule_std", "'1e-4'"), {"rule_std": "1e-4"}),
        (ValueError, ("activation", "'gelu_new'"), {"activation": "gelu_new"}),
        (TypeError, ("layer_norms", "'no'"), {"layer_norms": "no"}),
    ],
)
def test_config_errors(error, message, given):
    with raises(error, *message):
        CompacterConfig(**given)


@pytest.mark.parametrize(
    ("message", "given"),
    [
        (("terms", "d_model = 24", "5"), {"terms": 5, "reduction": 3}),
        (("terms", "d_model // reduction = 6", "4", "reduction"), {"reduction": 4}),
        (("terms", "d_model // reduction = 0", "4"), {"reduction": 32}),
    ],
)
def test_errors_that_need_the_backbone(message, given):
    with raises(ValueError, *message):
        mop_t5.attach(tiny(), "compacter", **given)
