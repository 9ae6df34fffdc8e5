"""Compute dropout_add, y = residual + keep x / (1 - p'), and the gradient of x, keep gy / (1 - p').

x (..., d), residual (..., d) or None for 0, seed (1,) -> y (..., d). p' is the probability that 16 random bits give
(dropout.py). Forward and backward are one kernel in float32: backward draws the bits again.

A program takes the words of a block of rows, and with each word the two columns that the word decides. So every word is
drawn once, and no number moves between threads. The bytes limit the kernel.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..step_reference import factor, threshold
from .device_functions import blocks
from .dropout import block_sizes, column_of, keeps, matrix, row_keys, words
from .launch import launch


@triton.jit(do_not_specialize=["rows", "dropped"])
def dropout_add_kernel(
    x, residual, seed, y, rows, width, x_n, x_c, dropped, kept_factor,
    DROPOUT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Write y. A program computes [BLOCK_N rows, 2 BLOCK_W columns]. x_n, x_c: strides of x."""
    word_blocks = tl.cdiv(width, 2 * BLOCK_W)
    n = (tl.program_id(0) // word_blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    word = tl.program_id(0) % word_blocks * BLOCK_W + tl.arange(0, BLOCK_W)
    if DROPOUT:
        low, high = row_keys(seed, n)
        drawn = words(low[:, None], high[:, None], word[None, :])
    for half in tl.static_range(2):
        c = column_of(word, half)
        mask = (n < rows)[:, None] & (c < width)[None, :]
        place = n[:, None] * width + c[None, :]
        tile = tl.load(x + (n[:, None] * x_n + c.to(tl.int64)[None, :] * x_c), mask=mask, other=0.0).to(tl.float32)
        if DROPOUT:
            tile = tl.where(keeps(drawn, half, dropped), tile * kept_factor, 0.0)
        if residual is not None:
            tile += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(y + place, tile.to(y.dtype.element_ty), mask=mask)


def forward(x: Tensor, residual: Tensor | None, seed: Tensor, p: float) -> Tensor:
    """Return y. The arguments are those of SCHEMAS["dropout_add"]."""
    y = x.new_empty(x.shape)
    rows = matrix(x)
    (n, width), (block_n, block_w) = rows.shape, block_sizes(x.shape[-1])
    launch(
        dropout_add_kernel, (blocks(n, block_n) * blocks(width, 2 * block_w),), rows, residual, seed, y, n, width,
        *rows.stride(), threshold(p), factor(p), DROPOUT=threshold(p) > 0, BLOCK_N=block_n, BLOCK_W=block_w,
        num_warps=4,
    )  # fmt: skip
    return y


def backward(grad: Tensor, seed: Tensor, p: float, needs: int) -> list[Tensor]:
    """Return the gradient of x if bit 0 of `needs` asks for it. The arguments are those of SCHEMAS."""
    return [forward(grad, None, seed, p)] if needs & 1 else []
