"""T5, mT5 and umT5 with prefixes, written from the equations on the weights of a model: what the injection must equal.

No cache, no fused kernel, no transformers code. A prefix is {attention: one (keys, values) a layer}, each of them
(scenarios, heads, prefix, d_kv).
"""

import copy
import math
from functools import cache

import mop_t5
import pytest
import torch
import transformers
from packaging.version import Version
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

ATTENTIONS = ("encoder_self", "decoder_self", "cross")
KINDS = ("t5", "t5_gated", "mt5", "umt5")
# before, umT5 is not causal in training under sdpa, with or without a prefix
UMT5_HAS_SDPA = Version(transformers.__version__).release >= (5, 18)
# heads * d_kv is not d_model, the decoder is deeper than the encoder
SIZES = {
    "vocab_size": 40,
    "d_model": 24,
    "d_kv": 8,
    "num_heads": 4,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
}


def tiny(kind="t5", *, implementation=None, dtype=torch.float64, seed=0, **overrides):
    """A tiny random backbone whose queries and position biases are large enough to matter; with sdpa if it can."""
    usable = kind != "umt5" or UMT5_HAS_SDPA
    if implementation == "sdpa" and not usable:
        pytest.skip(f"umT5 has no sdpa in transformers {transformers.__version__}")
    implementation = implementation or ("sdpa" if usable else "eager")
    # a copy takes less time than to draw the weights again
    return copy.deepcopy(_built(kind, implementation, dtype, seed, tuple(sorted(overrides.items()))))


@cache
def _built(kind, implementation, dtype, seed, overrides):
    from transformers import UMT5Config

    config = {"t5": "t5-small", "t5_gated": "t5-small", "mt5": "mt5-small"}.get(kind) or UMT5Config()
    gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if kind == "t5_gated" else {}
    model = mop_t5.build_backbone(config, seed=seed, dtype=dtype, **{**SIZES, **gated, **dict(overrides)})
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".q.weight"):
                parameter.mul_(4)
            if "relative_attention_bias" in name:
                parameter.mul_(5)
    for owner in (model, model.encoder, model.decoder):
        owner.config._attn_implementation_internal = implementation
    return model


def random_prefix(model, length, scenarios=3, attentions=ATTENTIONS, seed=1):
    """Normal keys and values, that ask for gradients."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    shape = (scenarios, config.num_heads, length, config.d_kv)

    def table():
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    depth = {a: config.num_layers if a == "encoder_self" else config.num_decoder_layers for a in ATTENTIONS}
    return {a: tuple((table(), table()) for _ in range(depth[a])) for a in attentions}


def batch(masks="padding", size=4, source=6, target=5, seed=2):
    """input_ids, decoder_input_ids and the masks; rows differ in length."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "input_ids": torch.randint(2, 40, (size, source), generator=generator),
        "decoder_input_ids": torch.randint(2, 40, (size, target), generator=generator),
    }
    if masks != "none":
        lengths = source - torch.arange(size) % 3
        inputs["attention_mask"] = (torch.arange(source) < lengths[:, None]).long()
    if masks == "decoder":
        lengths = target - torch.arange(size) % 2
        inputs["decoder_attention_mask"] = (torch.arange(target) < lengths[:, None]).long()
    return inputs


def bucket(distance: int, config, bidirectional: bool) -> int:
    """Bucket of key position - query position."""
    buckets, base = config.relative_attention_num_buckets, 0
    if bidirectional:
        buckets //= 2
        base = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return base + distance
    # float32, as T5 was trained: a boundary may fall elsewhere in float64
    ratio = torch.log(torch.tensor(distance / exact, dtype=torch.float32)) / math.log(
        config.relative_attention_max_distance / exact
    )
    return base + min(exact + int(ratio * (buckets - exact)), buckets - 1)


def position_bias(attention, config, q: int, k: int):
    """(heads, q, k)"""
    index = torch.tensor([[bucket(j - i, config, not attention.is_decoder) for j in range(k)] for i in range(q)])
    return attention.relative_attention_bias.weight[index].permute(2, 0, 1)


def attend(attention, x, memory, bias, allowed, prefix):
    """x (batch, q, d), memory (batch, k, d), bias (heads, q, k) or 0, allowed (batch, 1, q or 1, k), prefix: None or a
    pair (batch, heads, p, d_kv). The concatenation of Eq. 5, literally."""

    def heads(rows):
        return rows.unflatten(-1, (attention.n_heads, attention.key_value_proj_dim)).transpose(1, 2)

    query, key, value = heads(attention.q(x)), heads(attention.k(memory)), heads(attention.v(memory))
    scores = (query @ key.mT + bias).masked_fill(~allowed, float("-inf"))
    if prefix is not None:
        scores = torch.cat([query @ prefix[0].mT, scores], dim=-1)
        value = torch.cat([prefix[1], value], dim=-2)
    return attention.o((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def norm(layer, x):
    variance = x.float().pow(2).mean(-1, keepdim=True)  # in float32 whatever x is, as T5 has it
    return layer.weight * (x * (variance + layer.variance_epsilon).rsqrt())


def feed_forward(layer, x):
    inner, normed = layer.DenseReluDense, norm(layer.layer_norm, x)
    if hasattr(inner, "wi"):
        hidden = torch.relu(inner.wi(normed))
    else:
        gate = inner.wi_0(normed)
        gate = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        hidden = gate * inner.wi_1(normed)
    return x + inner.wo(hidden)


def run_stack(model, stack, ids, self_allowed, prefix, scenario_ids, memory=None, memory_allowed=None):
    def rows(attention, layer):
        if not prefix or attention not in prefix:
            return None
        return tuple(t[scenario_ids] for t in prefix[attention][layer])

    x, n, first_bias = model.shared.weight[ids], ids.shape[1], None
    self_name = "encoder_self" if memory is None else "decoder_self"
    for i, block in enumerate(stack.block):
        layer = block.layer[0]
        attention, normed = layer.SelfAttention, norm(layer.layer_norm, x)
        if attention.has_relative_attention_bias:
            first_bias = position_bias(attention, stack.config, n, n)
        x = x + attend(attention, normed, normed, first_bias, self_allowed, rows(self_name, i))
        if memory is not None:
            layer = block.layer[1]
            normed = norm(layer.layer_norm, x)
            x = x + attend(layer.EncDecAttention, normed, memory, 0, memory_allowed, rows("cross", i))
        x = feed_forward(block.layer[-1], x)
    return norm(stack.final_layer_norm, x)


def encode(model, input_ids, attention_mask=None, prefix=None, scenario_ids=None):
    allowed = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    return run_stack(model, model.encoder, input_ids, allowed[:, None, None].bool(), prefix, scenario_ids)


def decode(
    model, memory, decoder_input_ids, attention_mask=None, decoder_attention_mask=None, prefix=None, scenario_ids=None
):
    n = decoder_input_ids.shape[1]
    allowed = torch.ones(n, n).tril().bool()[None, None]
    if decoder_attention_mask is not None:
        allowed = allowed & decoder_attention_mask[:, None, None].bool()
    seen = torch.ones(memory.shape[:2]) if attention_mask is None else attention_mask
    seen = seen[:, None, None].bool()
    x = run_stack(model, model.decoder, decoder_input_ids, allowed, prefix, scenario_ids, memory, seen)
    scaled = {"t5": getattr(model.config, "scale_decoder_outputs", False), "umt5": model.config.tie_word_embeddings}
    return model.lm_head(x * model.config.d_model**-0.5 if scaled.get(model.config.model_type) else x)


def logits(model, inputs, prefix=None, scenario_ids=None):
    memory = encode(model, inputs["input_ids"], inputs.get("attention_mask"), prefix, scenario_ids)
    masks = [inputs.get("attention_mask"), inputs.get("decoder_attention_mask")]
    return decode(model, memory, inputs["decoder_input_ids"], *masks, prefix, scenario_ids)


def adapt_by_hand(model, adapt):
    """Let a plain model's sub-layers give adapt(stack, place, layer, output) in the place of their outputs."""

    def hooked(*at):
        def after(module, args, output):
            if isinstance(output, tuple):
                return (adapt(*at, output[0]), *output[1:])
            return adapt(*at, output)

        return after

    for stack in ("encoder", "decoder"):
        for layer, block in enumerate(getattr(model, stack).block):
            places = {"self_attention": block.layer[0].SelfAttention, "feed_forward": block.layer[-1].DenseReluDense}
            if stack == "decoder":
                places["cross_attention"] = block.layer[1].EncDecAttention
            for place, module in places.items():
                module.register_forward_hook(hooked(stack, place, layer))
    return model


def same_gradients(ours, theirs, parameters, atol=1e-10, rtol=1e-8):
    """Assert that two outputs have the same gradients, under weights that tell their elements apart."""
    weights = torch.linspace(-1, 1, ours.numel(), dtype=ours.dtype).view(ours.shape)
    gradients = [torch.autograd.grad((out * weights).sum(), parameters) for out in (ours, theirs)]
    for got, by_hand in zip(*gradients, strict=True):
        assert by_hand.abs().max() > 1e-6
        torch.testing.assert_close(got, by_hand, atol=atol, rtol=rtol)


def randomised(method, scale=0.3, seed=0):
    """The method with parameters far from their start, where nothing is near zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in method.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * scale)
    return method


def searching_model(model, prefix):
    """A copy of model whose every step is the oracle, so that transformers' searches can be driven by it."""
    plain = mop_t5.build_backbone(model.config, dtype=torch.float64)
    plain.load_state_dict(model.state_dict(), strict=False)  # without the method

    class Oracle(type(plain), GenerationMixin):
        def forward(
            self, decoder_input_ids=None, encoder_outputs=None, attention_mask=None, scenario_ids=None, **ignored
        ):
            memory = encoder_outputs[0]
            out = decode(self, memory, decoder_input_ids, attention_mask, None, prefix, scenario_ids)
            return Seq2SeqLMOutput(logits=out)

    plain.__class__ = Oracle
    return plain


def search(model, prefix, input_ids, attention_mask, scenario_ids, **options):
    """transformers' generate on the oracle, without a cache."""
    with torch.no_grad():
        memory = encode(model, input_ids, attention_mask, prefix, scenario_ids)
    return searching_model(model, prefix).generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=memory),
        attention_mask=attention_mask,
        scenario_ids=scenario_ids,
        use_cache=False,
        **options,
    )
