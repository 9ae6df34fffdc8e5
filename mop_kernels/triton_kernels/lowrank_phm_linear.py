"""Compute lowrank_phm_linear, y = x W + bias with W = sum_i (rule_in[i] @ rule_out[i]) (x) local[i], without W.

x (..., g_in*loc_in), rule_in (terms, g_in, rank), rule_out (terms, rank, g_out), local (terms, loc_in, loc_out), bias
(g_out*loc_out,) -> (..., g_out*loc_out). In three stages, with j = (i, r):

    1. t[j, n, u] = sum_a x[n, a, u] rule_in[i, a, r]                         phm_weight.mix
    2. s[j, n, v] = sum_u t[j, n, u] local[i, u, v]                           torch.bmm, terms products of rank*n rows
    3. y[n, c, v] = sum_j s[j, n, v] rule_out[j, c] + bias[c, v]              phm_weight.mix

Few rows take the one launch of phm_linear.local_first instead, because only launches and the locals cost time there. It
has as many multiply-adds as a dense product. `plan` decides. Sums are in float32. t and s are rounded to the dtype of
x, as in reference.py.

The three stages move rows*(in + 2*terms*rank*(loc_in + loc_out) + out) numbers, and the locals. 4096 rows, 4096 ->
4096, 16 terms of rank 1 in bfloat16 move 6 x 34 MB: 47 us at 4.3 TB/s, less the part of t and s that the L2 keeps. The
dense product takes some 190 us. A kernel for stages 2 and 3 together would not move s, but it would hold the
accumulators of all c. That leaves room for tiles of 64 x 32 (of 128 x 64 with 4 terms): t and the locals would come
from the L2 at some 400 MB (800 MB) per call, which is slower than writing s. Stage 1 inside the product would repeat
its work for each tile of v.

Backward, with gs and gt the gradients of s and t: mix_backward of stage 3 gives gs and the gradient of rule_out from
one reading of gy. Two batched products give the gradient of local, t^T gs (over rank and rows at once), and
gt = gs local^T. mix_backward of stage 1 gives gx and the gradient of rule_in from one reading of gt. t and s are
recomputed where they are needed. All gradients together move 14 times the 34 MB above. On few rows, gx alone is one
launch of local_first.
"""

import torch
from torch import Tensor

from ..reference import flags_of
from . import phm_linear
from .device_functions import Phm
from .phm_weight import mix, mix_backward


def forward(x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor, bias: Tensor | None) -> Tensor:
    """Return y. The arguments are those of ops.SCHEMAS["lowrank_phm_linear"]."""
    (terms, _, rank), c, v = rule_in.shape, rule_out.shape[2], local.shape[2]
    y = x.new_empty(*x.shape[:-1], c * v)
    rows = x.view(-1, x.shape[-1])
    if _takes_local_first(rows, rule_in, rule_out, local):
        phm_linear.local_first(rows, rule_in, local, bias, y, rule_out)
        return y
    j, n = terms * rank, rows.shape[0]
    s = torch.bmm(_stage_1(rows, rule_in, local), local)
    mix(s.view(1, j, n, v), rule_out.view(1, j, 1, c), _as_planes(y, c).unsqueeze(1), bias)
    return y


def backward(grad: Tensor, x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor, needs: int) -> list[Tensor]:
    """Return the gradients that the bits of `needs` ask for. The arguments are those of ops.SCHEMAS."""
    (terms, a, rank), c, (_, u, v) = rule_in.shape, rule_out.shape[2], local.shape
    rows, gy = x.view(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    j, n = terms * rank, rows.shape[0]
    want_x, want_rule_in, want_rule_out, want_local, want_bias = flags_of(needs, 5)
    gradients: list[Tensor | None] = [torch.empty_like(x) if want_x else None, None, None, None, None]
    gx = gradients[0]  # None where the stages need not write it
    if gx is not None and _takes_local_first(gy, rule_out.mT, rule_in.mT, local.mT):
        phm_linear.local_first(gy, rule_out.mT, local.mT, None, gx, rule_in.mT)
        gx = None

    t = _stage_1(rows, rule_in, local) if want_rule_out or want_local else None
    s = torch.bmm(t, local).view(1, j, n, v) if t is not None and want_rule_out else None
    gs = x.new_empty(1, j, n, v) if gx is not None or want_rule_in or want_local else None
    if s is not None or gs is not None:
        found = mix_backward(_as_planes(gy, c).unsqueeze(1), s, rule_out.view(1, j, 1, c), gs)
        gradients[2] = None if found is None else found.to(x.dtype).view(rule_out.shape)
    if gs is not None and (gx is not None or want_rule_in):
        gt = torch.bmm(gs.view(terms, rank * n, v), local.mT).view(1, terms, rank, n, u)
        planes = _as_planes(rows, a) if want_rule_in else None
        found = mix_backward(
            gt, planes, rule_in.transpose(0, 1).unsqueeze(0), None if gx is None else _as_planes(gx, a)
        )
        if found is not None:  # (1, a, (i r))
            gradients[1] = found.to(x.dtype).view(a, terms, rank).transpose(0, 1).contiguous()
    if want_local and t is not None and gs is not None:
        gradients[3] = torch.bmm(t.mT, gs.view(terms, rank * n, v))
    if want_bias:
        gradients[4] = gy.sum(0)
    return [g for g in gradients if g is not None]


def _as_planes(rows: Tensor, g: int) -> Tensor:
    """Return (..., (g w)) as (1, g, n, w): a view, if torch can make one of the strides of the rows."""
    return rows.reshape(1, -1, g, rows.shape[-1] // g).transpose(1, 2)


def _stage_1(rows: Tensor, rule_in: Tensor, local: Tensor) -> Tensor:
    """Return t as (terms, (r n), u): the rows of all ranks of a term meet the same local."""
    (terms, g_in, rank), u, n = rule_in.shape, local.shape[1], rows.shape[0]
    t = rows.new_empty(1, terms, rank, n, u)
    mix(_as_planes(rows, g_in), rule_in.transpose(0, 1).unsqueeze(0), t)
    return t.view(terms, rank * n, u)


def _takes_local_first(rows: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor) -> bool:
    costs = plan(rows.shape[0], Phm.of(rule_in, rule_out, local), rows.dtype)
    return costs["local_first"] < costs["three_stages"]


def plan(rows: int, phm: Phm, dtype: torch.dtype) -> dict[str, float]:
    """Return the cost of each way by the cost model: {"local_first": ..., "three_stages": ...}, in microseconds."""
    size, j, step_cost = dtype.itemsize, phm.terms * phm.rank, phm_linear.step_cost
    mixing = phm_linear.HALF if size == 2 else phm_linear.CUDA_CORES
    product = phm_linear.product_rate(dtype) * phm_linear.LIBRARY_SHARE
    stage_1 = step_cost(size * rows * phm.loc_in * (phm.g_in + j), 2 * rows * phm.d_in * j, mixing)
    moved = size * (rows * j * (phm.loc_in + phm.loc_out) + phm.terms * phm.loc_in * phm.loc_out)
    stage_2 = step_cost(moved, 2 * rows * j * phm.loc_in * phm.loc_out, product)
    stage_3 = step_cost(size * rows * phm.loc_out * (j + phm.g_out), 2 * rows * j * phm.d_out, mixing)
    first = phm_linear.local_first_cost(rows, phm, dtype)
    return {"local_first": first, "three_stages": stage_1 + stage_2 + stage_3}
