"""What acts in the encoder, and the encoding of a text where nothing does.

Where nothing is trained in the encoder and nothing there depends on the scenario, its outputs depend on the text only.
They can be computed once (mop_t5.training.EncoderCache).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import T5ForConditionalGeneration as T5

from mop_t5.attachment.additions import Additions
from mop_t5.attachment.attached_model import is_attached

_NAMED = 3  # number of trained parameters that a message names


def acting_in_encoder(model: T5) -> list[str]:
    """Return what makes the encoder's outputs change in training or differ between scenarios, as phrases.

    The phrases name prefixes, a prompt, adapters and experts of the attached method, and trained parameters of the
    encoder, with the embeddings that it shares with the decoder. Empty if the outputs depend on the text only.

    Args:
        model: A T5 with or without a method.
    """
    found = []
    if is_attached(model):
        method = model.mop
        with evaluating(method):
            additions = method.additions()
        if any(pair is not None and pair[0].shape[-2] for pair in additions.prefixes.get("encoder_self", ())):
            found.append("prefixes of the attention encoder_self")
        if method.has_prompt:
            found.append("a prompt before the text")
        if places := [place for stack, place in method.adapter_places if stack == "encoder"]:
            found.append(f"adapters at {', '.join(places[:_NAMED])}{', ...' * (len(places) > _NAMED)}")
        if layers := [layer for stack, layer in method.expert_places if stack == "encoder"]:
            found.append(f"experts in {len(layers)} encoder blocks")
    return found + _trained(model.encoder.named_parameters(prefix="encoder"))


def acting_on_cross_keys(model: T5) -> list[str]:
    """Return what makes the keys and values of the cross-attentions change for the same encoder outputs, as phrases.

    Prefixes do not: they stand beside the keys and values of the text.

    Args:
        model: A T5 with or without a method.
    """
    maps = ("cross_attention_k", "cross_attention_v")
    places = [place for _, place in model.mop.adapter_places if place in maps] if is_attached(model) else []
    parameters = (pair for name, map_ in cross_maps(model) for pair in map_.named_parameters(prefix=name))
    return [f"adapters at {', '.join(places)}"] * bool(places) + _trained(parameters)


def cross_maps(model: T5) -> list[tuple[str, nn.Module]]:
    """Return the maps of the cross-attentions that make keys and values, with their names: k and v, layer by layer."""
    ends = ("EncDecAttention.k", "EncDecAttention.v")
    return [(name, part) for name, part in model.decoder.named_modules(prefix="decoder") if name.endswith(ends)]


def _trained(parameters: Iterator[tuple[str, Tensor]]) -> list[str]:
    names = [name for name, parameter in parameters if parameter.requires_grad]
    return [f"trained weights, {', '.join(names[:_NAMED])}{', ...' * (len(names) > _NAMED)}"] * bool(names)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout and gradients off for the block."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def encode(model: T5, tokens: Sequence[int], *, cross: bool = False) -> list[Tensor]:
    """Return the encoder's outputs (tokens, d_model) of one text without padding.

    Call it in `evaluating`, and only if acting_in_encoder is empty.

    Args:
        model: The T5, with or without a method.
        tokens: The token ids of the text.
        cross: Also return keys and values of each cross-attention, (tokens, heads * d_kv), layer by layer.
    """
    ids = torch.tensor([tokens], device=model.encoder.device)
    nothing = {"mop_additions": Additions()} if is_attached(model) else {}
    hidden = model.encoder(input_ids=ids, **nothing).last_hidden_state
    return [hidden[0], *(map_(hidden)[0] for _, map_ in (cross_maps(model) if cross else ()))]
