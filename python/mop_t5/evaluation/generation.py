"""Generate summaries in batches."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from textwrap import shorten
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from mop_t5.attachment.attached_model import attached, is_attached, unwrapped
from mop_t5.checks import check_int
from mop_t5.data import Collator, EncodedExamples, Example

if TYPE_CHECKING:
    from transformers._typing import GenerativePreTrainedModel

# the defaults of transformers; releases before 5 wrote them into every generation_config.json
_DEFAULTS = {"max_length": 20, "use_cache": True, "top_k": 50, "speculation_type": "auto"}
_DEFAULTS |= dict.fromkeys(("num_beams", "num_return_sequences", "num_beam_groups"), 1)
_DEFAULTS |= dict.fromkeys(("temperature", "top_p", "typical_p", "length_penalty"), 1.0)
_DEFAULTS |= dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), 1.0)
_DEFAULTS |= {"num_assistant_tokens": 20, "num_assistant_tokens_schedule": "constant"}
_DEFAULTS |= {"assistant_confidence_threshold": 0.4, "assistant_lookbehind": 10, "target_lookbehind": 10}
_NO_SETTINGS = {"eos_token_id", "pad_token_id", "bos_token_id", "transformers_version"}
_LONGEST = 60  # characters of a value in the warning
_LOCK = threading.Lock()
# model -> (number of threads that generate from it, whether it was in training mode before the first thread)
_IN_EVALUATION: WeakKeyDictionary[PreTrainedModel, tuple[int, bool]] = WeakKeyDictionary()


@torch.no_grad()
def generate_summaries(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    batch_size: int = 32,
    num_beams: int = 1,
    max_source: int = 512,
    max_new_tokens: int = 64,
    progress: bool | tqdm[Any] = False,
    more_arguments: Callable[[Sequence[int]], Mapping[str, Any]] | None = None,
) -> list[str]:
    """Return one summary per example, in the order of `examples`. The model is in evaluation mode during the call.

    A batch holds dialogues of similar length, to save computation on padding. An attached method gets the scenario of
    every example; a batch may mix scenarios. A plain backbone gets no scenario. Settings of a search in the
    checkpoint's generation_config.json or config.json are ignored, with a warning; see search_settings.

    Args:
        model: A T5 with or without a method.
        tokenizer: The tokenizer of the model.
        examples: The dialogues. Their summaries are ignored.
        batch_size: Dialogues per batch.
        num_beams: Beams of the search. 1 is greedy.
        max_source: Tokens kept per dialogue.
        max_new_tokens: Tokens generated at most per summary.
        progress: True shows a bar. A given bar is advanced by the rows of each batch.
        more_arguments: Called before each batch with the positions of its examples. Returns further arguments of
            `model.generate`, such as a streamer or stopping criteria.

    Raises:
        ValueError: A scenario is unknown to the method, there is no example, or a size is below 1.
    """
    for name, size in {"num_beams": num_beams, "batch_size": batch_size, "max_new_tokens": max_new_tokens}.items():
        check_int(name, size, 1)
    inner = unwrapped(model)
    assert isinstance(inner, PreTrainedModel)
    generates = cast("GenerativePreTrainedModel", inner)
    scenarios = scenarios_needed(inner)
    rows = encoded(inner, tokenizer, examples, scenarios, max_source=max_source)
    order = sorted(range(len(rows)), key=lambda i: rows.lengths[i][0], reverse=True)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    collator = Collator(tokenizer.pad_token_id, None if scenarios is None else len(scenarios))
    loader = DataLoader(rows, batch_sampler=batches, collate_fn=collator)

    search = search_settings(inner, tokenizer, num_beams, max_new_tokens)
    summaries = [""] * len(rows)
    new_bar = tqdm(total=len(rows), desc="generating", disable=progress is not True)
    bar = new_bar if isinstance(progress, bool) else progress
    with new_bar, _evaluation_mode(inner):
        for batch, indices in zip(loader, batches):
            del batch["labels"]
            inputs = {name: part.to(inner.device) for name, part in batch.items()}
            more = {} if more_arguments is None else more_arguments(indices)
            tokens = generates.generate(**inputs, **search, **more)
            assert isinstance(tokens, torch.Tensor)
            for index, text in zip(indices, tokenizer.batch_decode(tokens, skip_special_tokens=True)):
                summaries[index] = text.strip()
            bar.update(len(indices))
    return summaries


@contextmanager
def _evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Turn dropout off for the block. The last of several threads restores the mode from before the first thread."""
    with _LOCK:
        inside, was_training = _IN_EVALUATION.get(model, (0, model.training))
        _IN_EVALUATION[model] = inside + 1, was_training
        model.eval()
    try:
        yield
    finally:
        with _LOCK:
            inside, was_training = _IN_EVALUATION.pop(model)
            if inside > 1:
                _IN_EVALUATION[model] = inside - 1, was_training
            else:
                model.train(was_training)


def lengths_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the lengths that a run was trained with, as arguments of generate_summaries.

    Args:
        settings: The content of run.json. A length that it lacks is the default of generate_summaries.
    """
    return {"max_source": settings.get("max_source", 512), "max_new_tokens": settings.get("max_target", 64)}


def encoded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    scenarios: Sequence[str] | None,
    *,
    max_source: int,
    max_target: int = 128,
) -> EncodedExamples:
    """Return examples as token ids for a model.

    Args:
        model: A T5 with or without a method. A method may put the scenario into the source text.
        tokenizer: The tokenizer of the model.
        examples: The rows.
        scenarios: The scenarios in order of their ids. None leaves out the ids.
        max_source: Tokens kept per dialogue.
        max_target: Tokens kept per summary.
    """
    embeddings = unwrapped(model).get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    return EncodedExamples(
        examples,
        tokenizer,
        scenarios,
        source_text=attached(model).mop.source_text if is_attached(model) else None,
        max_source=max_source,
        max_target=max_target,
        vocab_size=embeddings.num_embeddings,
    )


def scenarios_needed(model: torch.nn.Module) -> Sequence[str] | None:
    """Return the scenarios that examples may have, or None if the model ignores the scenario."""
    if not is_attached(model):
        return None
    t5 = attached(model)
    return t5.scenarios if t5.mop.distinguishes_scenarios else None


def source_lengths(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_source: int
) -> list[int]:
    """Return the number of source tokens per example. A source that a generation cuts counts as max_source + 1."""
    if not examples:
        return []
    return [source for source, _ in encoded(model, tokenizer, examples, None, max_source=max_source + 1).lengths]


def search_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, num_beams: int, max_new_tokens: int
) -> dict[str, Any]:
    """Return arguments for `model.generate` that make it search with `num_beams` beams, and ignore other settings.

    Fine-tuned checkpoints contain settings of a search (beams, penalties, sampling, several texts per dialogue). These
    settings are ignored, so that scores of different backbones are comparable. One warning lists them. Token ids are
    kept: the decoder starts from the token with which it is trained, and ends at the end tokens of the checkpoint and
    at the token with which the tokenizer ends a target.

    transformers fills missing arguments from `model.generation_config`, which all threads share. So the result
    overrides every setting of the checkpoint that differs from the default.
    """
    own = {
        **_ids(model, tokenizer),
        "num_beams": num_beams,
        "do_sample": False,
        "use_cache": True,
        # includes the start token; max_new_tokens beside a default max_length would warn at each call
        "max_length": max_new_tokens + 1,
    }
    if asked := _asked_for(model.generation_config, own):
        settings = ", ".join(f"{name}={shorten(repr(value), _LONGEST)}" for name, value in asked.items())
        warnings.warn(
            f"the backbone's generation settings are ignored: {settings}. Summaries are generated by {num_beams} "
            f"beam(s) without sampling, at most {max_new_tokens} tokens long, from the start token "
            f"{own['decoder_start_token_id']}. Pass num_beams (--num_beams) for more beams, and train with another "
            "max_target (--max_target) for another length.",
            stacklevel=3,
        )
    return {name: _DEFAULTS.get(name) for name in asked} | own


def _ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    kept, start = model.generation_config, model.config.decoder_start_token_id  # from which T5 shifts its labels
    known = kept.eos_token_id if isinstance(kept.eos_token_id, list) else [kept.eos_token_id]
    ends = [*known, *tokenizer(text_target="")["input_ids"][-1:], tokenizer.eos_token_id]
    return {
        "decoder_start_token_id": kept.decoder_start_token_id if start is None else start,
        "eos_token_id": list(dict.fromkeys(token for token in ends if token is not None)) or None,
        "pad_token_id": tokenizer.pad_token_id,  # decodes to nothing
        "bos_token_id": kept.bos_token_id,
    }


def _asked_for(kept: GenerationConfig, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a checkpoint that would change the search, by name."""
    settings = {n: v for n, v in kept.to_dict().items() if n not in _NO_SETTINGS and not n.startswith("_")}
    asked = {n: v for n, v in settings.items() if (v != _DEFAULTS[n] if n in _DEFAULTS else v)}
    return {name: value for name, value in asked.items() if value is not None and value != own.get(name)}
