"""Compute rms_norm, y = x r weight with r = 1 / sqrt(mean(x^2) + eps) over the last dim, and its gradients.

x (..., d), weight (d,) -> y (..., d). Sums are in float32. Nothing but x and the weight is saved for backward:

    gx = r (weight gy) - x r^3 mean(weight gy x)
    gweight = sum over rows of gy x r                  parts by blocks of rows, then torch.sum

A program holds whole rows on chip, so that x and gy are read once. The bytes limit both kernels. Rows of more than
WIDEST numbers would not stay in registers: such a call takes the reference op.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device_functions import blocks, power_of_2
from .dropout import load_strided, matrix
from .launch import launch

WIDEST = 8192  # numbers of a row: 16 per thread
ROWS_OF_A_PART = 64  # of the gradient of the weight: a program sums them. The same on every GPU, as the bits then are


@triton.jit(do_not_specialize=["rows"])
def rms_norm_kernel(x, weight, y, rows, width, eps, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write y. A program computes BLOCK_N rows."""
    n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, BLOCK_D)
    mask = (n < rows)[:, None] & (c < width)[None, :]
    place = n[:, None] * width + c[None, :]
    tile = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(tile * tile, 1) / width + eps)
    w = tl.load(weight + c, mask=c < width, other=0.0).to(tl.float32)
    tl.store(y + place, (tile * scale[:, None] * w[None, :]).to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def rms_norm_backward_kernel(
    grad, x, weight, grad_x, parts, rows, width, grad_n, grad_c, eps,
    BLOCKS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write grad_x and parts of the gradient of weight; each may be None. A program computes BLOCKS * BLOCK_N rows."""
    first = tl.program_id(0).to(tl.int64) * (BLOCKS * BLOCK_N)
    c = tl.arange(0, BLOCK_D)
    w = tl.load(weight + c, mask=c < width, other=0.0).to(tl.float32)[None, :]
    part = tl.zeros((BLOCK_D,), tl.float32)
    for k in range(BLOCKS):
        n = first + k * BLOCK_N + tl.arange(0, BLOCK_N)
        mask = (n < rows)[:, None] & (c < width)[None, :]
        place = n[:, None] * width + c[None, :]
        tile = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        g = load_strided(grad, n, c, grad_n, grad_c, mask)
        scale = (1.0 / tl.sqrt(tl.sum(tile * tile, 1) / width + eps))[:, None]
        normal = tile * scale
        if parts is not None:
            part += tl.sum(tl.where(mask, g * normal, 0.0), 0)
        if grad_x is not None:
            g *= w
            g = scale * (g - normal * (tl.sum(g * normal, 1) / width)[:, None])
            tl.store(grad_x + place, g.to(grad_x.dtype.element_ty), mask=mask)
    if parts is not None:
        tl.store(parts + tl.program_id(0).to(tl.int64) * width + c, part, mask=c < width)


def block_sizes(width: int) -> tuple[int, int, int]:
    """Return the block of rows, the block of columns, and the warps: 16 numbers per thread."""
    block_d = power_of_2(width)
    return max(1, 2048 // block_d), block_d, max(4, block_d // 512)


def forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return y. The arguments are those of SCHEMAS["rms_norm"]."""
    if x.shape[-1] > WIDEST:
        return torch.ops.mop_kernels.rms_norm_reference(x, weight, eps)
    y = x.new_empty(x.shape)
    n, width = matrix(x).shape
    block_n, block_d, num_warps = block_sizes(width)
    launch(
        rms_norm_kernel, (blocks(n, block_n) if width else 0,), x, weight, y, n, width, eps,
        BLOCK_N=block_n, BLOCK_D=block_d, num_warps=num_warps,
    )  # fmt: skip
    return y


def backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float, needs: int) -> list[Tensor]:
    """Return the gradients that the bits of `needs` ask for. The arguments are those of SCHEMAS."""
    if not needs & 3:
        return []
    if x.shape[-1] > WIDEST:
        return torch.ops.mop_kernels.rms_norm_backward_reference(grad, x, weight, eps, needs)
    rows = matrix(grad)
    n, width = rows.shape
    block_n, block_d, num_warps = block_sizes(width)
    per_program = blocks(ROWS_OF_A_PART, block_n) if needs & 2 else 1
    programs = blocks(n, per_program * block_n) if width else 0
    grad_x = x.new_empty(x.shape) if needs & 1 else None
    parts = x.new_empty(programs, width, dtype=torch.float32) if needs & 2 else None
    launch(
        rms_norm_backward_kernel, (programs,), rows, x, weight, grad_x, parts, n, width, *rows.stride(), eps,
        BLOCKS=per_program, BLOCK_N=block_n, BLOCK_D=block_d, num_warps=num_warps,
    )  # fmt: skip
    found = [] if grad_x is None else [grad_x]
    return found if parts is None else [*found, parts.sum(0).to(weight.dtype)]
