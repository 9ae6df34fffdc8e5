"""Compute the gradients of attempt_mix, whose formulas are in attempt_mix.py. Sums are in float32, in a fixed order.

Maxima, products and attention are recomputed from the tensors that forward saved. With g the gradient of the prompts,
(b, (m d)):

    ga[b, j] = g[b] . P_j + the caller's gradient of attention   `attention_gradients`: parts by columns, then torch.sum
    gs = attention (ga - sum_j attention ga) / temperature, then LayerNorm's gradient            `attend_backward`
    the gradients of w_down, w_up and of the maximum of x: products of (b, r) and (b, d) by torch.mm
    gP_j = sum_b attention[b, j] g[b], and at the maximum of a column sum_b gs[b, j] query[b]    `prompt_gradients`
    gx = the gradient of prefixed behind the prompts, plus that of the maximum at the maximum    `gradient_of_x`

g is read once for ga, and once per prompt whose gradient is requested, from the L2 if g fits (10 MB in float32 at the
paper's size). For a target only the examples of its task are read.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from .attempt_mix import attend, layer_norm, pool
from .device_functions import blocks, power_of_2
from .launch import launch


@triton.jit(do_not_specialize=["examples"])
def attention_gradients_kernel(
    grad, source, target, task_ids, parts, examples, sources, size, width, grad_b, grad_m, grad_d,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write parts[block of columns, b, j]: the products of [BLOCK_B, BLOCK_C] of g with every candidate."""
    column_blocks = tl.cdiv(size, BLOCK_C)
    c_block = (tl.program_id(0) % column_blocks).to(tl.int64)
    c = c_block * BLOCK_C + tl.arange(0, BLOCK_C)
    b = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    b_mask, c_mask = b < examples, c < size
    mask = b_mask[:, None] & c_mask[None, :]
    g = tl.load(
        grad + b[:, None] * grad_b + (c // width * grad_m + c % width * grad_d)[None, :], mask=mask, other=0.0
    ).to(tl.float32)
    parts += (c_block * examples + b) * (sources + 1)
    for j in range(0, sources):
        prompt = tl.load(source + tl.cast(j, tl.int64) * size + c, mask=c_mask, other=0.0).to(tl.float32)
        tl.store(parts + j, tl.sum(g * prompt[None, :], 1), mask=b_mask)
    task = tl.load(task_ids + b, mask=b_mask, other=0)
    own = tl.load(target + task[:, None] * size + c[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(parts + sources, tl.sum(g * own, 1), mask=b_mask)


@triton.jit
def attend_backward_kernel(
    up, ln_weight, ln_bias, source_peaks, target_peaks, task_ids, attention, grad_attention,
    scores, query, grad_query, scaled_query, grad_up, sources, width,
    temperature, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the gradients of scores, query and up of one example, its query, and the gradient of query times normal."""
    b = tl.program_id(0).to(tl.int64)
    c, j = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_T)
    mask, j_mask = c < width, j <= sources
    normal, scale = layer_norm(up + b * width, width, mask, BLOCK_D)
    weight = tl.load(ln_weight + c, mask=mask, other=0.0).to(tl.float32)
    bias = tl.load(ln_bias + c, mask=mask, other=0.0).to(tl.float32)
    a = tl.load(attention + b * (sources + 1) + j, mask=j_mask, other=0.0)
    ga = tl.load(grad_attention + b * (sources + 1) + j, mask=j_mask, other=0.0)
    gs = a * (ga - tl.sum(a * ga)) / temperature
    tl.store(scores + b * (sources + 1) + j, gs, mask=j_mask)

    # the gradients of the scores sum to zero: with differences, similar candidates do not cancel into rounding errors
    own = tl.load(target_peaks + tl.load(task_ids + b) * width + c, mask=mask, other=0.0).to(tl.float32)
    gq = tl.zeros((BLOCK_D,), tl.float32)
    for k in range(0, sources):
        candidate = tl.load(source_peaks + k * width + c, mask=mask, other=0.0).to(tl.float32)
        gq += tl.sum(tl.where(j == k, gs, 0.0)) * (candidate - own)
    gn = gq * weight
    gu = scale * (gn - tl.sum(gn) / width - normal * (tl.sum(gn * normal) / width))
    row = b * width + c
    tl.store(query + row, normal * weight + bias, mask=mask)
    tl.store(grad_query + row, gq, mask=mask)
    tl.store(scaled_query + row, gq * normal, mask=mask)
    tl.store(grad_up + row, gu.to(grad_up.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["examples"])
def prompt_gradients_kernel(
    grad, attention, scores, query, task_ids, position, total, prompts, examples, sources, size, width,
    grad_b, grad_m, grad_d, OWN: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write BLOCK_C numbers of the gradient of a source, or of a target (OWN) from the examples of its task."""
    k = (tl.program_id(0) % prompts).to(tl.int64)
    c = (tl.program_id(0) // prompts).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < size
    row, column = c // width, c % width
    at = c_mask & (tl.load(position + k * width + column, mask=c_mask, other=-1) == row)
    j = tl.cast(sources, tl.int64) if OWN else k
    mixed = tl.zeros((BLOCK_C,), tl.float32)
    pooled = tl.zeros((BLOCK_C,), tl.float32)
    for first in range(0, examples, BLOCK_B):
        b = (first + tl.arange(0, BLOCK_B)).to(tl.int64)
        b_mask = b < examples
        if OWN:
            b_mask &= tl.load(task_ids + b, mask=b_mask, other=-1) == k
        weight = tl.load(attention + b * (sources + 1) + j, mask=b_mask, other=0.0)
        if OWN:
            weight += 1.0
        place = b[:, None] * grad_b + (row * grad_m + column * grad_d)[None, :]
        g = tl.load(grad + place, mask=b_mask[:, None] & c_mask[None, :], other=0.0).to(tl.float32)
        mixed += tl.sum(weight[:, None] * g, 0)
        score = tl.load(scores + b * (sources + 1) + j, mask=b_mask, other=0.0)
        q = tl.load(query + b[:, None] * width + column[None, :], mask=b_mask[:, None] & at[None, :], other=0.0)
        pooled += tl.sum(score[:, None] * q, 0)
    tl.store(total + k * size + c, (mixed + pooled).to(total.dtype.element_ty), mask=c_mask)


@triton.jit
def gradient_of_x_kernel(grad, grad_peak, position, grad_x, size, width, grad_b, grad_n, grad_d, BLOCK_C: tl.constexpr):
    """Write BLOCK_C numbers of one example (n, d). grad starts at the first row behind the prompts."""
    column_blocks = tl.cdiv(size, BLOCK_C)
    b = (tl.program_id(0) // column_blocks).to(tl.int64)
    c = (tl.program_id(0) % column_blocks).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < size
    n, column = c // width, c % width
    g = tl.load(grad + b * grad_b + n * grad_n + column * grad_d, mask=mask, other=0.0).to(tl.float32)
    at = mask & (tl.load(position + b * width + column, mask=mask, other=-1) == n)
    g += tl.load(grad_peak + b * width + column, mask=at, other=0.0).to(tl.float32)
    tl.store(grad_x + b * size + c, g.to(grad_x.dtype.element_ty), mask=mask)


def backward(
    grad: Tensor, grad_attention: Tensor, peak: Tensor, position: Tensor, source: Tensor, target: Tensor,
    task_ids: Tensor, w_down: Tensor, w_up: Tensor, ln_weight: Tensor, ln_bias: Tensor, temperature: float, needs: int,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients that the bits of `needs` ask for. The arguments are those of ops.SCHEMAS."""
    (examples, width), (sources, before, _) = peak.shape, source.shape
    size, strides, candidates = before * width, grad.stride(), sources + 1
    source_peaks, source_position = pool(source)
    target_peaks, target_position = pool(target)
    peaks = (source_peaks, target_peaks, task_ids)
    attention, hidden, up = attend(peak, *peaks, w_down, w_up, ln_weight, ln_bias, temperature)

    block_b, block_c = 8, 256
    parts = attention.new_empty(blocks(size, block_c), examples, candidates)
    launch(
        attention_gradients_kernel, (blocks(size, block_c) * blocks(examples, block_b),), grad, source, target,
        task_ids, parts, examples, sources, size, width, *strides, BLOCK_B=block_b, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
    scores = torch.empty_like(attention)
    query, grad_query, scaled_query = (attention.new_empty(examples, width) for _ in range(3))
    grad_up = torch.empty_like(up)
    launch(
        attend_backward_kernel, (examples,), up, ln_weight, ln_bias, *peaks, attention, parts.sum(0) + grad_attention,
        scores, query, grad_query, scaled_query, grad_up, sources, width,
        temperature, BLOCK_T=power_of_2(candidates), BLOCK_D=power_of_2(width), num_warps=4,
    )  # fmt: skip
    if needs & 0b1001:
        grad_hidden = torch.ops.aten.silu_backward(torch.mm(grad_up, w_up.T), hidden)

    def of_prompts(prompts: Tensor, where: Tensor, own: bool) -> Tensor:
        total = torch.empty_like(prompts)
        launch(
            prompt_gradients_kernel, (prompts.shape[0] * blocks(size, block_c),), grad, attention, scores,
            query, task_ids, where, total, prompts.shape[0], examples, sources, size, width, *strides,
            OWN=own, BLOCK_B=block_b, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip
        return total

    found = []
    if needs & 1:
        rows = grad.shape[1] - before
        found.append(grad.new_empty(examples, rows, width))
        launch(
            gradient_of_x_kernel, (examples * blocks(rows * width, 1024),), grad[:, before:],
            torch.mm(grad_hidden, w_down.T), position, found[-1], rows * width, width, *strides,
            BLOCK_C=1024, num_warps=4,
        )  # fmt: skip
    if needs & 2:
        found.append(of_prompts(source, source_position, own=False))
    if needs & 4:
        found.append(of_prompts(target, target_position, own=True))
    if needs & 8:
        found.append(torch.mm(peak.T, grad_hidden))
    if needs & 16:
        found.append(torch.mm(F.silu(hidden).T, grad_up))
    if needs & 32:
        found.append(scaled_query.sum(0).to(peak.dtype))
    if needs & 64:
        found.append(grad_query.sum(0).to(peak.dtype))
    return found
