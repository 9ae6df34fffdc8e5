"""Compute dropout_add, y = residual + keep x / (1 - p'), and the gradient of x, keep gy / (1 - p').

x (..., d), residual (..., d) or None for 0, seed (1,) -> y (..., d). p' is the probability that 16 random bits give
(dropout.py). Forward and backward are one kernel in float32: backward draws the bits again.

A program takes the words of a block of rows, and with each word the two columns that the word decides. So every word is
drawn once, and no number moves between threads. The bytes limit the kernel.
"""

import triton
import triton.language as tl
from torch import Tensor

from .dropout import block_of, columns_of, drawn_words, keeps, launch_on_rows, load_strided, matrix


@triton.jit(do_not_specialize=["rows", "dropped"])
def dropout_add_kernel(
    x, residual, seed, y, rows, width, x_n, x_c, dropped, kept_factor,
    DROPOUT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Write y. A program computes [BLOCK_N rows, 2 BLOCK_W columns]. x_n, x_c: strides of x."""
    n, word = block_of(width, BLOCK_N, BLOCK_W)
    drawn = drawn_words(seed, n, word) if DROPOUT else word
    for half in tl.static_range(2):
        c, mask, place = columns_of(n, word, half, rows, width)
        tile = load_strided(x, n, c, x_n, x_c, mask)
        if DROPOUT:
            tile = tl.where(keeps(drawn, half, dropped), tile * kept_factor, 0.0)
        if residual is not None:
            tile += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
        tl.store(y + place, tile.to(y.dtype.element_ty), mask=mask)


def forward(x: Tensor, residual: Tensor | None, seed: Tensor, p: float) -> Tensor:
    """Return y. The arguments are those of SCHEMAS["dropout_add"]."""
    y = x.new_empty(x.shape)
    rows = matrix(x)
    launch_on_rows(dropout_add_kernel, rows, (rows, residual, seed, y), rows.stride(), p)
    return y


def backward(grad: Tensor, seed: Tensor, p: float, needs: int) -> list[Tensor]:
    """Return the gradient of x if bit 0 of `needs` asks for it. The arguments are those of SCHEMAS."""
    return [forward(grad, None, seed, p)] if needs & 1 else []
