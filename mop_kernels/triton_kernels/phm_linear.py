"""y = x W + bias with W = sum_i rule[i] (x) local[i]; sums in float32.

x (..., g_in*loc_in), rule (terms, g_in, g_out), local (terms, loc_in, loc_out), bias (g_out*loc_out,) ->
(..., g_out*loc_out). A full rule saves no multiply-adds over a dense W, so there are two ways, and `plan` takes one:

    local first    local_first.py: one launch, reads terms*loc_in*loc_out numbers where W has in*out. Few rows.
    weight once    W by phm_weight, then torch.mm: W is written and read once more, and the product runs at the
                   library's rate. Many rows.

Backward: gx is the same product with rule[i]^T and local[i]^T, by the way that is cheaper for it. The gradients of rule
and local come from W's, x^T gy, one torch.mm whose inner size is the rows, and phm_weight's backward, which reads it
once. Without W they would take as many multiply-adds, and temporaries of rows*terms*out*g_in/g_out numbers.
"""

from functools import lru_cache

import torch
from torch import Tensor

from . import cost_model, local_first, phm_weight


def forward(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor | None) -> Tensor:
    y = x.new_empty(*x.shape[:-1], rule.shape[2] * local.shape[2])
    _product(x.reshape(-1, x.shape[-1]), rule, local, bias, y)
    return y


def backward(grad: Tensor, x: Tensor, rule: Tensor, local: Tensor, mask: int) -> list[Tensor]:
    gy = grad.reshape(-1, grad.shape[-1])
    asked = []
    if mask & 1:
        grad_x = torch.empty_like(x)
        _product(gy, rule.mT, local.mT, None, grad_x)
        asked.append(grad_x)
    if mask & 6:
        grad_weight = torch.mm(x.reshape(-1, x.shape[-1]).T, gy)
        asked += phm_weight.backward(grad_weight, rule, local, mask >> 1 & 3)
    if mask & 8:
        asked.append(gy.sum(0))
    return asked


def _product(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Writes y, of any leading dims; rule and local may both be transposed, x (rows, in) may have any strides."""
    (terms, g_in, g_out), (_, loc_in, loc_out) = rule.shape, local.shape
    if plan(x.shape[0], terms, g_in, g_out, loc_in, loc_out, x.dtype)["takes_local_first"]:
        local_first.local_first(x, rule, local, bias, y)
        return
    transposed = not rule.is_contiguous()
    weight = phm_weight.forward(rule.mT, local.mT).T if transposed else phm_weight.forward(rule, local)
    y = y.view(-1, g_out * loc_out)
    if bias is None:
        torch.mm(x, weight, out=y)
    else:
        torch.addmm(bias, x, weight, out=y)


def plan(rows: int, terms: int, g_in: int, g_out: int, loc_in: int, loc_out: int, dtype: torch.dtype) -> dict:
    """The cost model of the two ways, in microseconds on an H200, and the choice; nothing is timed.

    Returns {"local_first": float, "weight_once": float, "takes_local_first": bool}. Local first: see local_first.cost.
    Weight once: the locals are read and W written; then x and W are read and y is written.
    """
    return dict(_plan(rows, terms, g_in, g_out, loc_in, loc_out, dtype, cost_model.uses_tf32(dtype)))


@lru_cache(maxsize=1024)  # ten microseconds are a small call's cost
def _plan(
    rows: int, terms: int, g_in: int, g_out: int, loc_in: int, loc_out: int, dtype: torch.dtype, tf32: bool
) -> dict:
    d_in, d_out, size = g_in * loc_in, g_out * loc_out, dtype.itemsize
    product = cost_model.product_rate(dtype, tf32) * cost_model.LIBRARY_SHARE
    build = cost_model.step(
        size * (terms * loc_in * loc_out + d_in * d_out), 2 * terms * d_in * d_out, cost_model.CUDA_CORES
    )
    apply = cost_model.step(size * (d_in * d_out + rows * (d_in + d_out)), 2 * rows * d_in * d_out, product)
    first = local_first.cost(rows, terms, g_in, g_out, loc_in, loc_out, dtype, tf32)
    return {"local_first": first, "weight_once": build + apply, "takes_local_first": first < build + apply}
