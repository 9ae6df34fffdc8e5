"""T5 attention with a prefix: out = softmax(Q [P_K; K]^T + [0 | bias + mask]) [P_V; V]   (MOP, Eq. 5).

T5 does not scale by 1/sqrt(d). Prefix columns have bias 0 and mask 0; real tokens keep the bias they have without a
prefix, because the prefix is joined here, after T5 has computed it and after the cache update: the prefix is in
neither. Two ways, the same softmax in float32 or better: split_attention joins two blocks of scores and never copies
real keys and values, which is what counts at a decoding step; joined_attention copies them into one fused call, which
pays for long queries (encoder, 8 x 300 tokens, one CPU thread, forward and backward: 250 ms against 540 ms).
"""

import sys

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

ATTENTIONS = ("encoder_self", "decoder_self", "cross")
PREFIXED = {"sdpa": "mop_sdpa", "eager": "mop_eager"}
PLAIN = {prefixed: plain for plain, prefixed in PREFIXED.items()}
# queries from which copying keys and values is cheaper than writing the scores out
_LONG_QUERY = 64


class PrefixBatch:
    """Prefix keys and values of the scenarios that a batch needs; travels through the model as a keyword argument.

    Neither a tensor nor a module, so `generate` does not repeat it for beams and nothing enters a state_dict.

    kv: {attention: one (keys, values) a layer}, each (rows, heads, prefix, d_kv). An attention that is not named has
    no prefix. rows is 1 where all scenarios share the prefix.
    scenarios: (rows,) the scenario of each row, ascending, or None: row s belongs to scenario s.
    """

    def __init__(self, kv: dict[str, tuple], scenarios: torch.Tensor | None = None):
        unknown = sorted(set(kv) - set(ATTENTIONS))
        if unknown:
            raise ValueError(f"kv has unknown attentions {unknown}; expected a subset of {ATTENTIONS}.")
        self.kv = kv
        self.scenarios = scenarios

    def get(self, attention: str, layer: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        layers = self.kv.get(attention)
        return None if layers is None else layers[layer]

    def row_index(self, scenario_ids: torch.Tensor | None, rows: int) -> torch.Tensor | None:
        """(batch,) the row of each example, or None where one row serves the whole batch."""
        if rows == 1:
            return None
        if scenario_ids is None:
            raise RuntimeError(f"scenario_ids is missing, but the prefix differs between {rows} scenarios.")
        return scenario_ids if self.scenarios is None else torch.searchsorted(self.scenarios, scenario_ids)

    def check_holds(self, scenario_ids: torch.Tensor | None) -> None:
        """Raise ValueError if a scenario of the batch is not among those this object was made for."""
        if self.scenarios is None or scenario_ids is None:
            return
        missing = sorted(set(scenario_ids.tolist()) - set(self.scenarios.tolist()))
        if missing:
            raise ValueError(
                f"mop_prefix was made for scenarios {self.scenarios.tolist()}, but scenario_ids asks for {missing}. "
                "Make it with model.mop.prefixes(scenario_ids) for this batch, or model.mop.prefixes() for all."
            )


def _shared_rows(x: torch.Tensor) -> torch.Tensor:
    """(batch, heads, q, d) -> (heads, batch*q, d): a prefix that all examples share is then read once."""
    batch, heads, q, d = x.shape
    return x.transpose(0, 1).reshape(heads, batch * q, d)


def _times_prefix(x: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
    """x (batch, heads, q, a) @ prefix (batch or 1, heads, a, b) -> (batch, heads, q, b)."""
    if prefix.shape[0] != 1 or x.shape[0] == 1:
        return x @ prefix
    batch, heads, q, _ = x.shape
    return (_shared_rows(x) @ prefix[0]).view(heads, batch, q, prefix.shape[-1]).transpose(0, 1)


def split_attention(query, key, value, prefix_key, prefix_value, bias, allowed, *, scaling=1.0, dropout=0.0):
    """Attention over a prefix and real tokens. Returns the output and the weights.

    query (batch, heads, q, d); key, value (batch, heads, k, d); prefix_key, prefix_value (batch or 1, heads, p, d);
    bias: added to the real scores, broadcastable to (batch, heads, q, k), or None; allowed: boolean, same shape, or
    None. Output (batch, q, heads, d), contiguous; weights (batch, heads, q, p + k), prefix columns first.
    """
    wide = torch.float32 if query.dtype in (torch.float16, torch.bfloat16) else query.dtype
    real = (query @ key.transpose(-1, -2)).to(wide) * scaling
    if bias is not None:
        real = real + bias
    if allowed is not None:
        real = real.masked_fill(~allowed, torch.finfo(wide).min)
    prefix = _times_prefix(query, prefix_key.transpose(-1, -2)).to(wide) * scaling
    weights = torch.cat([prefix, real], dim=-1).softmax(-1).to(query.dtype)
    weights = F.dropout(weights, dropout, training=dropout > 0)
    p = prefix_key.shape[-2]
    out = _times_prefix(weights[..., :p], prefix_value) + weights[..., p:] @ value
    return out.transpose(1, 2).contiguous(), weights


def joined_attention(query, key, value, prefix_key, prefix_value, bias, allowed, *, scaling=1.0, dropout=0.0):
    """split_attention by scaled_dot_product_attention on concatenated keys and values; gives no weights (None)."""
    rows = (query.shape[0], -1, -1, -1)
    p = prefix_key.shape[-2]
    mask = bias
    if allowed is not None:
        zero = torch.zeros((), dtype=query.dtype, device=query.device)
        mask = torch.where(allowed, zero if bias is None else bias, torch.finfo(query.dtype).min)
    if mask is not None:
        mask = F.pad(mask.to(query.dtype), (p, 0))
    out = F.scaled_dot_product_attention(
        query,
        torch.cat([prefix_key.expand(rows), key], dim=-2),
        torch.cat([prefix_value.expand(rows), value], dim=-2),
        attn_mask=mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return out.transpose(1, 2).contiguous(), None


def _plain(implementation: str, module):
    if implementation == "sdpa":
        return sdpa_attention_forward
    # every T5 variant has its own eager function beside its attention class
    return sys.modules[type(module).__module__].eager_attention_forward


def _forward(implementation, module, query, key, value, attention_mask, *, mop_prefix, scenario_ids, **kwargs):
    if mop_prefix is None:
        raise RuntimeError(
            f"the {module._mop_attention} attention of layer {module.layer_idx} was called without mop_prefix. Call "
            "the model itself, or pass mop_prefix=model.mop.prefixes() and scenario_ids to the encoder or decoder."
        )
    pair = mop_prefix.get(module._mop_attention, module.layer_idx)
    if pair is None or pair[0].shape[-2] == 0:
        return _plain(implementation, module)(module, query, key, value, attention_mask, **kwargs)

    rows = mop_prefix.row_index(scenario_ids, pair[0].shape[0])
    # advanced indexing: on a GPU its backward is a sorted sum, that of index_select adds atomically, in no fixed order
    prefix_key, prefix_value = (t.to(key.dtype) if rows is None else t[rows].to(key.dtype) for t in pair)

    bias = kwargs.get("position_bias")
    if bias is not None and bias.requires_grad and not torch.compiler.is_compiling() and bias.is_leaf:
        bias = bias.detach()  # zeros that T5 marks under checkpointing: a gradient for them would be wasted
    allowed = None
    if attention_mask is None:
        if implementation == "sdpa" and query.shape[2] > 1 and _is_causal(module, kwargs):
            allowed = _causal(query.shape[2], key.shape[2], query.device)
    elif attention_mask.dtype == torch.bool:
        allowed = attention_mask
    else:
        bias = attention_mask if bias is None else bias + attention_mask

    scaling = kwargs.get("scaling")
    attention = joined_attention if implementation == "sdpa" and query.shape[2] >= _LONG_QUERY else split_attention
    out, weights = attention(
        query,
        key,
        value,
        prefix_key,
        prefix_value,
        bias,
        allowed,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout=kwargs.get("dropout", 0.0),
    )
    return out, None if implementation == "sdpa" else weights


def _is_causal(module, kwargs: dict) -> bool:
    # transformers leaves the mask out where sdpa's own is_causal would do
    asked = kwargs.get("is_causal")
    return module.is_causal if asked is None else asked


def _causal(q: int, k: int, device) -> torch.Tensor:
    """(q, k) aligned at the upper left, as sdpa's is_causal; k > q is the prefill of a static cache."""
    return torch.arange(q, device=device)[:, None] >= torch.arange(k, device=device)[None, :]


def mop_sdpa(module, query, key, value, attention_mask, mop_prefix=None, scenario_ids=None, **kwargs):
    """Attention function "mop_sdpa": scaled_dot_product_attention where there is no prefix, split where there is."""
    return _forward(
        "sdpa", module, query, key, value, attention_mask, mop_prefix=mop_prefix, scenario_ids=scenario_ids, **kwargs
    )


def mop_eager(module, query, key, value, attention_mask, mop_prefix=None, scenario_ids=None, **kwargs):
    """Attention function "mop_eager": also returns the attention weights, prefix columns on the left."""
    return _forward(
        "eager", module, query, key, value, attention_mask, mop_prefix=mop_prefix, scenario_ids=scenario_ids, **kwargs
    )


# A mask function of the same name is needed: without one transformers makes no mask at all, and padding is attended to.
for _name, _function, _mask in (("mop_sdpa", mop_sdpa, sdpa_mask), ("mop_eager", mop_eager, eager_mask)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, _mask)
