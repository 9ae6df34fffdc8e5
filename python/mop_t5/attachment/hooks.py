"""Adapters at the sub-layers of one T5 instance and inside them, by forward hooks: no module is replaced.

An adapter changes the output of an attention's output projection or of a feed-forward network, before dropout and
residual, or the output of a map or a LayerNorm inside (additions.INNER_PLACES). The adapter is in the Additions of the
running forward pass. Attention modules get the Additions as a keyword argument. transformers hands no keyword arguments
to the feed-forward sub-layer, to the modules inside a sub-layer and to the head. For these, the first sub-layer of the
block (for the head: the decoder) leaves the Additions in a slot of the running thread, so several threads can call one
model. The block itself cannot leave them: its hooks do not run again where a checkpoint is recomputed.

A hook knows its place and its slot by itself: a library that replaces a layer may carry its hooks over.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch

from mop_t5.attachment.places import PLACES

_SUB_LAYERS = (
    ("self_attention", 0, "SelfAttention"),
    ("cross_attention", 1, "EncDecAttention"),
    ("feed_forward", -1, "DenseReluDense"),
)
_HEAD = ("decoder", "lm_head")
_SLOTS = ("block", "head")

# Slot -> (Additions, scenario ids) of the forward pass that this thread runs. A plain thread-local object:
# torch.compile (2.13) misses what a hook of the compiled module writes to a subclass of it.
_HANDED = threading.local()


@contextmanager
def own_slots() -> Iterator[None]:
    """Give the slots back to the outer forward pass at the end: a hook may call another attached model, or fail."""
    outer = {slot: getattr(_HANDED, slot, None) for slot in _SLOTS}
    try:
        yield
    finally:
        for slot, handed in outer.items():
            setattr(_HANDED, slot, handed)


def add_hooks(model, places, *, has_prompt: bool) -> None:
    """Hook the outputs named in places, (stack, place) out of additions.PLACES and INNER_PLACES.

    has_prompt: Let the encoder refuse an input that the model has not put the prompt in front of.
    """
    if has_prompt:
        model.encoder.register_forward_pre_hook(_before_encoder, with_kwargs=True)
    for stack, index, block, modules in _blocks(model, places):
        takers = {}
        for place, module in modules.items():
            if place in ("self_attention", "cross_attention"):
                module.register_forward_hook(partial(_after_attention, (stack, place, index)), with_kwargs=True)
            else:
                takers[stack, place, index] = module
        _hand("block", block.layer[0], takers, block.layer[-1].DenseReluDense)
    if _HEAD in places:
        _hand("head", model.decoder, {(*_HEAD, 0): model.lm_head}, model.lm_head)


def check_hooks(model, places) -> None:
    """Raise RuntimeError if a module at one of the places has no hook: it was replaced, and would lose its adapter."""
    for stack, index, _, modules in _blocks(model, places):
        for place, module in modules.items():
            _check_hook((stack, place, index), module)
    if _HEAD in places:
        _check_hook((*_HEAD, 0), model.lm_head)


def remove_hooks(model) -> None:
    """Remove the hooks of add_hooks, those of copied layers too."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if _is_ours(hook)]:
                del hooks[key]
                for options in (module._forward_hooks_with_kwargs, module._forward_pre_hooks_with_kwargs):
                    options.pop(key, None)


def _blocks(model, places) -> Iterator[tuple[str, int, torch.nn.Module, dict[str, torch.nn.Module]]]:
    """Stack, index, block, and its modules at the places, by the place that their output is."""
    for stack in ("encoder", "decoder"):
        here = [place for of, place in places if of == stack]
        for index, block in enumerate(getattr(model, stack).block if here else ()):
            found = _modules(stack, block)
            yield stack, index, block, {place: module for place, module in found.items() if place in here}


def _modules(stack: str, block) -> dict[str, torch.nn.Module]:
    modules = {}
    for place, position, name in _SUB_LAYERS:
        if (stack, place) in PLACES:
            layer = block.layer[position]
            network = getattr(layer, name)
            modules |= {place: network, f"{place}_layer_norm": layer.layer_norm}
            modules |= {f"{place}_{child}": module for child, module in network.named_children()}
    return modules


def _hand(slot: str, giver, takers: dict[tuple, torch.nn.Module], last) -> None:
    """Let `giver`, which is called with the Additions, leave them in a slot for `takers` until `last` was called."""
    if not takers:
        return
    giver.register_forward_pre_hook(partial(_before_giver, slot), with_kwargs=True)
    for place, taker in takers.items():
        taker.register_forward_hook(partial(_after_taker, slot, place))
    last.register_forward_hook(partial(_after_last, slot))


def _is_ours(hook) -> bool:
    function = getattr(hook, "func", hook)
    return function in (_before_encoder, _after_attention, _before_giver, _after_taker, _after_last)


def _check_hook(place: tuple, module: torch.nn.Module) -> None:
    # a wrapper, as of LoRA, has the hooked module inside
    hooks = (hook for inside in module.modules() for hook in inside._forward_hooks.values() if _is_ours(hook))
    if not any(place in hook.args for hook in hooks):
        stack, name, index = place
        raise RuntimeError(
            f"the {name} of {stack} layer {index} was replaced by a {type(module).__name__} after attach, so it would "
            "run without its adapter. Call mop_t5.detach, replace it, then mop_t5.attach."
        )


def _adapted(place: tuple, hidden, additions, scenario_ids):
    if additions is None:
        stack, name, layer = place
        raise RuntimeError(
            f"the {name} of {stack} layer {layer} was called without mop_additions. Call the model itself, or pass "
            "mop_additions=model.mop.additions() and scenario_ids to the encoder or decoder."
        )
    adapter = additions.adapter(*place)
    if adapter is None:
        return None  # the hook leaves the output as it is
    return adapter(hidden.to(additions.precision(hidden)), scenario_ids).to(hidden.dtype)


def _before_encoder(module, args, kwargs):
    additions = kwargs.get("mop_additions")
    has_ids = bool(args) or kwargs.get("input_ids") is not None
    if has_ids and additions is not None and additions.prompt is not None:
        raise RuntimeError(
            "the encoder was called with input_ids, without the prompt in front of them. Call the model itself. Its "
            "encoder_last_hidden_state can be given as encoder_outputs."
        )


def _after_attention(place, module, args, kwargs, output):
    adapted = _adapted(place, output[0], kwargs.get("mop_additions"), kwargs.get("scenario_ids"))
    return None if adapted is None else (adapted, *output[1:])


def _before_giver(slot, module, args, kwargs):
    setattr(_HANDED, slot, (kwargs.get("mop_additions"), kwargs.get("scenario_ids")))


def _after_taker(slot, place, module, args, output):
    additions, scenario_ids = getattr(_HANDED, slot, None) or (None, None)
    return _adapted(place, output, additions, scenario_ids)


def _after_last(slot, module, args, output):
    setattr(_HANDED, slot, None)  # kept, the Additions would keep the graph of this forward alive
