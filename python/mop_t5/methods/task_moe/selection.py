"""Routes, the weights of the experts, from a router's logits; fixed routes; disabled experts; exploration; the log.

Logits and routes are (layers, tasks, experts); a route is a row of the last dimension, and sums to one.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mop_t5.checks import check_choice

SELECTIONS = ("softmax", "gumbel", "straight_through")


def select(
    logits: Tensor,
    kind: str = "softmax",
    temperature: float | Tensor = 1.0,
    *,
    noise: Tensor | None = None,
    deterministic: bool = False,
) -> Tensor:
    """Return routes, of the shape of the logits.

    Args:
        logits: (layers, tasks, experts).
        kind: "softmax": softmax(logits / temperature). "gumbel": softmax((logits + Gumbel noise) / temperature).
            "straight_through": the best expert of "gumbel" alone, with the gradient of "gumbel".
        temperature: Divides the logits.
        noise: Gumbel noise to use. None: noise is drawn.
        deterministic: No noise: "gumbel" is then the softmax, "straight_through" the expert of the largest logit.

    Raises:
        ValueError: `kind` is not one of SELECTIONS.
    """
    check_choice("selection", kind, SELECTIONS)
    if kind != "softmax" and not deterministic:
        logits = logits + (-torch.empty_like(logits).exponential_().log() if noise is None else noise)
    soft = (logits / temperature).softmax(-1)
    if kind != "straight_through":
        return soft
    hard = _one_hot(soft.detach())
    return hard + (soft - soft.detach())  # this order gives exact zeros and ones


def masked(logits: Tensor, mask: Tensor) -> Tensor:
    """Return logits without the experts where mask (bool, broadcast) is True. Each row must keep an expert."""
    return logits.masked_fill(mask, -torch.inf)


def expert_mask(
    disabled: Sequence[Sequence[int]], layers: int, experts: int, device: torch.device | None = None
) -> Tensor:
    """Return the mask of (layer, expert) pairs: bool (layers, 1, experts).

    Raises:
        ValueError: A pair does not exist, or a layer would have no expert left.
    """
    mask = torch.zeros(layers, 1, experts, dtype=torch.bool)
    for layer, expert in disabled:
        if not (0 <= layer < layers and 0 <= expert < experts):
            raise ValueError(
                f"disabled experts must be pairs (layer below {layers}, expert below {experts}); got ({layer}, "
                f"{expert})."
            )
        mask[layer, 0, expert] = True
    if empty := [layer for layer in range(layers) if mask[layer].all()]:
        raise ValueError(f"disabled experts are all {experts} of layer {empty[0]}. Leave it one.")
    return mask.to(device)


def explore(routes: Tensor, epsilon: float, mask: Tensor | None = None) -> Tensor:
    """Return `routes`, each replaced with probability epsilon by one random expert alone.

    mask: True for the experts that must not be drawn.
    """
    draws = torch.rand(routes.shape[:-1], device=routes.device)[..., None] < epsilon
    return torch.where(draws, random_experts(routes, mask), routes)


def random_experts(routes: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return routes of one random expert each, of the shape, dtype and device of `routes`.

    mask: True for the experts that must not be drawn.
    """
    draws = torch.rand(routes.shape, device=routes.device)
    return _one_hot(draws if mask is None else draws.masked_fill(mask, -1)).to(routes.dtype)


def fixed_routes(top: int, layers: int, tasks: int, experts: int, seed: int = 0) -> Tensor:
    """Return fixed routes (layers, tasks, experts), float32 on the CPU.

    Tasks are drawn one after another, so further tasks do not change the routes of the first tasks.

    Args:
        top: Number of experts that are drawn per task and layer, with the weight 1/top each.
        layers: Number of layers.
        tasks: Number of tasks.
        experts: Number of experts.
        seed: Seed of the draws.
    """
    routes = torch.zeros(layers, tasks, experts)
    draw = np.random.RandomState(seed)  # numpy's older generator: the routes of the public code
    for task in range(tasks):
        for layer in range(layers):
            routes[layer, task, draw.choice(experts, top, replace=False)] = 1 / top
    return routes


def temperature_at(step: int, start: float, rate: float, minimum: float) -> float:
    """Return the temperature after `step` optimizer steps."""
    return max(start * math.exp(-rate * step), minimum)


def entropy(routes: Tensor) -> Tensor:
    """Return the entropy of each route in nats: 0 for one expert alone, log(experts) for all alike."""
    return torch.special.entr(routes).sum(-1)


def described(suffix: str, weights: Tensor) -> dict[str, Any]:
    """Return the weights (layers, tasks, experts) as nested lists, and the mean entropy of a route in nats."""
    rounded = (weights.double() * 1e6).round() / 1e6
    return {f"entropy{suffix}": float(entropy(weights).mean()), f"routes{suffix}": rounded.tolist()}


def expert_distance(experts: Iterable[nn.Module]) -> Tensor:
    """Return the mean over pairs of experts of the sum over parameters of |p - p'|, the Euclidean norm."""
    pairs = list(itertools.combinations(experts, 2))
    norms = [
        torch.linalg.vector_norm(p - q)
        for first, second in pairs
        for p, q in zip(first.parameters(), second.parameters(), strict=True)
    ]
    return sum(norms[1:], norms[0]) / len(pairs)


def _one_hot(scores: Tensor) -> Tensor:
    best = scores.argmax(-1, keepdim=True)
    return torch.zeros_like(scores).scatter(-1, best, 1)
