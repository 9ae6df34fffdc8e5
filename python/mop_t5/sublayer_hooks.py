"""Adapters after the sub-layers of one T5 instance, by forward hooks: no module is replaced.

An adapter changes the output of an attention's output projection or of a feed-forward network, before dropout and
residual. What it computes comes from the Additions of the running forward pass. Attention modules get those as a
keyword argument; transformers hands none to the feed-forward sub-layer, so the first sub-layer of the block leaves them
there for this one call. (The block itself could not: its hooks do not run again where a checkpoint is recomputed.)
"""

import torch

_ATTENTIONS = (("self_attention", 0, "SelfAttention"), ("cross_attention", 1, "EncDecAttention"))


class _Handed:
    """What the self-attention of a block leaves for its feed-forward network."""

    additions = scenario_ids = None


def add_hooks(model, places) -> list:
    """Hook the sub-layers named in places, (stack, place) out of additions.PLACES. Returns handles with remove()."""
    handles = []
    for stack_name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        for index, block in enumerate(stack.block):
            for place, position, name in _ATTENTIONS:
                if (stack_name, place) in places:
                    attention = getattr(block.layer[position], name)
                    attention._mop_place = (stack_name, place, index)
                    handles.append(attention.register_forward_hook(_after_attention, with_kwargs=True))
            if (stack_name, "feed_forward") in places:
                network = block.layer[-1].DenseReluDense
                network._mop_place = (stack_name, "feed_forward", index)
                network._mop_handed = block.layer[0]._mop_handed = _Handed()
                handles.append(block.layer[0].register_forward_pre_hook(_before_self_attention, with_kwargs=True))
                handles.append(network.register_forward_hook(_after_feed_forward))
    return handles


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


def _before_self_attention(layer, args, kwargs):
    handed = layer._mop_handed
    handed.additions, handed.scenario_ids = kwargs.get("mop_additions"), kwargs.get("scenario_ids")


def _after_feed_forward(module, args, output):
    handed = module._mop_handed
    adapted = _adapted(module, output, handed.additions, handed.scenario_ids)
    handed.additions = handed.scenario_ids = None  # they would keep the graph of this forward alive
    return adapted
