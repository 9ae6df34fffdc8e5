"""BitFit (Ben Zaken et al. 2022): only biases are trained. T5 has none, so they are added and start at 0.

As in the code of Compacter and ATTEMPT (rabeehk/compacter, AkariAsai/ATTEMPT): a bias on q, k, v and o of every
attention, on the maps of every feed-forward network, on the LayerNorm of every sub-layer, not on the last one of a
stack, and on the head. That of k is the same for all scores of a query, so the softmax cancels it: it is trained and
counted there, and here, without an effect.
"""

from dataclasses import dataclass

import torch
from torch import nn

from mop_t5.attachment.additions import Additions, row_index
from mop_t5.attachment.method import MethodConfig
from mop_t5.attachment.places import INNER_PLACES, PLACES
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import check_bool
from mop_t5.methods import register
from mop_t5.methods.parts.adapter_method import PerScenarioAdapters, check_per_scenario, depth, own_row

_HEAD = ("decoder", "lm_head")


@dataclass(frozen=True)
class BitFitConfig(MethodConfig):
    """Fields of the method "bitfit".

    scenarios: names of the scenarios, at least one with per_scenario.
    per_scenario: biases of its own for each scenario; else all share theirs.
    lm_head: a bias on the head, too: as many numbers as the vocabulary has tokens.
    """

    per_scenario: bool = False
    lm_head: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_per_scenario(self)
        check_bool("lm_head", self.lm_head)


@register
class BitFit(PerScenarioAdapters):
    """adapters[stack][place]["bias"]: (layers, rows, width), rows the scenarios that have their own, or 1."""

    name = "bitfit"
    Config = BitFitConfig

    def __init__(self, config: BitFitConfig, shape: BackboneShape, device=None, dtype=None):
        super().__init__(config, shape)
        absent = {"feed_forward_wi"} if shape.is_gated_act else {"feed_forward_wi_0", "feed_forward_wi_1"}
        if not config.lm_head:
            absent.add("lm_head")

        def make(stack: str, place: str) -> nn.ParameterDict:
            layers = 1 if (stack, place) == _HEAD else depth(shape, stack)
            bias = torch.zeros(layers, self.rows, _width(place, shape), device=device, dtype=dtype)
            return nn.ParameterDict({"bias": nn.Parameter(bias)})

        self.place_adapters([p for p in PLACES + INNER_PLACES if p[1] not in absent], make)

    def additions(self, scenario_ids: torch.Tensor | None = None) -> Additions:
        return self.additions_of(_shift, scenario_ids)


def _width(place: str, shape: BackboneShape) -> int:
    if place == "lm_head":
        return shape.vocab_size
    if place.endswith(("_q", "_k", "_v")):
        return shape.inner
    return shape.d_ff if "_wi" in place else shape.d_model


def _shift(tensors, scenarios, hidden, scenario_ids):
    bias = tensors["bias"]
    return hidden + own_row(bias, row_index(scenarios, scenario_ids, len(bias)))
