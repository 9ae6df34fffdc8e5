"""The experts of a batch: which experts each block runs, on which rows and with what weights."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from mop_t5.attachment.caches import ExpertCache

# (expert, the rows that it runs or None for all, their weights (rows, 1, 1) or None if all weights are 1)
Part: TypeAlias = tuple[int, Tensor | None, Tensor | None]


class Mixture:
    """The experts of a batch and their weights, as Additions holds them.

    Args:
        blocks: (stack, layer) -> the experts in the place of this block.
        weights: (layers, rows, experts), layers in the order of blocks.
        by_scenario: True if a row of the weights is a scenario. Otherwise a row is an example of the batch, for all
            its beams.
        sparse: Leave out, row by row, the experts whose weight is zero. The host then waits for the weights once per
            forward pass. Weights that need gradients need all experts.
    """

    def __init__(
        self, blocks: Mapping[tuple[str, int], Iterable[nn.Module]], weights: Tensor, *, by_scenario: bool, sparse: bool
    ):
        self.blocks = {place: list(experts) for place, experts in blocks.items()}
        self._weights, self._by_scenario, self._sparse = weights, by_scenario, sparse
        # (scenario ids, batch, parts) in one object, because other threads may replace it
        self._made: tuple[Tensor | None, int, dict[tuple[str, int], list[Part]]] | None = None

    def new_cache(self) -> ExpertCache:
        """Return an empty cache for these experts."""
        return ExpertCache(self._weights.shape[-1])

    def parts(self, scenario_ids: Tensor | None, batch: int) -> dict[tuple[str, int], list[Part]]:
        """Return the parts that each block runs for a batch, made once per batch.

        Call it before the forward pass: inside a checkpoint of a block, the recomputation would not find them.
        """
        # the same object comes back in every layer, and at every step of a generation
        made = self._made
        if made is None or made[0] is not scenario_ids or made[1] != batch:
            weights = self._rows(scenario_ids, batch)
            sparse = self._sparse and not torch.compiler.is_compiling()
            parts = _sparse(weights) if sparse else [_dense(of_layer) for of_layer in weights]
            self._made = made = scenario_ids, batch, dict(zip(self.blocks, parts, strict=True))
        return made[2]

    def _rows(self, scenario_ids: Tensor | None, batch: int) -> Tensor:
        """Return the weights (layers, batch, experts)."""
        if not self._by_scenario:
            return self._weights.repeat_interleave(batch // self._weights.shape[1], dim=1)
        if scenario_ids is None:
            return self._weights[:, :1].expand(-1, batch, -1)
        return self._weights[:, scenario_ids]


def _dense(weights: Tensor) -> list[Part]:
    return [(expert, None, weight[:, None, None]) for expert, weight in enumerate(weights.unbind(1))]


def _sparse(weights: Tensor) -> list[list[Part]]:
    on_host = weights.detach().to("cpu")
    used, ones = on_host != 0, on_host == 1
    index = functools.cache(lambda rows: torch.tensor(rows, device=weights.device))
    parts: list[list[Part]] = []
    for layer, of_layer in enumerate(weights):
        parts.append([])
        for expert in used[layer].any(0).nonzero().flatten().tolist():
            here = used[layer, :, expert]
            rows = None if here.all() else index(tuple(here.nonzero().flatten().tolist()))
            weight = of_layer[:, expert] if rows is None else of_layer[rows, expert]
            parts[-1].append((expert, rows, None if ones[layer, here, expert].all() else weight[:, None, None]))
    return parts


def mix(run: Callable[[int, Tensor | None], Tensor], hidden: Tensor, parts: Sequence[Part]) -> Tensor:
    """Return the weighted sum of the experts' outputs.

    Args:
        run: Function of (expert, rows or None for all) that returns the output of this expert on these rows.
        hidden: (batch, tokens, d_model).
        parts: The experts, their rows and weights.
    """
    mixed = None if all(rows is None for _, rows, _ in parts) else torch.zeros_like(hidden)
    for expert, rows, weight in parts:
        out = run(expert, rows)
        out = out if weight is None else out * weight
        if mixed is None:
            mixed = out
        elif rows is None:
            mixed = mixed + out
        else:
            mixed.index_add_(0, rows, out.to(mixed.dtype))
    assert mixed is not None  # a mixture has at least one part
    return mixed
