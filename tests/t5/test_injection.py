"""The attached model against an oracle written from the equations, in float64."""

from functools import partial

import mop_t5
import pytest
import torch
import torch.nn.functional as F
from mop_t5.attachment import attention
from mop_t5.attachment.additions import Additions
from safetensors.torch import load_file
from t5_oracle import ATTENTIONS, KINDS, batch, logits, random_prefix, tiny
from torch import nn
from transformers import DynamicCache, T5Config
from transformers.models.t5 import modeling_t5

GOLDEN = __file__.rsplit("/", 2)[0] + "/golden/"
IDS = torch.tensor([0, 2, 1, 2])


def attached(kind="t5", **options):
    """A tiny backbone; what is attached matters little, the tests pass a prefix of their own."""
    return mop_t5.attach(tiny(kind, **options), "prefix_tuning", prefix_length=2, d_mid=4, scenarios=["a", "b", "c"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masks", ["padding", "none", "decoder"])
def test_oracle_is_t5_without_a_prefix(kind, masks):
    model, inputs = tiny(kind), batch(masks)
    with torch.no_grad():
        torch.testing.assert_close(logits(model, inputs), model(**inputs).logits, atol=1e-12, rtol=0)


@pytest.fixture(params=["sdpa", "eager", "sdpa, long queries"])
def implementation(request, monkeypatch):
    """Each way to compute the attention; long queries take another one than short queries do."""
    if request.param == "sdpa, long queries":
        monkeypatch.setattr(attention, "_LONG_QUERY", 1)
        monkeypatch.delattr(attention, "_times_prefix")  # of the split way
    return request.param.partition(",")[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("attentions", [*((a,) for a in ATTENTIONS), ATTENTIONS], ids="+".join)
def test_logits_equal_the_oracle(kind, implementation, attentions):
    model = attached(kind, implementation=implementation)
    for length in (1, 7, 40):
        prefix = random_prefix(model, length, attentions=attentions)
        for masks in ("padding", "none", "decoder"):
            inputs = batch(masks)
            with torch.no_grad():
                got = model(**inputs, scenario_ids=IDS, mop_additions=Additions(prefix)).logits
                plain = model(**inputs, scenario_ids=IDS, mop_additions=Additions({})).logits
                expected = logits(model, inputs, prefix, IDS)
            assert (got - plain).abs().max() > 0.1, "the prefix must matter for this test to mean anything"
            torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_attention_that_is_put_in_after_attach_gets_its_prefix(kind):
    """Before transformers 5.18, no attention of umT5 is marked as causal."""
    model, inputs = attached(kind, implementation="eager"), batch("padding")
    for place in (
        "encoder.block.1.layer.0.SelfAttention",
        "decoder.block.1.layer.0.SelfAttention",
        "decoder.block.1.layer.1.EncDecAttention",
    ):
        layer = tiny(kind).get_submodule(place)
        layer.config = model.get_submodule(place.partition(".")[0]).config
        model.set_submodule(place, layer)
    if kind == "umt5":
        for block in model.decoder.block:
            block.layer[0].SelfAttention.is_causal = False
    prefix = random_prefix(model, 7)
    with torch.no_grad():
        got = model(**inputs, scenario_ids=IDS, mop_additions=Additions(prefix)).logits
        torch.testing.assert_close(got, logits(model, inputs, prefix, IDS), atol=1e-12, rtol=0)


def test_a_long_source():
    model, inputs = attached("mt5"), batch("decoder", source=90, target=70)
    prefix = random_prefix(model, 7)
    with torch.no_grad():
        got = model(**inputs, scenario_ids=IDS, mop_additions=Additions(prefix)).logits
        torch.testing.assert_close(got, logits(model, inputs, prefix, IDS), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["t5", "umt5"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("scenarios", [1, 3])
def test_gradients_equal_the_oracle(kind, implementation, checkpointing, scenarios):
    model, inputs = attached(kind, implementation=implementation, dropout_rate=0.0), batch("padding")
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    prefix = random_prefix(model, 3, scenarios=scenarios)
    ids = torch.tensor([0, 2, 0, 2]) % scenarios
    tables = [t for layers in prefix.values() for pair in layers for t in pair]
    weight = torch.randn(4, 5, 40, dtype=torch.float64)
    got = torch.autograd.grad(
        (model(**inputs, scenario_ids=ids, mop_additions=Additions(prefix)).logits * weight).sum(), tables
    )
    expected = torch.autograd.grad((logits(model, inputs, prefix, ids) * weight).sum(), tables)
    for g, e in zip(got, expected, strict=True):
        assert e.abs().max() > 1e-4
        torch.testing.assert_close(g, e, atol=1e-11, rtol=1e-11)
        if scenarios == 3:
            assert not g[1].any(), "scenario 1 is absent, its gradient must be exactly zero"


@pytest.mark.parametrize("kind", KINDS)
def test_real_tokens_keep_their_bias(kind, monkeypatch):
    """The bias that reaches the softmax: zero for prefix columns, the plain model's for the real ones."""
    seen = {"plain": [], "prefixed": []}
    plain_module = __import__(type(tiny(kind)).__module__, fromlist=["x"])
    plain_eager = plain_module.eager_attention_forward

    def spy_plain(module, query, key, value, mask, **kwargs):
        seen["plain"].append(kwargs["position_bias"])
        return plain_eager(module, query, key, value, mask, **kwargs)

    split = attention.prefixed_attention

    def spy_split(query, key, value, prefix_key, prefix_value, mask, **kwargs):
        # with one-hot values, queries and keys of zero, the output is the softmax of the biases alone
        columns = prefix_key.shape[-2] + key.shape[-2]
        one_hot = torch.eye(columns, dtype=query.dtype).expand(*query.shape[:2], -1, -1)
        p = prefix_key.shape[-2]
        shared = {**kwargs, "rows": None}
        out, _ = split(query * 0, key * 0, one_hot[:, :, p:], prefix_key[:1] * 0, one_hot[:1, :, :p], mask, **shared)
        logs = out.transpose(1, 2).log()
        seen["prefixed"].append(logs - logs[..., :1])
        return split(query, key, value, prefix_key, prefix_value, mask, **kwargs)

    inputs = batch("none")
    with torch.no_grad():
        monkeypatch.setattr(plain_module, "eager_attention_forward", spy_plain)
        tiny(kind, implementation="eager")(**inputs)
        model = attached(kind)
        monkeypatch.setattr(attention, "prefixed_attention", spy_split)
        model(**inputs, scenario_ids=IDS, mop_additions=Additions(random_prefix(model, 3)))
    assert len(seen["plain"]) == len(seen["prefixed"]) == 2 + 3 + 3
    for plain, prefixed in zip(seen["plain"], seen["prefixed"], strict=True):
        assert not prefixed[..., :3].any()
        real = prefixed[..., 3:]
        visible = real.isfinite() & (real > -1e30)
        assert visible.sum() > 0
        torch.testing.assert_close(real[visible], plain.expand_as(real)[visible], atol=1e-12, rtol=0)


@pytest.mark.parametrize("case", ["no prefix rows", "attention not named", "empty"])
def test_no_prefix_is_plain_bit_for_bit(implementation, case):
    model, inputs = tiny(implementation=implementation), batch("decoder")
    with torch.no_grad():
        plain = model(**inputs).logits
        mop_t5.attach(model, "prefix_tuning", prefix_length=0, d_mid=4)
        prefix = {
            "no prefix rows": None,
            "attention not named": Additions(random_prefix(model, 0, attentions=("cross",))),
            "empty": Additions({}),
        }[case]
        assert torch.equal(model(**inputs, mop_additions=prefix).logits, plain)


def test_dropout_acts_on_prefix_and_real_weights_alike():
    """Same seed, same result as T5's own eager attention on keys and values with the prefix in front."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (5, 6, 6))
    prefix = [torch.randn(2, 3, 2, 4, dtype=torch.float64) for _ in range(2)]
    mask = F.pad(torch.randn(1, 3, 5, 6, dtype=torch.float64), (2, 0))
    module = nn.Module().train()
    torch.manual_seed(7)
    expected, expected_weights = modeling_t5.eager_attention_forward(
        module,
        query,
        torch.cat([prefix[0], key], 2),
        torch.cat([prefix[1], value], 2),
        None,
        scaling=1.0,
        dropout=0.4,
        position_bias=mask,
    )
    torch.manual_seed(7)
    got, weights = attention.prefixed_attention(query, key, value, *prefix, mask, rows=torch.arange(2), dropout=0.4)
    assert (weights == 0).any()
    torch.testing.assert_close(weights, expected_weights, atol=1e-14, rtol=0)
    torch.testing.assert_close(got, expected, atol=1e-14, rtol=0)


def test_dropout_of_long_queries_keeps_the_mean():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, n, 4, dtype=torch.float64) for n in (5, 6, 6))
    prefix = [torch.randn(1, 3, 2, 4, dtype=torch.float64) for _ in range(2)]
    expected, _ = attention.prefixed_attention(query, key, value, *prefix)
    joined = partial(attention.prefixed_attention, joined=True)
    torch.testing.assert_close(joined(query, key, value, *prefix)[0], expected)
    draws = torch.stack([joined(query, key, value, *prefix, dropout=0.3)[0] for _ in range(4000)])
    assert draws.std(0).min() > 0.01
    torch.testing.assert_close(draws.mean(0), expected, atol=0.1, rtol=0.05)


def test_half_precision_softmax_is_float32():
    """In bfloat16 a softmax over a large offset loses small columns; the split keeps them as float32 does."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 1, n, 8).bfloat16() for n in (3, 300, 300))
    prefix = [torch.randn(1, 1, 40, 8).bfloat16() for _ in range(2)]
    got, weights = attention.prefixed_attention(query, key, value, *prefix)
    scores = torch.cat([query @ prefix[0].mT, query @ key.mT], -1).float()
    assert got.dtype == torch.bfloat16
    assert torch.equal(weights, scores.softmax(-1).bfloat16())


def test_eager_returns_weights_with_prefix_columns_first():
    model, inputs = attached(implementation="eager"), batch("none")
    out = model(**inputs, scenario_ids=IDS, mop_additions=Additions(random_prefix(model, 3)), output_attentions=True)
    assert out.decoder_attentions[0].shape == (4, 4, 5, 3 + 5)
    assert out.cross_attentions[0].shape == (4, 4, 5, 3 + 6)
    torch.testing.assert_close(out.encoder_attentions[1].sum(-1), torch.ones(4, 4, 6, dtype=torch.float64))


def golden_attention(tensors, *, attention, implementation, dtype):
    """One T5 attention with the golden file's weights, run through the registered attention function."""
    config = T5Config(
        d_model=12, d_kv=4, num_heads=3, relative_attention_num_buckets=8, is_decoder=attention != "encoder_self"
    )
    config._attn_implementation_internal = f"mop_{implementation}"
    has_bias = "param.relative_attention_bias.weight" in tensors
    module = modeling_t5.T5Attention(config, has_bias, layer_idx=0, is_causal=attention == "decoder_self")
    module.load_state_dict({n.removeprefix("param."): t for n, t in tensors.items() if n.startswith("param.")})
    return module.to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("case", ["dec_self_l0", "enc_self_l0", "dec_self_l1", "cross"])
def test_golden_attention(case, implementation):
    stored = load_file(GOLDEN + "prefix_attention_t5.safetensors")
    tensors = {n.removeprefix(f"{case}."): t.double() for n, t in stored.items() if n.startswith(f"{case}.")}
    name = {"dec": "decoder_self", "enc": "encoder_self", "cro": "cross"}[case[:3]]
    attention = golden_attention(tensors, attention=name, implementation=implementation, dtype=torch.float64)
    x, keys, values = (tensors[n].requires_grad_() for n in ("x", "prefix_k", "prefix_v"))

    def run(prefix):
        out, _, _ = attention(
            x,
            mask=tensors["mask"],
            key_value_states=tensors.get("kv_states"),
            position_bias=tensors.get("position_bias"),
            mop_additions=Additions(prefix),
            scenario_ids=torch.tensor([0, 1]),
        )
        return out

    y = run({name: ((keys, values),)})
    torch.testing.assert_close(y, tensors["y"], atol=2e-6, rtol=1e-5)
    grads = torch.autograd.grad((y * tensors["gy"]).sum(), (x, keys, values))
    for got, expected in zip(grads, ("gx", "gpk", "gpv"), strict=True):
        torch.testing.assert_close(got, tensors[expected], atol=5e-6, rtol=1e-5)
    if "y_noprefix" in tensors:
        torch.testing.assert_close(run({}), tensors["y_noprefix"], atol=2e-6, rtol=1e-5)


def test_golden_incremental():
    """Token by token with a cache that never holds the prefix."""
    stored = load_file(GOLDEN + "prefix_attention_t5.safetensors")
    tensors = {n.removeprefix("incremental."): t for n, t in stored.items() if n.startswith("incremental.")}
    attention = golden_attention(tensors, attention="decoder_self", implementation="sdpa", dtype=torch.float32)
    state = {
        "mop_additions": Additions({"decoder_self": ((tensors["prefix_k"], tensors["prefix_v"]),)}),
        "scenario_ids": torch.tensor([0, 1]),
    }
    full, _, _ = attention(tensors["x"], **state)
    torch.testing.assert_close(full, tensors["full"], atol=2e-6, rtol=1e-5)
    cache, steps = DynamicCache(), []
    for i in range(5):
        out, _, _ = attention(tensors["x"][:, i : i + 1], past_key_values=cache, **state)
        steps.append(out)
    assert cache.get_seq_length() == 5, "the cache holds real tokens only"
    torch.testing.assert_close(torch.cat(steps, 1), tensors["steps"], atol=2e-6, rtol=1e-5)
