"""Saved adapters of the same method, which a config names as a start."""

from torch import Tensor
from transformers import PreTrainedModel

from mop_t5.backbone.identity import check_same_backbone, weights_of
from mop_t5.storage import adapter_folder


def read_saved(
    model: PreTrainedModel | None, method: str, argument: str, folder: str
) -> tuple[dict, dict[str, Tensor]]:
    """Return the description and the tensors of an adapter folder.

    Args:
        model: The backbone that the adapter must belong to. None: any.
        method: Name of the method that the folder must hold.
        argument: The config field that names the folder, for the message.
        folder: The folder.

    Raises:
        ValueError: The folder holds another method, or an adapter of another backbone.
    """
    description, tensors = adapter_folder.read(folder)
    if description["method"] != method:
        raise ValueError(f"{argument} {folder!r} holds the method {description['method']!r}; expected {method!r}.")
    if model is not None:
        check_same_backbone(model, description["backbone"], weights_of(model), folder)
    return description, tensors


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, named without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
