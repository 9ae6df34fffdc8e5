"""The loss of an attached T5: with label smoothing, and without logits where the head is frozen.

A loss without logits computes them in pieces, so the largest tensor of a training step, (batch, target, vocabulary),
and its gradient never exist (mop_kernels.linear_cross_entropy).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mop_t5.attachment.fused_layers import is_bare
from mop_t5.checks import check_number

_HEAD = threading.local()  # .skips: the forward pass that this thread runs leaves the logits out


class WithoutLogits:
    """Mixed into the class of an attached model, so that its forward can leave the logits out."""

    @property
    def lm_head(self: Any) -> Any:
        """The head, or within `_without_logits` a function that returns the hidden rows unchanged."""
        return _unchanged if getattr(_HEAD, "skips", False) else self._modules["lm_head"]


def _unchanged(hidden: Tensor) -> Tensor:
    return hidden


@contextmanager
def _without_logits() -> Iterator[None]:
    """Let the attached models that this thread runs return the decoder's rows in place of logits."""
    _HEAD.skips = True
    try:
        yield
    finally:
        _HEAD.skips = False


def _can_skip_logits(model: Any) -> bool:
    """Tell whether the loss can be computed without logits: the head is frozen, and nobody reads its output."""
    head = model.lm_head
    plain = type(head) is nn.Linear and head.bias is None and type(head.weight) is nn.Parameter
    return model.training and plain and not head.weight.requires_grad and is_bare(head)


def run_with_loss(
    model: Any, forward: Callable[..., Any], kwargs: dict[str, Any], *, skip_logits: bool, label_smoothing: float
) -> Any:
    """Return the output of T5's forward, with the loss that is wanted.

    Args:
        model: The attached model.
        forward: The forward of the plain T5.
        kwargs: Its arguments.
        skip_logits: Leave the logits out in training if nothing needs them.
        label_smoothing: Share of the target's probability that is spread over the vocabulary.

    Raises:
        ValueError: label_smoothing lies outside 0..1.
    """
    check_number("label_smoothing", label_smoothing, 0, below=1)
    labels = kwargs.get("labels")
    as_dict = model.config.return_dict if kwargs.get("return_dict") is None else kwargs["return_dict"]
    skips = skip_logits and as_dict and _can_skip_logits(model)
    if labels is None or not (skips or label_smoothing):
        return forward(**kwargs)
    kwargs = kwargs | {"labels": None, "return_dict": True}
    if kwargs.get("decoder_input_ids") is None and kwargs.get("decoder_inputs_embeds") is None:
        kwargs["decoder_input_ids"] = model._shift_right(labels)
    with _without_logits() if skips else nullcontext():
        output = forward(**kwargs)
    rows = output.logits.flatten(0, -2)
    labels = labels.to(rows.device).flatten()
    if skips:
        from mop_kernels import linear_cross_entropy  # in training only: a saved prefix is served without the kernels

        loss = linear_cross_entropy(rows, model.lm_head.weight, labels, label_smoothing=label_smoothing)
        return type(output)(**{**output, "loss": loss, "logits": None})
    output = type(output)(loss=F.cross_entropy(rows, labels, label_smoothing=label_smoothing), **output)
    return output if as_dict else output.to_tuple()
