"""What the methods with adapters in the sub-layers have in common: where they lie, and what a bottleneck computes."""

import functools
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from mop_kernels.functional import ACTIVATIONS
from mop_t5.attachment.additions import Additions, row_index
from mop_t5.attachment.method import Method, MethodConfig
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import check_bool, check_some_scenario


class AdapterMethod(Method):
    """Base of the methods whose parameters are those of adapters: self.adapters[stack][place] has them for the layers.

    Which places it has, out of mop_t5.attachment.additions, is what `place_adapters` was given.
    """

    def place_adapters(self, places: Iterable[tuple[str, str]], make: Callable[[str, str], nn.Module]) -> None:
        """Set self.adapters[stack][place] = make(stack, place)."""
        self.adapters = nn.ModuleDict({stack: nn.ModuleDict() for stack in ("encoder", "decoder")})
        for stack, place in places:
            self.adapters[stack][place] = make(stack, place)

    @property
    def adapter_places(self) -> tuple[tuple[str, str], ...]:
        return tuple((stack, place) for stack in self.adapters for place in self.adapters[stack])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"adapters": list(self.adapters.parameters())}


class PerScenarioAdapters(AdapterMethod):
    """Base of those whose parameters are (layers, rows, ...): with config.per_scenario a row for each scenario, else
    one row that all share."""

    def __init__(self, config: MethodConfig, shape: BackboneShape):
        super().__init__(config, shape)
        self.rows = len(config.scenarios) if config.per_scenario else 1

    @property
    def distinguishes_scenarios(self) -> bool:
        return self.rows > 1

    def additions_of(self, adapt: Callable, scenario_ids: torch.Tensor | None) -> Additions:
        """In every layer adapt(tensors, scenarios, hidden, scenario_ids), tensors being its own (rows, ...) by name and
        scenarios (rows,) what these belong to, or None: in order."""
        needed = self.needed_scenarios(scenario_ids) if self.distinguishes_scenarios else None
        adapters = {}
        for stack, place in self.adapter_places:
            tensors = {name: self._picked(p, needed).unbind(0) for name, p in self.adapters[stack][place].items()}
            layers = [dict(zip(tensors, layer, strict=True)) for layer in zip(*tensors.values(), strict=True)]
            adapters[stack, place] = tuple(functools.partial(adapt, layer, needed) for layer in layers)
        return Additions(scenarios=needed, adapters=adapters, dtype=self.dtype)

    def _picked(self, parameter: torch.Tensor, needed: torch.Tensor | None) -> torch.Tensor:
        if not self.distinguishes_scenarios:
            return parameter
        return self.only_trained(parameter if needed is None else parameter[:, needed], needed, dim=1)

    def expert_parameters(self) -> Iterator[tuple[nn.Parameter, int]]:
        if self.distinguishes_scenarios:  # a scenario that is alone is never absent
            for parameter in self.adapters.parameters():
                yield parameter, 1


def depth(shape: BackboneShape, stack: str) -> int:
    return shape.num_layers if stack == "encoder" else shape.num_decoder_layers


def hidden_width(shape: BackboneShape, reduction: int) -> int:
    """d_model // reduction, if anything is left of it."""
    if reduction > shape.d_model:
        raise ValueError(f"reduction must be at most d_model = {shape.d_model}; got {reduction}. Choose a smaller one.")
    return shape.d_model // reduction


def check_per_scenario(config: MethodConfig) -> None:
    check_bool("per_scenario", config.per_scenario)
    if config.per_scenario:
        check_some_scenario(config.scenarios)


def bottleneck(
    tensors: dict[str, torch.Tensor],
    scenarios: torch.Tensor | None,
    hidden: torch.Tensor,
    scenario_ids: torch.Tensor | None,
    *,
    activation: str,
) -> torch.Tensor:
    """x + up(activation(down(x))), of each example by the adapter of its scenario: (batch, tokens, d_model) as hidden.

    tensors: of one adapter, each (rows, ...): down (rows, d_mid, d_model) and up (rows, d_model, d_mid), their biases,
    and the gains and biases of a LayerNorm before down ("pre") and after up ("post"), where there are any.
    scenarios: (rows,) what the rows belong to, or None: in order.
    """
    rows = row_index(scenarios, scenario_ids, len(tensors["down"]))
    x = _normed(hidden, tensors, "pre", rows)
    x = ACTIVATIONS[activation](_affine(x, tensors["down"], tensors["down_bias"], rows))
    x = _affine(x, tensors["up"], tensors["up_bias"], rows)
    return hidden + _normed(x, tensors, "post", rows)


def _normed(x: torch.Tensor, tensors: dict[str, torch.Tensor], norm: str, rows: torch.Tensor | None) -> torch.Tensor:
    if norm not in tensors:
        return x
    gain, bias = (own_row(tensors[name], rows) for name in (norm, f"{norm}_bias"))
    return F.layer_norm(x, x.shape[-1:]) * gain + bias


def own_row(vectors: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """What each example adds or multiplies: vectors (rows, n) -> (batch, 1, n), or (n,) where one row serves all."""
    return vectors.squeeze(0) if rows is None else vectors[rows].unsqueeze(1)


def _affine(x: torch.Tensor, weights: torch.Tensor, biases: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Each example times its matrix: x (batch, tokens, n) -> (batch, tokens, m).

    weights (rows, m, n), biases (rows, m). rows: (batch,) the one of each example, or None if one serves them all.
    """
    if rows is None:
        return F.linear(x, weights.squeeze(0), biases.squeeze(0))
    if x.shape[1] > 1:
        # advanced indexing: on a GPU its backward is a sorted sum, that of index_select adds in no fixed order
        return x @ weights[rows].mT + own_row(biases, rows)
    # at a decoding step a copy of its matrix an example would cost more than the products that are not picked
    every = F.linear(x.squeeze(1), weights.flatten(0, 1), biases.flatten()).unflatten(1, weights.shape[:2])
    return every[torch.arange(len(x), device=x.device), rows].unsqueeze(1)
