"""Adapters at the sub-layers of one T5 instance and inside them, by forward hooks: no module is replaced.

An adapter changes the output of an attention's output projection or of a feed-forward network, before dropout and
residual, or that of a map or LayerNorm inside (additions.INNER_PLACES). What it computes comes from the Additions of
the running forward pass. Attention modules get those as a keyword argument; transformers hands none to what lies inside
and to the feed-forward sub-layer, so the first sub-layer of the block leaves them there for this one call. (The block
itself could not: its hooks do not run again where a checkpoint is recomputed.) The decoder leaves them for the head.
"""

import torch

from mop_t5.additions import PLACES

_SUB_LAYERS = (
    ("self_attention", 0, "SelfAttention"),
    ("cross_attention", 1, "EncDecAttention"),
    ("feed_forward", -1, "DenseReluDense"),
)


class _Handed:
    """What the self-attention of a block leaves for the modules after it, and the decoder for the head."""

    additions = scenario_ids = None


def add_hooks(model, places) -> list:
    """Hook the outputs named in places, (stack, place) out of additions.PLACES and INNER_PLACES. Returns handles with
    remove()."""
    handles = []
    for stack_name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        for index, block in enumerate(stack.block):
            modules = {place: m for place, m in _modules(stack_name, block).items() if (stack_name, place) in places}
            for place, module in modules.items():
                module._mop_place = (stack_name, place, index)
            attentions = [modules.pop(place) for place in ("self_attention", "cross_attention") if place in modules]
            handles += [a.register_forward_hook(_after_attention, with_kwargs=True) for a in attentions]
            handles += _hand(block.layer[0], modules.values(), block.layer[-1].DenseReluDense)
    if ("decoder", "lm_head") in places:
        model.lm_head._mop_place = ("decoder", "lm_head", 0)
        handles += _hand(model.decoder, [model.lm_head], model.lm_head)
    return handles


def _modules(stack_name: str, block) -> dict[str, torch.nn.Module]:
    """The modules of a block by the place that their output is."""
    modules = {}
    for place, position, name in _SUB_LAYERS:
        if (stack_name, place) in PLACES:
            layer = block.layer[position]
            network = getattr(layer, name)
            modules |= {place: network, f"{place}_layer_norm": layer.layer_norm}
            modules |= {f"{place}_{child}": module for child, module in network.named_children()}
    return modules


def _hand(giver, takers, last) -> list:
    """Let giver, which is called with the additions, leave them for the takers until last has been called."""
    if not takers:
        return []
    giver._mop_handed = last._mop_handed = handed = _Handed()
    handles = [giver.register_forward_pre_hook(_before_giver, with_kwargs=True)]
    for taker in takers:
        taker._mop_handed = handed
        handles.append(taker.register_forward_hook(_after_taker))
    return [*handles, last.register_forward_hook(_after_last)]


def remove_hooks(model, handles) -> None:
    for handle in handles:
        handle.remove()
    for module in model.modules():
        for name in ("_mop_place", "_mop_handed"):
            module.__dict__.pop(name, None)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a method computes on a backbone of this dtype: that of its parameters."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _adapted(module, hidden, additions, scenario_ids):
    if additions is None:
        stack, place, layer = module._mop_place
        raise RuntimeError(
            f"the {place} of {stack} layer {layer} was called without mop_additions. Call the model itself, or pass "
            "mop_additions=model.mop.additions() and scenario_ids to the encoder or decoder."
        )
    adapter = additions.adapter(*module._mop_place)
    if adapter is None:
        return None  # the hook leaves the output as it is
    return adapter(hidden.to(wide(hidden.dtype)), scenario_ids).to(hidden.dtype)


def _after_attention(module, args, kwargs, output):
    adapted = _adapted(module, output[0], kwargs.get("mop_additions"), kwargs.get("scenario_ids"))
    return None if adapted is None else (adapted, *output[1:])


def _before_giver(module, args, kwargs):
    handed = module._mop_handed
    handed.additions, handed.scenario_ids = kwargs.get("mop_additions"), kwargs.get("scenario_ids")


def _after_taker(module, args, output):
    return _adapted(module, output, module._mop_handed.additions, module._mop_handed.scenario_ids)


def _after_last(module, args, output):
    handed = module._mop_handed  # kept, they would keep the graph of this forward alive
    handed.additions = handed.scenario_ids = None
