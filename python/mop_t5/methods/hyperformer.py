"""HyperFormer: adapters whose weights come from a hypernetwork, for every scenario, layer and kind of sub-layer.

Adapter: y = x + LN(activation(x W_down + b) W_up + b), after self-attention and feed-forward, LN with eps 1e-5.
HyperFormer++: e = LN(relu([z_s; l_i; k_j] W_1 + b) W_2 + b) with eps 1e-6, and each tensor of an adapter, gain and bias
of its LN among them, is a linear map of e. z_s is the embedding of the scenario, l_i of the layer, k_j of the kind of
sub-layer. Encoder and decoder have networks of their own and share z_s.

Source: Mahabadi et al. 2021 and rabeehk/hyperformer, whose start is kept: maps N(0, 0.01^2) with bias 0.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Unpack

import torch
from torch import Tensor, nn

from mop_kernels.functional import ACTIVATIONS
from mop_t5.attachment.additions import STACKS, Additions
from mop_t5.attachment.method import MethodConfig, Where
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import at_least, check_some_scenario, one_of
from mop_t5.methods import register
from mop_t5.methods.parts.adapter_method import bottleneck, bottleneck_shapes, by_layer
from mop_t5.methods.parts.hypernetwork import HypernetworkMethod
from mop_t5.methods.parts.modules import ModuleDictOf, ModuleListOf

_PLACES = ("feed_forward", "self_attention")  # in the order of the kinds
_PRESETS = {
    "published": {},
    # the only fit to the MOP paper's Table 4 (2.320 % of T5-pegasus) that keeps the published reduction and d_projected
    "table4": {"d_embedding": 768, "d_hidden": 256},
}


@dataclass(frozen=True)
class HyperFormerConfig(MethodConfig):
    """Fields of the method "hyperformer".

    Args:
        scenarios: names of the scenarios, at least one.
        variant: "plus_plus": one network per stack makes all adapters from scenario, layer and kind. "unique": the
            network does not see the kind, and each kind has its own linear maps. "per_layer": each layer and kind has
            its own linear maps, from the scenario alone.
        d_embedding: width of the embeddings of scenarios, layers and kinds.
        d_hidden: hidden width of the network that makes e.
        d_projected: width of e.
        reduction: the adapters' hidden width is d_model // reduction.
        activation: of the adapters: "gelu_tanh", "relu", "gelu", "silu" (swish), "tanh" or "identity".
        pre_norm: another LN, before the adapter's down map.
        conditional_layer_norm: the gain and bias of the LNs are made by the network. False, which needs
            variant="per_layer": they are parameters, shared by the scenarios.
        embedding_network: for variant="per_layer": a network d_embedding -> d_hidden -> d_projected stands between the
            scenario's embedding and the linear maps. Both stacks share it.
        layer_norms: train the backbone's own LayerNorms too.
        preset: "published", the sizes of the public configuration, or "table4", sizes that give the 2.320 % of the MOP
            paper's Table 4. Fields that you set override the preset (a default value does not).
    """

    variant: Annotated[str, one_of("plus_plus", "unique", "per_layer")] = "plus_plus"
    d_embedding: Annotated[int, at_least(1)] = 64
    d_hidden: Annotated[int, at_least(1)] = 128
    d_projected: Annotated[int, at_least(1)] = 64
    reduction: Annotated[int, at_least(1)] = 32
    activation: Annotated[str, one_of(*ACTIVATIONS)] = "gelu_tanh"
    pre_norm: bool = False
    conditional_layer_norm: bool = True
    embedding_network: bool = False
    layer_norms: bool = True
    preset: str | None = None

    def __post_init__(self):
        super().__post_init__()
        self._fill_in(_PRESETS, self.preset)
        check_some_scenario(self.scenarios)
        for name, elsewhere in (("conditional_layer_norm", True), ("embedding_network", False)):
            if getattr(self, name) != elsewhere and self.variant != "per_layer":
                raise ValueError(
                    f"{name} must be {elsewhere} where variant={self.variant!r}; got {not elsewhere}. Use "
                    "variant='per_layer'."
                )


class _AdapterMaps(nn.Module):
    """The tensors of adapters by name, each from a linear map (..., d_in) -> (..., *its shape) reshaped row-major.

    The LNs' gain and bias are parameters where they are not conditional.
    """

    def __init__(self, d_in: int, config: HyperFormerConfig, shape: BackboneShape, **where: Unpack[Where]):
        super().__init__()
        self.shapes = bottleneck_shapes(shape, config.reduction)
        self.norms = nn.ParameterDict()
        for norm in ("post", "pre") if config.pre_norm else ("post",):
            for name, start in ((norm, torch.ones), (f"{norm}_bias", torch.zeros)):
                if config.conditional_layer_norm:
                    self.shapes[name] = (shape.d_model,)
                else:
                    self.norms[name] = nn.Parameter(start(shape.d_model, **where))
        self.maps = nn.ModuleDict({name: _linear(d_in, math.prod(size), **where) for name, size in self.shapes.items()})

    def forward(self, embedding: Tensor) -> dict[str, Tensor]:
        """Return the tensors of the adapters, each (..., *its shape)."""
        made = {name: self.maps[name](embedding).unflatten(-1, shape) for name, shape in self.shapes.items()}
        return made | {name: p.expand(*embedding.shape[:-1], -1) for name, p in self.norms.items()}


class _StackHypernetwork(nn.Module):
    """All adapters of the encoder or of the decoder, from scenario embeddings (rows, d_embedding or d_projected)."""

    def __init__(self, config: HyperFormerConfig, d_in: int, shape: BackboneShape, layers: int, **where: Unpack[Where]):
        super().__init__()
        c, self.variant, self.layers = config, config.variant, layers
        if c.variant != "per_layer":
            self.layer_embeddings = nn.Embedding(layers, d_in, **where)
            if c.variant == "plus_plus":
                self.kind_embeddings = nn.Embedding(len(_PLACES), d_in, **where)
            parts = 3 if c.variant == "plus_plus" else 2
            self.network = _two_layers(parts * d_in, c.d_hidden, c.d_projected, **where)
            self.norm = nn.LayerNorm(c.d_projected, eps=1e-6, **where)
            d_in = c.d_projected
        count = {"plus_plus": 1, "unique": len(_PLACES), "per_layer": len(_PLACES) * layers}[c.variant]
        # unique: in the order of the kinds; per_layer: kind by kind, in each layer by layer
        self.adapters: ModuleListOf[_AdapterMaps] = ModuleListOf(
            _AdapterMaps(d_in, c, shape, **where) for _ in range(count)
        )

    def forward(self, scenarios: Tensor) -> dict[str, list[dict[str, Tensor]]]:
        """Return place -> the tensors of the adapter of each layer, each (rows, ...)."""
        made = {}
        for kind, place in enumerate(_PLACES):
            if self.variant == "per_layer":
                first = kind * self.layers
                made[place] = [self.adapters[first + layer](scenarios) for layer in range(self.layers)]
            else:
                maps = self.adapters[0 if self.variant == "plus_plus" else kind]
                made[place] = by_layer(maps(self._condition(scenarios, kind)))
        return made

    def _condition(self, scenarios: Tensor, kind: int) -> Tensor:
        """Return e of every layer and scenario: (layers, rows, d_projected)."""
        parts = [scenarios.unsqueeze(0), self.layer_embeddings.weight.unsqueeze(1)]
        if self.variant == "plus_plus":
            parts.append(self.kind_embeddings.weight[kind])
        joined = torch.cat([p.expand(self.layers, len(scenarios), -1) for p in parts], dim=-1)
        return self.norm(self.network(joined))


def _linear(d_in: int, d_out: int, **where: Unpack[Where]) -> nn.Linear:
    linear = nn.Linear(d_in, d_out, **where)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return linear


def _two_layers(d_in: int, d_hidden: int, d_out: int, **where: Unpack[Where]) -> nn.Sequential:
    return nn.Sequential(_linear(d_in, d_hidden, **where), nn.ReLU(), _linear(d_hidden, d_out, **where))


@register
class HyperFormer(HypernetworkMethod[HyperFormerConfig]):
    """The scenarios' embeddings and the networks that make adapters of them."""

    name = "hyperformer"
    Config = HyperFormerConfig
    adapter_places = tuple((stack, place) for stack in STACKS for place in _PLACES)

    def __init__(self, config: HyperFormerConfig, shape: BackboneShape, **where: Unpack[Where]):
        c = config
        super().__init__(c, shape, (c.d_embedding,), **where)
        d_in = c.d_embedding
        self.embedding_network: nn.Sequential | None = None
        if c.embedding_network:
            self.embedding_network = _two_layers(d_in, c.d_hidden, c.d_projected, **where)
            d_in = c.d_projected
        self.hypernetworks: ModuleDictOf[_StackHypernetwork] = ModuleDictOf(
            {s: _StackHypernetwork(c, d_in, shape, shape.layers(s), **where) for s in STACKS}
        )

    def additions(self, scenario_ids: Tensor | None = None) -> Additions:
        """Return the adapters that the networks make for the scenarios of a batch."""
        rows, needed = self.embeddings(scenario_ids)
        if self.embedding_network is not None:
            rows = self.embedding_network(rows)
        adapt = partial(bottleneck, activation=self.config.activation)
        adapters = {
            (stack, place): tuple(partial(adapt, tensors, needed) for tensors in layers)
            for stack, hypernetwork in self.hypernetworks.items()
            for place, layers in hypernetwork(rows).items()
        }
        return Additions(scenarios=needed, adapters=adapters, dtype=self.dtype)
