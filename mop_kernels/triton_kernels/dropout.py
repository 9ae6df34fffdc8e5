"""Provide the dropout bits of the kernels: the generator of step_reference.kept, bit for bit.

A row has two keys of 32 bits, mixed from the seed and the number of the row. A word of 32 bits decides two columns:
word w decides column 16 (w // 8) + w % 8 by its low half, and the column 8 behind it by its high half. A column is kept
if the 16 bits are at least step_reference.threshold(p). All numbers are unsigned and wrap around.
"""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from ..step_reference import factor, threshold
from .device_functions import blocks, power_of_2
from .launch import launch


@triton.jit
def row_keys(seed, row):
    """Return the two keys of each row, uint32.

    seed: pointer to one int64 number. row: numbers of rows, int64.
    """
    z = tl.load(seed).to(tl.uint64, bitcast=True) + (row.to(tl.uint64) + 1) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    return z.to(tl.uint32), (z >> 32).to(tl.uint32)


@triton.jit
def words(low, high, word):
    """Return words, numbered by `word`, of the rows with the keys `low` and `high`. All arguments are broadcast."""
    x = (word.to(tl.uint32) * 0x9E3779B1) ^ low
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = ((x ^ (x >> 15)) + high) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def keeps(drawn, half: tl.constexpr, dropped):
    """Return True where a half of a drawn word keeps its column. dropped: the threshold."""
    bits = (drawn >> 16) if half == 1 else (drawn & 0xFFFF)
    return bits.to(tl.int32) >= dropped


@triton.jit
def keeps_columns(low, high, column, dropped):
    """Return True where columns of the rows with the keys `low` and `high` are kept. All arguments are broadcast."""
    drawn = words(low, high, column // 16 * 8 + column % 8)
    bits = tl.where(column // 8 % 2 == 0, drawn & 0xFFFF, drawn >> 16)
    return bits.to(tl.int32) >= dropped


# Of the kernels that work on rows:


@triton.jit
def block_of(width, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr):
    """Return the rows, int64, and the words of the program's block."""
    word_blocks = tl.cdiv(width, 2 * BLOCK_W)
    n = (tl.program_id(0) // word_blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    return n, tl.program_id(0) % word_blocks * BLOCK_W + tl.arange(0, BLOCK_W)


@triton.jit
def drawn_words(seed, n, word):
    """Return the words of the rows n, [n, word]."""
    low, high = row_keys(seed, n)
    return words(low[:, None], high[:, None], word[None, :])


@triton.jit
def columns_of(n, word, half: tl.constexpr, rows, width):
    """Return the columns that a half of the words decides; and, [n, word], which exist, and their places by rows.

    half: 0 for the low half, 1 for the high half.
    """
    c = word // 8 * 16 + word % 8 + 8 * half
    return c, (n < rows)[:, None] & (c < width)[None, :], n[:, None] * width + c[None, :]


@triton.jit
def load_strided(pointer, n, c, stride_n, stride_c, mask):
    """Return numbers [n, c], in float32, of a matrix of any strides."""
    place = n[:, None] * stride_n + c.to(tl.int64)[None, :] * stride_c
    return tl.load(pointer + place, mask=mask, other=0.0).to(tl.float32)


def matrix(x: Tensor) -> Tensor:
    """Return x (..., d) as (rows, d): a view if x has strides that allow it, else a copy."""
    return x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)


def block_sizes(width: int) -> tuple[int, int]:
    """Return the block of rows and the block of words: 2048 numbers, 16 per thread, which hide the mixing of keys."""
    block_w = min(max(8, power_of_2(width) // 2), 1024)
    return 1024 // block_w, block_w


def launch_on_rows(kernel: Any, rows: Tensor, before: Sequence[Tensor | None], after: Sequence, p: float) -> None:
    """Launch a kernel of dropout on the blocks of `rows` (n, width).

    Args:
        kernel: kernel(*before, n, width, *after, threshold, factor, DROPOUT, BLOCK_N, BLOCK_W).
        rows: The rows, for their sizes.
        before: The tensors.
        after: Numbers, such as strides.
        p: The probability.
    """
    (n, width), (block_n, block_w) = rows.shape, block_sizes(rows.shape[1])
    launch(
        kernel, (blocks(n, block_n) * blocks(width, 2 * block_w),), *before, n, width, *after, threshold(p), factor(p),
        DROPOUT=threshold(p) > 0, BLOCK_N=block_n, BLOCK_W=block_w, num_warps=4,
    )  # fmt: skip
