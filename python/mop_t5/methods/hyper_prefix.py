"""HyperPrefix: one network makes the prefixes of all attentions from embeddings of scenario, layer and attention.

For prefix row n: I = relu([z_s; l_i; b_j] W_1 + b) W_2 + b, [P_K, P_V] = I W_3 + b, each embedding one row of its
(prefix, d_embedding) matrix. All three maps serve all scenarios, layers and attentions.

Source: the prefix part of HyperPELT (Zhang et al. 2022). No code of it is public, and the MOP paper, where it is a row
of Table 2, gives no sizes. Sizes and start are our choice: N(0, 1) for the embeddings, PyTorch's default for the maps.
"""

from dataclasses import dataclass
from typing import Annotated, Unpack

import torch
from torch import nn

from mop_t5.attachment.additions import ATTENTIONS, Additions
from mop_t5.attachment.method import MethodConfig, Where
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import at_least, check_some_scenario
from mop_t5.methods import register
from mop_t5.methods.parts.hypernetwork import HypernetworkMethod

_PRESETS = {
    "small": {},
    # all widths of "small" times 12.375: five scenarios on T5-pegasus train 6,919,752 parameters, and 6,914,176 with
    # MOP's preset "paper"
    "matched": {"d_embedding": 792, "d_hidden": 1584, "d_projected": 792},
}


@dataclass(frozen=True)
class HyperPrefixConfig(MethodConfig):
    """Fields of the method "hyper_prefix".

    Args:
        scenarios: names of the scenarios, at least one.
        prefix_length: rows of the prefix, in every attention. 0 gives the plain model.
        d_embedding: width of the embeddings of scenario, layer and attention. Each has one row per prefix row.
        d_hidden: hidden width of the network.
        d_projected: width of the network's output, from which the last map makes keys and values.
        layer_norms: train the backbone's own LayerNorms too.
        preset: "small", the sizes of HyperFormer++'s public configuration, or "matched", with as many parameters as
            MOP's preset "paper". Fields that you set override the preset (a default value does not).
    """

    prefix_length: Annotated[int, at_least(0)] = 40
    d_embedding: Annotated[int, at_least(1)] = 64
    d_hidden: Annotated[int, at_least(1)] = 128
    d_projected: Annotated[int, at_least(1)] = 64
    layer_norms: bool = True
    preset: str | None = None

    def __post_init__(self):
        super().__post_init__()
        self._fill_in(_PRESETS, self.preset)
        check_some_scenario(self.scenarios)


@register
class HyperPrefix(HypernetworkMethod[HyperPrefixConfig]):
    """The embeddings, the network and its last map. Encoder layer i and decoder layer i share their embedding."""

    name = "hyper_prefix"
    Config = HyperPrefixConfig

    def __init__(self, config: HyperPrefixConfig, shape: BackboneShape, **where: Unpack[Where]):
        c = config
        super().__init__(c, shape, (c.prefix_length, c.d_embedding), **where)
        deepest = max(shape.num_layers, shape.num_decoder_layers)
        self.layer_embeddings = nn.Parameter(torch.randn(deepest, c.prefix_length, c.d_embedding, **where))
        self.attention_embeddings = nn.Parameter(torch.randn(len(ATTENTIONS), c.prefix_length, c.d_embedding, **where))
        self.hidden = nn.Linear(3 * c.d_embedding, c.d_hidden, **where)
        self.projection = nn.Linear(c.d_hidden, c.d_projected, **where)
        self.prefix = nn.Linear(c.d_projected, 2 * shape.inner, **where)

    def additions(self, scenario_ids: torch.Tensor | None = None) -> Additions:
        """Return the prefixes of all attentions for the scenarios of a batch."""
        scenarios, needed = self.embeddings(scenario_ids)
        # [z; l; b] W_1 is a sum of three products, of which two are the same for every scenario
        of_scenario, of_layer, of_attention = self.hidden.weight.split(self.config.d_embedding, dim=1)
        scenarios = nn.functional.linear(scenarios, of_scenario, self.hidden.bias)
        layers = nn.functional.linear(self.layer_embeddings, of_layer)
        attentions = nn.functional.linear(self.attention_embeddings, of_attention)
        prefixes = {}
        for attention, own in zip(ATTENTIONS, attentions, strict=True):
            hidden = scenarios + (layers[: self.shape.layers(attention)] + own).unsqueeze(1)
            rows = self.prefix(self.projection(hidden.relu()))  # (layers, scenarios, prefix, 2 * inner)
            rows = rows.unflatten(-1, (2, self.shape.num_heads, self.shape.d_kv))
            # (keys and values, layers, scenarios, heads, prefix, d_kv), copied once here and not at every step
            keys, values = rows.permute(3, 0, 1, 4, 2, 5).contiguous().unbind(0)
            prefixes[attention] = tuple(zip(keys.unbind(0), values.unbind(0), strict=True))
        return Additions(prefixes, needed)
