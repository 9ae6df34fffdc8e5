"""What HyperFormer and HyperPrefix share: one trained embedding a scenario, from which networks make all else."""

from collections.abc import Iterator

import torch
from torch import nn

from mop_t5.attachment.method import Method, MethodConfig, is_layer_norm
from mop_t5.backbone.load import BackboneShape


class HypernetworkMethod(Method):
    """Base of both. The config says in `layer_norms` whether the backbone's LayerNorms are trained.

    embedding: shape of one scenario's embedding, drawn from N(0, 1).
    """

    def __init__(self, config: MethodConfig, shape: BackboneShape, embedding: tuple[int, ...], device, dtype):
        super().__init__(config, shape)
        size = (len(config.scenarios), *embedding)
        self.scenario_embeddings = nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        nn.init.normal_(self.scenario_embeddings)

    @property
    def distinguishes_scenarios(self) -> bool:
        return len(self.scenarios) > 1

    def embeddings(self, scenario_ids: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The embeddings (rows, ...) of the scenarios that a batch needs, and these (rows,), or None for all."""
        needed = self.needed_scenarios(scenario_ids)
        rows = self.scenario_embeddings if needed is None else self.scenario_embeddings[needed]
        return self.only_trained(rows, needed), needed

    def trains_backbone(self, parameter_name: str) -> bool:
        return self.config.layer_norms and is_layer_norm(parameter_name)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        others = [p for p in self.parameters() if p is not self.scenario_embeddings]
        return {"scenario_embeddings": [self.scenario_embeddings], "hypernetworks": others}

    def expert_parameters(self) -> Iterator[tuple[nn.Parameter, int]]:
        if len(self.scenarios) > 1:  # one that is alone is never absent
            yield self.scenario_embeddings, 0
