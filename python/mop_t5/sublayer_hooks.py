"""Adapters at the sub-layers of one T5 instance and inside them, by forward hooks: no module is replaced.

An adapter changes the output of an attention's output projection or of a feed-forward network, before dropout and
residual, or the output of a map or a LayerNorm inside (additions.INNER_PLACES). The adapter is in the Additions of the
running forward pass. Attention modules get the Additions as a keyword argument. transformers hands no keyword arguments
to the feed-forward sub-layer, to the modules inside a sub-layer and to the head. For these, the first sub-layer of the
block (for the head: the decoder) leaves the Additions in a slot of the running thread, so several threads can call one
model. The block itself cannot leave them: its hooks do not run again where a checkpoint is recomputed.
"""

import threading
from collections.abc import Iterator

import torch

from mop_t5.additions import PLACES

_SUB_LAYERS = (
    ("self_attention", 0, "SelfAttention"),
    ("cross_attention", 1, "EncDecAttention"),
    ("feed_forward", -1, "DenseReluDense"),
)


# Slot -> (Additions, scenario ids) of the forward pass that this thread runs. A plain thread-local object:
# torch.compile (2.13) misses what a hook of the compiled module writes to a subclass of it.
_HANDED = threading.local()


def add_hooks(model, places) -> Iterator:
    """Hook the outputs named in places, (stack, place) out of additions.PLACES and INNER_PLACES. Yields handles with
    remove()."""
    for stack_name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        for index, block in enumerate(stack.block):
            modules = {place: m for place, m in _modules(stack_name, block).items() if (stack_name, place) in places}
            for place, module in modules.items():
                module._mop_place = (stack_name, place, index)
            for attention in ("self_attention", "cross_attention"):
                if attention in modules:
                    yield modules.pop(attention).register_forward_hook(_after_attention, with_kwargs=True)
            yield from _hand("block", block.layer[0], modules.values(), block.layer[-1].DenseReluDense)
    if ("decoder", "lm_head") in places:
        model.lm_head._mop_place = ("decoder", "lm_head", 0)
        yield from _hand("head", model.decoder, [model.lm_head], model.lm_head)


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


def _hand(slot: str, giver, takers, last) -> Iterator:
    """Let `giver`, which is called with the Additions, leave them in a slot for `takers` until `last` was called."""
    if not takers:
        return
    for module in (giver, *takers, last):
        module._mop_slot = slot
    yield giver.register_forward_pre_hook(_before_giver, with_kwargs=True)
    for taker in takers:
        yield taker.register_forward_hook(_after_taker)
    yield last.register_forward_hook(_after_last)


def remove_hooks(model, handles) -> None:
    for handle in handles:
        handle.remove()
    for module in model.modules():
        for name in ("_mop_place", "_mop_slot"):
            module.__dict__.pop(name, None)


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
    return adapter(hidden.to(additions.precision(hidden)), scenario_ids).to(hidden.dtype)


def _after_attention(module, args, kwargs, output):
    adapted = _adapted(module, output[0], kwargs.get("mop_additions"), kwargs.get("scenario_ids"))
    return None if adapted is None else (adapted, *output[1:])


def _before_giver(module, args, kwargs):
    setattr(_HANDED, module._mop_slot, (kwargs.get("mop_additions"), kwargs.get("scenario_ids")))


def _after_taker(module, args, output):
    additions, scenario_ids = getattr(_HANDED, module._mop_slot, None) or (None, None)
    return _adapted(module, output, additions, scenario_ids)


def _after_last(module, args, output):
    setattr(_HANDED, module._mop_slot, None)  # kept, the Additions would keep the graph of this forward alive
