"""W[(a u), (c v)] = sum_i rule[i, a, c] local[i, u, v], for any leading dims; sums in float32.

rule (..., terms, g_in, g_out), local (..., terms, loc_in, loc_out) -> W (..., g_in*loc_in, g_out*loc_out). One launch
of `mixing.mix`: i is summed, (a, c) made, (u, v) carried along, so that a program reads a stretch of all locals once
and writes it, mixed, to many places of W. Bound by writing W; backward by reading its gradient, once.
"""

from torch import Tensor

from .mixing import mix, mix_backward


def forward(rule: Tensor, local: Tensor) -> Tensor:
    weight = rule.new_empty(*rule.shape[:-3], rule.shape[-2] * local.shape[-2], rule.shape[-1] * local.shape[-1])
    mix(local.reshape(-1, *local.shape[-3:]), rule.reshape(-1, *rule.shape[-3:]), _as_blocks(weight, rule, local))
    return weight


def backward(grad: Tensor, rule: Tensor, local: Tensor, mask: int) -> list[Tensor]:
    rules, locals_ = rule.reshape(-1, *rule.shape[-3:]), local.reshape(-1, *local.shape[-3:])
    grad_local = local.new_empty(locals_.shape) if mask & 2 else None
    grad_rule = mix_backward(_as_blocks(grad, rule, local), locals_ if mask & 1 else None, rules, grad_local)
    asked = []
    if mask & 1:
        asked.append(grad_rule.to(rule.dtype).view(rule.shape))
    if mask & 2:
        asked.append(grad_local.view(local.shape))
    return asked


def _as_blocks(weight: Tensor, rule: Tensor, local: Tensor) -> Tensor:
    """(..., (a u), (c v)) -> (groups, a, c, u, v): a view, unless the leading dims of a gradient do not flatten."""
    blocks = weight.reshape(-1, rule.shape[-2], local.shape[-2], rule.shape[-1], local.shape[-1])
    return blocks.transpose(2, 3)
