"""Blocks of one T5 instance that are several experts each: h' = sum_e weight[row, e] * Block_e(h).

An expert is a complete block, with residuals, LayerNorms, attentions and caches of its own. The method owns it. While
the method is attached, the class of the replaced block is a subclass of its own class, and the forward of the subclass
runs the experts. The Additions of the running forward pass hold the experts, their rows and their weights. The block's
own weights are unused, except the table of relative positions, which its experts share unless they have own tables.
"""

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import T5ForConditionalGeneration as T5

from mop_t5.attachment.additions import called_alone
from mop_t5.attachment.caches import CACHE, ExpertCache
from mop_t5.attachment.method import Where
from mop_t5.attachment.mixin import RuntimeMixin, combined, is_placed, plain_class
from mop_t5.attachment.mixture import mix

if TYPE_CHECKING:
    from transformers.models.t5.modeling_t5 import T5Block  # the blocks of MT5 and UMT5 have the same attributes
else:
    T5Block = object

# the arguments of a block that have one row per example
_BY_ROW = ("hidden_states", "attention_mask", "encoder_hidden_states", "encoder_attention_mask", "scenario_ids")


def new_expert(block: nn.Module, stack: str, own_table: bool, **where: Unpack[Where]) -> nn.Module:
    """Return a block of the same structure with parameters of its own, without values.

    It shares the block's config, so changes of the config apply to both.

    Args:
        block: The block whose structure the expert has.
        stack: "encoder" or "decoder".
        own_table: Keep the table of relative positions, if the block has a table. In umT5 every expert has a table.
        where: Device and dtype of the parameters.

    Raises:
        ValueError: A parameter of the block is quantised to a shape or type of its own.
    """
    for name, parameter in block.named_parameters():
        if not parameter.is_floating_point():
            raise ValueError(
                f"the experts are copies of the backbone's blocks, and {name} of {stack} blocks is quantised "
                f"({type(parameter).__name__}). Load the backbone without quantisation, or take a method that leaves "
                "its blocks alone, such as mop."
            )
    known: dict[int, Any] = {id(p): nn.Parameter(torch.empty(p.shape, **where)) for p in block.parameters()}
    known |= {id(module.config): module.config for module in block.modules() if hasattr(module, "config")}
    expert: Any = copy.deepcopy(block, known)
    if isinstance(expert, MixedBlock):
        expert.__class__ = plain_class(expert)
        del expert._mop_block
    attention = expert.layer[0].SelfAttention
    # in T5 and mT5 the first block has the table and hands on the bias; in umT5 every block has a table
    hands_on = "position_bias" in _arguments(plain_class(block))
    if attention.has_relative_attention_bias and hands_on and not own_table:
        del attention.relative_attention_bias
        attention.has_relative_attention_bias = False
    return expert


def values_of(block: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a block by name. Quantised parameters are returned in floating point.

    Raises:
        ValueError: A parameter is of a tensor subclass that cannot be dequantised.
    """
    values: dict[str, Tensor] = {}
    for name, parameter in block.named_parameters():
        try:
            values[name] = parameter.dequantize() if is_traceable_wrapper_subclass(parameter) else parameter
        except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"the experts start as copies of the backbone's blocks, and {name} of the class "
                f"{type(parameter).__name__} cannot be copied. Use a backbone in floating point."
            ) from error
    return values


def _arguments(plain: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(plain.forward).parameters)[1:]


def insert_experts(model: T5, places: Iterable[tuple[str, int]]) -> None:
    """Let the blocks at these places, (stack, layer), run experts."""
    for stack, layer in places:
        block = getattr(model, stack).block[layer]
        block._mop_block = (stack, layer)
        block.__class__ = combined(MixedBlock, type(block))


def check_forward(module: nn.Module, name: str, what: str, *, may_be_placed: bool = False) -> None:
    """Raise RuntimeError if the forward of a module was replaced on the instance, so that its class is bypassed.

    Args:
        module: The module.
        name: Its name, for the message.
        what: What the caller would do, for the message.
        may_be_placed: Accept the forward that accelerate gives a module with a device_map (see `change_class`).
    """
    if "forward" in module.__dict__ and not (may_be_placed and is_placed(module)):
        raise RuntimeError(
            f"the forward of {name} was replaced on this instance, as accelerate does for device_map, offloading and "
            f"prepare. Undo that before you {what}, for example by accelerate.hooks.remove_hook_from_submodules(model)."
        )


class MixedBlock(RuntimeMixin, T5Block):
    """Mixed into the class of a block that runs experts."""

    _mop_block: tuple[str, int]
    _plain_arguments: ClassVar[tuple[str, ...]]
    _plain_forward: ClassVar[Any]

    @classmethod
    def namespace_of(cls, plain: Any) -> dict[str, Any]:
        """Return the forward of the plain class and the names of its arguments."""
        # without transformers' checkpointing wrapper: the block has such a wrapper already
        forward = staticmethod(inspect.unwrap(plain.forward))
        return {"_plain_arguments": _arguments(plain), "_plain_forward": forward}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output of the block: the weighted sum of its experts, then the biases of positions."""
        call = dict(zip(self._plain_arguments, args)) | kwargs
        additions = call.get("mop_additions")
        if additions is None or additions.experts is None:
            stack, layer = self._mop_block
            raise called_alone(f"block {layer} of the {stack} was called without the weights of its experts")
        hidden = call["hidden_states"]
        experts = additions.experts.blocks[self._mop_block]
        # a method computes in its own precision, whatever the backbone's
        precision = next(experts[0].parameters()).dtype
        call = {k: v.to(precision) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in call.items()}
        cache = call.get(CACHE)
        if cache is not None and not isinstance(cache, ExpertCache):
            raise ValueError(
                f"{CACHE} is a {type(cache).__name__}, in which experts have no place of their own. Leave out "
                f"{CACHE} and cache_implementation."
            )
        if "position_bias" in call:
            call["position_bias"] = self._positions(experts, call)
        outputs: list[Any] = []

        def run(expert: int, rows: Tensor | None) -> Tensor:
            of_expert = call if rows is None else call | _chosen(call, rows)
            if cache is not None:
                of_expert = of_expert | {CACHE: cache.of_expert(self._mop_block[1], expert, rows)}
            if "position_bias" in call and len(call["position_bias"]) > 1:
                of_expert = of_expert | {"position_bias": call["position_bias"][expert : expert + 1]}
            outputs.append(self._plain_forward(experts[expert], **of_expert))
            return outputs[-1][0] if isinstance(outputs[-1], tuple) else outputs[-1]

        parts = additions.experts.parts(call.get("scenario_ids"), len(hidden))
        mixed = mix(run, call["hidden_states"], parts[self._mop_block]).to(hidden.dtype)
        if not isinstance(outputs[0], tuple):
            return mixed
        # a block also returns the bias of positions and the bias of the cross-attention, which is zero
        return (mixed, call["position_bias"], *outputs[0][2:])

    def _positions(self, experts: Sequence[Any], call: Mapping[str, Any]) -> Tensor:
        """Return the bias (1 or experts, heads, queries, keys). The first block makes it, later blocks receive it."""
        if call["position_bias"] is not None:
            return call["position_bias"]
        hidden, cache = call["hidden_states"], call.get(CACHE)
        seen = 0 if cache is None else cache.get_seq_length(self._mop_block[1])
        tables = [expert.layer[0].SelfAttention for expert in experts]
        if not tables[0].has_relative_attention_bias:
            tables = [self.layer[0].SelfAttention]
        length = hidden.shape[1]
        bias = [t.compute_bias(length, seen + length, device=hidden.device, past_seen_tokens=seen) for t in tables]
        return torch.cat(bias).to(hidden.dtype)


def _chosen(call: Mapping[str, Any], rows: Tensor) -> dict[str, Tensor]:
    """Return the arguments that have one row per example, of these rows."""
    batch = len(call["hidden_states"])
    tensors = {name: call[name] for name in _BY_ROW if torch.is_tensor(call.get(name))}
    # advanced indexing: its backward on a GPU is a sorted sum; the backward of index_select has no fixed order
    return {name: tensor[rows] for name, tensor in tensors.items() if len(tensor) == batch}
