"""Compute attempt_mix: ATTEMPT's instance prompts in front of the embeddings, and the attention that mixed them.

    peak[b, c] = max over n of x[b, n, c]          up = silu(peak w_down) w_up          query = LayerNorm(up)
    attention[b] = softmax_j(max(P_j) . query[b] / temperature)
    prefixed[b] = [P_own + sum_j attention[b, j] P_j ; x[b]]                            j = the sources, then P_own

x (b, n, d), source (t, m, d), target (tasks, m, d), P_own = target[task_ids[b]]. Sums are in float32.

Launches: `pool` copies x into prefixed and takes its maximum in one pass; it also takes the maxima of the prompts.
torch.mm computes two products. `attend` runs one program per example. `mix` writes the prompts of eight examples for
one reading of the sources. Of equal numbers the first is the maximum; NaN is the largest. At the paper's size (b 32,
n 256, d 768, m 100) x has 25 MB and prefixed 35 MB in float32, 14 us at 4.3 TB/s; the sources have 2 MB.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from .device_functions import ASSERTS, blocks, power_of_2
from .launch import launch

EPS = tl.constexpr(1e-5)
NOWHERE = tl.constexpr(2**31 - 1)


@triton.jit(do_not_specialize=["rows", "rows_of_y"])
def pool_kernel(
    x, keep, y, peak, position, rows, width, rows_of_y,
    MASKED: tl.constexpr, COPIES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write peak and position, and y if COPIES. A program takes BLOCK_D columns of a group (n, d), and all its rows."""
    column_blocks = tl.cdiv(width, BLOCK_D)
    group = (tl.program_id(0) // column_blocks).to(tl.int64)
    c = tl.program_id(0) % column_blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    x += group * rows * width
    if COPIES:
        y += (group * rows_of_y + rows_of_y - rows) * width
    best = tl.zeros((BLOCK_D,), tl.float32)
    where = tl.full((BLOCK_D,), -1, tl.int32)
    for first in range(0, rows, BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        place = n.to(tl.int64)[:, None] * width + c[None, :]
        counts = (n < rows)[:, None] & (c < width)[None, :]
        tile = tl.load(x + place, mask=counts, other=0.0)
        if COPIES:
            tl.store(y + place, tile, mask=counts)
        if MASKED:
            counts &= (tl.load(keep + group * rows + n, mask=n < rows, other=0) != 0)[:, None]
        tile = tile.to(tl.float32)
        nan_at = tl.min(tl.where(counts & (tile != tile), n[:, None], NOWHERE), 0)
        is_nan = nan_at < NOWHERE
        counts &= tile == tile
        largest = tl.max(tl.where(counts, tile, -float("inf")), 0)
        at = tl.min(tl.where(counts & (tile == largest[None, :]), n[:, None], NOWHERE), 0)
        at = tl.where(is_nan, nan_at, at)
        better = (at < NOWHERE) & ((where < 0) | (largest > best) | is_nan) & (best == best)
        best = tl.where(better, tl.where(is_nan, float("nan"), largest), best)
        where = tl.where(better, at, where)
    place = group * width + c
    tl.store(peak + place, best.to(peak.dtype.element_ty), mask=c < width)
    tl.store(position + place, where, mask=c < width)


def pool(x: Tensor, keep: Tensor | None = None, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the largest number of each column, (g, d), and its row, int32.

    Args:
        x: (g, n, d).
        keep: (g, n), bool: the rows that count. None: all rows.
        y: (g, at least n, d). Its last n rows become a copy of x.
    """
    groups, rows, width = x.shape
    peak, position = x.new_empty(groups, width), x.new_empty(groups, width, dtype=torch.int32)
    block = 64 if groups * width >= 8192 else 32
    launch(
        pool_kernel,
        (groups * blocks(width, block),),
        x,
        x if keep is None else keep.view(torch.uint8),
        x if y is None else y,
        peak,
        position,
        rows,
        width,
        rows if y is None else y.shape[1],
        MASKED=keep is not None,
        COPIES=y is not None,
        BLOCK_N=64,
        BLOCK_D=block,
        num_warps=4,
    )
    return peak, position


@triton.jit
def layer_norm(up, width, mask, BLOCK_D: tl.constexpr):
    """Return (normal, scale) of one row; 0 outside the mask."""
    row = tl.load(up + tl.arange(0, BLOCK_D), mask=mask, other=0.0).to(tl.float32)
    centred = tl.where(mask, row - tl.sum(row) / width, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred) / width + EPS)
    return centred * scale, scale


@triton.jit
def attend_kernel(
    up, ln_weight, ln_bias, source_peaks, target_peaks, task_ids, attention, sources, tasks, width,
    temperature, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the attention (t + 1,) of one example. Forward and backward, this kernel is the first to read the tasks."""
    b = tl.program_id(0).to(tl.int64)
    c, j = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_T)
    mask = c < width
    normal, _ = layer_norm(up + b * width, width, mask, BLOCK_D)
    query = normal * tl.load(ln_weight + c, mask=mask, other=0.0) + tl.load(ln_bias + c, mask=mask, other=0.0)
    task = tl.load(task_ids + b)
    assert (task >= 0) & (task < tasks), "task_ids must lie in 0..tasks-1"
    own = tl.load(target_peaks + task * width + c, mask=mask, other=0.0)
    scores = tl.where(j == sources, tl.sum(own * query), -float("inf"))
    for k in range(0, sources):
        candidate = tl.load(source_peaks + k * width + c, mask=mask, other=0.0)
        scores = tl.where(j == k, tl.sum(candidate * query), scores)
    weights = tl.exp((scores - tl.max(scores)) / temperature)
    tl.store(attention + b * (sources + 1) + j, weights / tl.sum(weights), mask=j <= sources)


def attend(
    peak: Tensor, source_peaks: Tensor, target_peaks: Tensor, task_ids: Tensor, w_down: Tensor, w_up: Tensor,
    ln_weight: Tensor, ln_bias: Tensor, temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return attention (b, t + 1) in float32, peak w_down (b, r), and up (b, d)."""
    (examples, width), sources = peak.shape, source_peaks.shape[0]
    hidden = torch.mm(peak, w_down)
    up = torch.mm(F.silu(hidden), w_up)
    attention = peak.new_empty(examples, sources + 1, dtype=torch.float32)
    launch(
        attend_kernel, (examples,), up, ln_weight, ln_bias, source_peaks, target_peaks, task_ids, attention,
        sources, target_peaks.shape[0], width, temperature,
        BLOCK_T=power_of_2(sources + 1), BLOCK_D=power_of_2(width), num_warps=4, **ASSERTS,
    )  # fmt: skip
    return attention, hidden, up


@triton.jit(do_not_specialize=["examples"])
def mix_kernel(
    source, target, task_ids, attention, prefixed, examples, sources, size, example,
    BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Write the prompts (b, (m d)). A program computes [BLOCK_B, BLOCK_C]. example: stride of b in prefixed."""
    column_blocks = tl.cdiv(size, BLOCK_C)
    c = (tl.program_id(0) % column_blocks).to(tl.int64) * BLOCK_C + tl.arange(0, BLOCK_C)
    b = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    b_mask, c_mask = b < examples, c < size
    mask = b_mask[:, None] & c_mask[None, :]
    task = tl.load(task_ids + b, mask=b_mask, other=0)
    attention += b * (sources + 1)
    own = tl.load(target + task[:, None] * size + c[None, :], mask=mask, other=0.0).to(tl.float32)
    acc = (1.0 + tl.load(attention + sources, mask=b_mask, other=0.0))[:, None] * own
    for j in range(0, sources):
        prompt = tl.load(source + tl.cast(j, tl.int64) * size + c, mask=c_mask, other=0.0).to(tl.float32)
        acc += tl.load(attention + j, mask=b_mask, other=0.0)[:, None] * prompt[None, :]
    tl.store(prefixed + b[:, None] * example + c[None, :], acc.to(prefixed.dtype.element_ty), mask=mask)


def forward(
    x: Tensor, keep: Tensor | None, source: Tensor, target: Tensor, task_ids: Tensor, w_down: Tensor, w_up: Tensor,
    ln_weight: Tensor, ln_bias: Tensor, temperature: float,
) -> list[Tensor]:  # fmt: skip
    """Return [prefixed, attention, peak, position]. The arguments are those of ops.SCHEMAS["attempt_mix"]."""
    (examples, rows, width), (sources, before, _) = x.shape, source.shape
    prefixed = x.new_empty(examples, before + rows, width)
    peak, position = pool(x, keep, prefixed)
    factors = (w_down, w_up, ln_weight, ln_bias, temperature)
    attention, _, _ = attend(peak, pool(source)[0], pool(target)[0], task_ids, *factors)
    block_b, block_c, size = 8, 256, before * width
    launch(
        mix_kernel, (blocks(size, block_c) * blocks(examples, block_b),), source, target, task_ids, attention, prefixed,
        examples, sources, size, (before + rows) * width,
        BLOCK_B=block_b, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
    return [prefixed, attention.to(x.dtype), peak, position]
