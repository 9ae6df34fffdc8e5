"""BitFit (Ben Zaken et al. 2022): only biases are trained. T5 has none, so they are added and start at 0.

As in the code of Compacter and ATTEMPT (rabeehk/compacter, AkariAsai/ATTEMPT): a bias on q, k, v and o of every
attention, on the maps of every feed-forward network, on the LayerNorm of every sub-layer, and on the head. The last
LayerNorm of a stack has no bias. The bias of k adds the same number to all scores of a query, so the softmax cancels
it. The published code trains and counts this bias, although it has no effect, and so does this method.
"""

from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn

from mop_t5.attachment.additions import HEAD, INNER_PLACES, PLACES, Additions, row_index
from mop_t5.attachment.method import Where
from mop_t5.backbone.load import BackboneShape
from mop_t5.methods import register
from mop_t5.methods.parts.adapter_method import PerScenarioAdapters, PerScenarioConfig, Tensors, own_row


@dataclass(frozen=True)
class BitFitConfig(PerScenarioConfig):
    """Fields of the method "bitfit".

    Args:
        scenarios: names of the scenarios, at least one with per_scenario.
        per_scenario: one set of biases per scenario. False: all scenarios share the biases.
        lm_head: also train a bias on the head (vocab_size numbers).
    """

    lm_head: bool = True


@register
class BitFit(PerScenarioAdapters[BitFitConfig]):
    """BitFit. adapters[stack][place]["bias"] is (layers, rows, width). rows: the number of scenarios, or 1 for all."""

    name = "bitfit"
    Config = BitFitConfig

    def __init__(self, config: BitFitConfig, shape: BackboneShape, **where: Unpack[Where]):
        super().__init__(config, shape)
        absent = {"feed_forward_wi"} if shape.is_gated_act else {"feed_forward_wi_0", "feed_forward_wi_1"}
        if not config.lm_head:
            absent.add("lm_head")

        def make(stack: str, place: str) -> nn.ParameterDict:
            layers = 1 if (stack, place) == HEAD else shape.layers(stack)
            bias = torch.zeros(layers, self.rows, _width(place, shape), **where)
            return nn.ParameterDict({"bias": nn.Parameter(bias)})

        self.place_adapters([p for p in PLACES + INNER_PLACES if p[1] not in absent], make)

    def additions(self, scenario_ids: Tensor | None = None) -> Additions:
        """Return one shift per place and layer."""
        return self.additions_of(scenario_ids, _shift)


def _width(place: str, shape: BackboneShape) -> int:
    if place == "lm_head":
        return shape.vocab_size
    if place.endswith(("_q", "_k", "_v")):
        return shape.inner
    return shape.d_ff if "_wi" in place else shape.d_model


def _shift(tensors: Tensors, scenarios: Tensor | None, hidden: Tensor, scenario_ids: Tensor | None) -> Tensor:
    bias = tensors["bias"]
    return hidden + own_row(bias, row_index(scenarios, scenario_ids, len(bias)))
