"""The class of a model with a method attached: its forward and generate take scenario_ids."""

import functools
import inspect
import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers.utils.generic import TransformersKwargs

from mop_t5.attachment.additions import Additions
from mop_t5.attachment.attention import PLAIN, PREFIXED, point_attention
from mop_t5.attachment.caches import CACHE, rename_cache
from mop_t5.attachment.hooks import check_hooks, own_slots
from mop_t5.attachment.inputs import TARGETS, add_cache, batch_of, check_arguments, mask_padding, prepend_prompt
from mop_t5.attachment.kept_weights import KeptWeights
from mop_t5.attachment.loss import WithoutLogits, run_with_loss
from mop_t5.attachment.method import Method
from mop_t5.attachment.mixin import RuntimeMixin
from mop_t5.attachment.wrappers import check_not_wrapped, unwrapped
from mop_t5.backbone.identity import describe_backbone, weights_of
from mop_t5.backbone.weights import Weights, device_of
from mop_t5.storage import adapter_folder

SUBMODULE = "mop"
# keyword arguments that T5 reads from **kwargs, besides the named arguments of its forward
_MORE_ARGUMENTS = {"return_dict", *TransformersKwargs.__annotations__}


def is_attached(model: nn.Module) -> TypeGuard["AttachedT5"]:
    """Return whether a method is attached. A wrapper of an attached model (torch.compile, DDP) counts, too.

    The type is right for a T5 itself: use `attached` for a model that may be wrapped.
    """
    return isinstance(unwrapped(model), AttachedT5)


def attached(model: nn.Module) -> "AttachedT5":
    """Return the attached T5 that `model` is or wraps.

    Raises:
        RuntimeError: No method is attached.
    """
    model = unwrapped(model)
    if not is_attached(model):
        raise RuntimeError("model has no method attached. Call mop_t5.attach or mop_t5.load first.")
    return model


def changeable(model: nn.Module) -> "AttachedT5":
    """Return `model`, an attached T5 whose parameters may be changed.

    Raises:
        RuntimeError: No method is attached.
        TypeError: `model` is a wrapper, see check_not_wrapped.
    """
    t5 = attached(model)
    check_not_wrapped(model)
    return t5


def backbone_parameters(model: nn.Module) -> Weights:
    """Return the backbone's weights by name. Parameters that the method trains have the values from before attach."""
    mine = weights_of(model, without=f"{SUBMODULE}.")
    return mine.updated(model._mop_record.trained) if is_attached(model) else mine


@dataclass
class Record:
    """The state of the model before attach, which detach restores."""

    attention: list[str]  # implementations of encoder, decoder and model
    requires_grad: dict[str, bool]
    keys_to_ignore_on_save: set[str] | list[str] | None
    has_adapters: bool  # transformers has put adapters of PEFT into the model
    trained: dict[str, Tensor]  # the backbone parameters that the method trains, as they were
    hub_commit: str | None = None  # of the adapter, if it came from the model hub
    backbone: dict[str, Any] | None = None  # see keep_description


class AttachedT5(RuntimeMixin, KeptWeights, WithoutLogits):
    """Mixed into the class of an attached model."""

    mop: Method
    _mop_record: Record
    _arguments: frozenset[str]

    # Trainer then passes num_items_in_batch, which T5's own forward would accept and ignore.
    accepts_loss_kwargs = True

    @classmethod
    def namespace_of(cls, plain: Any) -> dict[str, Any]:
        """Return forward with the signature of the plain class, and the names of the arguments that T5 reads."""
        signature = inspect.signature(plain.forward)
        names = list(signature.parameters)[1:]  # of positional arguments, without self

        @functools.wraps(plain.forward)
        def forward(self, *args, **kwargs):
            return self._forward_with_additions(**(kwargs | dict(zip(names, args))))

        # Trainer and generate read the names of the arguments that forward takes
        *parameters, more = signature.parameters.values()
        own = inspect.signature(cls._forward_with_additions).parameters.values()
        parameters += [one for one in own if one.kind is one.KEYWORD_ONLY]
        vars(forward)["__signature__"] = signature.replace(parameters=[*parameters, more])
        return {"forward": forward, "_arguments": frozenset(names[:-1]) | _MORE_ARGUMENTS}  # the last is **kwargs

    @property
    def scenarios(self) -> tuple[str, ...]:
        """Names of the scenarios; scenario s has id s. Empty if the method does not tell scenarios apart."""
        return self.mop.scenarios

    @property
    def hub_commit(self) -> str | None:
        """The commit of the model hub that the adapter was loaded from. None for any other adapter."""
        return self._mop_record.hub_commit

    def _forward_with_additions(
        self,
        *,
        scenario_ids: Any = None,
        mop_additions: Additions | None = None,
        skip_logits: bool = False,
        label_smoothing: float = 0.0,
        **kwargs: Any,
    ) -> Any:
        rename_cache(kwargs)
        check_arguments(kwargs, self._arguments)
        self._check_attention()
        if self.training:
            self._check_checkpointing()
            if kwargs.get("use_cache") is None:
                kwargs["use_cache"] = False  # else decoder.config.use_cache fills a cache that nobody reads
        batch, device = batch_of(kwargs)
        if all(kwargs.get(name) is None for name in TARGETS):
            raise ValueError(
                "the batch has neither labels nor decoder_input_ids. Trainer takes the labels out with "
                "label_smoothing_factor and with compute_loss_func; let the collator make decoder_input_ids beside "
                "them: Collator(..., decoder_inputs=model.prepare_decoder_input_ids_from_labels)."
            )
        scenario_ids = self.mop.check_scenario_ids(scenario_ids, batch, device)
        if kwargs.get("input_ids") is not None:
            self.warn_if_padding_and_no_attention_mask(kwargs["input_ids"], kwargs.get("attention_mask"))
        additions = mop_additions
        if additions is None:
            if not torch.compiler.is_compiling():
                check_hooks(self, self.mop.adapter_places)
            additions = self._new_additions(scenario_ids)
        elif scenario_ids is not None and scenario_ids.device.type == "cpu" and not torch.compiler.is_compiling():
            additions.check_holds(scenario_ids)
        if additions.prompt is not None:
            prepend_prompt(self, self.mop, additions.prompt, kwargs, scenario_ids)
        if additions.experts is not None:
            additions.experts.parts(scenario_ids, batch)
            use_cache = self.decoder.config.use_cache if kwargs.get("use_cache") is None else kwargs["use_cache"]
            if use_cache and kwargs.get(CACHE) is None:
                kwargs[CACHE] = additions.experts.new_cache()
        num_items, labels = kwargs.pop("num_items_in_batch", None), kwargs.get("labels")
        mine = {"scenario_ids": scenario_ids, "mop_additions": additions, "mop_fused": _has_plain_masks(kwargs)}
        with nullcontext() if torch.compiler.is_compiling() else own_slots():
            output = run_with_loss(
                self, super().forward, kwargs | mine, skip_logits=bool(skip_logits), label_smoothing=label_smoothing
            )
        if additions.loss is not None and self.training:
            # without labels this is the whole loss; code that computes a loss outside the model adds it
            loss = additions.loss if labels is None else output[0] + additions.loss.to(output[0].device)
            output = _with_loss(output, loss, labels)
        if num_items is not None and labels is not None:
            # this batch's share of a mean over num_items label tokens, which all micro-batches of a step have together
            # the counts are integers until the loss, in its own precision, is multiplied by them
            counts = (labels.ne(-100).sum(), num_items)
            tokens, num_items = (torch.as_tensor(count, device=output[0].device) for count in counts)
            output = _with_loss(output, output[0] * tokens / num_items, labels)
        return output

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        *args: Any,
        scenario_ids: Any = None,
        mop_additions: Additions | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate as transformers does. The additions of the batch are made once.

        Without an attention_mask, padding in input_ids is masked, as transformers 4 did (5 attends to it).

        Args:
            inputs: Token ids (batch, source), as `input_ids`.
            args: Further positional arguments of transformers.
            scenario_ids: (batch,), a list, or one id for the whole batch.
            mop_additions: Additions made before, by model.mop.additions. None: made here.
            kwargs: Further arguments of transformers.

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
        batch, device = batch_of(kwargs if inputs is None else {"inputs": inputs})
        # transformers repeats a tensor (batch,) for the beams
        scenario_ids = self.mop.check_scenario_ids(scenario_ids, batch, device, on_device=True)
        check_hooks(self, self.mop.adapter_places)
        if mop_additions is None:
            mop_additions = self._new_additions(scenario_ids)
        else:
            mop_additions.check_holds(scenario_ids)
        mask_padding(self, kwargs)
        if mop_additions.prompt is not None:
            prepend_prompt(self, self.mop, mop_additions.prompt, kwargs, scenario_ids)
        add_cache(self, kwargs, mop_additions.experts)
        with own_slots():
            mine = {"scenario_ids": scenario_ids, "mop_additions": mop_additions}
            return super().generate(inputs, *args, **mine, **kwargs)  # type: ignore[misc]  # T5 lacks their protocol

    def _new_additions(self, scenario_ids: Tensor | None) -> Additions:
        """Return the method's additions for a batch."""
        if getattr(self, "hf_device_map", None) is None:
            return self.mop(scenario_ids)
        device = device_of(self.shared)  # the device of the method
        additions = self.mop(None if scenario_ids is None else scenario_ids.to(device))
        additions.device = device
        return additions

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
                    "use_reentrant=True checkpointing runs backward through the prefix network once per layer. "
                    "Enable it with gradient_checkpointing_kwargs={'use_reentrant': False}."
                )

    def set_attn_implementation(self, attn_implementation: str, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]  # fewer kinds
        """Switch between "sdpa" and "eager" (which returns attention weights) with the prefix kept."""
        if attn_implementation not in PREFIXED:
            raise ValueError(
                f"attn_implementation must be one of {', '.join(PREFIXED)} while a method is attached; got "
                f"{attn_implementation!r}. Detach first."
            )
        point_attention(self, [PREFIXED[attn_implementation]] * 3)
        self._mop_record.attention = [attn_implementation] * 3

    def description_of(self, method: Method, weights: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
        """Return the description of an adapter folder of `method` for this backbone.

        weights: Values of the backbone that are read in place of its own, which may be sharded.
        """
        backbone = self._mop_record.backbone
        if backbone is None:
            own, given, trained = backbone_parameters(self), weights or {}, self._mop_record.trained
            # a tensor on meta stands for an offloaded weight, which `own` reads
            read = {n: given[n] for n in own if n in given and n not in trained and not given[n].is_meta}
            backbone = describe_backbone(self, own.updated(read))
        return {"method": method.name, "config": method.config.to_dict(), "backbone": backbone}

    def keep_description(self) -> None:
        """Keep the description of the backbone, which cannot be read when its weights are sharded."""
        self._mop_record.backbone = describe_backbone(self, backbone_parameters(self))

    @property
    def has_description(self) -> bool:
        """Whether keep_description was called."""
        return self._mop_record.backbone is not None

    def save_pretrained(  # type: ignore[override]  # arguments about shards and tokens are ignored
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write the method only, as mop_t5.save does; Trainer calls it. The backbone is saved from a detached model.

        state_dict: The values to write, gathered from a sharded model. None: the values of the model.
        """
        if push_to_hub:
            self.push_to_hub()
        if not is_main_process:
            return
        if state_dict is None:
            # not state_dict() of the whole model: of a sharded model, FSDP2 would free the gathered weights on this
            # process alone, and the next forward pass would wait for the others
            state_dict = self.mop.state_dict(prefix=f"{SUBMODULE}.", keep_vars=True)
            state_dict |= dict(self.named_parameters(remove_duplicate=False))
        # with their names in the attached model: Trainer loads the file with load_state_dict
        mine = {n: t for n, t in state_dict.items() if n.startswith(f"{SUBMODULE}.") or n in self._mop_record.trained}
        if lost := sorted(self._mop_record.trained.keys() - mine.keys()):
            raise ValueError(
                f"the method trains {', '.join(lost[:4])}{', ...' if lost[4:] else ''}, which the model no "
                "longer has: the layer was changed after attach, for example by LoRA or pruning. Undo that, then save."
            )
        adapter_folder.write(save_directory, self.description_of(self.mop, state_dict), mine)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Refuse what transformers would do: upload the method with a card of its own."""
        raise ValueError(
            "push_to_hub of transformers does not upload a method. Call mop_t5.push_to_hub(model, 'owner/name')."
        )


def _has_plain_masks(kwargs: Mapping[str, Any]) -> bool:
    """Tell whether all masks of a call are padding masks (batch, tokens), which fused attention reads."""
    masks = (kwargs.get(name) for name in ("attention_mask", "decoder_attention_mask"))
    return all(mask is None or mask.dim() == 2 for mask in masks)


def _with_loss(output: Any, loss: Tensor, labels: Tensor | None) -> Any:
    """Return the output with `loss` in place of its own loss. Without labels the output has no loss."""
    if isinstance(output, tuple):  # return_dict=False
        return (loss, *output[labels is not None :])
    return type(output)(**{**output, "loss": loss})
