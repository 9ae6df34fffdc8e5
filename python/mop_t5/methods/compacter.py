"""Compacter: adapters of PHM layers that share one rule and whose locals have rank one (Mahabadi et al. 2021).

y = x + ( activation(x W_down + b) W_up + b ), after self-attention and feed-forward of encoder and decoder. Every W is
sum_i rule_i (x) (left_i right_i), the terms x terms matrices rule_i being the same in all of them (mop_kernels).
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import nn

from mop_kernels import phm_weight
from mop_kernels.functional import ACTIVATIONS
from mop_t5.attachment.additions import Additions
from mop_t5.attachment.method import MethodConfig, is_layer_norm
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import check_bool, check_choice, check_int, check_positive
from mop_t5.methods import register
from mop_t5.methods.parts.adapter_method import AdapterMethod, bottleneck, depth

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
        check_choice("variant", self.variant, tuple(_PLACES))
        check_int("terms", self.terms, 1)
        check_int("reduction", self.reduction, 1)
        if self.local_rank is not None:
            check_int("local_rank", self.local_rank, 1)
        check_positive("rule_std", self.rule_std)
        check_choice("activation", self.activation, tuple(ACTIVATIONS))
        check_bool("layer_norms", self.layer_norms)


class _Locals(nn.Module):
    """The locals and the biases of one map in every layer of one place."""

    def __init__(self, layers: int, d_in: int, d_out: int, terms: int, local_rank: int | None, device, dtype):
        super().__init__()
        loc_in, loc_out = d_in // terms, d_out // terms
        shapes = [(loc_in, loc_out)] if local_rank is None else [(loc_in, local_rank), (local_rank, loc_out)]
        self.factors = nn.ParameterList(torch.empty(layers, terms, *s, device=device, dtype=dtype) for s in shapes)
        self.bias = nn.Parameter(torch.zeros(layers, d_out, device=device, dtype=dtype))
        for factor in self.factors:
            bound = math.sqrt(12 / sum(factor.shape[-2:]))  # Glorot's, with gain sqrt(2)
            nn.init.uniform_(factor, -bound, bound)

    def weights(self, rule: torch.Tensor) -> torch.Tensor:
        """(layers, d_out, d_in), as F.linear takes them."""
        local = self.factors[0] if len(self.factors) == 1 else self.factors[0] @ self.factors[1]
        return phm_weight(rule, local).mT


class _Adapters(nn.Module):
    """The adapters of every layer of one place."""

    def __init__(self, layers: int, d_model: int, config: CompacterConfig, device, dtype):
        super().__init__()
        d_mid, factors = d_model // config.reduction, (config.terms, config.local_rank, device, dtype)
        self.down = _Locals(layers, d_model, d_mid, *factors)
        self.up = _Locals(layers, d_mid, d_model, *factors)

    def functions(self, rule: torch.Tensor, activation: str) -> tuple:
        """One adapter a layer, as Additions takes them. All W of the place are built in two calls, once a batch."""
        parts = {"down": self.down.weights(rule), "down_bias": self.down.bias}
        parts |= {"up": self.up.weights(rule), "up_bias": self.up.bias}
        # one row, which serves all scenarios
        layers = zip(*(part.unsqueeze(1).unbind(0) for part in parts.values()), strict=True)
        adapt = functools.partial(bottleneck, activation=activation)
        return tuple(functools.partial(adapt, dict(zip(parts, layer)), None) for layer in layers)


@register
class Compacter(AdapterMethod):
    """The rule and, place by place, the locals and biases of all adapters."""

    name = "compacter"
    Config = CompacterConfig

    def __init__(self, config: CompacterConfig, shape: BackboneShape, device=None, dtype=None):
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
            [(stack, place) for stack in ("encoder", "decoder") for place in _PLACES[c.variant]],
            lambda stack, place: _Adapters(depth(shape, stack), shape.d_model, c, device, dtype),
        )

    def additions(self, scenario_ids: torch.Tensor | None = None) -> Additions:
        return Additions(
            adapters={
                (stack, place): self.adapters[stack][place].functions(self.rule, self.config.activation)
                for stack, place in self.adapter_places
            },
            dtype=self.dtype,
        )

    def trains_backbone(self, parameter_name: str) -> bool:
        return self.config.layer_norms and is_layer_norm(parameter_name)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"rule": [self.rule]} | super().parameter_groups()
