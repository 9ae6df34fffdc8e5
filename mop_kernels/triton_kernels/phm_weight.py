"""Compute phm_weight, W[(a u), (c v)] = sum_i rule[i, a, c] local[i, u, v] for any leading dims, by the kernel `mix`.

rule (..., terms, g_in, g_out), local (..., terms, loc_in, loc_out) -> W (..., g_in*loc_in, g_out*loc_out). One launch
of `mix`: a program reads a stretch of all locals once and writes it, mixed, to many places of W. The forward pass takes
as long as writing W, and the backward pass as long as reading its gradient once. Library calls would first copy the
gradient to [(a c), (u v)]: three more passes over the largest tensor by far.

`mix` computes y[k, e] = sum_m x[m, e] r[m, k]: a few small matrices r mix planes of numbers that lie anywhere in
memory. Three products of a PHM layer have this form. m is the contracted axis, k = (k1, k2) the output axis, and
e = (e1, e2) the batch axis, which is far longer than both:

                        x                  r                      y                     m   k       e
    phm_weight          local[i, u, v]     rule[i, a, c]          W[(a u), (c v)]       i   (a, c)  (u, v)
    stage 1, low rank   x[n, (a u)]        rule_in[i, a, r]       t[(i r), n, u]        a   (i, r)  (n, u)
    stage 3, low rank   s[(i r), n, v]     rule_out[(i r), c]     y[n, (c v)] + bias    j   c       (n, v)

Backward: gx[m, e] = sum_k r[m, k] gy[k, e] and gr[m, k] = sum_e x[m, e] gy[k, e], in one launch that reads gy and x
once. Every program owns a block of e: it finishes gx there, and writes a partial sum of gr in float32. torch.sum adds
the partial sums. Both kernels are bound by bytes: x and y move once, r is small. Sums are in float32.

The contracted axis is padded to the 16 of tl.dot; the output axis is not. Float32 products are IEEE arithmetic on the
CUDA cores, even if torch's own products may take TF32: 16 terms take as long as their bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import flags_of
from .device_functions import blocks, power_of_2
from .launch import Configs, Sizes, launch, pick


@triton.jit
def _batch_tile(tile, E, BLOCK_E: tl.constexpr, E2: tl.constexpr):
    """Return group (int64), e1 (int64), e2 and mask of a tile; tiles of e are fastest."""
    e_blocks = tl.cdiv(E, BLOCK_E)
    first = (tile % e_blocks).to(tl.int64) * BLOCK_E
    e1 = first // E2
    place = (first - e1 * E2).to(tl.int32) + tl.arange(0, BLOCK_E)  # from here on 32 bits hold the dividends
    return (tile // e_blocks).to(tl.int64), e1 + place // E2, place % E2, tl.arange(0, BLOCK_E) < E - first


@triton.jit
def mix_kernel(
    x, r, bias, y, E,
    x_g, x_m, x_e1, x_e2, r_g, r_m, r_k1, r_k2, y_g, y_k1, y_k2, y_e1, y_e2,
    M: tl.constexpr, K: tl.constexpr, K2: tl.constexpr, E2: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Write y. A program computes [BLOCK_K, BLOCK_E]."""
    K_BLOCKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    program = tl.program_id(0)
    group, e1, e2, e_mask = _batch_tile(program // K_BLOCKS, E, BLOCK_E, E2)
    k = program % K_BLOCKS * BLOCK_K + tl.arange(0, BLOCK_K)
    k_mask = k < K
    k1, k2 = (k // K2).to(tl.int64), (k % K2).to(tl.int64)
    x += group * x_g
    x_e = e1 * x_e1 + e2 * x_e2
    r += group * r_g
    r_k = k1 * r_k1 + k2 * r_k2

    mask = k_mask[:, None] & e_mask[None, :]
    if HAS_BIAS:
        acc = tl.load(bias + k[:, None] * E2 + e2[None, :], mask=mask, other=0.0).to(tl.float32)
    else:
        acc = tl.zeros((BLOCK_K, BLOCK_E), tl.float32)
    for m0 in range(0, M, BLOCK_M):
        m = m0 + tl.arange(0, BLOCK_M)
        m_mask = m < M
        x_me = m.to(tl.int64)[:, None] * x_m + x_e[None, :]
        x_tile = tl.load(x + x_me, mask=m_mask[:, None] & e_mask[None, :], other=0.0)
        r_tile = tl.load(r + r_k[:, None] + m[None, :] * r_m, mask=k_mask[:, None] & m_mask[None, :], other=0.0)
        acc = tl.dot(r_tile, x_tile, acc, input_precision="ieee")
    y += group * y_g
    y_k = k1 * y_k1 + k2 * y_k2
    y_e = e1 * y_e1 + e2 * y_e2
    tl.store(y + y_k[:, None] + y_e[None, :], acc.to(y.dtype.element_ty), mask=mask)


def mix(x: Tensor, r: Tensor, y: Tensor, bias: Tensor | None = None) -> None:
    """Write y.

    Args:
        x: (groups, m, e1, e2), of any strides.
        r: (groups, m, k1, k2), of any strides.
        y: (groups, k1, k2, e1, e2), of any strides.
        bias: (k, e2), contiguous; added to y.
    """
    sizes = _sizes(x, y)
    config = pick("mix", sizes, x.dtype, x.device, mix_configs)
    programs = blocks(sizes["k"], config["BLOCK_K"]) * blocks(sizes["e"], config["BLOCK_E"]) * sizes["groups"]
    launch(
        mix_kernel, (programs,), x, r, y if bias is None else bias, y, sizes["e"],
        *x.stride(), *r.stride(), *y.stride(),
        M=sizes["m"], K=sizes["k"], K2=y.shape[2], E2=x.shape[3], HAS_BIAS=bias is not None, **config,
    )  # fmt: skip


def _sizes(x: Tensor, y: Tensor) -> Sizes:
    groups, m, e1, e2 = x.shape
    return {"groups": groups, "m": m, "k": y.shape[1] * y.shape[2], "e": e1 * e2}


def _block_e(sizes: Sizes, longest: int, columns: int, multiprocessors: int) -> int:
    """Return the length of a block of e: `longest`, halved until no multiprocessor is idle, but not below 64."""
    while longest > 64 and columns * blocks(sizes["e"], longest) < 2 * multiprocessors:
        longest //= 2
    return longest


def mix_configs(sizes: Sizes, dtype: torch.dtype, multiprocessors: int) -> Configs:
    """Propose accumulators of 64 numbers per thread, 32 in float32."""
    half = dtype.itemsize == 2
    block_k = min(power_of_2(sizes["k"]), 64 if half else 16)
    columns = sizes["groups"] * blocks(sizes["k"], block_k)
    block_e = _block_e(sizes, min(512 if half else 256, 8192 // block_k), columns, multiprocessors)
    block_m = 32 if half and sizes["m"] > 16 else 16
    own = {"BLOCK_M": block_m, "BLOCK_K": block_k, "BLOCK_E": block_e, "num_warps": 4, "num_stages": 3}
    yield own
    yield from (own | {"BLOCK_E": e} for e in (block_e // 2, block_e * 2) if e >= 64 and block_k * e <= 16384)
    yield from (own | {"num_warps": 8}, own | {"num_stages": 2})


@triton.jit
def mix_backward_kernel(
    gy, x, r, gx, gr, E,
    gy_g, gy_k1, gy_k2, gy_e1, gy_e2, x_g, x_m, x_e1, x_e2, r_g, r_m, r_k1, r_k2, gx_g, gx_m, gx_e1, gx_e2,
    M: tl.constexpr, K: tl.constexpr, K2: tl.constexpr, E2: tl.constexpr, WANT_X: tl.constexpr, WANT_R: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Write gx and partial sums of gr. A program takes [BLOCK_M, BLOCK_E] and all k."""
    M_BLOCKS: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M
    program = tl.program_id(0)
    group, e1, e2, e_mask = _batch_tile(program // M_BLOCKS, E, BLOCK_E, E2)
    m = program % M_BLOCKS * BLOCK_M + tl.arange(0, BLOCK_M)
    m_mask = m < M
    mask = m_mask[:, None] & e_mask[None, :]
    r += group * r_g
    gy += group * gy_g
    gy_e = e1 * gy_e1 + e2 * gy_e2
    gr += (program // M_BLOCKS).to(tl.int64) * (M * K) + m * K  # the partial sum of this group and block of e: [m, k]
    gx_acc = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    if WANT_R:
        x_me = group * x_g + m.to(tl.int64)[:, None] * x_m + (e1 * x_e1 + e2 * x_e2)[None, :]
        x_tile = tl.load(x + x_me, mask=mask, other=0.0)

    for k0 in range(0, K, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        k_mask = k < K
        k1, k2 = (k // K2).to(tl.int64), (k % K2).to(tl.int64)
        gy_ke = (k1 * gy_k1 + k2 * gy_k2)[:, None] + gy_e[None, :]
        gy_tile = tl.load(gy + gy_ke, mask=k_mask[:, None] & e_mask[None, :], other=0.0)
        mk_mask = m_mask[:, None] & k_mask[None, :]
        if WANT_X:
            r_tile = tl.load(r + m[:, None] * r_m + (k1 * r_k1 + k2 * r_k2)[None, :], mask=mk_mask, other=0.0)
            gx_acc = tl.dot(r_tile, gy_tile, gx_acc, input_precision="ieee")
        if WANT_R:
            share = tl.dot(x_tile, tl.trans(gy_tile), input_precision="ieee")
            tl.store(gr[:, None] + k[None, :], share, mask=mk_mask)
    if WANT_X:
        gx_me = group * gx_g + m.to(tl.int64)[:, None] * gx_m + (e1 * gx_e1 + e2 * gx_e2)[None, :]
        tl.store(gx + gx_me, gx_acc.to(gx.dtype.element_ty), mask=mask)


def mix_backward(gy: Tensor, x: Tensor | None, r: Tensor, gx: Tensor | None) -> Tensor | None:
    """Write gx, and return gr (groups, m, k) in float32.

    Args:
        gy: Shaped like y of `mix`, of any strides.
        x: As for `mix`. None: gr is not wanted.
        r: As for `mix`.
        gx: Shaped like x. None: gx is not wanted.
    """
    like_x = gx if x is None else x
    assert like_x is not None, "mix_backward has nothing to compute"
    sizes = _sizes(like_x, gy)
    config = pick("mix_backward", sizes, gy.dtype, gy.device, mix_backward_configs)
    e_blocks = blocks(sizes["e"], config["BLOCK_E"])
    programs = blocks(sizes["m"], config["BLOCK_M"]) * e_blocks * sizes["groups"]
    gr = None if x is None else gy.new_empty(sizes["groups"], e_blocks, sizes["m"], sizes["k"], dtype=torch.float32)
    to_x = like_x if gx is None else gx  # like_x stands for a pointer that the kernel does not follow
    launch(
        mix_backward_kernel, (programs,), gy, like_x, r, to_x, like_x if gr is None else gr, sizes["e"],
        *gy.stride(), *like_x.stride(), *r.stride(), *to_x.stride(),
        M=sizes["m"], K=sizes["k"], K2=gy.shape[2], E2=like_x.shape[3], WANT_X=gx is not None, WANT_R=gr is not None,
        **config,
    )  # fmt: skip
    return None if gr is None else gr.sum(1)


def mix_backward_configs(sizes: Sizes, dtype: torch.dtype, multiprocessors: int) -> Configs:
    """Propose as many m as a block holds, then as long a block of e."""
    half = dtype.itemsize == 2
    block_m = min(power_of_2(sizes["m"]), 64 if half else 16)
    columns = sizes["groups"] * blocks(sizes["m"], block_m)
    block_e = _block_e(sizes, min(256 if half else 128, 8192 // block_m), columns, multiprocessors)
    stages = 4 if half else 3
    own = {"BLOCK_M": block_m, "BLOCK_K": 16, "BLOCK_E": block_e, "num_warps": 4, "num_stages": stages}
    yield own
    yield from (own | {"BLOCK_E": e} for e in (block_e // 2, block_e * 2) if e >= 64 and block_m * e <= 8192)
    yield from (own | {"BLOCK_K": 32}, own | {"num_warps": 8})


def forward(rule: Tensor, local: Tensor) -> Tensor:
    """Return W. The arguments are those of ops.SCHEMAS["phm_weight"]."""
    weight = rule.new_empty(*rule.shape[:-3], rule.shape[-2] * local.shape[-2], rule.shape[-1] * local.shape[-1])
    mix(local.reshape(-1, *local.shape[-3:]), rule.reshape(-1, *rule.shape[-3:]), _as_blocks(weight, rule, local))
    return weight


def backward(grad: Tensor, rule: Tensor, local: Tensor, needs: int) -> list[Tensor]:
    """Return the gradients that the bits of `needs` ask for. The arguments are those of ops.SCHEMAS."""
    tensors = rule, local
    factors = [t.reshape(-1, *t.shape[-3:]) for t in tensors]
    gy = _as_blocks(grad, rule, local)
    # the longer of (u, v) and (a, c) is the batch axis; a program runs over all of the other
    batch = 1 if local.numel() >= rule.numel() else 0
    if batch == 0:
        gy = gy.permute(0, 3, 4, 1, 2)
    mixing = 1 - batch
    wanted = flags_of(needs, 2)
    found: list[Tensor | None] = [None, None]
    if wanted[batch]:
        found[batch] = torch.empty_like(factors[batch])
    mixed = mix_backward(gy, factors[batch] if wanted[mixing] else None, factors[mixing], found[batch])
    found[mixing] = None if mixed is None else mixed.to(rule.dtype)
    return [g.view(t.shape) for g, t in zip(found, tensors) if g is not None]


def _as_blocks(weight: Tensor, rule: Tensor, local: Tensor) -> Tensor:
    """Return (..., (a u), (c v)) as (groups, a, c, u, v): a view if the leading dims flatten."""
    split = weight.reshape(-1, rule.shape[-2], local.shape[-2], rule.shape[-1], local.shape[-1])
    return split.transpose(2, 3)
