"""The T5 inside the wrappers of torch.compile, DistributedDataParallel, DeepSpeed, AveragedModel and PEFT."""

from typing import TypeVar, cast

from torch import nn
from transformers import PreTrainedModel

ModelT = TypeVar("ModelT", bound=nn.Module)


def unwrapped(model: ModelT) -> ModelT:
    """Return the T5 in a wrapper; any other module as it is. A wrapper has the type of its T5 for type checkers."""
    if isinstance(model, PreTrainedModel):
        return model
    inside = (getattr(model, "_orig_mod", None), getattr(model, "module", None), _in_peft(model))
    inner = next((module for module in inside if isinstance(module, nn.Module)), None)
    return model if inner is None else unwrapped(cast(ModelT, inner))


def _in_peft(model: nn.Module) -> object:
    """Return the T5 in whose layers a PeftModel has put adapters.

    A PeftModel that puts a prompt before the input is no mere wrapper: the T5 alone would run without the prompt.
    """
    tuner = getattr(model, "base_model", None)
    return getattr(tuner, "model", None) if hasattr(tuner, "peft_config") else None


def check_not_wrapped(model: nn.Module) -> None:
    """Raise TypeError if model is a wrapper or is sharded: its list of parameters would not follow a change."""
    if unwrapped(model) is not model:
        raise TypeError(f"model is a {type(model).__name__} around a T5. Pass the T5 itself, and wrap it afterwards.")
    if engine := _sharded_by(model):
        raise TypeError(
            f"model is sharded over processes by {engine}: a parameter that is added or replaced now would differ "
            "between the processes. Attach, load and detach before the model is sharded, and train it once."
        )


def _sharded_by(model: nn.Module) -> str | None:
    if "FSDPModule" in (base.__name__ for base in type(model).__mro__):  # known without torch.distributed
        return "fully_shard (FSDP2)"
    marks = ("ds_id", "_hp_mapping")  # of ZeRO-3 and ZeRO-2
    return "DeepSpeed" if any(hasattr(p, mark) for p in model.parameters() for mark in marks) else None
