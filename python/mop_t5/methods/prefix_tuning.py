"""Prefix-tuning with an MLP: one generator per attention, shared by all scenarios (Li and Liang 2021; MOP, Table 2)."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Unpack

import torch

from mop_t5.attachment.additions import ATTENTIONS, Additions
from mop_t5.attachment.method import Method, MethodConfig, Where
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import at_least, one_of, within
from mop_t5.methods import register
from mop_t5.methods.parts.mlp_generator import ACTIVATIONS, MLPGenerator
from mop_t5.methods.parts.modules import ModuleDictOf


@dataclass(frozen=True)
class PrefixTuningConfig(MethodConfig):
    """Fields of the method "prefix_tuning".

    Args:
        scenarios: names of the scenarios, for the record: they share one prefix.
        prefix_length: prefix rows in every attention. 0 gives the plain model.
        d_mid: width of the hidden layer of the generators.
        activation: of the hidden layer: "tanh", "relu", "gelu", "silu" or "identity".
        dropout: probability, after the last layer of the generators.
    """

    prefix_length: Annotated[int, at_least(0)] = 40
    d_mid: Annotated[int, at_least(1)] = 128
    activation: Annotated[str, one_of(*ACTIVATIONS)] = "tanh"
    dropout: Annotated[float, within(0, below=1)] = 0.0


@register
class PrefixTuning(Method[PrefixTuningConfig]):
    """Three independent generators: encoder self-attention, decoder self-attention, cross-attention."""

    name = "prefix_tuning"
    Config = PrefixTuningConfig
    groups: ClassVar = {"generators": ("generators",)}

    def __init__(self, config: PrefixTuningConfig, shape: BackboneShape, **where: Unpack[Where]):
        super().__init__(config, shape)
        sizes = (config.prefix_length, config.d_mid, config.activation, config.dropout)
        self.generators: ModuleDictOf[MLPGenerator] = ModuleDictOf(
            {a: MLPGenerator(shape, shape.layers(a), *sizes, **where) for a in ATTENTIONS}
        )

    def additions(self, scenario_ids: torch.Tensor | None = None) -> Additions:
        """Return the prefixes, which all scenarios share."""
        return Additions({attention: generator.pairs() for attention, generator in self.generators.items()})
