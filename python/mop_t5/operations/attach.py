"""The public calls on one model: attach, detach, save, load, count_parameters, scenario_ids."""

import os
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from mop_t5.attachment.attached_model import SUBMODULE, attached, check_not_wrapped, is_attached, unwrapped
from mop_t5.attachment.inject import attach_method, detach_method
from mop_t5.attachment.method import Method, MethodConfig
from mop_t5.backbone.identity import check_readable, check_same_backbone, weights_of
from mop_t5.backbone.load import BackboneShape, check_backbone
from mop_t5.methods import get, of_config
from mop_t5.storage import adapter_folder

__all__ = ["ParameterCount", "attach", "count_parameters", "detach", "is_attached", "load", "save", "scenario_ids"]


class ParameterCount(NamedTuple):
    trained: int  # parameters that ask for a gradient
    total: int  # backbone and method, with what is frozen in it
    backbone: int
    share: float  # trained / backbone


def attach(model: PreTrainedModel, method: str | MethodConfig, **fields) -> PreTrainedModel:
    """Attach a method, by name and fields or by config object, and return the same model object.

    The backbone is frozen; only the method's parameters ask for gradients. They are made on the model's device, in
    float32, or in float64 if the model is. Raises ValueError if the backbone has a weight that `save` cannot read.
    """
    _check_plain(model)
    check_readable(weights_of(model))
    if isinstance(method, MethodConfig):
        if fields:
            raise ValueError(
                f"fields ({', '.join(sorted(fields))}) cannot be given beside a config object. Put them in the config."
            )
        config, method_class = method, of_config(method)
    else:
        method_class = get(method)
        config = method_class.Config.make(fields)
    method = build_method(method_class, config, model)
    started = {} if model.shared.weight.is_meta else method.initialise(model) or {}
    attach_method(model, method)
    model.load_state_dict(started, strict=False)
    return model


def _check_plain(model) -> None:
    check_not_wrapped(model)
    if is_attached(model):
        raise RuntimeError(f"model has the method {model.mop.name!r} attached already. Call mop_t5.detach first.")
    check_backbone(model)


def build_method(
    method_class: type[Method], config: MethodConfig, model: PreTrainedModel, device: torch.device | str | None = None
) -> Method:
    """The method's module with fresh parameters that fit model, on its device unless one is given; model stays as it
    is."""
    weight = model.shared.weight
    where = {
        "device": weight.device if device is None else device,
        "dtype": torch.float64 if weight.dtype == torch.float64 else torch.float32,
    }
    method = method_class(config, BackboneShape.of(model), **where)
    method.build(model, **where)
    return method


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Remove the attached method and return the same model object, plain and as it was before attach, bit for bit.

    Raises:
        RuntimeError: No method is attached, or the backbone was changed since. The model stays as it was.
        TypeError: model is a wrapper, as of torch.compile.
    """
    return detach_method(attached(model))


def save(model: PreTrainedModel, folder: str | os.PathLike) -> None:
    """Write the attached method to folder: its parameters, its config, and which backbone it was trained on.

    Raises OSError if the disk is full or the folder cannot be written, with what was in it untouched.
    """
    model = unwrapped(model)
    if not is_attached(model):
        raise RuntimeError("model has no method attached. Use model.save_pretrained(folder) for a plain backbone.")
    model.save_pretrained(folder)


def load(model: PreTrainedModel, folder: str | os.PathLike) -> PreTrainedModel:
    """Attach the method saved in folder to a plain backbone, with its weights. Returns the same model object.

    Raises ValueError for another backbone than the one it was trained on (other sizes or other weights, see
    backbone_identity.hash_weights) and for damaged files, FileNotFoundError where a file is missing. On an error the
    model is unchanged.
    """
    _check_plain(model)
    description, tensors = adapter_folder.read(folder)
    check_same_backbone(model, description["backbone"], weights_of(model), folder)
    method_class = get(description["method"])
    method = build_method(method_class, method_class.Config.make(description["config"]), model)
    expected = {f"{SUBMODULE}.{name}": tensor for name, tensor in method.state_dict().items()}
    expected |= {name: p for name, p in model.named_parameters() if method.trains_backbone(name)}
    adapter_folder.check_tensors(folder, tensors, expected)
    attach_method(model, method)
    model.load_state_dict(tensors, strict=False)
    return model


def count_parameters(model: PreTrainedModel) -> ParameterCount:
    """Count trained parameters, all, and the backbone's; works on device="meta". A tied weight counts once."""
    model = unwrapped(model)
    backbone = trained = total = 0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        trained += parameter.numel() if parameter.requires_grad else 0
        backbone += 0 if name.startswith(f"{SUBMODULE}.") else parameter.numel()
    if is_attached(model):
        total += sum(buffer.numel() for buffer in model.mop.buffers())
    return ParameterCount(trained, total, backbone, trained / backbone)


def scenario_ids(model: PreTrainedModel, names: str | list[str], device=None) -> torch.Tensor:
    """Ids of scenario names, int64 (len(names),); (1,) for a single name. Raises ValueError for an unknown one."""
    model = unwrapped(model)
    if not is_attached(model):
        raise RuntimeError("model has no method attached, so it knows no scenarios. Call mop_t5.attach first.")
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, (list, tuple)) or any(not isinstance(name, str) for name in names):
        raise TypeError(f"names must be a scenario or a list of scenarios; got {names!r}.")
    known = {name: i for i, name in enumerate(model.scenarios)}
    unknown = sorted({name for name in names if name not in known})
    if unknown:
        raise ValueError(
            f"unknown scenario {', '.join(unknown)}; expected one of {', '.join(known) or 'none: the method has none'}."
        )
    return torch.tensor([known[name] for name in names], dtype=torch.int64, device=device)
