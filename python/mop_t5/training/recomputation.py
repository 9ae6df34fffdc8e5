"""Activation checkpointing of a model for the time of a training."""

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel


@contextmanager
def recomputed_blocks(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Keep only the inputs of each block for backward, and compute the block again there.

    The random state of the forward pass is restored, so dropout masks are equal. Trainer's own argument is not used: it
    would leave the model in this state after the training.

    Args:
        model: A T5 with or without a method. If it recomputes its blocks already, it stays as it is.
        wanted: False for no change.
    """
    if not wanted or any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        yield
        return
    # later releases of transformers warn at the old names
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    disable = getattr(model, "activation_checkpointing_disable", None) or model.gradient_checkpointing_disable
    # the reentrant kind runs backward through the prefix network once per block
    enable({"use_reentrant": False})
    try:
        yield
    finally:
        disable()
