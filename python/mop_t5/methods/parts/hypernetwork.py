"""Shared code of HyperFormer and HyperPrefix: one trained embedding per scenario, from which networks make all else."""

from typing import Unpack

import torch
from torch import Tensor, nn

from mop_t5.attachment.method import ConfigT, Method, Where
from mop_t5.backbone.load import BackboneShape


class HypernetworkMethod(Method[ConfigT]):
    """Base of HyperFormer and HyperPrefix.

    Args:
        config: The config.
        shape: The sizes of the backbone.
        embedding: Shape of the embedding of one scenario, drawn from N(0, 1).
        where: Device and dtype of the parameters.
    """

    def __init__(self, config: ConfigT, shape: BackboneShape, embedding: tuple[int, ...], **where: Unpack[Where]):
        super().__init__(config, shape)
        self.distinguishes_scenarios = len(config.scenarios) > 1
        self.scenario_embeddings = nn.Parameter(torch.randn(len(config.scenarios), *embedding, **where))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the groups "scenario_embeddings" and "hypernetworks", all other parameters."""
        others = [p for p in self.parameters() if p is not self.scenario_embeddings]
        return {"scenario_embeddings": [self.scenario_embeddings], "hypernetworks": others}

    def embeddings(self, scenario_ids: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the embeddings (rows, ...) of the scenarios of a batch, and these scenarios (rows,), or None: all."""
        needed = self.needed_scenarios(scenario_ids)
        rows = self.scenario_embeddings if needed is None else self.scenario_embeddings[needed]
        return self.only_trained(rows, needed), needed
