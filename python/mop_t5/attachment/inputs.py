"""The inputs of a forward pass or of generate: checks, the prompt in front of the text, the mask of the padding."""

import difflib
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache
from transformers import T5ForConditionalGeneration as T5

from mop_t5.attachment.additions import Prompt
from mop_t5.attachment.caches import CACHE
from mop_t5.attachment.method import Method
from mop_t5.attachment.mixture import Mixture

TARGETS = ("labels", "decoder_input_ids", "decoder_inputs_embeds")
_INPUTS = ("input_ids", "inputs", "inputs_embeds", "encoder_outputs", *TARGETS[1:], "labels")


def batch_of(kwargs: Mapping[str, Any]) -> tuple[int, torch.device]:
    """Return batch size and device of the first input that the call has."""
    for name in _INPUTS:
        value = kwargs.get(name)
        if name == "encoder_outputs" and value is not None:
            value = value[0]
        if isinstance(value, Tensor):
            return value.shape[0], value.device
    raise ValueError("no input found; pass input_ids, inputs_embeds or encoder_outputs.")


def prepend_prompt(
    model: T5, method: Method, prompt: Prompt, kwargs: dict[str, Any], scenario_ids: Tensor | None
) -> None:
    """Replace the encoder's inputs in `kwargs` by inputs_embeds and attention_mask that begin with the prompt.

    encoder_outputs contain the prompt already, so only the mask is extended.
    """
    mask = kwargs.get("attention_mask")
    if kwargs.get("encoder_outputs") is not None:
        if mask is not None:
            missing = max(kwargs["encoder_outputs"][0].shape[1] - mask.shape[-1], 0)
            kwargs["attention_mask"] = F.pad(mask, (missing, 0), value=1)
        return
    ids, embeddings = kwargs.pop("input_ids", None), kwargs.get("inputs_embeds")
    if (ids is None) == (embeddings is None):
        raise ValueError("give either input_ids or inputs_embeds; got both or none.")
    if embeddings is None:
        embeddings = model.get_input_embeddings()(ids)
    if mask is not None and mask.dim() != 2:
        raise ValueError(f"attention_mask must have shape (batch, source) for {method.name}; got {tuple(mask.shape)}.")
    # with a device_map the embeddings may lie on another device than the inputs of generate
    mask, scenario_ids = (None if t is None else t.to(embeddings.device) for t in (mask, scenario_ids))
    longer = prompt(embeddings.to(method.dtype), mask, scenario_ids).to(embeddings.dtype)
    kwargs["inputs_embeds"] = longer
    if mask is not None:
        kwargs["attention_mask"] = F.pad(mask, (longer.shape[1] - embeddings.shape[1], 0), value=1)


def mask_padding(model: T5, kwargs: dict[str, Any]) -> None:
    """Mask the padding of input_ids where no mask is given. A pad token that also ends texts is not padding."""
    ids = kwargs.get("input_ids")
    if ids is None or ids.is_meta or kwargs.get("attention_mask") is not None:
        return
    pad, ends = (_generation_setting(model, kwargs, name) for name in ("pad_token_id", "eos_token_id"))
    ends = ends if isinstance(ends, (list, tuple)) else [ends]
    if pad is None or pad in ends:
        return
    mask = ids.ne(pad)
    if not mask.all():
        kwargs["attention_mask"] = mask.long()


def _generation_setting(model: T5, kwargs: dict[str, Any], name: str) -> Any:
    """Return the value of a setting. The order is: call, generation_config of the call, of the model, config."""
    if name in kwargs:
        return kwargs[name]
    places = (kwargs.get("generation_config"), model.generation_config, model.config)
    return next((v for v in (getattr(place, name, None) for place in places) if v is not None), None)


def add_cache(model: T5, kwargs: dict[str, Any], experts: Mixture | None) -> None:
    """Add the cache that generate needs, if transformers would make an unfit one."""
    if kwargs.get(CACHE) is not None or _generation_setting(model, kwargs, "use_cache") is False:
        return
    if _generation_setting(model, kwargs, "cache_implementation") is not None:
        return
    if experts is not None:
        kwargs[CACHE] = experts.new_cache()
    elif (model.config.num_decoder_layers or 0) > model.config.num_layers:
        # transformers sizes the cache by num_layers, too short for a deeper decoder
        kwargs[CACHE] = EncoderDecoderCache(DynamicCache(), DynamicCache())


def check_arguments(kwargs: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise TypeError for arguments that T5 would accept and ignore."""
    unknown = sorted(name for name in kwargs if name not in known)
    if unknown:
        known = {*known, "scenario_ids"}
        close = [match for name in unknown for match in difflib.get_close_matches(name, known, 1)]
        hint = f"Is {', '.join(close)} meant?" if close else "Leave it out of the batch."
        raise TypeError(f"forward got {', '.join(unknown)}, which no T5 reads. {hint}")
