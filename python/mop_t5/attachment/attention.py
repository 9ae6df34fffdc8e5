"""T5 attention with a prefix: out = softmax(Q [P_K; K]^T + [0 | bias + mask]) [P_V; V]   (MOP, Eq. 5).

T5 does not scale by 1/sqrt(d). Prefix columns have bias 0 and mask 0; real tokens keep the bias they have without a
prefix. The prefix is joined here, after T5 has computed the bias and updated its cache, so neither contains the prefix.
prefixed_attention computes the softmax in one of two ways. The split way computes prefix scores and token scores
separately and copies no real keys and values. It is faster at a decoding step. The joined way copies keys and values
into one fused call. It is faster for long queries. docs/injection.md has the measurements. In training
mop_kernels.prefix_attention does all of it in one kernel.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers import T5ForConditionalGeneration as T5
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from mop_t5.attachment.additions import Additions, called_alone, row_index, wide
from mop_t5.attachment.fused_layers import runs_fused

PREFIXED = {"sdpa": "mop_sdpa", "eager": "mop_eager"}
PLAIN = {prefixed: plain for plain, prefixed in PREFIXED.items()}
# number of queries from which the joined way is faster than the split way
_LONG_QUERY = 64


def point_attention(model: T5, implementations: Sequence[str]) -> None:
    """Set the attention implementations of the encoder, the decoder and the model."""
    owners: tuple[Any, ...] = (model.encoder, model.decoder, model)
    for owner, implementation in zip(owners, implementations, strict=True):
        owner.config._attn_implementation_internal = implementation


def point_back(module: nn.Module) -> None:
    """Set the attention implementation of one module to the plain one. A copied layer has a config of its own."""
    config: Any = getattr(module, "config", None)
    implementation = getattr(config, "_attn_implementation_internal", None)
    if implementation in PLAIN:
        config._attn_implementation_internal = PLAIN[implementation]


def _times_prefix(x: Tensor, prefix: Tensor, rows: Tensor | None) -> Tensor:
    """Multiply each example by its prefix: x (batch, heads, q, a), prefix (rows, heads, a, b) -> (batch, heads, q, b).

    rows: (batch,) the row of each example, or None if the only row serves all.
    """
    batch, heads, q, _ = x.shape
    if rows is not None and q > 1:
        # advanced indexing: its backward on a GPU is a sorted sum; the backward of index_select has no fixed order
        return x @ prefix[rows]
    # Read every prefix once: multiply it by all examples, then pick the product of each example. At one query per
    # example, copies of the prefixes would cost more than the products that are not picked.
    every = x.transpose(0, 1).reshape(heads, batch * q, -1) @ prefix
    every = every.view(-1, heads, batch, q, prefix.shape[-1])
    return every[0].transpose(0, 1) if rows is None else every[rows, :, torch.arange(batch, device=x.device)]


def prefixed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    mask: Tensor | None = None,
    *,
    rows: Tensor | None = None,
    scaling: float = 1.0,
    dropout: float = 0.0,
    joined: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attend to a prefix and to real tokens.

    Args:
        query: (batch, heads, q, d).
        key: (batch, heads, k, d).
        value: (batch, heads, k, d).
        prefix_key: (rows, heads, p, d).
        prefix_value: (rows, heads, p, d).
        mask: Added to the scores; broadcastable to (batch, heads, q, p + k).
        rows: (batch,) the prefix row of each example, or None if the only row serves all.
        scaling: Factor on the scores.
        dropout: Probability, of the weights.
        joined: Copy keys and values into one fused call. False: compute prefix scores and token scores separately.

    Returns:
        Output (batch, q, heads, d), contiguous, and weights (batch, heads, q, p + k) with the prefix columns first. The
        weights are None if `joined`.
    """
    if joined:
        prefix_key, prefix_value = (
            t.expand(query.shape[0], -1, -1, -1) if rows is None else t[rows] for t in (prefix_key, prefix_value)
        )
        key, value = torch.cat([prefix_key, key], dim=-2), torch.cat([prefix_value, value], dim=-2)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
        return out.transpose(1, 2).contiguous(), None
    query = query if scaling == 1 else query * scaling
    blocks = (_times_prefix(query, prefix_key.transpose(-1, -2), rows), query @ key.transpose(-1, -2))
    scores = torch.cat([block.to(wide(query.dtype)) for block in blocks], dim=-1)
    if mask is not None:
        scores += mask
    weights = scores.softmax(-1).to(query.dtype)
    if dropout > 0:
        weights = F.dropout(weights, dropout)
    p = prefix_key.shape[-2]
    out = _times_prefix(weights[..., :p], prefix_value, rows) + weights[..., p:] @ value
    return out.transpose(1, 2).contiguous(), weights


def _additive_mask(bias: Tensor | None, allowed: Tensor | None, prefix: int, dtype: torch.dtype) -> Tensor | None:
    """Return [0 | bias + mask] of Eq. 5, broadcastable to (batch, heads, q, prefix + k), or None if it is zero.

    bias: (1, heads, q, k) or None. allowed: the mask, boolean or a float to add, (batch, 1, q, k) or with fewer
    dimensions; or None.
    """
    mask = None if bias is None else bias.to(dtype)
    if allowed is not None and allowed.dtype == torch.bool:
        zero = torch.zeros((), dtype=dtype, device=allowed.device)
        mask = torch.where(allowed, zero if mask is None else mask, torch.finfo(dtype).min)
    elif allowed is not None:
        mask = allowed.to(dtype) if mask is None else mask + allowed.to(dtype)
    return None if mask is None else F.pad(mask, (prefix, 0))


def _once_per_stack(
    position_bias: Any, name: str, attention_mask: Tensor | None, key: tuple, make: Callable[[], Tensor | None]
) -> Tensor | None:
    """Return make(), called once for all layers of a stack with the same attention_mask and key.

    T5 and mT5 hand the same bias object to every layer, so the result is an attribute of this object and goes with it.
    Masks made in every layer would be most of the memory that a long padded batch keeps for backward.
    """
    if position_bias is None or torch.compiler.is_compiling():  # the compiler merges equal subgraphs by itself
        return make()
    kept = getattr(position_bias, name, None)
    if kept is None or kept[0] is not attention_mask or kept[1] != key:
        kept = (attention_mask, key, make())
        setattr(position_bias, name, kept)
    return kept[2]


def _forward(
    implementation: str,
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    mop_additions: Additions | None = None,
    scenario_ids: Tensor | None = None,
    mop_fused: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    # before transformers 5.18 no attention of umT5 is marked as causal, but all its self-attentions have a table
    attends_to_itself = module.is_causal or module.has_relative_attention_bias or not module.is_decoder
    attention = ("decoder_self" if module.is_decoder else "encoder_self") if attends_to_itself else "cross"
    if mop_additions is None:
        raise called_alone(f"the {attention} attention of layer {module.layer_idx} was called without mop_additions")
    pair = mop_additions.prefix(attention, module.layer_idx, key.device)
    if pair is not None and pair[0].shape[-2] == 0:
        pair = None
    if mop_additions.device is not None and scenario_ids is not None:
        scenario_ids = scenario_ids.to(key.device)
    position_bias = kwargs.get("position_bias")
    bias = None if attention == "cross" else position_bias  # the bias of a cross-attention is zero
    whole = not module.is_causal or query.shape[2] == key.shape[2]  # not a continuation behind a cache
    fused = mop_fused and implementation == "sdpa" and whole and (bias is None or not bias.requires_grad)
    fused = fused and runs_fused(module, "prefix_attention", query)
    if pair is None and not fused:
        plain: Any = sdpa_attention_forward
        if implementation == "eager":  # every T5 variant has its own eager function beside its attention class
            plain = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
        return plain(module, query, key, value, attention_mask, **kwargs)

    rows = None if pair is None else row_index(mop_additions.scenarios, scenario_ids, len(pair[0]))
    prefix: tuple[Any, Any] = (None, None) if pair is None else (pair[0].to(query.dtype), pair[1].to(query.dtype))
    scaling, dropout = kwargs.get("scaling"), kwargs.get("dropout", 0.0)
    if fused:
        from mop_kernels import prefix_attention  # in training only: a saved prefix is served without the kernels

        if bias is not None:  # (heads, q, k)
            of_stack, dtype = bias, query.dtype
            bias = _once_per_stack(bias, "_mop_bias", None, (dtype,), lambda: of_stack[0].to(dtype).contiguous())
        # transformers made the mask of a padding mask (batch, k), or there is none. The last query sees every token
        # that is not padding, in a causal attention, too
        key_mask = None if attention_mask is None else attention_mask[:, 0, -1, :]
        out = prefix_attention(
            query, key, value, *prefix, rows, bias, key_mask, causal=module.is_causal, scale=scaling, dropout=dropout
        )
        return out.transpose(1, 2), None

    # transformers passes no mask where is_causal of sdpa is enough
    asked = kwargs.get("is_causal")
    causal = implementation == "sdpa" and query.shape[2] > 1 and (module.is_causal if asked is None else asked)
    joined = implementation == "sdpa" and query.shape[2] >= _LONG_QUERY
    length, dtype = prefix[0].shape[-2], query.dtype if joined else wide(query.dtype)

    def make_mask() -> Tensor | None:
        allowed = attention_mask
        if attention_mask is None and causal:
            # (q, k) aligned at the upper left, as sdpa's is_causal; k > q is the prefill of a static cache
            allowed = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
        return _additive_mask(bias, allowed, length, dtype)

    mask = _once_per_stack(position_bias, "_mop_mask", attention_mask, (length, dtype), make_mask)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    out, weights = prefixed_attention(
        query, key, value, *prefix, mask, rows=rows, scaling=scaling, dropout=dropout, joined=joined
    )
    return out, None if implementation == "sdpa" else weights


# "eager" also returns the attention weights, prefix columns on the left. A mask function of the same name is needed:
# without a mask function transformers makes no mask at all, and attends to padding.
for _plain_name, _mask_function in (("sdpa", sdpa_mask), ("eager", eager_mask)):
    AttentionInterface.register(PREFIXED[_plain_name], partial(_forward, _plain_name))
    AttentionMaskInterface.register(PREFIXED[_plain_name], _mask_function)
