"""y[k, e] = sum_m x[m, e] r[m, k]: a few small matrices r mix planes of numbers that lie anywhere in memory.

Three products of a PHM layer are this one, and are served by it. m is what is summed, k = (k1, k2) what is made, and
e = (e1, e2) what is carried along, far longer than both:

                        x                  r                      y                     m   k       e
    phm_weight          local[i, u, v]     rule[i, a, c]          W[(a u), (c v)]       i   (a, c)  (u, v)
    stage 1, low rank   x[n, (a u)]        rule_in[i, a, r]       t[(i r), n, u]        a   (i, r)  (n, u)
    stage 3, low rank   s[(i r), n, v]     rule_out[(i r), c]     y[n, (c v)] + bias    j   c       (n, v)

Backward: gx[m, e] = sum_k r[m, k] gy[k, e] and gr[m, k] = sum_e x[m, e] gy[k, e], in one launch that reads gy and x
once. Every program owns a block of e: gx is finished there, gr is a partial in float32; torch.sum adds the partials.
Both kernels are bound by bytes: x and y move once, r is small. Sums are in float32.

What is summed is padded to the 16 of tl.dot, what is made is not. Float32 is IEEE arithmetic on the CUDA cores, also
where torch's own products may take TF32: 16 terms cost as long as their bytes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch_config
from .arithmetic import blocks, power_of_2
from .launch import launch


@triton.jit
def _places(first, BLOCK: tl.constexpr, E2: tl.constexpr):
    """e1 (int64) and e2 of the places first .. first + BLOCK; `first` is an int64."""
    e1 = first // E2
    place = (first - e1 * E2).to(tl.int32) + tl.arange(0, BLOCK)  # from here on 32 bits hold what is divided
    return e1 + place // E2, place % E2


@triton.jit
def _mix(
    x, r, bias, y, E,
    x_g, x_m, x_e1, x_e2, r_g, r_m, r_k1, r_k2, y_g, y_k1, y_k2, y_e1, y_e2,
    M: tl.constexpr, K: tl.constexpr, K2: tl.constexpr, E2: tl.constexpr, HAS_BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """A program makes [BLOCK_K, BLOCK_E] of y."""
    K_BLOCKS: tl.constexpr = (K + BLOCK_K - 1) // BLOCK_K
    program = tl.program_id(0)
    e_blocks = tl.cdiv(E, BLOCK_E)
    group = (program // K_BLOCKS // e_blocks).to(tl.int64)
    first = (program // K_BLOCKS % e_blocks).to(tl.int64) * BLOCK_E
    e1, e2 = _places(first, BLOCK_E, E2)
    e_mask = tl.arange(0, BLOCK_E) < E - first
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
    """Writes y (groups, k1, k2, e1, e2) from x (groups, m, e1, e2) and r (groups, m, k1, k2), of any strides.

    bias: (k, e2), contiguous.
    """
    groups, m, e1, e2 = x.shape
    k1, k2 = y.shape[1:3]
    config = launch_config.pick("mix", _sizes(x, y), x.dtype, x.device, heuristic_mix)
    programs = blocks(k1 * k2, config["BLOCK_K"]) * blocks(e1 * e2, config["BLOCK_E"]) * groups
    launch(
        _mix, (programs,), x, r, y if bias is None else bias, y, e1 * e2,
        *x.stride(), *r.stride(), *y.stride(),
        M=m, K=k1 * k2, K2=k2, E2=e2, HAS_BIAS=bias is not None, **config,
    )  # fmt: skip


def _sizes(x: Tensor, y: Tensor) -> dict[str, int]:
    groups, m, e1, e2 = x.shape
    return {"groups": groups, "m": m, "k": y.shape[1] * y.shape[2], "e": e1 * e2}


def heuristic_mix(sizes: dict[str, int], dtype: torch.dtype, multiprocessors: int) -> dict[str, int]:
    """Accumulators of 64 numbers a thread, 32 in float32; a short e is cut until no multiprocessor stands idle."""
    half = dtype.itemsize == 2
    block_k = min(power_of_2(sizes["k"]), 64 if half else 16)
    block_e = min(512 if half else 256, 8192 // block_k)
    columns = sizes["groups"] * blocks(sizes["k"], block_k)
    while block_e > 64 and columns * blocks(sizes["e"], block_e) < 2 * multiprocessors:
        block_e //= 2
    block_m = 32 if half and sizes["m"] > 16 else 16
    return {"BLOCK_M": block_m, "BLOCK_K": block_k, "BLOCK_E": block_e, "num_warps": 4, "num_stages": 3}


def candidates_mix(sizes: dict[str, int], dtype: torch.dtype, multiprocessors: int) -> list[dict[str, int]]:
    own = heuristic_mix(sizes, dtype, multiprocessors)
    lengths = [e for e in (own["BLOCK_E"] // 2, own["BLOCK_E"] * 2) if e >= 64 and own["BLOCK_K"] * e <= 16384]
    return [own | {"BLOCK_E": e} for e in lengths] + [own | {"num_warps": 8}, own | {"num_stages": 2}]


@triton.jit
def _mix_backward(
    gy, x, r, gx, gr, E,
    gy_g, gy_k1, gy_k2, gy_e1, gy_e2, x_g, x_m, x_e1, x_e2, r_g, r_m, r_k1, r_k2, gx_g, gx_m, gx_e1, gx_e2,
    M: tl.constexpr, K: tl.constexpr, K2: tl.constexpr, E2: tl.constexpr, WANT_X: tl.constexpr, WANT_R: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """A program runs over all k for [BLOCK_M, BLOCK_E]: that much of gx, and its share of gr[m, :]."""
    M_BLOCKS: tl.constexpr = (M + BLOCK_M - 1) // BLOCK_M
    program = tl.program_id(0)
    e_blocks = tl.cdiv(E, BLOCK_E)
    group = (program // M_BLOCKS // e_blocks).to(tl.int64)
    first = (program // M_BLOCKS % e_blocks).to(tl.int64) * BLOCK_E
    e1, e2 = _places(first, BLOCK_E, E2)
    e_mask = tl.arange(0, BLOCK_E) < E - first
    m = program % M_BLOCKS * BLOCK_M + tl.arange(0, BLOCK_M)
    m_mask = m < M
    mask = m_mask[:, None] & e_mask[None, :]
    r += group * r_g
    gy += group * gy_g
    gy_e = e1 * gy_e1 + e2 * gy_e2
    gr += (program // M_BLOCKS).to(tl.int64) * (M * K) + m * K  # the partial of this group and block of e: [m, k]
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
    """Writes gx, shaped like x, and returns gr (groups, m, k) in float32; the shapes are those of `mix`.

    gx None: not asked for. x None: gr is not asked for.
    """
    groups, m, e1, e2 = (gx if x is None else x).shape
    k1, k2 = gy.shape[1:3]
    sizes = {"groups": groups, "m": m, "k": k1 * k2, "e": e1 * e2}
    config = launch_config.pick("mix_backward", sizes, gy.dtype, gy.device, heuristic_mix_backward)
    e_blocks = blocks(e1 * e2, config["BLOCK_E"])
    programs = blocks(m, config["BLOCK_M"]) * e_blocks * groups
    gr = None if x is None else gy.new_empty(groups, e_blocks, m, k1 * k2, dtype=torch.float32)
    some = gx if x is None else x  # stands for a pointer that is not followed
    launch(
        _mix_backward, (programs,), gy, some if x is None else x, r, some if gx is None else gx,
        some if gr is None else gr, e1 * e2,
        *gy.stride(), *some.stride(), *r.stride(), *(some if gx is None else gx).stride(),
        M=m, K=k1 * k2, K2=k2, E2=e2, WANT_X=gx is not None, WANT_R=x is not None, **config,
    )  # fmt: skip
    return None if gr is None else gr.sum(1)


def heuristic_mix_backward(sizes: dict[str, int], dtype: torch.dtype, multiprocessors: int) -> dict[str, int]:
    half = dtype.itemsize == 2
    block_m = min(power_of_2(sizes["m"]), 64 if half else 16)
    block_e = min(256 if half else 128, 8192 // block_m)
    columns = sizes["groups"] * blocks(sizes["m"], block_m)
    while block_e > 64 and columns * blocks(sizes["e"], block_e) < 2 * multiprocessors:
        block_e //= 2
    return {"BLOCK_M": block_m, "BLOCK_K": 16, "BLOCK_E": block_e, "num_warps": 4, "num_stages": 4 if half else 3}


def candidates_mix_backward(sizes: dict[str, int], dtype: torch.dtype, multiprocessors: int) -> list[dict[str, int]]:
    own = heuristic_mix_backward(sizes, dtype, multiprocessors)
    lengths = [e for e in (own["BLOCK_E"] // 2, own["BLOCK_E"] * 2) if e >= 64 and own["BLOCK_M"] * e <= 8192]
    return [own | {"BLOCK_E": e} for e in lengths] + [own | {"BLOCK_K": 32}, own | {"num_warps": 8}]
