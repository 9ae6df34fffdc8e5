"""The places of a T5 that a method can change: attentions, sub-layers, and maps inside sub-layers."""

STACKS = ("encoder", "decoder")
ATTENTIONS = ("encoder_self", "decoder_self", "cross")
# (stack, place) of the sub-layers whose output an adapter can change
PLACES = tuple(
    (stack, place)
    for stack in STACKS
    for place in ("self_attention", "cross_attention", "feed_forward")
    if (stack, place) != ("encoder", "cross_attention")
)
HEAD = ("decoder", "lm_head")
_ATTENTION_MAPS = ("q", "k", "v", "layer_norm")
# (stack, place) of outputs inside the sub-layers, and of the head: an adapter can change these, too. Feed-forward
# networks have the map wi, or wi_0 and wi_1 where they are gated.
INNER_PLACES = (
    *(
        (stack, f"{place}_{part}")
        for stack, place in PLACES
        for part in (("wi", "wi_0", "wi_1", "layer_norm") if place == "feed_forward" else _ATTENTION_MAPS)
    ),
    HEAD,
)
