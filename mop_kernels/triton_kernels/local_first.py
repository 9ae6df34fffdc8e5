"""y = x W + bias, W = sum_i rule[i] (x) local[i], as one dense product with a mixing epilogue: for few rows.

    s[(n a), (i v)] = sum_u x[(n a), u] local[u, (i v)]              rows of x are viewed as (n*g_in, loc_in)
    y[n, (c v)]     = sum_{a, i} s[n, a, i, v] rule[i, a, c] + bias

x (rows, g_in*loc_in), rule (terms, g_in, g_out), local (terms, loc_in, loc_out), bias (g_out*loc_out,) or None, y
(rows, g_out*loc_out). One launch; neither W nor s is ever in memory, and the locals are read once for each block of
rows. As many multiply-adds as with a dense W. A low-rank rule, rule_in (terms, g_in, rank) and rule_out (terms, rank,
g_out), is multiplied in the epilogue, where few numbers make it.

Sums are in float32. MIX_BY_DOT rounds s to the dtype of x and mixes on tensor cores, otherwise s stays in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import cost_model, launch_config
from .arithmetic import blocks, power_of_2
from .cost_model import SMS
from .launch import launch

_WIDEST_MIX = 256  # terms*g_in, each padded to a power of two: what the epilogue sums over


@triton.jit
def _rule_tile(
    rule, rule_out, i, a, c, rule_i, rule_a, rule_k, out_i, out_r, out_c,
    I: tl.constexpr, A: tl.constexpr, C: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """rule[i, a, c] as [(a i), c] in float32, where i and a are columns and c is a row; RANK 0: it is a full rule."""
    mask = (i < I) & (a < A)
    if RANK == 0:
        tile = tl.load(rule + (i * rule_i + a * rule_a + c * rule_k), mask=mask & (c < C), other=0.0).to(tl.float32)
    else:
        tile = (i * c).to(tl.float32) * 0.0
        for r in range(RANK):
            left = tl.load(rule + (i * rule_i + a * rule_a + r * rule_k), mask=mask, other=0.0)
            right = tl.load(rule_out + (i * out_i + r * out_r + c * out_c), mask=(i < I) & (c < C), other=0.0)
            tile += left.to(tl.float32) * right.to(tl.float32)
    return tile


@triton.jit(do_not_specialize=["rows"])
def _local_first(
    x, rule, rule_out, local, bias, y, rows, x_n, x_k, rule_i, rule_a, rule_k, out_i, out_r, out_c,
    local_i, local_u, local_v,
    I: tl.constexpr, A: tl.constexpr, C: tl.constexpr, U: tl.constexpr, V: tl.constexpr, RANK: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, MIX_BY_DOT: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """A program makes y[BLOCK_N rows, all c, BLOCK_V]."""
    V_BLOCKS: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    first_n = (tl.program_id(0) // V_BLOCKS).to(tl.int64) * BLOCK_N
    first_v = tl.program_id(0) % V_BLOCKS * BLOCK_V
    na = tl.arange(0, BLOCK_N * BLOCK_A)
    n, a = first_n + na // BLOCK_A, na % BLOCK_A
    iv = tl.arange(0, BLOCK_I * BLOCK_V)
    i, v = iv // BLOCK_V, first_v + iv % BLOCK_V
    x_na = n * x_n + a * U * x_k
    local_iv = i.to(tl.int64) * local_i + v * local_v
    na_mask, iv_mask = (n < rows) & (a < A), (i < I) & (v < V)

    s = tl.zeros((BLOCK_N * BLOCK_A, BLOCK_I * BLOCK_V), tl.float32)
    for u0 in range(0, U, BLOCK_U):
        u = u0 + tl.arange(0, BLOCK_U)
        u_mask = u < U
        x_tile = tl.load(x + (x_na[:, None] + u[None, :] * x_k), mask=na_mask[:, None] & u_mask[None, :], other=0.0)
        local_tile = tl.load(
            local + (u[:, None] * local_u + local_iv[None, :]), mask=u_mask[:, None] & iv_mask[None, :], other=0.0
        )
        s = tl.dot(x_tile, local_tile, s, input_precision=PRECISION)

    ai = tl.arange(0, BLOCK_A * BLOCK_I)[:, None]
    a, i = ai // BLOCK_I, ai % BLOCK_I
    if MIX_BY_DOT:
        s = tl.permute(tl.reshape(s, (BLOCK_N, BLOCK_A, BLOCK_I, BLOCK_V)), (0, 3, 1, 2))
        s = tl.reshape(s, (BLOCK_N * BLOCK_V, BLOCK_A * BLOCK_I)).to(x.dtype.element_ty)
        c = tl.arange(0, BLOCK_C)[None, :]
        tile = _rule_tile(rule, rule_out, i, a, c, rule_i, rule_a, rule_k, out_i, out_r, out_c, I, A, C, RANK)
        mixed = tl.dot(s, tile.to(x.dtype.element_ty), input_precision="ieee")  # [(n v), c]
        nv = tl.arange(0, BLOCK_N * BLOCK_V)[:, None]
        n, v = first_n + nv // BLOCK_V, first_v + nv % BLOCK_V
        mask = (n < rows) & (v < V) & (c < C)
        if HAS_BIAS:
            mixed += tl.load(bias + (c * V + v), mask=mask, other=0.0).to(tl.float32)
        tl.store(y + (n * (C * V) + (c * V + v)), mixed.to(y.dtype.element_ty), mask=mask)
    else:
        s = tl.reshape(s, (BLOCK_N, BLOCK_A * BLOCK_I, BLOCK_V))
        n = first_n + tl.arange(0, BLOCK_N)[:, None]
        v = first_v + tl.arange(0, BLOCK_V)[None, :]
        mask = (n < rows) & (v < V)
        for c0 in range(C):
            c = c0 + tl.arange(0, 1)[None, :]
            tile = _rule_tile(rule, rule_out, i, a, c, rule_i, rule_a, rule_k, out_i, out_r, out_c, I, A, C, RANK)
            mixed = tl.sum(s * tl.reshape(tile, (1, BLOCK_A * BLOCK_I, 1)), axis=1)  # [n, v]
            if HAS_BIAS:
                mixed += tl.load(bias + (c0 * V + v), mask=v < V, other=0.0).to(tl.float32)
            tl.store(y + (n * (C * V) + (c0 * V + v)), mixed.to(y.dtype.element_ty), mask=mask)


def local_first(
    x: Tensor, rule: Tensor, local: Tensor, bias: Tensor | None, y: Tensor, rule_out: Tensor | None = None
) -> None:
    """Writes y, contiguous; all others but bias may have any strides. rule_out: `rule` is rule_in."""
    rows, (terms, g_in, rank), (_, loc_in, loc_out) = x.shape[0], rule.shape, local.shape
    full = rule_out is None
    rule_out = rule if full else rule_out
    g_out = rule_out.shape[2]
    tf32 = cost_model.uses_tf32(x.dtype)
    tensor_cores = launch_config.tensor_cores(x.device)
    sizes = _sizes(rows, terms, g_in, g_out, loc_in, loc_out, tf32, tensor_cores)
    config = launch_config.pick("local_first", sizes, x.dtype, x.device, heuristic)
    programs = blocks(rows, config["BLOCK_N"]) * blocks(loc_out, config["BLOCK_V"])
    launch(
        _local_first, (programs,), x, rule, rule_out, local, y if bias is None else bias, y, rows,
        *x.stride(), *rule.stride(), *rule_out.stride(), *local.stride(),
        I=terms, A=g_in, C=g_out, U=loc_in, V=loc_out, RANK=0 if full else rank,
        HAS_BIAS=bias is not None, PRECISION="tf32" if tf32 else "ieee", BLOCK_I=power_of_2(terms),
        BLOCK_A=power_of_2(g_in), BLOCK_C=power_of_2(g_out), **config,
    )  # fmt: skip


def cost(
    rows: int, terms: int, g_in: int, g_out: int, loc_in: int, loc_out: int, dtype: torch.dtype, tf32: bool
) -> float:
    """Microseconds (cost_model.py): x, the locals and y move once; multiply-adds of padded sizes, by the programs there
    are. Infinite where terms*g_in exceeds the tile of the epilogue."""
    mixed = power_of_2(g_in) * power_of_2(terms)
    if mixed > _WIDEST_MIX:
        return float("inf")
    config = heuristic(_sizes(rows, terms, g_in, g_out, loc_in, loc_out, tf32, True), dtype, SMS)
    programs = blocks(loc_out, config["BLOCK_V"]) * max(1, blocks(rows, config["BLOCK_N"]))
    moved = dtype.itemsize * (rows * (g_in * loc_in + g_out * loc_out) + terms * loc_in * loc_out)
    operations = 2 * rows * mixed * loc_out * (loc_in + g_out)
    rate = cost_model.product_rate(dtype, tf32) * cost_model.OWN_SHARE * min(1.0, programs / SMS)
    return cost_model.step(moved / min(1.0, programs / cost_model.READERS), operations, rate)


def _sizes(
    rows: int, terms: int, g_in: int, g_out: int, loc_in: int, loc_out: int, tf32: bool, tensor_cores: bool
) -> dict[str, int]:
    return {
        "rows": rows, "terms": terms, "g_in": g_in, "g_out": g_out, "loc_in": loc_in, "loc_out": loc_out,
        "tf32": int(tf32), "tensor_cores": int(tensor_cores),
    }  # fmt: skip


def heuristic(sizes: dict[str, int], dtype: torch.dtype, multiprocessors: int) -> dict[str, int]:
    """As large a tile [(n a), (i v)] as its accumulators allow, cut where multiprocessors would stand idle.

    Without tensor cores, and in float32 that is not TF32, products are FMAs on registers: small tiles, short inner
    blocks.
    """
    half, tf32 = (bool(sizes["tensor_cores"]) and wanted for wanted in (dtype.itemsize == 2, sizes["tf32"] == 1))
    block_i, block_a = power_of_2(sizes["terms"]), power_of_2(sizes["g_in"])
    accumulators = 32768 if half else 16384 if tf32 else 8192
    # 16 numbers are the shortest rows of the locals worth reading, but for the small tile of FMAs
    shortest_v = 16 if half or tf32 else min(16, max(4, 128 // block_i))
    block_v = min(max(shortest_v, (128 if half or tf32 else 64) // block_i), power_of_2(sizes["loc_out"]))
    tallest = max(block_a, min(256, accumulators // (block_i * block_v)))
    block_n = min(power_of_2(sizes["rows"]), tallest // block_a)

    def programs() -> int:
        return blocks(sizes["rows"], block_n) * blocks(sizes["loc_out"], block_v)

    while programs() < multiprocessors and block_v > shortest_v:
        block_v //= 2
    while programs() < multiprocessors and block_n * block_a > 64:
        block_n //= 2
    tile = block_n * block_a * block_i * block_v
    if half:
        block_u, num_warps = 64, 8 if tile > 8192 else 4
    elif tf32:
        block_u, num_warps = 32, 8 if tile > 4096 else 4
    else:
        block_u, num_warps = 32 if tile <= 1024 else 16, 8 if tile > 2048 else 4
    block_u = min(block_u, max(16, power_of_2(sizes["loc_in"])))
    return {
        "MIX_BY_DOT": half and block_a * block_i >= 16, "BLOCK_N": block_n, "BLOCK_U": block_u, "BLOCK_V": block_v,
        "num_warps": num_warps, "num_stages": 3,
    }  # fmt: skip


def candidates(sizes: dict[str, int], dtype: torch.dtype, multiprocessors: int) -> list[dict[str, int]]:
    own = heuristic(sizes, dtype, multiprocessors)
    found = [own | {"BLOCK_V": own["BLOCK_V"] * 2}, own | {"num_warps": 12 - own["num_warps"]}]
    if own["BLOCK_V"] >= 16:
        found.append(own | {"BLOCK_V": own["BLOCK_V"] // 2})
    if own["BLOCK_N"] > 1:
        found.append(own | {"BLOCK_N": own["BLOCK_N"] // 2})
    if own["MIX_BY_DOT"]:
        found.append(own | {"MIX_BY_DOT": False})
    if own["BLOCK_U"] == 64:
        found.append(own | {"BLOCK_U": 32, "num_stages": 4})
    return found
