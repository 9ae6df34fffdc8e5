"""Adapters at the sub-layers of one T5 instance and inside them, by forward hooks: no module is replaced.

An adapter changes the output of an attention's output projection or of a feed-forward network, before dropout and
residual, or the output of a map or a LayerNorm inside (INNER_PLACES). The adapter is in the Additions of the
running forward pass. transformers hands no keyword arguments to the feed-forward sub-layer, to the modules inside a
sub-layer and to the head. So the first sub-layer of a block (for the head: the decoder) leaves the Additions in a slot
of the running thread, and several threads can call one model. The block itself cannot leave them: its hooks do not run
again where a checkpoint is recomputed.

Each hook holds its own place and slot, because a library that replaces a layer may move the hooks to the new layer.
"""

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn
from transformers import T5ForConditionalGeneration as T5

from mop_t5.attachment.additions import HEAD, PLACES, STACKS, Adapter, Additions, called_alone, wide

_SUB_LAYERS = (
    ("self_attention", 0, "SelfAttention"),
    ("cross_attention", 1, "EncDecAttention"),
    ("feed_forward", -1, "DenseReluDense"),
)
Place: TypeAlias = tuple[str, str, int]  # stack, place, layer
_SLOTS = ("block", "head")

# Slot -> (Additions, scenario ids) of the forward pass that this thread runs. A plain thread-local object:
# torch.compile (2.13) misses the values that a hook of the compiled module writes to an object of a subclass.
_HANDED = threading.local()


@contextmanager
def own_slots() -> Iterator[None]:
    """Restore the slots of the outer forward pass at the end: a hook may call another attached model, or fail."""
    outer = {slot: getattr(_HANDED, slot, None) for slot in _SLOTS}
    try:
        yield
    finally:
        for slot, handed in outer.items():
            setattr(_HANDED, slot, handed)


def add_hooks(model: T5, places: Collection[tuple[str, str]], *, has_prompt: bool) -> None:
    """Hook the outputs at `places`.

    Args:
        model: The backbone.
        places: (stack, place) out of PLACES and INNER_PLACES.
        has_prompt: Let the encoder refuse an input without the prompt in front of it.
    """
    if has_prompt:
        model.encoder.register_forward_pre_hook(_before_encoder, with_kwargs=True)
    for slot, giver, modules, last in _hooked(model, places):
        giver.register_forward_pre_hook(partial(_before_giver, slot), with_kwargs=True)
        for place, module in modules.items():
            module.register_forward_hook(partial(_after_taker, slot, place))
        last.register_forward_hook(partial(_after_last, slot))


def check_hooks(model: T5, places: Collection[tuple[str, str]]) -> None:
    """Raise RuntimeError if a module at one of the places has no hook: it was replaced, and would lose its adapter."""
    for _, _, modules, _ in _hooked(model, places):
        for place, module in modules.items():
            # a wrapper, as of LoRA, has the hooked module inside
            hooks = (hook for inside in module.modules() for hook in inside._forward_hooks.values() if _is_ours(hook))
            if not any(isinstance(hook, partial) and place in hook.args for hook in hooks):
                stack, name, index = place
                raise RuntimeError(
                    f"the {name} of {stack} layer {index} was replaced by a {type(module).__name__} after attach, so "
                    "it would run without its adapter. Call mop_t5.detach, replace it, then mop_t5.attach."
                )


def remove_hooks(model: nn.Module) -> None:
    """Remove the hooks of add_hooks, also from copied layers."""
    for module in model.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if _is_ours(hook)]:
                del hooks[key]
                for options in (module._forward_hooks_with_kwargs, module._forward_pre_hooks_with_kwargs):
                    options.pop(key, None)


def _hooked(
    model: T5, places: Collection[tuple[str, str]]
) -> Iterator[tuple[str, nn.Module, dict[Place, nn.Module], nn.Module]]:
    """Yield slot, giver, modules and last of every block with places, and of the head.

    The giver stores the Additions of its call in the slot, and `last` clears the slot. The modules are those whose
    output an adapter can change, by their place.
    """
    for stack in STACKS:
        here = [place for of, place in places if of == stack]
        for index, block in enumerate(getattr(model, stack).block if here else ()):
            found = {(stack, place, index): module for place, module in _modules(stack, block) if place in here}
            yield "block", block.layer[0], found, block.layer[-1].DenseReluDense
    if HEAD in places:
        yield "head", model.decoder, {(*HEAD, 0): model.lm_head}, model.lm_head


def _modules(stack: str, block: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield (place, module) of every output in a block that an adapter can change."""
    for place, position, name in _SUB_LAYERS:
        if (stack, place) in PLACES:
            layer = block.layer[position]
            network = getattr(layer, name)
            yield from ((place, network), (f"{place}_layer_norm", layer.layer_norm))
            yield from ((f"{place}_{child}", module) for child, module in network.named_children())


def _is_ours(hook: Any) -> bool:
    function = getattr(hook, "func", hook)
    return function in (_before_encoder, _before_giver, _after_taker, _after_last)


def _before_encoder(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    additions = kwargs.get("mop_additions")
    has_ids = bool(args) or kwargs.get("input_ids") is not None
    if has_ids and additions is not None and additions.prompt is not None:
        raise RuntimeError(
            "the encoder was called with input_ids, without the prompt in front of them. Call the model itself. Its "
            "encoder_last_hidden_state can be given as encoder_outputs."
        )


def _before_giver(slot: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    setattr(_HANDED, slot, (kwargs.get("mop_additions"), kwargs.get("scenario_ids")))


def _after_taker(slot: str, place: Place, module: nn.Module, args: tuple, output: Any) -> Any:
    additions, scenario_ids = getattr(_HANDED, slot, None) or (None, None)
    if additions is None:
        stack, name, layer = place
        raise called_alone(f"the {name} of {stack} layer {layer} was called without mop_additions")
    adapter = additions.adapter(*place)
    if adapter is None:
        return None  # the hook leaves the output as it is
    if isinstance(output, tuple):  # of an attention
        return (_adapted(adapter, output[0], additions, scenario_ids), *output[1:])
    return _adapted(adapter, output, additions, scenario_ids)


def _adapted(adapter: Adapter, hidden: Tensor, additions: Additions, scenario_ids: Tensor | None) -> Tensor:
    """Return the output of an adapter, which computes in the dtype and on the device of the additions."""
    precision, device = additions.dtype or wide(hidden.dtype), additions.device
    if device is not None and scenario_ids is not None:
        scenario_ids = scenario_ids.to(device)
    return adapter(hidden.to(device or hidden.device, precision), scenario_ids).to(hidden)


def _after_last(slot: str, module: nn.Module, args: tuple, output: Any) -> None:
    setattr(_HANDED, slot, None)  # else the Additions would keep the graph of this forward pass alive
