"""Compute relu_dropout, y = keep max(x, 0) / (1 - p'), with one bit per element that backward needs.

x (..., d), seed (1,) or None -> y (..., d), bits uint8 (..., ceil(d / 8)). Bit c % 8 of byte c // 8 is set if x is
positive in column c and is kept. The gradient of x is gy / (1 - p') where the bit is set, and 0 elsewhere. p' is the
probability that 16 random bits give (dropout.py). NaN stays NaN where it is kept. Kernels compute in float32.

The 8 words of a group decide two bytes: a program takes the words of a block of rows, and makes a byte of the low
halves and a byte of the high halves of each group. The bytes limit both kernels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..step_reference import factor
from .device_functions import blocks
from .dropout import block_of, block_sizes, columns_of, drawn_words, keeps, launch_on_rows, load_strided, matrix
from .launch import launch


@triton.jit(do_not_specialize=["rows", "dropped"])
def relu_dropout_kernel(
    x, seed, y, bits, rows, width, dropped, kept_factor,
    DROPOUT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Write y and bits. A program computes [BLOCK_N rows, 2 BLOCK_W columns]."""
    n, word = block_of(width, BLOCK_N, BLOCK_W)
    first_byte = tl.program_id(0) % tl.cdiv(width, 2 * BLOCK_W) * (BLOCK_W // 8)
    drawn = drawn_words(seed, n, word) if DROPOUT else word
    for half in tl.static_range(2):
        _, mask, place = columns_of(n, word, half, rows, width)
        tile = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        passes = tile > 0
        tile = tl.where(tile < 0, 0.0, tile) * kept_factor  # keeps NaN, as torch does
        if DROPOUT:
            keep = keeps(drawn, half, dropped)
            passes &= keep
            tile = tl.where(keep, tile, 0.0)
        tl.store(y + place, tile.to(y.dtype.element_ty), mask=mask)
        of_byte = tl.reshape(passes.to(tl.int32), (BLOCK_N, BLOCK_W // 8, 8)) << tl.arange(0, 8)[None, None, :]
        byte = (first_byte + tl.arange(0, BLOCK_W // 8)) * 2 + half
        width_of_bits = tl.cdiv(width, 8)
        mask = (n < rows)[:, None] & (byte < width_of_bits)[None, :]
        tl.store(bits + (n[:, None] * width_of_bits + byte[None, :]), tl.sum(of_byte, 2).to(tl.uint8), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def relu_dropout_backward_kernel(
    grad, bits, grad_x, rows, width, grad_n, grad_c, kept_factor, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Write grad_x. A program computes [BLOCK_N rows, BLOCK_C columns]."""
    column_blocks = tl.cdiv(width, BLOCK_C)
    n = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(0) % column_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (n < rows)[:, None] & (c < width)[None, :]
    byte = tl.load(bits + (n[:, None] * tl.cdiv(width, 8) + c[None, :] // 8), mask=mask, other=0)
    passes = (byte >> (c % 8).to(tl.uint8)[None, :]) & 1 != 0
    g = tl.where(passes, load_strided(grad, n, c, grad_n, grad_c, mask) * kept_factor, 0.0)
    tl.store(grad_x + (n[:, None] * width + c[None, :]), g.to(grad_x.dtype.element_ty), mask=mask)


def forward(x: Tensor, seed: Tensor | None, p: float) -> list[Tensor]:
    """Return [y, bits]. The arguments are those of SCHEMAS["relu_dropout"]."""
    y, bits = x.new_empty(x.shape), x.new_empty(*x.shape[:-1], blocks(x.shape[-1], 8), dtype=torch.uint8)
    launch_on_rows(relu_dropout_kernel, matrix(x), (x, seed, y, bits), (), p)
    return [y, bits]


def backward(grad: Tensor, bits: Tensor, p: float, needs: int) -> list[Tensor]:
    """Return the gradient of x if bit 0 of `needs` asks for it. The arguments are those of SCHEMAS."""
    if not needs & 1:
        return []
    grad_x = grad.new_empty(grad.shape)
    rows = matrix(grad)
    (n, width), (block_n, block_w) = rows.shape, block_sizes(grad.shape[-1])
    launch(
        relu_dropout_backward_kernel, (blocks(n, block_n) * blocks(width, 2 * block_w),), rows, bits, grad_x, n, width,
        *rows.stride(), factor(p), BLOCK_N=block_n, BLOCK_C=2 * block_w, num_warps=4,
    )  # fmt: skip
    return [grad_x]
