"""Prefix-tuning with an MLP: one generator per attention, shared by all scenarios (Li and Liang 2021; MOP, Table 2)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from mop_t5.attachment.additions import ATTENTIONS, Additions
from mop_t5.attachment.method import Device, DType, Method, MethodConfig
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import check_choice, check_least, check_number
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

    prefix_length: int = 40
    d_mid: int = 128
    activation: str = "tanh"
    dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_least(self, 0, "prefix_length")
        check_least(self, 1, "d_mid")
        check_choice("activation", self.activation, ACTIVATIONS)
        check_number("dropout", self.dropout, 0, below=1)


@register
class PrefixTuning(Method[PrefixTuningConfig]):
    """Three independent generators: encoder self-attention, decoder self-attention, cross-attention."""

    name = "prefix_tuning"
    Config = PrefixTuningConfig
    groups: ClassVar = {"generators": ("generators",)}

    def __init__(self, config: PrefixTuningConfig, shape: BackboneShape, device: Device = None, dtype: DType = None):
        super().__init__(config, shape)
        sizes = (config.prefix_length, config.d_mid, config.activation, config.dropout)
        self.generators: ModuleDictOf[MLPGenerator] = ModuleDictOf(
            {a: MLPGenerator(shape, shape.layers(a), *sizes, device, dtype) for a in ATTENTIONS}
        )

    def additions(self, scenario_ids: torch.Tensor | None = None) -> Additions:
        """Return the prefixes, which all scenarios share."""
        return Additions({attention: generator.pairs() for attention, generator in self.generators.items()})
