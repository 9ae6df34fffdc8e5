"""The truth of every operation: its definition, written with torch.kron and dense products.

The truth takes one (layer, expert) pair, or one example, at a time. It shares no formulas with reference.py. `check`
and the tests compute it in float64.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import functional, reference, testing
from .reference import LowRankPHM
from .testing import Bank, PromptShape, Shape
from .validation import maps_of

Factors = Sequence[Tensor | None]  # rule_in, rule_out, local and bias of a map


def kron_weight(rule: Tensor, local: Tensor) -> Tensor:
    """Return W by torch.kron, term by term. rule (..., terms, g_in, g_out), local (..., terms, loc_in, loc_out)."""
    if rule.dim() == 3 and local.dim() == 3:
        return functools.reduce(torch.add, [torch.kron(r, loc) for r, loc in zip(rule, local, strict=True)])
    groups = torch.broadcast_shapes(rule.shape[:-3], local.shape[:-3])
    pairs = zip(
        rule.expand(*groups, *rule.shape[-3:]).flatten(0, -4), local.expand(*groups, *local.shape[-3:]).flatten(0, -4)
    )
    return torch.stack([kron_weight(r, loc) for r, loc in pairs]).unflatten(0, groups)


def kron_linear(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W + bias, with W of `kron_weight`."""
    y = x @ kron_weight(rule, local)
    return y if bias is None else y + bias


def kron_lowrank_linear(
    x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return x W + bias, with W of `kron_weight` for the full rules."""
    return kron_linear(x, rule_in @ rule_out, local, bias)


def kron_mop_ffn(
    x: Tensor, down: Factors, ups: Sequence[Factors], activation: str = "relu", experts: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Return the results of reference.mop_ffn, computed with dense matrices for one pair at a time."""
    num_layers, num_experts = reference.group_sizes(x, down, ups)
    chosen = range(num_experts) if experts is None else experts.tolist()

    def apply(rows: Tensor, phm: Factors, layer: int, expert: int) -> Tensor:
        factors = LowRankPHM._make(None if t is None else _pick(t, layer, expert) for t in phm)
        rule_out = factors.rule_out
        rule = factors.rule_in if rule_out is None else factors.rule_in @ rule_out
        return kron_linear(rows, rule, factors.local, factors.bias)

    outputs: list[list[Tensor]] = [[] for _ in ups]
    for layer in range(num_layers):
        for expert in chosen:
            hidden = reference.ACTIVATIONS[activation](apply(_pick(x, layer, expert), down, layer, expert))
            for found, up in zip(outputs, ups):
                found.append(apply(hidden, up, layer, expert))
    return tuple(torch.stack(found).unflatten(0, (num_layers, len(chosen))) for found in outputs)


def attempt_by_example(
    x: Tensor,
    source: Tensor,
    target: Tensor,
    *factors: Tensor,
    mask: Tensor | None,
    task_ids: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return prefixed and attention of reference.attempt_mix, for one example at a time by the paper's equations.

    Of equal numbers the first is the largest. factors: w_down, w_up, ln_weight and ln_bias.
    """
    w_down, w_up, ln_weight, ln_bias = factors

    def largest(rows: Tensor) -> Tensor:
        peak = rows[0]
        for row in rows[1:]:
            peak = torch.where(row > peak, row, peak)
        return peak

    prefixed, attention = [], []
    for k, task in enumerate(task_ids.tolist()):
        rows = x[k] if mask is None else x[k][mask[k]]
        peak = largest(rows) if len(rows) else torch.zeros_like(ln_weight)
        down = peak @ w_down
        up = (down / (1 + torch.exp(-down))) @ w_up
        centred = up - up.mean()
        query = centred / torch.sqrt(centred.square().mean() + 1e-5) * ln_weight + ln_bias
        prompts = [*source, target[task]]
        weights = torch.exp(torch.stack([largest(p) @ query / temperature for p in prompts]))
        weights = weights / weights.sum()
        mixed = target[task] + sum(a * p for a, p in zip(weights, prompts, strict=True))
        prefixed.append(torch.cat([mixed, x[k]]))
        attention.append(weights)
    if not prefixed:
        return x.new_empty(0, source.shape[1] + x.shape[1], x.shape[2]), x.new_empty(0, len(source) + 1)
    return torch.stack(prefixed), torch.stack(attention)


def _pick(tensor: Tensor, layer: int, expert: int) -> Tensor:
    return tensor[layer if tensor.shape[0] > 1 else 0, expert if tensor.shape[1] > 1 else 0]


# Cases: operations with inputs, each beside its truth.


class Case(NamedTuple):
    """An operation with inputs of one kind.

    function: function(*tensors, backend=...) returns a tensor or a tuple.
    truth: truth(*tensors) returns the same results in plain PyTorch.
    inputs: inputs(dtype) returns the tensors, all of floating point, on torch's default device.
    """

    function: Callable
    truth: Callable
    inputs: Callable[[torch.dtype], Sequence[Tensor | None]]


PRODUCTS: dict[str, tuple[Callable, Callable, Callable[..., list[Tensor | None]]]] = {
    "phm_weight": (functional.phm_weight, kron_weight, testing.weight_inputs),
    "phm_linear": (functional.phm_linear, kron_linear, testing.linear_inputs),
    "lowrank_phm_linear": (functional.lowrank_phm_linear, kron_lowrank_linear, testing.lowrank_inputs),
}


def product_case(op: str, shape: Shape, **options) -> Case:
    """Return phm_weight, phm_linear or lowrank_phm_linear with inputs of this shape. options: bias=False."""
    function, truth, inputs = PRODUCTS[op]
    return Case(function, truth, lambda dtype: inputs(shape, dtype, **options))


def bank_case(bank: Bank, activation: str = "relu", experts: Sequence[int] | None = None, **options) -> Case:
    """Return mop_ffn with inputs of this bank. options: options of `testing.mop_inputs`."""

    def chosen(x: Tensor) -> Tensor | None:
        return None if experts is None else torch.tensor(experts, device=x.device)

    def function(x: Tensor, *factors: Tensor | None, **kwargs):
        down, *ups = maps_of(factors)
        return functional.mop_ffn(x, down, ups, activation=activation, experts=chosen(x), **kwargs)

    def truth(x: Tensor, *factors: Tensor | None):
        down, *ups = maps_of(factors)
        return kron_mop_ffn(x, down, ups, activation, chosen(x))

    return Case(function, truth, functools.partial(testing.mop_inputs, bank, **options))


def prompt_case(shape: PromptShape) -> Case:
    """Return attempt_mix with inputs of this shape."""
    _, options = testing.prompt_inputs(shape, torch.float64)
    mask, ids, temperature = options["mask"], options["task_ids"], options["temperature"]

    def function(x, source, target, w_down, w_up, ln_weight, ln_bias, **kwargs):
        factors = (w_down, w_up, ln_weight, ln_bias, temperature)
        return functional.attempt_mix(x, mask.to(x.device), source, target, ids.to(x.device), *factors, **kwargs)

    def truth(x: Tensor, *factors: Tensor):
        here, chosen = mask.to(x.device), ids.to(x.device)
        return attempt_by_example(x, *factors, mask=here, task_ids=chosen, temperature=temperature)

    return Case(function, truth, lambda dtype: testing.prompt_inputs(shape, dtype)[0])
