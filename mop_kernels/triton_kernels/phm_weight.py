"""W[(a u), (c v)] = sum_i rule[i, a, c] local[i, u, v], for any leading dims; sums in float32.

rule (..., terms, g_in, g_out), local (..., terms, loc_in, loc_out) -> W (..., g_in*loc_in, g_out*loc_out). One launch
of `mixing.mix`: i is summed, (a, c) made, (u, v) carried along, so that a program reads a stretch of all locals once
and writes it, mixed, to many places of W. Bound by writing W; backward by reading its gradient, once. A product of
library calls would first copy the gradient to [(a c), (u v)]: three more passes over what is by far the largest tensor.
"""

import torch
from torch import Tensor

from .mixing import mix, mix_backward


def forward(rule: Tensor, local: Tensor) -> Tensor:
    weight = rule.new_empty(*rule.shape[:-3], rule.shape[-2] * local.shape[-2], rule.shape[-1] * local.shape[-1])
    mix(local.reshape(-1, *local.shape[-3:]), rule.reshape(-1, *rule.shape[-3:]), _as_blocks(weight, rule, local))
    return weight


def backward(grad: Tensor, rule: Tensor, local: Tensor, mask: int) -> list[Tensor]:
    factors = [t.reshape(-1, *t.shape[-3:]) for t in (rule, local)]
    blocks = _as_blocks(grad, rule, local)
    # the longer of (u, v) and (a, c) is carried along, the other is what each program runs over
    carried = 1 if local.numel() >= rule.numel() else 0
    if carried == 0:
        blocks = blocks.permute(0, 3, 4, 1, 2)
    mixed = 1 - carried
    gradients = [None, None]
    if mask >> carried & 1:
        gradients[carried] = torch.empty_like(factors[carried])
    found = mix_backward(blocks, factors[carried] if mask >> mixed & 1 else None, factors[mixed], gradients[carried])
    gradients[mixed] = None if found is None else found.to(rule.dtype)
    return [g.view(t.shape) for g, t in zip(gradients, (rule, local)) if g is not None]


def _as_blocks(weight: Tensor, rule: Tensor, local: Tensor) -> Tensor:
    """(..., (a u), (c v)) -> (groups, a, c, u, v): a view, unless the leading dims of a gradient do not flatten."""
    blocks = weight.reshape(-1, rule.shape[-2], local.shape[-2], rule.shape[-1], local.shape[-1])
    return blocks.transpose(2, 3)
