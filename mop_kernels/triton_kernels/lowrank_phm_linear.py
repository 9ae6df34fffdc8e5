"""y = x W + bias with W = sum_i (rule_in[i] @ rule_out[i]) (x) local[i]; W is never built.

x (..., g_in*loc_in), rule_in (terms, g_in, rank), rule_out (terms, rank, g_out), local (terms, loc_in, loc_out), bias
(g_out*loc_out,) -> (..., g_out*loc_out). In three stages, with j = (i, r):

    1. t[j, n, u] = sum_a x[n, a, u] rule_in[i, a, r]                         mixing.mix
    2. s[j, n, v] = sum_u t[j, n, u] local[i, u, v]                           torch.bmm, terms products of rank*n rows
    3. y[n, c, v] = sum_j s[j, n, v] rule_out[j, c] + bias[c, v]              mixing.mix

or, where rows are so few that launches and the locals are all that costs, in the one launch of local_first.py, with as
many multiply-adds as a dense product; `plan` decides. Sums are in float32; t and s are rounded to the dtype of x, as in
reference.py.

What moves, in numbers: rows*(in + 2*terms*rank*(loc_in + loc_out) + out), and the locals. At 4096 rows, 4096 -> 4096,
16 terms of rank 1 in bfloat16 that is 6 x 34 MB, 47 us at 4.3 TB/s, less what the L2 keeps of t and s, beside some
190 us of the dense product. Stages 2 and 3 in one kernel would not move s, but hold the accumulators of all c, which
leaves room for tiles of 64 x 32 (of 128 x 64 with 4 terms): t and the locals would then come from the L2 some 400 MB
(800 MB) a call, which is slower than writing s. Stage 1 inside the product does as much for each tile of v again.

Backward, with gs and gt the gradients of s and t: mix_backward of stage 3 gives gs and rule_out's gradient from one
reading of gy; two batched products give local's gradient, t^T gs (over rank and rows at once), and gt = gs local^T;
mix_backward of stage 1 gives gx and rule_in's gradient from one reading of gt. t and s are made again where needed.
That is 14 times the 34 MB above, for all gradients. On few rows, gx alone is one launch of local_first.
"""

from functools import lru_cache

import torch
from torch import Tensor

from . import cost_model, local_first
from .mixing import mix, mix_backward


def forward(x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor, bias: Tensor | None) -> Tensor:
    (terms, _, rank), c, v = rule_in.shape, rule_out.shape[2], local.shape[2]
    y = x.new_empty(*x.shape[:-1], c * v)
    rows = x.view(-1, x.shape[-1])
    if _takes_local_first(rows, rule_in, rule_out, local):
        local_first.local_first(rows, rule_in, local, bias, y, rule_out)
        return y
    j, n = terms * rank, rows.shape[0]
    s = torch.bmm(_stage_1(rows, rule_in, local), local)
    mix(s.view(1, j, n, v), rule_out.view(1, j, 1, c), _as_planes(y, c).unsqueeze(1), bias)
    return y


def backward(grad: Tensor, x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor, mask: int) -> list[Tensor]:
    (terms, a, rank), c, (_, u, v) = rule_in.shape, rule_out.shape[2], local.shape
    rows, gy = x.view(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    j, n = terms * rank, rows.shape[0]
    want_x, want_rule_in, want_rule_out, want_local, want_bias = (bool(mask >> k & 1) for k in range(5))
    grad_x = torch.empty_like(x) if want_x else None
    gx = grad_x  # what the stages write
    if want_x and _takes_local_first(gy, rule_out.mT, rule_in.mT, local.mT):
        local_first.local_first(gy, rule_out.mT, local.mT, None, grad_x, rule_in.mT)
        gx = None

    t = s = gs = grad_rule_in = grad_rule_out = None
    if want_rule_out or want_local:
        t = _stage_1(rows, rule_in, local)
    if want_rule_out:
        s = torch.bmm(t, local).view(1, j, n, v)
    if gx is not None or want_rule_in or want_local:
        gs = x.new_empty(1, j, n, v)
    if s is not None or gs is not None:
        grad_rule_out = mix_backward(_as_planes(gy, c).unsqueeze(1), s, rule_out.view(1, j, 1, c), gs)
    if gx is not None or want_rule_in:
        gt = torch.bmm(gs.view(terms, rank * n, v), local.mT).view(1, terms, rank, n, u)
        grad_rule_in = mix_backward(
            gt,
            _as_planes(rows, a) if want_rule_in else None,
            rule_in.transpose(0, 1).unsqueeze(0),
            None if gx is None else _as_planes(gx, a),
        )

    asked = []
    if want_x:
        asked.append(grad_x)
    if want_rule_in:  # comes as (1, a, (i r))
        asked.append(grad_rule_in.to(x.dtype).view(a, terms, rank).transpose(0, 1).contiguous())
    if want_rule_out:
        asked.append(grad_rule_out.to(x.dtype).view(rule_out.shape))
    if want_local:
        asked.append(torch.bmm(t.mT, gs.view(terms, rank * n, v)))
    if want_bias:
        asked.append(gy.sum(0))
    return asked


def _as_planes(rows: Tensor, g: int) -> Tensor:
    """(..., (g w)) -> (1, g, n, w), for rows of any strides a view where torch can make one."""
    return rows.reshape(1, -1, g, rows.shape[-1] // g).transpose(1, 2)


def _stage_1(rows: Tensor, rule_in: Tensor, local: Tensor) -> Tensor:
    """t as (terms, (r n), u): the rows of all ranks of a term meet the same local."""
    (terms, g_in, rank), u, n = rule_in.shape, local.shape[1], rows.shape[0]
    t = rows.new_empty(1, terms, rank, n, u)
    mix(_as_planes(rows, g_in), rule_in.transpose(0, 1).unsqueeze(0), t)
    return t.view(terms, rank * n, u)


def _takes_local_first(rows: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor) -> bool:
    (terms, g_in, rank), (_, loc_in, loc_out) = rule_in.shape, local.shape
    return plan(rows.shape[0], terms, rank, g_in, rule_out.shape[2], loc_in, loc_out, rows.dtype)["takes_local_first"]


def plan(
    rows: int, terms: int, rank: int, g_in: int, g_out: int, loc_in: int, loc_out: int, dtype: torch.dtype
) -> dict:
    """The cost model of the two ways, in microseconds on an H200, and the choice; nothing is timed.

    Returns {"local_first": float, "three_stages": float, "takes_local_first": bool}.
    """
    return dict(_plan(rows, terms, rank, g_in, g_out, loc_in, loc_out, dtype, cost_model.uses_tf32(dtype)))


@lru_cache(maxsize=1024)  # ten microseconds are a small call's cost
def _plan(
    rows: int, terms: int, rank: int, g_in: int, g_out: int, loc_in: int, loc_out: int, dtype: torch.dtype, tf32: bool
) -> dict:
    size, j = dtype.itemsize, terms * rank
    mixing = cost_model.HALF if size == 2 else cost_model.CUDA_CORES
    product = cost_model.product_rate(dtype, tf32) * cost_model.LIBRARY_SHARE
    stage_1 = cost_model.step(size * rows * loc_in * (g_in + j), 2 * rows * g_in * loc_in * j, mixing)
    stage_2 = cost_model.step(
        size * (rows * j * (loc_in + loc_out) + terms * loc_in * loc_out), 2 * rows * j * loc_in * loc_out, product
    )
    stage_3 = cost_model.step(size * rows * loc_out * (j + g_out), 2 * rows * j * g_out * loc_out, mixing)
    three_stages = stage_1 + stage_2 + stage_3
    first = local_first.cost(rows, terms, g_in, g_out, loc_in, loc_out, dtype, tf32)
    return {"local_first": first, "three_stages": three_stages, "takes_local_first": first < three_stages}
