"""Compacter: adapters of PHM layers that share one rule and whose locals have rank one (Mahabadi et al. 2021).

y = x + ( activation(x W_down + b) W_up + b ), after self-attention and feed-forward of encoder and decoder. Every W is
sum_i rule_i (x) (left_i right_i), the terms x terms matrices rule_i being the same in all of them (mop_kernels).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from mop_kernels import phm_weight
from mop_kernels.functional import ACTIVATIONS
from mop_t5.attachment.additions import STACKS, Adapter, Additions
from mop_t5.attachment.method import Device, DType, MethodConfig
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import check_choice, check_least, check_number
from mop_t5.methods import register
from mop_t5.methods.parts.adapter_method import AdapterMethod, bottleneck, by_layer, depth

_PLACES = {"compacter": ("self_attention", "feed_forward"), "plus_plus": ("feed_forward",)}


@dataclass(frozen=True)
class CompacterConfig(MethodConfig):
    """Fields of the method "compacter".

    scenarios: names of the scenarios, for the record: they share the adapters.
    variant: "compacter", adapters after self-attention and feed-forward; "plus_plus", after feed-forward only.
    terms: Kronecker terms, and the sides of the rules; must divide d_model and d_model // reduction.
    reduction: the adapters' hidden width is d_model // reduction.
    local_rank: rank of the locals; None trains them whole (the PHM adapters of the same paper).
    rule_std: the rules start at N(0, rule_std^2), so small that the adapters start as the identity. The locals start
        Glorot-uniform with gain sqrt(2), the biases at 0.
    activation: "gelu_tanh", "relu", "gelu", "silu", "tanh" or "identity".
    layer_norms: train the backbone's own LayerNorms too.
    """

    variant: str = "compacter"
    terms: int = 4
    reduction: int = 32
    local_rank: int | None = 1
    rule_std: float = 1e-4
    activation: str = "gelu_tanh"
    layer_norms: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_choice("variant", self.variant, _PLACES)
        check_least(self, 1, "terms", "reduction", "local_rank")
        check_number("rule_std", self.rule_std, above=0)
        check_choice("activation", self.activation, ACTIVATIONS)


class _Locals(nn.Module):
    """The locals and the biases of one map in every layer of one place."""

    def __init__(
        self, layers: int, d_in: int, d_out: int, terms: int, local_rank: int | None, device: Device, dtype: DType
    ):
        super().__init__()
        loc_in, loc_out = d_in // terms, d_out // terms
        shapes = [(loc_in, loc_out)] if local_rank is None else [(loc_in, local_rank), (local_rank, loc_out)]
        self.factors = nn.ParameterList(torch.empty(layers, terms, *s, device=device, dtype=dtype) for s in shapes)
        self.bias = nn.Parameter(torch.zeros(layers, d_out, device=device, dtype=dtype))
        for factor in self.factors:
            bound = math.sqrt(12 / sum(factor.shape[-2:]))  # Glorot's, with gain sqrt(2)
            nn.init.uniform_(factor, -bound, bound)

    def weights(self, rule: Tensor) -> Tensor:
        """Return the weights (layers, d_out, d_in), as F.linear takes them."""
        local = self.factors[0] if len(self.factors) == 1 else self.factors[0] @ self.factors[1]
        return phm_weight(rule, local).mT


class _Adapters(nn.Module):
    """The adapters of every layer of one place."""

    def __init__(self, layers: int, d_model: int, config: CompacterConfig, device: Device, dtype: DType):
        super().__init__()
        d_mid, factors = d_model // config.reduction, (config.terms, config.local_rank, device, dtype)
        self.down = _Locals(layers, d_model, d_mid, *factors)
        self.up = _Locals(layers, d_mid, d_model, *factors)

    def functions(self, rule: Tensor, activation: str) -> tuple[Adapter, ...]:
        """Return one adapter per layer. All W of the place are built in two calls, once per batch."""
        parts = {"down": self.down.weights(rule), "down_bias": self.down.bias}
        parts |= {"up": self.up.weights(rule), "up_bias": self.up.bias}
        # one row, which serves all scenarios
        layers = by_layer({name: part.unsqueeze(1) for name, part in parts.items()})
        return tuple(partial(bottleneck, tensors, None, activation=activation) for tensors in layers)


@register
class Compacter(AdapterMethod[CompacterConfig, _Adapters]):
    """The rule and, place by place, the locals and biases of all adapters."""

    name = "compacter"
    Config = CompacterConfig
    groups: ClassVar = {"rule": ("rule",), "adapters": ("adapters",)}

    def __init__(self, config: CompacterConfig, shape: BackboneShape, device: Device = None, dtype: DType = None):
        c, d_mid = config, shape.d_model // config.reduction
        for what, width in (("d_model", shape.d_model), ("d_model // reduction", d_mid)):
            if width == 0 or width % c.terms:
                raise ValueError(
                    f"terms must divide {what} = {width}; got {c.terms}. Choose other terms or another reduction."
                )
        super().__init__(c, shape)
        self.rule = nn.Parameter(torch.empty(c.terms, c.terms, c.terms, device=device, dtype=dtype))
        nn.init.normal_(self.rule, std=c.rule_std)
        self.place_adapters(
            [(stack, place) for stack in STACKS for place in _PLACES[c.variant]],
            lambda stack, place: _Adapters(depth(shape, stack), shape.d_model, c, device, dtype),
        )

    def additions(self, scenario_ids: Tensor | None = None) -> Additions:
        """Return the adapters, which all scenarios share."""
        return Additions(
            adapters={
                (stack, place): self.adapters[stack][place].functions(self.rule, self.config.activation)
                for stack, place in self.adapter_places
            },
            dtype=self.dtype,
        )
