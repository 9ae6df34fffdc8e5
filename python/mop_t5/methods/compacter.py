"""Compacter: adapters of PHM layers that share one rule and whose locals have rank one (Mahabadi et al. 2021).

y = x + ( activation(x W_down + b) W_up + b ), after self-attention and feed-forward of encoder and decoder. Every W is
sum_i rule_i (x) (left_i right_i). All W share the matrices rule_i, which are terms x terms (mop_kernels).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Unpack

import torch
from torch import Tensor, nn

from mop_kernels import phm_weight
from mop_kernels.functional import ACTIVATIONS
from mop_t5.attachment.additions import STACKS, Adapter, Additions
from mop_t5.attachment.method import MethodConfig, Where
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import at_least, one_of, within
from mop_t5.methods import register
from mop_t5.methods.parts.adapter_method import AdapterMethod, bottleneck, by_layer
from mop_t5.methods.parts.modules import ModuleDictOf

_PLACES = {"compacter": ("self_attention", "feed_forward"), "plus_plus": ("feed_forward",)}


@dataclass(frozen=True)
class CompacterConfig(MethodConfig):
    """Fields of the method "compacter".

    Args:
        scenarios: names of the scenarios, for the record: they share the adapters.
        variant: "compacter", adapters after self-attention and feed-forward; "plus_plus", after feed-forward only.
        terms: number of Kronecker terms, and side length of the rules. It must divide d_model and d_model // reduction.
        reduction: the adapters' hidden width is d_model // reduction.
        local_rank: rank of the locals; None trains them whole (the PHM adapters of the same paper).
        rule_std: the rules start at N(0, rule_std^2), so small that the adapters start as the identity. The locals
            start Glorot-uniform with gain sqrt(2), the biases at 0.
        activation: "gelu_tanh", "relu", "gelu", "silu", "tanh" or "identity".
        layer_norms: train the backbone's own LayerNorms too.
    """

    variant: Annotated[str, one_of(*_PLACES)] = "compacter"
    terms: Annotated[int, at_least(1)] = 4
    reduction: Annotated[int, at_least(1)] = 32
    local_rank: Annotated[int | None, at_least(1)] = 1
    rule_std: Annotated[float, within(above=0)] = 1e-4
    activation: Annotated[str, one_of(*ACTIVATIONS)] = "gelu_tanh"
    layer_norms: bool = True


class _Locals(nn.Module):
    """The locals and the biases of one map in every layer of one place."""

    def __init__(self, layers: int, d_in: int, d_out: int, terms: int, local_rank: int | None, **where: Unpack[Where]):
        super().__init__()
        loc_in, loc_out = d_in // terms, d_out // terms
        shapes = [(loc_in, loc_out)] if local_rank is None else [(loc_in, local_rank), (local_rank, loc_out)]
        self.factors = nn.ParameterList(torch.empty(layers, terms, *s, **where) for s in shapes)
        self.bias = nn.Parameter(torch.zeros(layers, d_out, **where))
        for factor in self.factors:
            bound = math.sqrt(12 / sum(factor.shape[-2:]))  # Glorot's, with gain sqrt(2)
            nn.init.uniform_(factor, -bound, bound)

    def weights(self, rule: Tensor) -> Tensor:
        """Return the weights (layers, d_out, d_in), as F.linear takes them."""
        local = self.factors[0] if len(self.factors) == 1 else self.factors[0] @ self.factors[1]
        return phm_weight(rule, local).mT


@register
class Compacter(AdapterMethod[CompacterConfig, ModuleDictOf[_Locals]]):
    """The rule and, in adapters[stack][place], the locals and biases of the maps "down" and "up" of all layers."""

    name = "compacter"
    Config = CompacterConfig
    groups: ClassVar = {"rule": ("rule",), "adapters": ("adapters",)}

    def __init__(self, config: CompacterConfig, shape: BackboneShape, **where: Unpack[Where]):
        c, d_mid = config, shape.d_model // config.reduction
        for what, width in (("d_model", shape.d_model), ("d_model // reduction", d_mid)):
            if width == 0 or width % c.terms:
                raise ValueError(
                    f"terms must divide {what} = {width}; got {c.terms}. Choose other terms or another reduction."
                )
        super().__init__(c, shape)
        self.rule = nn.Parameter(torch.empty(c.terms, c.terms, c.terms, **where).normal_(std=c.rule_std))

        def make(stack: str, place: str) -> ModuleDictOf[_Locals]:
            layers, maps = shape.layers(stack), {"down": (shape.d_model, d_mid), "up": (d_mid, shape.d_model)}
            return ModuleDictOf(
                {name: _Locals(layers, *widths, c.terms, c.local_rank, **where) for name, widths in maps.items()}
            )

        self.place_adapters([(stack, place) for stack in STACKS for place in _PLACES[c.variant]], make)

    def additions(self, scenario_ids: Tensor | None = None) -> Additions:
        """Return the adapters, which all scenarios share."""
        adapters: dict[tuple[str, str], list[Adapter]] = {}
        for stack, place in self.adapter_places:
            parts: dict[str, Tensor] = {}
            for name, layers in self.adapters[stack][place].items():  # all layers at once, once per batch
                parts |= {name: layers.weights(self.rule).unsqueeze(1), f"{name}_bias": layers.bias.unsqueeze(1)}
            adapt = partial(bottleneck, activation=self.config.activation)
            adapters[stack, place] = [partial(adapt, tensors, None) for tensors in by_layer(parts)]
        return Additions(adapters=adapters, dtype=self.dtype)
