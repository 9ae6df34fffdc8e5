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

from .device_functions import activate, derivative
from .dropout import block_of, columns_of, drawn_words, keeps, launch_on_rows, load_strided, matrix


@triton.jit(do_not_specialize=["rows", "dropped"])
def gated_gelu_dropout_kernel(
    gate, x, seed, y, rows, width, dropped, kept_factor,
    DROPOUT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Write y. A program computes [BLOCK_N rows, 2 BLOCK_W columns]."""
    n, word = block_of(width, BLOCK_N, BLOCK_W)
    drawn = drawn_words(seed, n, word) if DROPOUT else word
    for half in tl.static_range(2):
        _, mask, place = columns_of(n, word, half, rows, width)
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
    n, word = block_of(width, BLOCK_N, BLOCK_W)
    drawn = drawn_words(seed, n, word) if DROPOUT else word
    for half in tl.static_range(2):
        c, mask, place = columns_of(n, word, half, rows, width)
        tile = load_strided(grad, n, c, grad_n, grad_c, mask) * kept_factor
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
    launch_on_rows(gated_gelu_dropout_kernel, matrix(gate), (gate, x, seed, y), (), p)
    return y


def backward(grad: Tensor, gate: Tensor, x: Tensor, seed: Tensor | None, p: float, needs: int) -> list[Tensor]:
    """Return the gradients that the bits of `needs` ask for. The arguments are those of SCHEMAS."""
    if not needs & 3:
        return []
    grad_gate = gate.new_empty(gate.shape) if needs & 1 else None
    grad_x = x.new_empty(x.shape) if needs & 2 else None
    rows = matrix(grad)
    tensors = (rows, gate, x, seed, grad_gate, grad_x)
    launch_on_rows(gated_gelu_dropout_backward_kernel, rows, tensors, rows.stride(), p)
    return [t for t in (grad_gate, grad_x) if t is not None]
