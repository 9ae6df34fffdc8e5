"""The class of a model with a method attached: its forward and generate take scenario_ids."""

import difflib
import functools
import inspect
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.utils.generic import TransformersKwargs

from mop_t5.attachment.attention import PLAIN, PREFIXED, point_attention
from mop_t5.attachment.caches import CACHE, rename_cache
from mop_t5.attachment.hooks import check_hooks, own_slots
from mop_t5.attachment.kept_weights import KeptWeights
from mop_t5.backbone.identity import describe_backbone, weights_of
from mop_t5.storage import adapter_folder

SUBMODULE = "mop"
# what T5 reads of **kwargs, beside the arguments that its forward names
_MORE_ARGUMENTS = {"return_dict", *TransformersKwargs.__annotations__}
_TARGETS = ("labels", "decoder_input_ids", "decoder_inputs_embeds")


def is_attached(model) -> bool:
    """Return whether a method is attached. A wrapper of an attached model (torch.compile, DDP) counts as one."""
    return isinstance(unwrapped(model), AttachedT5)


def unwrapped(model):
    """Return the T5 in a wrapper: of torch.compile, DistributedDataParallel, DeepSpeed, AveragedModel, PEFT."""
    while not isinstance(model, PreTrainedModel):
        inside = (getattr(model, "_orig_mod", None), getattr(model, "module", None), _in_peft(model))
        inner = next((module for module in inside if isinstance(module, torch.nn.Module)), None)
        if inner is None:
            break
        model = inner
    return model


def _in_peft(model):
    """Return the T5 in whose layers a PeftModel has put adapters. One that puts a prompt before the input is no mere
    wrapper: the T5 alone would run without the prompt."""
    tuner = getattr(model, "base_model", None)
    return getattr(tuner, "model", None) if hasattr(tuner, "peft_config") else None


def attached(model) -> "AttachedT5":
    """Return model, an attached T5 that is to be changed.

    Raises:
        RuntimeError: No method is attached.
        TypeError: model is a wrapper, see check_not_wrapped.
    """
    if not is_attached(model):
        raise RuntimeError("model has no method attached. Call mop_t5.attach(model, name) first.")
    check_not_wrapped(model)
    return model


def check_not_wrapped(model) -> None:
    """Raise TypeError if model is a wrapper: its list of parameters would not follow a change."""
    if unwrapped(model) is not model:
        raise TypeError(f"model is a {type(model).__name__} around a T5. Pass the T5 itself, and wrap it afterwards.")


def backbone_parameters(model) -> dict[str, torch.Tensor]:
    """Return the backbone's weights by name. Parameters that the method trains have the values from before attach."""
    mine = {n: t for n, t in weights_of(model).items() if not n.startswith(f"{SUBMODULE}.")}
    return mine | (model._mop_record.trained if is_attached(model) else {})


@functools.cache
def attached_class(plain: type) -> type:
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
    namespace = {
        "forward": forward,
        "_plain_class": plain,
        "_arguments": frozenset(names[:-1]) | _MORE_ARGUMENTS,  # the last is **kwargs
        "__module__": plain.__module__,
        "__doc__": plain.__doc__,
    }
    return type(plain.__name__, (AttachedT5, plain), namespace)


def _new_attached(plain: type):
    attached = attached_class(plain)
    return attached.__new__(attached)


class AttachedT5(KeptWeights):
    """Mixed into the class of an attached model."""

    # Trainer then passes num_items_in_batch, which T5's own forward would swallow and ignore.
    accepts_loss_kwargs = True

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Names of the scenarios; scenario s has id s. Empty if the method does not tell scenarios apart."""
        return self.mop.scenarios

    def _forward_with_additions(self, kwargs, scenario_ids, additions):
        rename_cache(kwargs)
        self._check_arguments(kwargs)
        self._check_attention()
        if self.training:
            self._check_checkpointing()
            if kwargs.get("use_cache") is None:
                kwargs["use_cache"] = False  # else decoder.config.use_cache fills a cache that nobody reads
        batch, device = _batch_of(kwargs)
        if all(kwargs.get(name) is None for name in _TARGETS):
            raise ValueError(
                "the batch has neither labels nor decoder_input_ids. Trainer takes the labels out with "
                "label_smoothing_factor and with compute_loss_func; let the collator make decoder_input_ids beside "
                "them: Collator(..., decoder_inputs=model.prepare_decoder_input_ids_from_labels)."
            )
        scenario_ids = self.mop.check_scenario_ids(scenario_ids, batch, device)
        if kwargs.get("input_ids") is not None:
            self.warn_if_padding_and_no_attention_mask(kwargs["input_ids"], kwargs.get("attention_mask"))
        if additions is None:
            if not torch.compiler.is_compiling():
                check_hooks(self, self.mop.adapter_places)
            additions = self.mop(scenario_ids)
        elif scenario_ids is not None and scenario_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            additions.check_holds(scenario_ids)
        if additions.prompt is not None:
            self._prepend_prompt(additions.prompt, kwargs, scenario_ids)
        if additions.experts is not None:
            additions.experts.prepare(scenario_ids, batch)
            use_cache = self.decoder.config.use_cache if kwargs.get("use_cache") is None else kwargs["use_cache"]
            if use_cache and kwargs.get(CACHE) is None:
                kwargs[CACHE] = additions.experts.new_cache()
        num_items, labels = kwargs.pop("num_items_in_batch", None), kwargs.get("labels")
        with nullcontext() if torch.compiler.is_compiling() else own_slots():
            output = super().forward(scenario_ids=scenario_ids, mop_additions=additions, **kwargs)
        if additions.loss is not None and self.training:
            # without labels it is all the loss there is; whoever computes one outside the model adds it
            output = _with_loss(output, additions.loss if labels is None else output[0] + additions.loss, labels)
        if num_items is not None and labels is not None:
            # this batch's share of a mean over num_items label tokens, those of all micro-batches of a step
            output = _with_loss(output, output[0] * labels.ne(-100).sum() / num_items, labels)
        return output

    def generate(self, inputs=None, *args, scenario_ids=None, mop_additions=None, **kwargs):
        """Generate as transformers does. The additions of the batch are made once.

        Without an attention_mask, padding in input_ids is masked, as transformers 4 did (5 attends to it).

        Args:
            scenario_ids: (batch,), a list, or one id for the whole batch.

        Raises:
            ValueError: An assistant_model is given, or scenario_ids do not fit the batch and the method.
        """
        if kwargs.get("assistant_model") is not None:
            raise ValueError(
                "assistant_model must be None while a method is attached: transformers would hand it the scenario_ids "
                "and prefixes of this model. prompt_lookup_num_tokens drafts without a model."
            )
        rename_cache(kwargs)
        self._check_attention()
        if inputs is not None and kwargs.get("input_ids") is None:
            kwargs["input_ids"], inputs = inputs, None
        batch, device = _batch_of(kwargs if inputs is None else {"inputs": inputs})
        # a tensor (batch,) is what transformers repeats for the beams
        scenario_ids = self.mop.check_scenario_ids(scenario_ids, batch, device, on_device=True)
        check_hooks(self, self.mop.adapter_places)
        if mop_additions is None:
            with torch.no_grad():
                mop_additions = self.mop(scenario_ids)
        else:
            mop_additions.check_holds(scenario_ids)
        self._mask_padding(kwargs)
        if mop_additions.prompt is not None:
            with torch.no_grad():
                self._prepend_prompt(mop_additions.prompt, kwargs, scenario_ids)
        if self._takes_dynamic_cache(kwargs):
            if mop_additions.experts is not None:
                kwargs[CACHE] = mop_additions.experts.new_cache()
            elif self.config.num_decoder_layers > self.config.num_layers:
                # transformers sizes the cache by num_layers, too short for a deeper decoder
                kwargs[CACHE] = EncoderDecoderCache(DynamicCache(), DynamicCache())
        with own_slots():
            return super().generate(inputs, *args, scenario_ids=scenario_ids, mop_additions=mop_additions, **kwargs)

    def _prepend_prompt(self, prompt, kwargs, scenario_ids) -> None:
        """Put inputs_embeds and attention_mask with the prompt on their left in the place of the encoder's inputs.

        Of encoder_outputs, which have the prompt already, only the mask gets it.
        """
        mask = kwargs.get("attention_mask")
        if kwargs.get("encoder_outputs") is not None:
            missing = 0 if mask is None else kwargs["encoder_outputs"][0].shape[1] - mask.shape[-1]
            if missing > 0:
                kwargs["attention_mask"] = F.pad(mask, (missing, 0), value=1)
            return
        ids, embeddings = kwargs.pop("input_ids", None), kwargs.get("inputs_embeds")
        if (ids is None) == (embeddings is None):
            raise ValueError("give either input_ids or inputs_embeds; got both or none.")
        if embeddings is None:
            embeddings = self.get_input_embeddings()(ids)
        if mask is not None and mask.dim() != 2:
            raise ValueError(
                f"attention_mask must have shape (batch, source) for {self.mop.name}; got {tuple(mask.shape)}."
            )
        longer = prompt(embeddings.to(self.mop.dtype), mask, scenario_ids).to(embeddings.dtype)
        kwargs["inputs_embeds"] = longer
        if mask is not None:
            kwargs["attention_mask"] = F.pad(mask, (longer.shape[1] - embeddings.shape[1], 0), value=1)

    def _mask_padding(self, kwargs) -> None:
        """Mask the padding of input_ids where no mask is given. A pad token that also ends texts is not padding."""
        ids = kwargs.get("input_ids")
        if ids is None or ids.is_meta or kwargs.get("attention_mask") is not None:
            return
        pad, ends = (self._generation_setting(kwargs, name) for name in ("pad_token_id", "eos_token_id"))
        ends = ends if isinstance(ends, (list, tuple)) else [ends]
        if pad is None or pad in ends:
            return
        mask = ids.ne(pad)
        if not mask.all():
            kwargs["attention_mask"] = mask.long()

    def _generation_setting(self, kwargs, name: str):
        """What generate uses for a setting: of the call, of its generation_config, of the model's, of its config."""
        if name in kwargs:
            return kwargs[name]
        places = (kwargs.get("generation_config"), self.generation_config, self.config)
        return next((v for v in (getattr(place, name, None) for place in places) if v is not None), None)

    def _takes_dynamic_cache(self, kwargs) -> bool:
        """Whether generate is to use a cache, and none is given or named."""
        if kwargs.get(CACHE) is not None:
            return False
        use_cache, implementation = (
            self._generation_setting(kwargs, name) for name in ("use_cache", "cache_implementation")
        )
        return use_cache is not False and implementation is None

    def _check_arguments(self, kwargs) -> None:
        """Raise TypeError for names that T5 would take without reading them."""
        unknown = sorted(name for name in kwargs if name not in self._arguments)
        if unknown:
            known = {*self._arguments, "scenario_ids"}
            close = [match for name in unknown for match in difflib.get_close_matches(name, known, 1)]
            hint = f"Is {', '.join(close)} meant?" if close else "Leave it out of the batch."
            raise TypeError(f"forward got {', '.join(unknown)}, which no T5 reads. {hint}")

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
        lost = sorted(self._mop_record.trained.keys() - mine.keys())
        if lost:
            raise ValueError(
                f"the method trains {', '.join(lost[:4])}{', ...' if lost[4:] else ''}, which the model has no more: "
                "the layer was changed after attach, as by LoRA or pruning. Undo that, then save."
            )
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
