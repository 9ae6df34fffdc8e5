"""Attach a method to one T5 instance, reversibly: the object stays a T5, none of its modules is replaced.

attach_method  points the attention of encoder and decoder at mop_t5.attachment.attention, hooks the sub-layers that the
               method adapts, lets blocks run its experts (mop_t5.attachment.experts), adds the method as the submodule
               `mop`, lets layers run fused in training (mop_t5.attachment.fused_layers), and swaps model.__class__
               for a subclass whose forward and generate take scenario_ids.
detach_method  undoes all of it, bit for bit.

Scenario ids and Additions travel as keyword arguments through the model, never on modules. So two forward passes before
a backward pass, the recomputation of activation checkpointing, and several threads each see the values of their own
forward pass. The subclass is AttachedT5 in mop_t5.attachment.attached_model.
"""

from typing import Any, cast

import torch
from packaging.version import Version
from torch import Tensor
from transformers import T5ForConditionalGeneration as T5
from transformers import __version__ as transformers_version

from mop_t5.attachment.attached_model import SUBMODULE, AttachedT5, Record
from mop_t5.attachment.attention import PREFIXED, point_attention, point_back
from mop_t5.attachment.experts import check_forward, insert_experts
from mop_t5.attachment.fused_layers import fuse_layers
from mop_t5.attachment.hooks import add_hooks, remove_hooks
from mop_t5.attachment.method import Method
from mop_t5.attachment.mixin import RuntimeMixin, change_class, combined, plain_class
from mop_t5.backbone.weights import is_quantised, offloads


def attach_method(model: T5, method: Method) -> AttachedT5:
    """Attach method to a plain backbone and freeze everything that it does not train. Changes nothing on an error."""
    check_forward(model, "model", "attach a method", may_be_placed=True)
    plain = [_plain_implementation(stack) for stack in (model.encoder, model.decoder)]
    base_state = model.state_dict(keep_vars=True)
    trained = {name for name, _ in model.named_parameters() if method.trains_backbone(name)}
    if quantised := sorted(name for name in trained if is_quantised(model.get_parameter(name))):
        raise ValueError(
            f"{method.name!r} trains {quantised[0]} of the backbone, which is quantised "
            f"({type(model.get_parameter(quantised[0])).__name__}). Use a backbone in floating point, or a method with "
            "parameters of its own."
        )
    if trained and offloads(model):
        raise ValueError(
            f"{method.name!r} trains {min(trained)} and other weights of the backbone, and device_map keeps weights of "
            "the backbone in the memory of the host or on the disk, where they cannot be trained. Use a method with "
            "parameters of its own, or a device_map without offloading."
        )
    record = Record(
        attention=[*plain, model.config._attn_implementation],
        requires_grad={name: p.requires_grad for name, p in model.named_parameters()},
        keys_to_ignore_on_save=model._keys_to_ignore_on_save,
        has_adapters=model._hf_peft_config_loaded,
        trained={name: _kept(p) for name, p in model.named_parameters() if name in trained},
    )
    t5 = cast(AttachedT5, model)  # its class at the end of the block below
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in trained)
        add_hooks(model, method.adapter_places, has_prompt=method.has_prompt)
        # the model takes the decoder's implementation: it decides the kind of mask in static-cache generation
        point_attention(model, [*(PREFIXED[p] for p in plain), PREFIXED[plain[1]]])
        # all keys that save_pretrained does not write: Trainer then does not warn that they are missing
        model._keys_to_ignore_on_save = set(base_state) - trained
        t5._mop_record = record
        insert_experts(model, method.expert_places)
        model.add_module(SUBMODULE, method)
        method.train(model.training)
        fuse_layers(model)
        if getattr(model, "is_quantized", False):
            model._hf_peft_config_loaded = True  # Trainer asks for adapters on a quantised model, and looks at this
        change_class(model, combined(AttachedT5, type(model)))
    except BaseException:
        _take_off(model, record)
        raise
    return t5


def _kept(parameter: Tensor) -> Tensor:
    """Return a copy to restore, in the host's memory: fine-tuning keeps one of the whole backbone."""
    values = parameter.detach()
    return values.clone() if values.is_meta else values.to("cpu", copy=True)


def detach_method(model: AttachedT5) -> T5:
    """Undo attach_method and return the same object, plain again. Keep model.mop beforehand if it is still needed.

    On an error the model is as it was before the call.
    """
    if "_original_forward" not in model.__dict__:  # set by accelerate's mixed precision, see below
        check_forward(model, "model", "detach the method", may_be_placed=True)
    for stack, layer in model.mop.expert_places:
        check_forward(getattr(model, stack).block[layer], f"{stack}.block[{layer}]", "detach the method")
    record, parameters = model._mop_record, dict(model.named_parameters())
    for name, values in record.trained.items():
        _rehearse(name, parameters.get(name), values)
    # the wrapper of accelerate's mixed precision would go on calling the forward of the attached class
    original = model.__dict__.pop("_original_forward", None)
    if original is not None:
        model.__dict__.pop("forward", None)
        if "_hf_hook" in model.__dict__:
            model.forward = original
    with torch.no_grad():
        for name, values in record.trained.items():
            parameters[name].copy_(values)
    _take_off(model, record)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.grad = None
    return model


def _rehearse(name: str, parameter: Tensor | None, values: Tensor) -> None:
    """Raise RuntimeError if the values of a parameter cannot be restored, before anything is changed."""
    try:
        if parameter is None or parameter.shape != values.shape or parameter.is_inference():
            raise RuntimeError("it was replaced")
        torch.empty_like(parameter, requires_grad=False).copy_(values)
    except RuntimeError as error:
        raise RuntimeError(
            f"detach cannot restore {name} of the backbone, of shape {tuple(values.shape)} ({error}). Undo what was "
            "done to it since attach, such as sharding or replacing its layer."
        ) from error


def _take_off(model: T5, record: Record) -> None:
    """Undo all changes of attach_method, and restore requires_grad of the parameters."""
    change_class(model, plain_class(model))
    if not record.has_adapters:
        model.__dict__.pop("_hf_peft_config_loaded", None)
    for module in model.modules():  # and those of the method, which the caller may keep
        if isinstance(module, RuntimeMixin):
            module.__class__ = plain_class(module)
    model._modules.pop(SUBMODULE, None)
    model.__dict__.pop("_mop_record", None)
    model._keys_to_ignore_on_save = record.keys_to_ignore_on_save
    for module in model.modules():
        module.__dict__.pop("_mop_block", None)
        point_back(module)
    remove_hooks(model)
    point_attention(model, record.attention)
    for name, parameter in model.named_parameters():
        if record.requires_grad.get(name, parameter.requires_grad) != parameter.requires_grad:
            parameter.requires_grad_(record.requires_grad[name])


def _plain_implementation(stack: Any) -> str:
    # encoder and decoder have copies of the config, which may differ from the model's config
    implementation = stack.config._attn_implementation
    if implementation not in PREFIXED:
        raise ValueError(
            f"attn_implementation must be one of {', '.join(PREFIXED)} to take a prefix; got {implementation!r}. Load "
            "the backbone with attn_implementation='sdpa'."
        )
    too_old = Version(transformers_version).release < (5, 18)
    if stack.config.model_type == "umt5" and implementation == "sdpa" and too_old:
        raise ValueError(
            f"umT5 with sdpa is not causal in training in transformers {transformers_version} (fixed in 5.18). Use "
            "attn_implementation='eager' or a newer transformers."
        )
    return implementation
