"""Compute gated_gelu_dropout, y = keep gelu_tanh(gate) x / (1 - p'), and its gradients.

gate and x (..., d), seed (1,) or None -> y (..., d). p' is the probability that 16 random bits give (dropout.py).
Nothing but gate, x and the seed is saved for backward, which computes the activation and the bits again:

    gx = keep gy gelu_tanh(gate) / (1 - p')
    ggate = keep gy x gelu_tanh'(gate) / (1 - p')

What is dropped is 0 in all three, even where gate or x is NaN. A program takes words and columns as in dropout_add.py.
Kernels compute in float32. The bytes limit both kernels.
"""

import triton
import triton.language as tl
from torch import Tensor

from ..step_reference import factor, threshold
from .device_functions import activate, blocks, derivative
from .dropout import block_sizes, column_of, keeps, matrix, row_keys, words
from .launch import launch


@triton.jit(do_not_specialize=["rows", "dropped"])
def gated_gelu_dropout_kernel(
    gate, x, seed, y, rows, width, dropped, kept_factor,
    DROPOUT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Write y. A program computes [BLOCK_N rows, 2 BLOCK_W columns]."""
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
        g = tl.load(gate + place, mask=mask, other=0.0).to(tl.float32)
        tile = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        tile = activate(g, "gelu_tanh") * tile * kept_factor
        if DROPOUT:
            tile = tl.where(keeps(drawn, half, dropped), tile, 0.0)
        tl.store(y + place, tile.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "dropped"])
def gated_gelu_dropout_backward_kernel(
    grad, gate, x, seed, grad_gate, grad_x, rows, width, grad_n, grad_c, dropped, kept_factor,
    DROPOUT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Write grad_gate and grad_x; each may be None. A program computes [BLOCK_N rows, 2 BLOCK_W columns]."""
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
        tile = tl.load(grad + (n[:, None] * grad_n + c[None, :] * grad_c), mask=mask, other=0.0).to(tl.float32)
        tile *= kept_factor
        g = tl.load(gate + place, mask=mask, other=0.0).to(tl.float32)
        if grad_gate is not None:
            of_gate = tile * tl.load(x + place, mask=mask, other=0.0).to(tl.float32) * derivative(g, "gelu_tanh")
            if DROPOUT:
                of_gate = tl.where(keeps(drawn, half, dropped), of_gate, 0.0)
            tl.store(grad_gate + place, of_gate.to(grad_gate.dtype.element_ty), mask=mask)
        if grad_x is not None:
            of_x = tile * activate(g, "gelu_tanh")
            if DROPOUT:
                of_x = tl.where(keeps(drawn, half, dropped), of_x, 0.0)
            tl.store(grad_x + place, of_x.to(grad_x.dtype.element_ty), mask=mask)


def forward(gate: Tensor, x: Tensor, seed: Tensor | None, p: float) -> Tensor:
    """Return y. The arguments are those of SCHEMAS["gated_gelu_dropout"]."""
    y = gate.new_empty(gate.shape)
    (n, width), (block_n, block_w) = matrix(gate).shape, block_sizes(gate.shape[-1])
    launch(
        gated_gelu_dropout_kernel, (blocks(n, block_n) * blocks(width, 2 * block_w),), gate, x, seed, y, n, width,
        threshold(p), factor(p), DROPOUT=threshold(p) > 0, BLOCK_N=block_n, BLOCK_W=block_w, num_warps=4,
    )  # fmt: skip
    return y


def backward(grad: Tensor, gate: Tensor, x: Tensor, seed: Tensor | None, p: float, needs: int) -> list[Tensor]:
    """Return the gradients that the bits of `needs` ask for. The arguments are those of SCHEMAS."""
    if not needs & 3:
        return []
    grad_gate = gate.new_empty(gate.shape) if needs & 1 else None
    grad_x = x.new_empty(x.shape) if needs & 2 else None
    rows = matrix(grad)
    (n, width), (block_n, block_w) = rows.shape, block_sizes(gate.shape[-1])
    launch(
        gated_gelu_dropout_backward_kernel, (blocks(n, block_n) * blocks(width, 2 * block_w),), rows, gate, x, seed,
        grad_gate, grad_x, n, width, *rows.stride(), threshold(p), factor(p), DROPOUT=threshold(p) > 0,
        BLOCK_N=block_n, BLOCK_W=block_w, num_warps=4,
    )  # fmt: skip
    return [t for t in (grad_gate, grad_x) if t is not None]
