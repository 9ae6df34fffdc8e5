"""Compute the gradients of prefix_attention, whose formulas and names are in prefix_attention.py. Sums are in float32.

Scores, weights and the dropout mask are computed again from what forward saved. With gy the gradient of out:

    P[i, c] = exp(s[i, c] - lse[i])          G[i, c] = keep[i, c] gy[i] . value[c] / (1 - p')
    delta[i] = sum_c P G                     gs = P (G - delta)
    gquery[i] = scale sum_c gs key[c]        `query_gradients_kernel`, which writes delta in a first pass over columns
    gkey[c] = scale sum_i gs query[i]        `column_gradients_kernel`: a program computes a block of columns of a head
    gvalue[c] = sum_i keep P gy[i] / (1 - p')                                  and loops over the queries that see them

Forward saves no output, so delta takes a pass over the columns instead of gy . out. This pass also sums P. The sum is 1
but for the rounding of lse, and delta and gs are divided by it: at lse = 8 the rounding is 5e-7 of every P of a row.
A gradient that is not asked for costs no product: delta alone needs one pass, the gradients of prefixes need the prefix
columns only.

The prefix columns give one part per example, in float32. `sum_of_examples_kernel` adds the parts of a prefix row in the
order of its examples. All sums have a fixed order: two runs give the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .device_functions import blocks
from .dropout import keeps_columns, row_keys
from .launch import launch
from .prefix_attention import (
    Call,
    Tile,
    Tiles,
    block_of_queries,
    columns_from,
    end_of,
    exists,
    places_of_queries,
    prefix_of,
    scores,
)


@triton.jit
def of_gradient(grad, b, i, h, grad_b, grad_q, grad_h, grad_d, queries, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the rows i of a head of the gradient of out, [i, d]."""
    d = tl.arange(0, BLOCK_D)[None, :]
    place = b * grad_b + h * grad_h + (i * grad_q)[:, None] + d.to(tl.int64) * grad_d
    return tl.load(grad + place, mask=(i < queries)[:, None] & (d < D), other=0.0)


@triton.jit
def of_rows(pointer, i, queries):
    """Return lse of queries; +inf, which makes all weights 0, of a query that sees no column or does not exist."""
    lse = tl.load(pointer + i, mask=i < queries, other=float("inf"))
    return tl.where(lse == -float("inf"), float("inf"), lse)


@triton.jit
def pass_over_columns(
    acc, total, delta, q, gy, lse, low, high, i, key, value, stride, columns, shift, bias, key_mask, queries, keys,
    scale, dropped, kept_factor, OF_QUERY: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, D: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add sums over some columns: of gs key [i, d] to acc if OF_QUERY, or else of P G [i] to acc and of P [i] to total.

    The other arguments are those of prefix_attention.attend. Return acc and total.
    """
    for first in range(0, columns, BLOCK_C):
        column, k, v, s = columns_from(
            first, q, i, key, value, stride, columns, bias, key_mask, queries, keys, scale, CAUSAL, D, PRECISION,
            BLOCK_C, BLOCK_D,
        )  # fmt: skip
        weights = tl.exp(s - lse[:, None])
        g = tl.dot(gy, tl.trans(v), input_precision=PRECISION) * kept_factor
        if DROPOUT:
            keep = keeps_columns(low[:, None], high[:, None], shift + column[None, :], dropped)
            g = tl.where(keep, g, 0.0)
        if OF_QUERY:
            gs = weights * (g - delta[:, None])
            acc = tl.dot(gs.to(k.dtype), k, acc, input_precision=PRECISION)
        else:
            acc += tl.sum(weights * g, 1)
            total += tl.sum(weights, 1)
    return acc, total


@triton.jit(do_not_specialize=["queries", "keys", "prefixes", "prefix_rows", "dropped"])
def query_gradients_kernel(
    query, key, value, prefix_key, prefix_value, rows, bias, key_mask, seed, grad, lse, delta, inverse, grad_query,
    heads, queries, keys, prefixes, prefix_rows, scale, dropped, kept_factor, grad_b, grad_q, grad_h, grad_d,
    CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write delta, inverse, and grad_query unless it is None. A program computes BLOCK_Q queries of one head."""
    head, first_i, i = block_of_queries(queries, BLOCK_Q)
    b, h = head // heads, head % heads
    q_place, q_mask = places_of_queries(b, h, i, heads, queries, D, BLOCK_D)
    q = tl.load(query + q_place, mask=q_mask, other=0.0)
    gy = of_gradient(grad, b, i, h, grad_b, grad_q, grad_h, grad_d, queries, D, BLOCK_D)
    log_sum = of_rows(lse + head * queries, i, queries)
    low, high = row_keys(seed, head * queries + i) if DROPOUT else (i, i)

    bias = None if bias is None else bias + h * queries * keys
    key_mask = None if key_mask is None else key_mask + b * keys
    end = end_of(key_mask, keys)
    if CAUSAL:
        end = tl.minimum(end, first_i + BLOCK_Q)
    start = (b * keys * heads + h) * D
    of_row = tl.zeros((BLOCK_Q,), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    if prefix_key is not None:
        prefix = (prefix_of(rows, b, prefix_rows) * heads + h) * prefixes * D
        of_row, total = pass_over_columns(
            of_row, total, of_row, q, gy, log_sum, low, high, i, prefix_key + prefix, prefix_value + prefix, D,
            prefixes, 0, None, None, queries, keys, scale, dropped, kept_factor, False, False, DROPOUT, D, PRECISION,
            BLOCK_C, BLOCK_D,
        )  # fmt: skip
    of_row, total = pass_over_columns(
        of_row, total, of_row, q, gy, log_sum, low, high, i, key + start, value + start, heads * D, end, prefixes, bias,
        key_mask, queries, keys, scale, dropped, kept_factor, False, CAUSAL, DROPOUT, D, PRECISION, BLOCK_C, BLOCK_D,
    )  # fmt: skip
    correction = 1.0 / tl.where(total == 0, 1.0, total)
    of_row *= correction
    tl.store(inverse + head * queries + i, correction, mask=i < queries)
    tl.store(delta + head * queries + i, of_row, mask=i < queries)
    if grad_query is not None:
        acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
        if prefix_key is not None:
            acc, total = pass_over_columns(
                acc, total, of_row, q, gy, log_sum, low, high, i, prefix_key + prefix, prefix_value + prefix, D,
                prefixes, 0, None, None, queries, keys, scale, dropped, kept_factor, True, False, DROPOUT, D,
                PRECISION, BLOCK_C, BLOCK_D,
            )  # fmt: skip
        acc, total = pass_over_columns(
            acc, total, of_row, q, gy, log_sum, low, high, i, key + start, value + start, heads * D, end, prefixes,
            bias, key_mask, queries, keys, scale, dropped, kept_factor, True, CAUSAL, DROPOUT, D, PRECISION, BLOCK_C,
            BLOCK_D,
        )  # fmt: skip
        acc *= (scale * correction)[:, None]
        tl.store(grad_query + q_place, acc.to(grad_query.dtype.element_ty), mask=q_mask)


@triton.jit(do_not_specialize=["queries", "keys", "prefixes", "prefix_rows", "dropped"])
def column_gradients_kernel(
    query, key, value, rows, bias, key_mask, seed, grad, lse, delta, inverse, grad_key, grad_value,
    heads, queries, keys, prefixes, prefix_rows, scale, dropped, kept_factor, grad_b, grad_q, grad_h, grad_d,
    PREFIX: tl.constexpr, CAUSAL: tl.constexpr, DROPOUT: tl.constexpr, D: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write grad_key and grad_value of tokens (b, k, h, d), or the parts of prefixes (b, h, p, d); each may be None.

    A program computes BLOCK_C columns of one head. PREFIX: key and value are those of the prefixes.
    """
    columns = prefixes if PREFIX else keys
    column_blocks = tl.cdiv(columns, BLOCK_C)
    head = (tl.program_id(0) // column_blocks).to(tl.int64)
    b, h = head // heads, head % heads
    first_c = tl.program_id(0) % column_blocks * BLOCK_C
    column = first_c + tl.arange(0, BLOCK_C)
    if PREFIX:
        stride = D
        shift = 0
        start = (prefix_of(rows, b, prefix_rows) * heads + h) * prefixes * D
        grad_start = head * prefixes * D
    else:
        stride = heads * D
        shift = prefixes
        start = (b * keys * heads + h) * D
        grad_start = start
    bias = None if bias is None else bias + h * queries * keys
    key_mask = None if key_mask is None else key_mask + b * keys
    found = exists(key_mask, column, columns)
    d = tl.arange(0, BLOCK_D)[None, :]
    place = (column.to(tl.int64) * stride)[:, None] + d
    mask = found[:, None] & (d < D)
    k = tl.load(key + start + place, mask=mask, other=0.0)
    if grad_key is not None:
        v = tl.load(value + start + place, mask=mask, other=0.0)
        of_key = tl.zeros((BLOCK_C, BLOCK_D), tl.float32)
    if grad_value is not None:
        of_value = tl.zeros((BLOCK_C, BLOCK_D), tl.float32)
    first_query = first_c // BLOCK_Q * BLOCK_Q if CAUSAL else 0
    if key_mask is not None:
        first_query = tl.where(tl.max(found.to(tl.int32)) == 0, queries, first_query)  # no query sees the columns
    for first in range(first_query, queries, BLOCK_Q):
        i = (first + tl.arange(0, BLOCK_Q)).to(tl.int64)
        q_place, q_mask = places_of_queries(b, h, i, heads, queries, D, BLOCK_D)
        q = tl.load(query + q_place, mask=q_mask, other=0.0)
        gy = of_gradient(grad, b, i, h, grad_b, grad_q, grad_h, grad_d, queries, D, BLOCK_D)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # [column, i]
        s = scores(s, bias, i[None, :], column[:, None], found[:, None], queries, keys, scale, CAUSAL)
        weights = tl.exp(s - of_rows(lse + head * queries, i, queries)[None, :])
        if DROPOUT:
            low, high = row_keys(seed, head * queries + i)
            keep = keeps_columns(low[None, :], high[None, :], shift + column[:, None], dropped)
        if grad_value is not None:
            kept = tl.where(keep, weights, 0.0) if DROPOUT else weights
            of_value = tl.dot(kept.to(gy.dtype), gy, of_value, input_precision=PRECISION)
        if grad_key is not None:
            correction = tl.load(inverse + head * queries + i, mask=i < queries, other=0.0)
            of_row = tl.load(delta + head * queries + i, mask=i < queries, other=0.0) * correction
            g = tl.dot(v, tl.trans(gy), input_precision=PRECISION) * (kept_factor * correction)[None, :]
            if DROPOUT:
                g = tl.where(keep, g, 0.0)
            gs = weights * (g - of_row[None, :])
            of_key = tl.dot(gs.to(q.dtype), q, of_key, input_precision=PRECISION)
    place += grad_start
    mask = (column < columns)[:, None] & (d < D)
    if grad_key is not None:
        tl.store(grad_key + place, (of_key * scale).to(grad_key.dtype.element_ty), mask=mask)
    if grad_value is not None:
        tl.store(grad_value + place, (of_value * kept_factor).to(grad_value.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["examples", "size"])
def sum_of_examples_kernel(parts, rows, total, examples, size, BLOCK: tl.constexpr):
    """Write total (r, size): for each prefix row the sum of parts (examples, size) of its examples, in their order."""
    size_blocks = tl.cdiv(size, BLOCK)
    row = tl.program_id(0) // size_blocks
    c = tl.program_id(0) % size_blocks * BLOCK + tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK,), tl.float32)
    for b in range(0, examples):
        if rows is None or tl.load(rows + b) == row:
            acc += tl.load(parts + tl.cast(b, tl.int64) * size + c, mask=c < size, other=0.0)
    tl.store(total + row.to(tl.int64) * size + c, acc.to(total.dtype.element_ty), mask=c < size)


OF_QUERIES: Tiles = {
    2: (Tile(64, 32, 8), Tile(64, 32, 8), Tile(16, 32, 8), Tile(16, 16, 8)),
    4: (Tile(16, 32, 8), Tile(16, 32, 8), Tile(16, 16, 8), Tile(16, 16, 8)),
}
OF_COLUMNS: Tiles = {
    2: (Tile(32, 64, 4), Tile(32, 64, 8), Tile(32, 16, 8), Tile(16, 16, 8)),
    4: (Tile(16, 32, 4), Tile(32, 32, 8), Tile(16, 16, 8), Tile(16, 16, 8)),
}


def backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, prefix_key: Tensor | None, prefix_value: Tensor | None,
    rows: Tensor | None, bias: Tensor | None, key_mask: Tensor | None, seed: Tensor | None, lse: Tensor, causal: bool,
    scale: float, dropout: float, needs: int,
) -> list[Tensor]:  # fmt: skip
    """Return the gradients that the bits of `needs` ask for. The arguments are those of SCHEMAS."""
    call = Call(query, key, value, prefix_key, prefix_value, rows, bias, key_mask, seed, causal, scale, dropout)
    delta, inverse = torch.empty_like(lse), torch.empty_like(lse)
    numbers = (*call.numbers, *grad.stride())
    found: list[Tensor] = []

    if needs & 0b01011:
        options = call.options(OF_QUERIES)
        grad_query = torch.empty_like(query) if needs & 1 else None
        launch(
            query_gradients_kernel, (call.programs(call.queries, options["BLOCK_Q"]),), *call.tensors, grad, lse, delta,
            inverse, grad_query, *numbers, **options,
        )  # fmt: skip
        found += [] if grad_query is None else [grad_query]

    if needs & 0b00110:
        options = call.options(OF_COLUMNS, reads_rows=False)
        grads = [torch.empty_like(t) if needs & bit else None for t, bit in ((key, 2), (value, 4))]
        launch(
            column_gradients_kernel, (call.programs(call.keys, options["BLOCK_C"]),), query, key, value,
            *call.tensors[5:], grad, lse, delta, inverse, *grads, *numbers, PREFIX=False, **options,
        )  # fmt: skip
        found += [g for g in grads if g is not None]

    if needs & 0b11000:
        assert prefix_key is not None
        options = call.options(OF_COLUMNS)
        size = prefix_key[0].numel()
        parts = [lse.new_empty(call.batch, size) if needs & bit else None for bit in (8, 16)]
        launch(
            column_gradients_kernel, (call.programs(call.prefixes, options["BLOCK_C"]),), query, prefix_key,
            prefix_value, rows, None, None, seed, grad, lse, delta, inverse, *parts, *numbers, PREFIX=True,
            **options | {"CAUSAL": False},
        )  # fmt: skip
        for part in parts:
            if part is not None:
                found.append(torch.empty_like(prefix_key))
                launch(
                    sum_of_examples_kernel, (prefix_key.shape[0] * blocks(size, 256),), part, rows, found[-1],
                    call.batch, size, BLOCK=256, num_warps=4,
                )  # fmt: skip
    return found
