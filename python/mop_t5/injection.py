"""Attach a method to one T5 instance, reversibly: the object stays a T5, none of its modules is replaced.

attach_method  points the attention of encoder and decoder at mop_t5.prefix_attention, hooks the sub-layers that the
               method adapts, lets blocks run its experts (mop_t5.expert_blocks), adds the method as the submodule
               `mop`, and swaps model.__class__ for a subclass whose forward and generate take scenario_ids.
detach_method  undoes all of it, bit for bit.

Scenario ids and what the method adds travel as keyword arguments through the model, never on modules: two forwards
before a backward, and the recomputation of activation checkpointing, then see what their own forward saw.
"""

import functools
import inspect
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from packaging.version import Version
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers import __version__ as transformers_version

from mop_t5 import adapter_folder
from mop_t5.backbone_identity import describe_backbone, weights_of
from mop_t5.expert_blocks import insert_experts, remove_experts
from mop_t5.prefix_attention import PLAIN, PREFIXED
from mop_t5.sublayer_hooks import add_hooks, remove_hooks, wide

SUBMODULE = "mop"


@dataclass
class _Record:
    """What detach puts back."""

    attention: list[str | None]  # of encoder, decoder, model
    requires_grad: dict[str, bool]
    keys_to_ignore_on_save: set | None
    trained: dict[str, torch.Tensor]  # the backbone parameters that the method trains, as they were
    hooks: list


def is_attached(model) -> bool:
    return isinstance(model, AttachedT5)


def attach_method(model: PreTrainedModel, method: torch.nn.Module) -> PreTrainedModel:
    """Attach method to a plain backbone and freeze everything that it does not train. Changes nothing on an error."""
    if "forward" in model.__dict__:
        raise RuntimeError(
            "model.forward was replaced on this instance (accelerate's prepare does so). Attach before prepare, or "
            "unwrap the model first."
        )
    stacks = (model.encoder, model.decoder)
    plain = [_plain_implementation(stack) for stack in stacks]
    base_state = model.state_dict(keep_vars=True)
    trained = {name for name, _ in model.named_parameters() if method.trains_backbone(name)}

    record = _Record(
        attention=[*plain, model.config._attn_implementation],
        requires_grad={name: p.requires_grad for name, p in model.named_parameters()},
        keys_to_ignore_on_save=model._keys_to_ignore_on_save,
        trained={name: _kept(p) for name, p in model.named_parameters() if name in trained},
        hooks=add_hooks(model, method.adapter_places),
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    # the top level takes the decoder's: it picks the kind of mask in static-cache generation
    point_attention(model, [*(PREFIXED[p] for p in plain), PREFIXED[plain[1]]])
    for attention, module in attention_modules(model):
        module._mop_attention = attention
    # equal to the missing keys of what save_pretrained writes, so that Trainer's loading warns about nothing
    model._keys_to_ignore_on_save = set(base_state) - trained
    model._mop_record = record
    insert_experts(model, method.expert_places)
    model.add_module(SUBMODULE, method)
    method.train(model.training)
    model.__class__ = _attached_class(type(model))
    return model


def _kept(parameter: torch.Tensor) -> torch.Tensor:
    """A copy to restore, in the host's memory: fine-tuning keeps one of the whole backbone."""
    values = parameter.detach()
    return values.clone() if values.is_meta else values.to("cpu", copy=True)


def detach_method(model: PreTrainedModel) -> PreTrainedModel:
    """Undo attach_method and return the same object, plain again. Keep model.mop before if it is still wanted."""
    if not is_attached(model):
        raise RuntimeError("model has no method attached. Call mop_t5.attach(model, name) first.")
    if "forward" in model.__dict__:
        if "_original_forward" not in model.__dict__:
            raise RuntimeError("model.forward was replaced on this instance. Undo that before mop_t5.detach.")
        # accelerate's mixed precision wrapper; kept, it would go on calling the forward of the attached class
        del model.forward, model._original_forward
    record = model._mop_record
    model.__class__ = type(model)._plain_class
    del model._modules[SUBMODULE], model._mop_record
    model._keys_to_ignore_on_save = record.keys_to_ignore_on_save
    for _, module in attention_modules(model):
        del module._mop_attention
    remove_hooks(model, record.hooks)
    remove_experts(model)
    point_attention(model, record.attention)
    for name, parameter in model.named_parameters():
        if name in record.trained:
            with torch.no_grad():
                parameter.copy_(record.trained[name])
        parameter.requires_grad_(record.requires_grad[name])
        if not parameter.requires_grad:
            parameter.grad = None
    return model


def backbone_parameters(model) -> dict[str, torch.Tensor]:
    """Return the backbone's weights by name. Parameters that the method trains have the values from before attach."""
    mine = {n: t for n, t in weights_of(model).items() if not n.startswith(f"{SUBMODULE}.")}
    return mine | (model._mop_record.trained if is_attached(model) else {})


def attention_modules(model):
    """(attention, module) of every attention in the model, attention being one of additions.ATTENTIONS."""
    for block in model.encoder.block:
        yield "encoder_self", block.layer[0].SelfAttention
    for block in model.decoder.block:
        yield "decoder_self", block.layer[0].SelfAttention
        yield "cross", block.layer[1].EncDecAttention


def _plain_implementation(stack) -> str:
    # read from the stack itself: encoder and decoder own copies of the config, the model's may say something else
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


def point_attention(model, implementations) -> None:
    for owner, implementation in zip((model.encoder, model.decoder, model), implementations, strict=True):
        owner.config._attn_implementation_internal = implementation


@functools.cache
def _attached_class(plain: type) -> type:
    """A subclass of a transformers class, made once. It keeps the name and module: transformers reads the source file
    of the module to decide what the class can do."""
    signature = inspect.signature(plain.forward)
    names = list(signature.parameters)[1:]  # of positional arguments, without self

    @functools.wraps(plain.forward)
    def forward(self, *args, scenario_ids=None, mop_additions=None, **kwargs):
        return self._forward_with_additions(kwargs | dict(zip(names, args)), scenario_ids, mop_additions)

    # Trainer and generate read the names of the arguments that forward takes
    parameters = list(signature.parameters.values())
    for name in ("scenario_ids", "mop_additions"):
        parameters.insert(-1, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None))
    forward.__signature__ = signature.replace(parameters=parameters)
    namespace = {"forward": forward, "_plain_class": plain, "__module__": plain.__module__, "__doc__": plain.__doc__}
    return type(plain.__name__, (AttachedT5, plain), namespace)


def _new_attached(plain: type):
    attached = _attached_class(plain)
    return attached.__new__(attached)


class AttachedT5:
    """Mixed into the class of an attached model."""

    # Trainer then passes num_items_in_batch, which T5's own forward would swallow and ignore.
    accepts_loss_kwargs = True

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Names of the scenarios; scenario s has id s. Empty if the method does not tell scenarios apart."""
        return self.mop.scenarios

    def _forward_with_additions(self, kwargs, scenario_ids, additions):
        self._check_attention()
        if self.training:
            self._check_checkpointing()
            if kwargs.get("use_cache") is None:
                kwargs["use_cache"] = False  # else decoder.config.use_cache fills a cache that nobody reads
        batch, device = _batch_of(kwargs)
        scenario_ids = self.mop.check_scenario_ids(scenario_ids, batch, device)
        if additions is None:
            additions = self.mop(scenario_ids)
        elif scenario_ids is not None and scenario_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            additions.check_holds(scenario_ids)
        if additions.prompt is not None and kwargs.get("encoder_outputs") is None:
            self._prepend_prompt(additions.prompt, kwargs, scenario_ids)
        if additions.experts is not None:
            additions.experts.prepare(scenario_ids, batch)
            use_cache = self.decoder.config.use_cache if kwargs.get("use_cache") is None else kwargs["use_cache"]
            if use_cache and kwargs.get("past_key_values") is None:
                kwargs["past_key_values"] = additions.experts.new_cache()
        num_items, labels = kwargs.pop("num_items_in_batch", None), kwargs.get("labels")
        output = super().forward(scenario_ids=scenario_ids, mop_additions=additions, **kwargs)
        if additions.loss is not None and self.training:
            # without labels it is all the loss there is; whoever computes one outside the model adds it
            output = _with_loss(output, additions.loss if labels is None else output[0] + additions.loss, labels)
        if num_items is not None and labels is not None:
            # this batch's share of a mean over num_items label tokens, those of all micro-batches of a step
            output = _with_loss(output, output[0] * labels.ne(-100).sum() / num_items, labels)
        return output

    def generate(self, inputs=None, *args, scenario_ids=None, mop_additions=None, **kwargs):
        """transformers' generate; scenario_ids (batch,), one id for all, or a list. The additions are made once."""
        self._check_attention()
        batch, device = _batch_of(kwargs if inputs is None else {"inputs": inputs})
        # a tensor (batch,) is what transformers repeats for the beams
        scenario_ids = self.mop.check_scenario_ids(scenario_ids, batch, device, on_device=True)
        if mop_additions is None:
            with torch.no_grad():
                mop_additions = self.mop(scenario_ids)
        else:
            mop_additions.check_holds(scenario_ids)
        if mop_additions.prompt is not None and kwargs.get("encoder_outputs") is None:
            if inputs is not None:
                kwargs["input_ids"], inputs = inputs, None
            self._mask_padding(kwargs)
            with torch.no_grad():
                self._prepend_prompt(mop_additions.prompt, kwargs, scenario_ids)
        if self._takes_dynamic_cache(kwargs):
            if mop_additions.experts is not None:
                kwargs["past_key_values"] = mop_additions.experts.new_cache()
            elif self.config.num_decoder_layers > self.config.num_layers:
                # transformers sizes the cache by num_layers, too short for a deeper decoder
                kwargs["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache())
        return super().generate(inputs, *args, scenario_ids=scenario_ids, mop_additions=mop_additions, **kwargs)

    def _prepend_prompt(self, prompt, kwargs, scenario_ids) -> None:
        """Put inputs_embeds and attention_mask with the prompt on their left in the place of the encoder's inputs."""
        ids, embeddings = kwargs.pop("input_ids", None), kwargs.get("inputs_embeds")
        if (ids is None) == (embeddings is None):
            raise ValueError("give either input_ids or inputs_embeds; got both or none.")
        if embeddings is None:
            embeddings = self.get_input_embeddings()(ids)
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.dim() != 2:
            raise ValueError(
                f"attention_mask must have shape (batch, source) for {self.mop.name}; got {tuple(mask.shape)}."
            )
        longer = prompt(embeddings.to(wide(embeddings.dtype)), mask, scenario_ids).to(embeddings.dtype)
        kwargs["inputs_embeds"] = longer
        if mask is not None:
            kwargs["attention_mask"] = F.pad(mask, (longer.shape[1] - embeddings.shape[1], 0), value=1)

    def _mask_padding(self, kwargs) -> None:
        """The mask that transformers' generate would make of input_ids; of embeddings it cannot."""
        ids = kwargs.get("input_ids")
        if ids is None or kwargs.get("attention_mask") is not None:
            return
        config = kwargs.get("generation_config") or self.generation_config
        pad = kwargs.get("pad_token_id", config.pad_token_id)
        if pad is not None:
            kwargs["attention_mask"] = ids.ne(pad).long()

    def _takes_dynamic_cache(self, kwargs) -> bool:
        """Whether generate is to use a cache, and none is given or named."""
        if kwargs.get("past_key_values") is not None:
            return False
        generation = kwargs.get("generation_config") or self.generation_config
        asked = {
            name: kwargs.get(name, getattr(generation, name, None)) for name in ("use_cache", "cache_implementation")
        }
        return asked["use_cache"] is not False and asked["cache_implementation"] is None

    def _check_attention(self) -> None:
        for owner in (self.encoder, self.decoder):
            implementation = owner.config._attn_implementation
            if implementation not in PLAIN:
                raise RuntimeError(
                    f"the attention of the {'decoder' if owner.is_decoder else 'encoder'} was switched to "
                    f"{implementation!r} after attach, which would drop the prefix. Use model.set_attn_implementation."
                )

    def _check_checkpointing(self) -> None:
        for stack in (self.encoder, self.decoder):
            block = stack.block[0]
            if not getattr(block, "gradient_checkpointing", False):
                continue
            options = getattr(block._gradient_checkpointing_func, "keywords", None) or {}
            if options.get("use_reentrant", False):
                raise RuntimeError(
                    "use_reentrant=True checkpointing runs backward through the prefix network once a layer. Enable "
                    "it with gradient_checkpointing_kwargs={'use_reentrant': False}."
                )

    def set_attn_implementation(self, attn_implementation: str, *args, **kwargs) -> None:
        """Switch between "sdpa" and "eager" (which returns attention weights) with the prefix kept."""
        if attn_implementation not in PREFIXED:
            raise ValueError(
                f"attn_implementation must be one of {', '.join(PREFIXED)} while a method is attached; got "
                f"{attn_implementation!r}. Detach first."
            )
        point_attention(self, [PREFIXED[attn_implementation]] * 3)
        self._mop_record.attention = [attn_implementation] * 3

    def save_pretrained(
        self, save_directory, is_main_process=True, state_dict=None, push_to_hub=False, **kwargs
    ) -> None:
        """Write the method only, as mop_t5.save does; Trainer calls it. The backbone is saved from a detached model.

        state_dict: take the values from here, as Trainer asks under sharding.
        """
        if push_to_hub:
            raise ValueError("push_to_hub=True is not supported with a method attached. Upload the saved folder.")
        if not is_main_process:
            return
        description = {
            "method": self.mop.name,
            "config": self.mop.config.to_dict(),
            "backbone": describe_backbone(self, backbone_parameters(self)),
        }
        state_dict = self.state_dict() if state_dict is None else state_dict
        # the names they have in the attached model, because Trainer loads them back with load_state_dict
        mine = {n: t for n, t in state_dict.items() if n.startswith(f"{SUBMODULE}.") or n in self._mop_record.trained}
        adapter_folder.write(save_directory, description, mine)

    def __reduce_ex__(self, protocol):
        # the class is made at run time, so pickle has to be told how
        return _new_attached, (type(self)._plain_class,), self.__getstate__()


def _with_loss(output, loss, labels):
    """The output with this loss, in the place of its own if it had labels."""
    if isinstance(output, tuple):  # return_dict=False
        return (loss, *output[labels is not None :])
    return type(output)(**{**output, "loss": loss})


def _batch_of(kwargs) -> tuple[int, torch.device]:
    """Batch size and device, from whichever input the call has."""
    names = ("input_ids", "inputs", "inputs_embeds", "encoder_outputs")
    names += ("decoder_input_ids", "decoder_inputs_embeds", "labels")
    for name in names:
        value = kwargs.get(name)
        if name == "encoder_outputs" and value is not None:
            value = value[0]
        if isinstance(value, torch.Tensor):
            return value.shape[0], value.device
    raise ValueError("no input found; pass input_ids, inputs_embeds or encoder_outputs.")
