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


def draw_vocabulary(prompts: Tensor, model: T5, argument: str, first: int) -> None:
    """Set each prompt to the embeddings of distinct tokens that are drawn from the first ids.

    Args:
        prompts: (length, d_model), or (prompts, length, d_model).
        model: The backbone.
        argument: The field that set the length, for the message.
        first: How many ids to draw from.

    Raises:
        ValueError: The vocabulary has fewer than `length` of these ids.
    """
    table, length = model.shared.weight, prompts.shape[-2]
    known = min(first, len(table))
    if known < length:
        raise ValueError(f"{argument} must be at most the vocabulary's {known} with init='vocabulary'; got {length}.")
    for prompt in prompts if prompts.dim() == 3 else prompts[None]:
        prompt.copy_(table[torch.randperm(known)[:length].to(table.device)])
