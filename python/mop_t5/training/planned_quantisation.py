"""What a quantised backbone takes in training: bytes of its weights, and what its layers keep for backward.

Layers on device "meta" cannot be quantised. The numbers were read from bitsandbytes 0.50 and torchao 0.18, and a test
compares them with both packages.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_BITSANDBYTES: tuple[str, ...] = ("q", "k", "v", "o", "wi", "wi_0", "wi_1")
# scheme -> names of the layers that are quantised
QUANTISED_LAYERS = dict.fromkeys(("8bit", "4bit"), _BITSANDBYTES)
QUANTISED_LAYERS |= dict.fromkeys(("int8", "int4"), (*_BITSANDBYTES, "wo"))
_BLOCK_OF_4BIT, _GROUP_OF_INT4 = 64, 32  # weights that share a scale


def quantised_layers(model: PreTrainedModel, scheme: str) -> list[nn.Linear]:
    """Return the layers of a T5 that a scheme quantises."""
    modules = [pair for stack in (model.get_encoder(), model.get_decoder()) for pair in stack.named_modules()]
    linear = [(name.rpartition(".")[2], module) for name, module in modules if isinstance(module, nn.Linear)]
    return [module for name, module in linear if name in QUANTISED_LAYERS[scheme]]


def quantised_bytes(weight: Tensor, scheme: str) -> int:
    """Return the bytes of a weight after quantisation, with its scales.

    Args:
        weight: (out, in), in the dtype of the backbone.
        scheme: A key of QUANTISED_LAYERS.
    """
    numbers, rows = weight.numel(), weight.shape[0]
    if scheme == "8bit":
        return numbers + 4 * rows
    if scheme == "4bit":
        return numbers // 2 + 4 * -(-numbers // _BLOCK_OF_4BIT) + 4 * 16  # the last are the 16 values of nf4
    if scheme == "int8":
        return numbers + (4 + 1) * rows
    return numbers + (weight.element_size() + 1) * (numbers // _GROUP_OF_INT4)  # a byte per weight here, too


def simulate_quantisation(model: PreTrainedModel, scheme: str) -> None:
    """Make the layers of a model on meta keep for backward what quantised layers keep. It cannot be undone."""
    for layer in quantised_layers(model, scheme):

        def keep(module: nn.Linear, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return (_AsQuantised.apply(inputs[0], module.weight.shape, scheme), *inputs[1:])

        layer.register_forward_pre_hook(keep)


class _AsQuantised(torch.autograd.Function):
    """Return x. Make the tensors that the product of x with a quantised weight makes.

    "8bit" keeps x for backward, although backward does not read it. "4bit" keeps nothing. Both make the weight in the
    dtype of x in backward. The schemes of torchao make this weight in forward and keep it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: torch.Size, scheme: str) -> Tensor:
        ctx.shape, ctx.scheme = shape, scheme
        if scheme == "8bit":
            ctx.save_for_backward(x)
        else:
            weight = x.new_empty(shape)
            if scheme != "4bit":
                ctx.save_for_backward(weight)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        if ctx.scheme in ("8bit", "4bit"):
            gradients[0].new_empty(ctx.shape)
        return gradients[0], None, None
