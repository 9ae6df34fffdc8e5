"""Shared code of the methods with adapters in the sub-layers: their places, and the computation of a bottleneck."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Generic, TypeAlias, TypeVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mop_kernels.functional import ACTIVATIONS
from mop_t5.attachment.additions import STACKS, Adapter, Additions, row_index
from mop_t5.attachment.method import ConfigT, Method, MethodConfig, Where
from mop_t5.backbone.load import BackboneShape
from mop_t5.checks import check_some_scenario
from mop_t5.methods.parts.modules import ModuleDictOf, ModuleT

Tensors: TypeAlias = Mapping[str, Tensor]


class AdapterMethod(Method[ConfigT], Generic[ConfigT, ModuleT]):
    """Base of the methods whose parameters belong to adapters.

    self.adapters[stack][place] holds the adapters of all layers of one place.
    """

    groups: ClassVar = {"adapters": ("adapters",)}

    def place_adapters(self, places: Iterable[tuple[str, str]], make: Callable[[str, str], ModuleT]) -> None:
        """Set self.adapters[stack][place] = make(stack, place) for places out of PLACES and INNER_PLACES."""
        self.adapters: ModuleDictOf[ModuleDictOf[ModuleT]] = ModuleDictOf({stack: ModuleDictOf() for stack in STACKS})
        for stack, place in places:
            self.adapters[stack][place] = make(stack, place)
        self.adapter_places = tuple((stack, place) for stack in STACKS for place in self.adapters[stack])


@dataclass(frozen=True)
class PerScenarioConfig(MethodConfig):
    """Base of the configs of PerScenarioAdapters.

    per_scenario: one adapter per scenario. False: all scenarios share the adapters.
    """

    per_scenario: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_scenario:
            check_some_scenario(self.scenarios)


PerScenarioT = TypeVar("PerScenarioT", bound=PerScenarioConfig)


class PerScenarioAdapters(AdapterMethod[PerScenarioT, nn.ParameterDict]):
    """Base of the methods whose parameters are (layers, rows, ...).

    With config.per_scenario there is one row per scenario, else one row that all scenarios share.
    """

    def __init__(self, config: PerScenarioT, shape: BackboneShape, **where: Unpack[Where]):
        super().__init__(config, shape)
        self.rows = len(config.scenarios) if config.per_scenario else 1
        self.distinguishes_scenarios = self.rows > 1

    def additions_of(
        self, scenario_ids: Tensor | None, adapt: Callable[[Tensors, Tensor | None, Tensor, Tensor | None], Tensor]
    ) -> Additions:
        """Return one adapter per place and layer.

        Args:
            scenario_ids: (batch,), or None for all scenarios.
            adapt: Function of (tensors, scenarios, hidden, scenario_ids). tensors are the tensors of one adapter, each
                (rows, ...). scenarios (rows,) are the scenarios of the rows. None: row s belongs to scenario s.
        """
        needed = self.needed_scenarios(scenario_ids)
        adapters: dict[tuple[str, str], tuple[Adapter, ...]] = {}
        for stack, place in self.adapter_places:
            tensors = {
                name: self.only_trained(p if needed is None else p[:, needed], needed, dim=1)
                for name, p in self.adapters[stack][place].items()
            }
            adapters[stack, place] = tuple(partial(adapt, of_layer, needed) for of_layer in by_layer(tensors))
        return Additions(scenarios=needed, adapters=adapters, dtype=self.dtype)


def by_layer(tensors: Tensors) -> list[dict[str, Tensor]]:
    """Split tensors (layers, ...) into one dict per layer."""
    # unbind, not indexing: one stack in backward instead of a zero-filled tensor per layer
    layers = zip(*(tensor.unbind(0) for tensor in tensors.values()), strict=True)
    return [dict(zip(tensors, layer, strict=True)) for layer in layers]


def bottleneck_shapes(shape: BackboneShape, reduction: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of one adapter; raise ValueError if its width d_model // reduction is 0."""
    if reduction > shape.d_model:
        raise ValueError(f"reduction must be at most d_model = {shape.d_model}; got {reduction}. Choose a smaller one.")
    d_model, d_mid = shape.d_model, shape.d_model // reduction
    return {"down": (d_mid, d_model), "down_bias": (d_mid,), "up": (d_model, d_mid), "up_bias": (d_model,)}


def bottleneck(
    tensors: Tensors, scenarios: Tensor | None, hidden: Tensor, scenario_ids: Tensor | None, *, activation: str
) -> Tensor:
    """Return x + up(activation(down(x))), each example by the adapter of its scenario: (batch, tokens, d_model).

    Args:
        tensors: Tensors of one adapter, each (rows, ...): down (rows, d_mid, d_model) and up (rows, d_model, d_mid),
            their biases, and optionally gain and bias of a LayerNorm before down ("pre") and after up ("post").
        scenarios: (rows,) the scenarios of the rows. None: row s belongs to scenario s.
        hidden: (batch, tokens, d_model).
        scenario_ids: (batch,), or None.
        activation: Name of the activation.
    """
    rows = row_index(scenarios, scenario_ids, len(tensors["down"]))
    x = _normed(hidden, tensors, "pre", rows)
    x = ACTIVATIONS[activation](_affine(x, tensors["down"], tensors["down_bias"], rows))
    x = _affine(x, tensors["up"], tensors["up_bias"], rows)
    return hidden + _normed(x, tensors, "post", rows)


def _normed(x: Tensor, tensors: Tensors, norm: str, rows: Tensor | None) -> Tensor:
    if norm not in tensors:
        return x
    gain, bias = (own_row(tensors[name], rows) for name in (norm, f"{norm}_bias"))
    return F.layer_norm(x, x.shape[-1:]) * gain + bias


def own_row(vectors: Tensor, rows: Tensor | None) -> Tensor:
    """Return the vector of each example: vectors (rows, n) -> (batch, 1, n), or (n,) where one row serves all."""
    return vectors.squeeze(0) if rows is None else vectors[rows].unsqueeze(1)


def _affine(x: Tensor, weights: Tensor, biases: Tensor, rows: Tensor | None) -> Tensor:
    """Multiply each example by its matrix: x (batch, tokens, n) -> (batch, tokens, m).

    weights (rows, m, n), biases (rows, m). rows: (batch,) the row of each example, or None if one row serves all.
    """
    if rows is None:
        return F.linear(x, weights.squeeze(0), biases.squeeze(0))
    if x.shape[1] > 1:
        # advanced indexing: its backward on a GPU is a sorted sum; the backward of index_select has no fixed order
        return x @ weights[rows].mT + own_row(biases, rows)
    # at a decoding step, one copy of a matrix per example would cost more than the products that are not picked
    every = F.linear(x.squeeze(1), weights.flatten(0, 1), biases.flatten()).unflatten(1, weights.shape[:2])
    return every[torch.arange(len(x), device=x.device), rows].unsqueeze(1)
