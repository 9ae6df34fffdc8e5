"""The T5 inside the wrappers of torch.compile, DistributedDataParallel, DeepSpeed, AveragedModel and PEFT."""

from typing import TypeVar, cast

from torch import nn
from transformers import PreTrainedModel

ModelT = TypeVar("ModelT", bound=nn.Module)


def unwrapped(model: ModelT) -> ModelT:
    """Return the T5 in a wrapper; any other module as it is. A wrapper has the type of its T5 for type checkers."""
    while not isinstance(model, PreTrainedModel):
        inside = (getattr(model, "_orig_mod", None), getattr(model, "module", None), _in_peft(model))
        inner = next((module for module in inside if isinstance(module, nn.Module)), None)
        if inner is None:
            break
        model = cast(ModelT, inner)
    return model


def _in_peft(model: nn.Module) -> object:
    """Return the T5 in whose layers a PeftModel has put adapters.

    A PeftModel that puts a prompt before the input is no mere wrapper: the T5 alone would run without the prompt.
    """
    tuner = getattr(model, "base_model", None)
    return getattr(tuner, "model", None) if hasattr(tuner, "peft_config") else None


def check_not_wrapped(model: nn.Module) -> None:
    """Raise TypeError if model is a wrapper: its list of parameters would not follow a change."""
    if unwrapped(model) is not model:
        raise TypeError(f"model is a {type(model).__name__} around a T5. Pass the T5 itself, and wrap it afterwards.")
