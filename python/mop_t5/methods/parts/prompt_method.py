"""Shared code of the methods that put a prompt in front of the encoder's input."""

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration as T5

from mop_t5.attachment.additions import Additions
from mop_t5.attachment.method import ConfigT, Method


class PromptMethod(Method[ConfigT]):
    """Base of the methods with a prompt. A subclass defines `prepend`."""

    has_prompt = True

    def prepend(self, embeddings: Tensor, mask: Tensor | None, scenario_ids: Tensor | None) -> Tensor:
        """Return the prompt and the embeddings: (batch, prompt + source, d_model)."""
        raise NotImplementedError

    def additions(self, scenario_ids: Tensor | None = None) -> Additions:
        """Return the function that puts the prompt in front of the embeddings."""
        return Additions(prompt=self.prepend)


def vocabulary_rows(model: T5, argument: str, length: int, first: int) -> Tensor:
    """Return embeddings of distinct tokens drawn from the first ids, (length, d_model).

    Args:
        model: The backbone.
        argument: The field that set `length`, for the message.
        length: How many tokens.
        first: How many ids to draw from.

    Raises:
        ValueError: The vocabulary has fewer than `length` of these ids.
    """
    table = model.shared.weight
    known = min(first, len(table))
    if known < length:
        raise ValueError(f"{argument} must be at most the vocabulary's {known} with init='vocabulary'; got {length}.")
    return table[torch.randperm(known)[:length].to(table.device)]
