"""Adapters: a bottleneck after sub-layers of a frozen T5 (Houlsby et al. 2019), and AdapterDrop (Rücklé et al. 2021).

y = x + W_up activation(W_down x + b) + b, after self-attention and feed-forward of encoder and decoder, as in the code
of Compacter and ATTEMPT (rabeehk/compacter, AkariAsai/ATTEMPT), whose start is kept: W N(0, 0.01^2), b 0.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Unpack

import torch
from torch import Tensor, nn

from mop_kernels.functional import ACTIVATIONS
from mop_t5.attachment.additions import PLACES, Additions
from mop_t5.attachment.additions import Adapter as AdapterFunction
from mop_t5.attachment.method import Where
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import at_least, check_int, check_least, check_subset, one_of
from mop_t5.methods import register
from mop_t5.methods.parts.adapter_method import PerScenarioAdapters, PerScenarioConfig, bottleneck, bottleneck_shapes

_PLACES = tuple(dict.fromkeys(place for _, place in PLACES))


@dataclass(frozen=True)
class AdapterConfig(PerScenarioConfig):
    """Fields of the method "adapter".

    Args:
        scenarios: names of the scenarios, at least one with per_scenario.
        per_scenario: one adapter per scenario. False: all scenarios share the adapters.
        places: the sub-layers that have an adapter behind them: some of "self_attention", "cross_attention" (of the
            decoder) and "feed_forward".
        reduction: the adapters' hidden width is d_model // reduction.
        activation: "gelu_tanh" (the approximation by tanh, "gelu_new" in transformers), "relu", "gelu", "silu", "tanh"
            or "identity".
        layer_norms: train the backbone's own LayerNorms too. All scenarios share them.
        drop_layers: AdapterDrop: number of first layers of encoder and decoder that have no adapters.
        drop_up_to: robust AdapterDrop: all layers have adapters. Training leaves out the adapters of the first n
            layers; n is drawn for every batch from 0 to drop_up_to. Evaluation leaves out drop_layers; the method's
            `drop` changes this number.
    """

    places: tuple[str, ...] = ("self_attention", "feed_forward")
    reduction: Annotated[int, at_least(1)] = 32
    activation: Annotated[str, one_of(*ACTIVATIONS)] = "gelu_tanh"
    layer_norms: bool = True
    drop_layers: Annotated[int, at_least(0)] = 0
    drop_up_to: int | None = None

    def __post_init__(self):
        super().__post_init__()
        self._set("places", check_subset("places", self.places, _PLACES))
        check_least(self, max(self.drop_layers, 1), "drop_up_to")


@register
class Adapter(PerScenarioAdapters[AdapterConfig]):
    """One bottleneck per place, layer and row.

    adapters[stack][place] has down (layers, rows, d_mid, d_model), up (layers, rows, d_model, d_mid) and their biases.
    layers: the layers of the stack without the dropped layers. rows: the scenarios with an adapter of their own, or 1.
    """

    name = "adapter"
    Config = AdapterConfig

    def __init__(self, config: AdapterConfig, shape: BackboneShape, **where: Unpack[Where]):
        c, shapes = config, bottleneck_shapes(shape, config.reduction)
        super().__init__(c, shape)
        known = min(shape.num_layers, shape.num_decoder_layers)
        # number of first layers without parameters; at least one layer must keep its adapters
        self.dropped = c.drop_layers if c.drop_up_to is None else 0
        if self.dropped >= known or (c.drop_up_to or 0) > known:
            raise ValueError(
                f"drop_layers must be below {known}, the number of layers of the shorter stack, and drop_up_to at most "
                f"that; got {c.drop_layers} and {c.drop_up_to}."
            )

        def make(stack: str, place: str) -> nn.ParameterDict:
            leading = (shape.layers(stack) - self.dropped, self.rows)
            return nn.ParameterDict({n: nn.Parameter(torch.zeros(*leading, *s, **where)) for n, s in shapes.items()})

        self.place_adapters([(stack, place) for stack, place in PLACES if place in c.places], make)
        for stack, place in self.adapter_places:
            for name in ("down", "up"):
                nn.init.normal_(self.adapters[stack][place][name], std=0.01)

    def drop(self, layers: int) -> None:
        """Evaluate without the adapters of the first `layers` layers (robust AdapterDrop). Saved with the method.

        Raises:
            ValueError: Training did not leave out so many layers.
        """
        check_int("layers", layers, 0)
        most = self.config.drop_up_to
        if most is None or layers > most:
            raise ValueError(
                f"layers must be at most drop_up_to = {most}, for which the adapters were trained; got {layers}."
            )
        self.config = replace(self.config, drop_layers=layers)

    def additions(self, scenario_ids: Tensor | None = None) -> Additions:
        """Return the adapters of all layers but the dropped ones."""
        c = self.config
        made = self.additions_of(scenario_ids, partial(bottleneck, activation=c.activation))
        if c.drop_up_to and self.training:
            # compilers and parallel training need a choice on the device and a gradient for every parameter
            dropped = torch.randint(c.drop_up_to + 1, (), device=next(self.parameters()).device)
            for place, layers in made.adapters.items():
                made.adapters[place] = [a and partial(_keep, a, dropped <= layer) for layer, a in enumerate(layers)]
        else:
            for place, layers in made.adapters.items():
                made.adapters[place] = [*[None] * c.drop_layers, *layers[c.drop_layers - self.dropped :]]
        return made


def _keep(adapter: AdapterFunction, kept: Tensor, hidden: Tensor, scenario_ids: Tensor | None) -> Tensor:
    return torch.where(kept, adapter(hidden, scenario_ids), hidden)
