"""y = x W + bias with W = sum_i (rule_in[i] @ rule_out[i]) (x) local[i], in three stages; W is never built.

x (..., g_in*loc_in), rule_in (terms, g_in, rank), rule_out (terms, rank, g_out), local (terms, loc_in, loc_out), bias
(g_out*loc_out,) -> (..., g_out*loc_out). With j = (i, r):

    1. t[j, n, u] = sum_a x[n, a, u] rule_in[i, a, r]                         mixing.mix
    2. s[j, n, v] = sum_u t[j, n, u] local[i, u, v]                           torch.bmm, terms products of rank*n rows
    3. y[n, c, v] = sum_j s[j, n, v] rule_out[j, c] + bias[c, v]              mixing.mix

Each sum is accumulated in float32; t and s are rounded to the dtype of x, as in reference.py.

What moves, in numbers: rows*(in + 2*terms*rank*(loc_in + loc_out) + out), and the locals. At 4096 rows, 4096 -> 4096,
16 terms of rank 1 in bfloat16 that is 6 x 34 MB, 47 us at 4.3 TB/s, less what the L2 keeps of t and s, beside some
190 us of the dense product. Stages 2 and 3 in one kernel would not move s, but hold the accumulators of all c, which
leaves room for tiles of 64 x 32 (of 128 x 64 with 4 terms): t and the locals would then come from the L2 some 400 MB
(800 MB) a call, which is slower than writing s. Stage 1 inside the product does as much for each tile of v again.

Backward, with gs and gt the gradients of s and t: mix_backward of stage 3 gives gs and rule_out's gradient from one
reading of gy; two batched products give local's gradient, t^T gs (over rank and rows at once), and gt = gs local^T;
mix_backward of stage 1 gives gx and rule_in's gradient from one reading of gt. t and s are made again where needed.
"""

import torch
from torch import Tensor

from .mixing import mix, mix_backward


def forward(x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor, bias: Tensor | None) -> Tensor:
    s = _stage_2(_stage_1(x, rule_in, local), local)
    y = x.new_empty(*x.shape[:-1], rule_out.shape[-1] * local.shape[-1])
    _, j, c, n, v = _sizes(x, rule_in, rule_out, local)
    mix(s.view(1, j, n, v), rule_out.view(1, j, 1, c), _as_planes(y, c).unsqueeze(1), bias)
    return y


def backward(grad: Tensor, x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor, mask: int) -> list[Tensor]:
    a, j, c, n, v = _sizes(x, rule_in, rule_out, local)
    terms, rank, u = local.shape[0], rule_in.shape[2], local.shape[1]
    t = _stage_1(x, rule_in, local) if mask & 0b1100 else None
    s = _stage_2(t, local).view(1, j, n, v) if mask & 0b0100 else None
    gs = x.new_empty(1, j, n, v) if mask & 0b1011 else None
    grad_rule_out = None
    if mask & 0b1111:
        grad_rule_out = mix_backward(_as_planes(grad, c).unsqueeze(1), s, rule_out.view(1, j, 1, c), gs)

    grad_x = torch.empty_like(x) if mask & 1 else None
    grad_rule_in = None
    if mask & 0b0011:
        gt = torch.bmm(gs.view(terms, rank * n, v), local.mT).view(1, terms, rank, n, u)
        grad_rule_in = mix_backward(
            gt,
            _as_planes(x, a) if mask & 2 else None,
            rule_in.transpose(0, 1).unsqueeze(0),
            _as_planes(grad_x, a) if mask & 1 else None,
        )

    asked = []
    if mask & 1:
        asked.append(grad_x)
    if mask & 2:  # (1, a, (i r))
        asked.append(grad_rule_in.to(x.dtype).view(a, terms, rank).transpose(0, 1).contiguous())
    if mask & 4:
        asked.append(grad_rule_out.to(x.dtype).view(rule_out.shape))
    if mask & 8:
        asked.append(torch.bmm(t.mT, gs.view(terms, rank * n, v)))
    if mask & 16:
        asked.append(grad.reshape(-1, grad.shape[-1]).sum(0))
    return asked


def _sizes(x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor) -> tuple[int, int, int, int, int]:
    """a, j, c, n, v: g_in, terms*rank, g_out, rows, loc_out."""
    terms, g_in, rank = rule_in.shape
    return g_in, terms * rank, rule_out.shape[2], x.numel() // x.shape[-1], local.shape[2]


def _as_planes(rows: Tensor, g: int) -> Tensor:
    """(..., (g w)) -> (1, g, n, w), for rows of any strides a view where torch can make one."""
    return rows.reshape(1, -1, g, rows.shape[-1] // g).transpose(1, 2)


def _stage_1(x: Tensor, rule_in: Tensor, local: Tensor) -> Tensor:
    """t, as (terms, (r n), u)."""
    (terms, g_in, rank), u = rule_in.shape, local.shape[1]
    n = x.numel() // x.shape[-1]
    t = x.new_empty(1, terms, rank, n, u)
    mix(_as_planes(x, g_in), rule_in.transpose(0, 1).unsqueeze(0), t)
    return t.view(terms, rank * n, u)


def _stage_2(t: Tensor, local: Tensor) -> Tensor:
    return torch.bmm(t, local)
