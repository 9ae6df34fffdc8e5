"""Compute prefix_attention: attention to the prefix of an example and to its tokens, with dropout of the weights.

query (b, q, h, d), key and value (b, k, h, d), prefix_key and prefix_value (r, h, p, d), rows (b,), bias (h, q, k),
key_mask (b, k) -> out (b, q, h, d), lse (b, h, q). A head of an example has p + k columns: c < p are those of the
prefix rows[b], which all queries see; the others are the tokens j = c - p, which query i sees if key_mask[b, j] and, if
causal, j <= i. With the sums over the columns that query i sees:

    s[i, c] = query[i] . key[c] scale + bias[i, j]
    lse[i]  = log sum_c exp(s[i, c])
    out[i]  = sum_c keep[i, c] exp(s[i, c] - lse[i]) value[c] / (1 - p')           dropout.py says what is kept, and p'

A query that sees no column has out 0 and lse -inf. Sums, s and the weights are in float32; the weights are rounded to
the dtype of value for their product.

A program computes a block of queries of one head. It reads blocks of columns with a running maximum, so nothing of the
size of the scores is in memory: first the columns of the prefix, then the tokens up to the last that a query of the
block sees and that the mask has. Prefixes, tokens, bias and mask are read where they lie.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..step_reference import factor, threshold
from .device_functions import ASSERTS, blocks, power_of_2
from .dropout import keeps_columns, row_keys
from .launch import input_precision, launch


@triton.jit
def block_of_queries(queries, BLOCK_Q: tl.constexpr):
    """Return the head of the program, int64, and its queries: the first, and all, int64."""
    query_blocks = tl.cdiv(queries, BLOCK_Q)
    first = tl.program_id(0) % query_blocks * BLOCK_Q
    return (tl.program_id(0) // query_blocks).to(tl.int64), first, (first + tl.arange(0, BLOCK_Q)).to(tl.int64)


@triton.jit
def places_of_queries(b, h, i, heads, queries, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the places [i, d] of the queries i of a head in (b, q, h, d), and which of them exist."""
    d = tl.arange(0, BLOCK_D)[None, :]
    return ((b * queries + i) * heads + h)[:, None] * D + d, (i < queries)[:, None] & (d < D)


@triton.jit
def prefix_of(rows, b, prefix_rows):
    """Return the row of the prefixes that example b reads, int64."""
    if rows is None:
        row = tl.full((), 0, tl.int64)
    else:
        row = tl.load(rows + b)
        assert (row >= 0) & (row < prefix_rows), "rows must lie in 0..r-1, r the number of prefix rows"
    return row


@triton.jit
def end_of(key_mask, keys):
    """Return the number of tokens of an example without the last ones that the mask leaves out."""
    if key_mask is None:
        end = keys
    else:
        end = 0
        for first in range(0, keys, 1024):
            token = first + tl.arange(0, 1024)
            found = tl.load(key_mask + token, mask=token < keys, other=0) != 0
            end = tl.maximum(end, tl.max(tl.where(found, token + 1, 0)))
    return end


@triton.jit
def exists(key_mask, column, columns):
    """Return True for the columns that queries may see."""
    found = column < columns
    if key_mask is not None:
        found &= tl.load(key_mask + column, mask=found, other=0) != 0
    return found


@triton.jit
def scores(products, bias, i, column, found, queries, keys, scale, CAUSAL: tl.constexpr):
    """Return a tile of s, -inf where a query does not see a column. i, column and found are broadcast to the tile."""
    s = products * scale
    if bias is not None:
        s += tl.load(bias + i * keys + column, mask=found & (i < queries), other=0.0).to(tl.float32)
    if CAUSAL:
        found = found & (column <= i)
    return tl.where(found, s, -float("inf"))


@triton.jit
def columns_from(
    first, q, i, key, value, stride, columns, bias, key_mask, queries, keys, scale,
    CAUSAL: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Return BLOCK_C columns from `first` on, their rows of key and value, and their s."""
    column = first + tl.arange(0, BLOCK_C)
    found = exists(key_mask, column, columns)
    d = tl.arange(0, BLOCK_D)[None, :]
    place = (column.to(tl.int64) * stride)[:, None] + d
    mask = found[:, None] & (d < D)
    k = tl.load(key + place, mask=mask, other=0.0)
    v = tl.load(value + place, mask=mask, other=0.0)
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    s = scores(s, bias, i[:, None], column[None, :], found[None, :], queries, keys, scale, CAUSAL)
    return column, k, v, s


@triton.jit
def attend(
    peak, total, acc, q, low, high, i, key, value, stride, columns, shift, bias, key_mask, queries, keys, scale,
    dropped, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Return peak, total and acc after some columns of a head: those of its prefix, or its tokens.

    key, value, bias, key_mask: addresses of the head's own parts; stride: of the rows of key and value. shift: the
    place of the first column in the rows of dropout.
    """
    for first in range(0, columns, BLOCK_C):
        column, _, v, s = columns_from(
            first, q, i, key, value, stride, columns, bias, key_mask, queries, keys, scale, CAUSAL, D, PRECISION,
            BLOCK_C, BLOCK_D,
        )  # fmt: skip
        higher = tl.maximum(peak, tl.max(s, 1))
        base = tl.where(higher == -float("inf"), 0.0, higher)
        weights = tl.exp(s - base[:, None])
        shrink = tl.exp(peak - base)
        total = total * shrink + tl.sum(weights, 1)
        if DROPOUT:
            keep = keeps_columns(low[:, None], high[:, None], shift + column[None, :], dropped)
            weights = tl.where(keep, weights, 0.0)
        acc = tl.dot(weights.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        peak = higher
    return peak, total, acc


@triton.jit(do_not_specialize=["queries", "keys", "prefixes", "prefix_rows", "dropped"])
def prefix_attention_kernel(
    query, key, value, prefix_key, prefix_value, rows, bias, key_mask, seed, out, lse,
    heads, queries, keys, prefixes, prefix_rows, scale, dropped, kept_factor,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write out and lse. A program computes BLOCK_Q queries of one head; those of a head are neighbours."""
    head, first_i, i = block_of_queries(queries, BLOCK_Q)
    b, h = head // heads, head % heads
    q_place, q_mask = places_of_queries(b, h, i, heads, queries, D, BLOCK_D)
    q = tl.load(query + q_place, mask=q_mask, other=0.0)
    low, high = row_keys(seed, head * queries + i) if DROPOUT else (i, i)

    peak = tl.full((BLOCK_Q,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    if prefix_key is not None:
        start = (prefix_of(rows, b, prefix_rows) * heads + h) * prefixes * D
        peak, total, acc = attend(
            peak, total, acc, q, low, high, i, prefix_key + start, prefix_value + start, D, prefixes, 0, None, None,
            queries, keys, scale, dropped, False, DROPOUT, D, PRECISION, BLOCK_C, BLOCK_D,
        )  # fmt: skip
    bias = None if bias is None else bias + h * queries * keys
    key_mask = None if key_mask is None else key_mask + b * keys
    end = end_of(key_mask, keys)
    if CAUSAL:
        end = tl.minimum(end, first_i + BLOCK_Q)
    start = (b * keys * heads + h) * D
    peak, total, acc = attend(
        peak, total, acc, q, low, high, i, key + start, value + start, heads * D, end, prefixes, bias, key_mask,
        queries, keys, scale, dropped, CAUSAL, DROPOUT, D, PRECISION, BLOCK_C, BLOCK_D,
    )  # fmt: skip
    total = tl.where(total == 0, 1.0, total)  # of a query that sees no column: out is 0, and lse is peak, -inf
    acc *= (kept_factor / total)[:, None]
    tl.store(out + q_place, acc.to(out.dtype.element_ty), mask=q_mask)
    tl.store(lse + head * queries + i, peak + tl.log(total), mask=i < queries)


class Tile(NamedTuple):
    """Block sizes and warps of a launch."""

    queries: int
    columns: int
    num_warps: int


Tiles = dict[int, tuple[Tile, Tile, Tile, Tile]]
"""Tiles of a kernel by the bytes of a number, and by the width of a head: at most 64, 128 and 256 numbers, and more."""

# Of the tiles that were compiled, the largest whose kernels stay in registers on sm_80 and sm_90, or spill no more than
# compile_table.py accepts, in heads of up to 128 numbers, as T5's are. None was timed.
TILES: Tiles = {
    2: (Tile(32, 32, 4), Tile(64, 32, 8), Tile(32, 16, 8), Tile(16, 16, 8)),
    4: (Tile(32, 32, 4), Tile(32, 32, 8), Tile(16, 16, 8), Tile(16, 16, 8)),
}


class Call:
    """The tensors and numbers that the kernels of forward and backward take alike."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor | None, prefix_value: Tensor | None,
        rows: Tensor | None, bias: Tensor | None, key_mask: Tensor | None, seed: Tensor | None, causal: bool,
        scale: float, dropout: float,
    ):  # fmt: skip
        self.batch, self.queries, self.heads, self.d = query.shape
        self.keys = key.shape[1]
        prefix_rows, _, self.prefixes, _ = (0, 0, 0, 0) if prefix_key is None else prefix_key.shape
        mask = None if key_mask is None else key_mask.view(torch.uint8)
        self.tensors = (query, key, value, prefix_key, prefix_value, rows, bias, mask, seed)
        sizes = (self.heads, self.queries, self.keys, self.prefixes, prefix_rows)
        self.numbers = (*sizes, scale, threshold(dropout), factor(dropout))
        self.flags = {"CAUSAL": causal, "DROPOUT": threshold(dropout) > 0, "D": self.d}

    def programs(self, size: int, block: int) -> int:
        """Return the number of programs that cover `size` queries or columns of every head."""
        return self.batch * self.heads * blocks(size, block)

    def options(self, tiles: Tiles, reads_rows: bool = True) -> dict[str, Any]:
        """Return the constexprs and options of a launch. Only launches that read rows have asserts."""
        query, rows, block_d = self.tensors[0], self.tensors[5], max(16, power_of_2(self.d))
        tile = tiles[query.dtype.itemsize][min(max(0, block_d.bit_length() - 7), 3)]
        found: dict[str, Any] = {"BLOCK_Q": tile.queries, "BLOCK_C": tile.columns, "BLOCK_D": block_d}
        found["PRECISION"] = input_precision() if query.dtype is torch.float32 else "ieee"
        found |= {"num_warps": tile.num_warps, "num_stages": 2}
        return found | self.flags | (ASSERTS if reads_rows and rows is not None else {})


def forward(query: Tensor, *args: Any) -> list[Tensor]:
    """Return [out, lse]. The arguments are those of SCHEMAS["prefix_attention"]."""
    call = Call(query, *args)
    out, lse = torch.empty_like(query), query.new_empty(call.batch, call.heads, call.queries, dtype=torch.float32)
    options = call.options(TILES)
    programs = call.programs(call.queries, options["BLOCK_Q"])
    launch(prefix_attention_kernel, (programs,), *call.tensors, out, lse, *call.numbers, **options)
    return [out, lse]
