"""Summaries from a model, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mop_t5.attached_model import is_attached, unwrapped
from mop_t5.data import Collator, EncodedExamples, Example


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
    progress: bool | tqdm = False,
) -> list[str]:
    """One summary an example, in the order of `examples`; the model is in evaluation mode meanwhile.

    Batches hold dialogues of like length, so little is computed on padding. `num_beams=1` is greedy. An attached method
    gets the scenario of every example, in one batch as they come; a plain backbone gets none. Raises ValueError for a
    scenario that the method was not attached with. progress: show a bar, or move this one on by the rows of each batch.
    """
    if num_beams < 1 or batch_size < 1:
        raise ValueError(f"num_beams and batch_size must be at least 1, got {num_beams} and {batch_size}.")
    model = unwrapped(model)
    scenarios = scenarios_needed(model)
    source_text = model.mop.source_text if is_attached(model) else None
    vocab_size = model.get_input_embeddings().num_embeddings
    rows = EncodedExamples(
        examples, tokenizer, scenarios, source_text=source_text, max_source=max_source, vocab_size=vocab_size
    )
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]), reverse=True)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    collator = Collator(tokenizer.pad_token_id, None if scenarios is None else len(scenarios))
    loader = DataLoader(rows, batch_sampler=batches, collate_fn=collator)

    ends = _end_tokens(model, tokenizer)
    was_training = model.training
    model.eval()
    summaries = [""] * len(rows)
    new_bar = tqdm(total=len(rows), desc="generating", disable=not progress) if isinstance(progress, bool) else None
    with nullcontext(progress) if new_bar is None else new_bar as bar:
        for batch, indices in zip(loader, batches):
            del batch["labels"]
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            # max_length counts the start token too; max_new_tokens beside the model's max_length would warn each time
            length = {"max_length": max_new_tokens + 1, "eos_token_id": ends}
            tokens = model.generate(**batch, num_beams=num_beams, do_sample=False, **length)
            for index, text in zip(indices, tokenizer.batch_decode(tokens, skip_special_tokens=True)):
                summaries[index] = text.strip()
            bar.update(len(indices))
    model.train(was_training)
    return summaries


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """Return the ids that end a summary: those of the model, and the tokenizer's, with which training ends a text."""
    known = model.generation_config.eos_token_id
    known = [known] if isinstance(known, int) else known or []
    return list(dict.fromkeys(i for i in (*known, tokenizer.eos_token_id) if i is not None)) or None


def scenarios_needed(model: PreTrainedModel) -> Sequence[str] | None:
    """The scenarios that examples must be of, or None where the scenario changes nothing."""
    model = unwrapped(model)
    return model.scenarios if is_attached(model) and model.mop.distinguishes_scenarios else None


def over_long(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_source: int = 512
) -> list[bool]:
    """Which examples have more than max_source tokens, so that generate_summaries does not read their ends."""
    if not examples:
        return []
    model = unwrapped(model)
    source_text = model.mop.source_text if is_attached(model) else None
    rows = EncodedExamples(examples, tokenizer, None, source_text=source_text, max_source=max_source + 1)
    return [len(row["input_ids"]) > max_source for row in rows]
