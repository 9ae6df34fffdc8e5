"""Provide the dropout bits of the kernels: the generator of step_reference.kept, bit for bit.

A row has two keys of 32 bits, mixed from the seed and the number of the row. A word of 32 bits decides two columns:
word w decides column 16 (w // 8) + w % 8 by its low half, and the column 8 behind it by its high half. A column is kept
if the 16 bits are at least step_reference.threshold(p). All numbers are unsigned and wrap around.
"""

import triton
import triton.language as tl
from torch import Tensor

from .device_functions import power_of_2


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
def column_of(word, half: tl.constexpr):
    """Return the column that a half of a word decides; 0: the low half, 1: the high half."""
    return word // 8 * 16 + word % 8 + 8 * half


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


def matrix(x: Tensor) -> Tensor:
    """Return x (..., d) as (rows, d): a view if x has strides that allow it, else a copy."""
    return x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)


def block_sizes(width: int) -> tuple[int, int]:
    """Return the block of rows and the block of words: 2048 numbers, 16 per thread, which hide the mixing of keys."""
    block_w = min(max(8, power_of_2(width) // 2), 1024)
    return 1024 // block_w, block_w
