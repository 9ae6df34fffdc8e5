"""Compute phm_linear, y = x W + bias with W = sum_i rule[i] (x) local[i]. `local_first` is the kernel for few rows.

x (..., g_in*loc_in), rule (terms, g_in, g_out), local (terms, loc_in, loc_out), bias (g_out*loc_out,) ->
(..., g_out*loc_out). Sums are in float32. A full rule saves no multiply-adds over a dense W, so `plan` chooses one of
two ways:

    local first    For few rows: one launch. It reads terms*loc_in*loc_out numbers, where W has in*out.
    weight once    For many rows: W by phm_weight, then torch.mm. W is written once and read once, and the product runs
                   at the rate of the library.

Backward: gx is the same product with rule[i]^T and local[i]^T, by the way that is cheaper for it. The gradients of rule
and local come from the gradient of W, x^T gy: one torch.mm, whose contracted axis is the rows, then the backward pass
of phm_weight, which reads the gradient of W once. Without W they would take as many multiply-adds, and temporaries of
rows*terms*out*g_in/g_out numbers.

`local_first` is one dense product with a mixing epilogue:

    s[(n a), (i v)] = sum_u x[(n a), u] local[u, (i v)]              rows of x are viewed as (n*g_in, loc_in)
    y[n, (c v)]     = sum_{a, i} s[n, a, i, v] rule[i, a, c] + bias

Neither W nor s is ever in memory. Each block of rows reads the locals once. The multiply-adds are as many as with a
dense W. The epilogue multiplies a low-rank rule, rule_in (terms, g_in, rank) and rule_out (terms, rank, g_out): the
rule has few numbers. With MIX_BY_DOT, s is rounded to the dtype of x and mixed on tensor cores; otherwise s stays in
float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import phm_weight
from .device_functions import Phm, blocks, power_of_2
from .launch import MULTIPROCESSORS, Configs, Sizes, input_precision, launch, pick, tensor_cores


@triton.jit
def _rule_tile(
    rule, rule_out, i, a, c, rule_i, rule_a, rule_k, out_i, out_r, out_c,
    I: tl.constexpr, A: tl.constexpr, C: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """Return rule[i, a, c] as [(a i), c] in float32; i and a are columns, c is a row. RANK is 0 for a full rule."""
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
def local_first_kernel(
    x, rule, rule_out, local, bias, y, rows, x_n, x_k, rule_i, rule_a, rule_k, out_i, out_r, out_c,
    local_i, local_u, local_v,
    I: tl.constexpr, A: tl.constexpr, C: tl.constexpr, U: tl.constexpr, V: tl.constexpr, RANK: tl.constexpr,
    HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr, MIX_BY_DOT: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_U: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Write y. A program computes [BLOCK_N rows, all c, BLOCK_V]."""
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
    """Write y.

    Args:
        x: (rows, g_in*loc_in), of any strides.
        rule: (terms, g_in, g_out), or rule_in (terms, g_in, rank) if there is a rule_out; of any strides.
        local: (terms, loc_in, loc_out), of any strides.
        bias: (g_out*loc_out,), contiguous.
        y: (rows, g_out*loc_out), contiguous.
        rule_out: (terms, rank, g_out), of any strides.
    """
    rows, right = x.shape[0], rule if rule_out is None else rule_out
    phm = Phm.of(rule, rule_out, local)
    sizes = local_first_sizes(rows, phm, x.dtype, tensor_cores(x.device))
    config = pick("local_first", sizes, x.dtype, x.device, local_first_configs)
    programs = blocks(rows, config["BLOCK_N"]) * blocks(phm.loc_out, config["BLOCK_V"])
    launch(
        local_first_kernel, (programs,), x, rule, right, local, y if bias is None else bias, y, rows,
        *x.stride(), *rule.stride(), *right.stride(), *local.stride(),
        I=phm.terms, A=phm.g_in, C=phm.g_out, U=phm.loc_in, V=phm.loc_out, RANK=0 if rule_out is None else phm.rank,
        HAS_BIAS=bias is not None, PRECISION="tf32" if sizes["tf32"] else "ieee", BLOCK_I=power_of_2(phm.terms),
        BLOCK_A=power_of_2(phm.g_in), BLOCK_C=power_of_2(phm.g_out), **config,
    )  # fmt: skip


def local_first_sizes(rows: int, phm: Phm, dtype: torch.dtype, tensor_cores: bool) -> Sizes:
    """Return the numbers that the launch configuration depends on."""
    sizes = {"rows": rows} | {name: getattr(phm, name) for name in ("terms", "g_in", "g_out", "loc_in", "loc_out")}
    return sizes | {"tf32": int(uses_tf32(dtype)), "tensor_cores": int(tensor_cores)}


def local_first_configs(sizes: Sizes, dtype: torch.dtype, multiprocessors: int) -> Configs:
    """Propose the largest tile [(n a), (i v)] that its accumulators allow, cut until no multiprocessor is idle.

    Without tensor cores, and in float32 that is not TF32, products are FMAs on registers: small tiles, short inner
    blocks.
    """
    half, tf32 = (bool(sizes["tensor_cores"]) and wanted for wanted in (dtype.itemsize == 2, sizes["tf32"] == 1))
    block_i, block_a = power_of_2(sizes["terms"]), power_of_2(sizes["g_in"])
    accumulators = 32768 if half else 16384 if tf32 else 8192
    # shorter rows of the locals than 16 numbers are not worth reading, except for the small tile of FMAs
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
    own = {"MIX_BY_DOT": half and block_a * block_i >= 16, "BLOCK_N": block_n, "BLOCK_U": block_u, "BLOCK_V": block_v}
    own |= {"num_warps": num_warps, "num_stages": 3}
    yield own
    yield own | {"BLOCK_V": block_v * 2}
    yield own | {"num_warps": 12 - num_warps}
    if block_v >= 16:
        yield own | {"BLOCK_V": block_v // 2}
    if block_n > 1:
        yield own | {"BLOCK_N": block_n // 2}
    if own["MIX_BY_DOT"]:
        yield own | {"MIX_BY_DOT": False}
    if block_u == 64:
        yield own | {"BLOCK_U": 32, "num_stages": 4}


# The cost of a way: microseconds on an H200. The rates were measured on one, except the vendor's rate of float32 on the
# CUDA cores. Nothing is timed while a program runs.

BYTES = 4.3e6  # per microsecond
CUDA_CORES, TF32, HALF = 60e6, 395e6, 790e6  # operations per microsecond
LAUNCH = 3.0
LIBRARY_SHARE = 0.9  # of the rate; reached by a matrix product of the library
OWN_SHARE = 0.6  # of the rate; assumed for a matrix product of our kernels (not measured)
READERS = 64  # programs that reach the rate of the memory when they read at once
_WIDEST_MIX = 256  # terms*g_in, each padded to a power of two: the axis that the epilogue contracts


def uses_tf32(dtype: torch.dtype) -> bool:
    """Return True if products of this dtype are TF32."""
    return dtype is torch.float32 and input_precision() == "tf32"


def product_rate(dtype: torch.dtype) -> float:
    """Return the highest rate of a matrix product, in operations per microsecond."""
    return HALF if dtype.itemsize == 2 else TF32 if uses_tf32(dtype) else CUDA_CORES


def step_cost(moved: float, operations: float, rate: float) -> float:
    """Return the microseconds of one launch: the longer of its bytes and its operations."""
    return LAUNCH + max(moved / BYTES, operations / rate)


def local_first_cost(rows: int, phm: Phm, dtype: torch.dtype) -> float:
    """Return the microseconds of `local_first`; infinite where terms*g_in exceeds the tile of its epilogue.

    x, the locals and y move once. The multiply-adds are those of padded sizes, at the rate of the programs that run.
    """
    mixed = power_of_2(phm.g_in) * power_of_2(phm.terms)
    if mixed > _WIDEST_MIX:
        return float("inf")
    config = next(local_first_configs(local_first_sizes(rows, phm, dtype, True), dtype, MULTIPROCESSORS))
    programs = blocks(phm.loc_out, config["BLOCK_V"]) * max(1, blocks(rows, config["BLOCK_N"]))
    moved = dtype.itemsize * (rows * (phm.d_in + phm.d_out) + phm.terms * phm.loc_in * phm.loc_out)
    operations = 2 * rows * mixed * phm.loc_out * (phm.loc_in + phm.g_out)
    rate = product_rate(dtype) * OWN_SHARE * min(1.0, programs / MULTIPROCESSORS)
    return step_cost(moved / min(1.0, programs / READERS), operations, rate)


def plan(rows: int, phm: Phm, dtype: torch.dtype) -> dict[str, float]:
    """Return the cost of each way by the cost model: {"local_first": ..., "weight_once": ...}, in microseconds.

    Weight once: the locals are read and W is written; then x and W are read and y is written.
    """
    d_in, d_out, size = phm.d_in, phm.d_out, dtype.itemsize
    moved = size * (phm.terms * phm.loc_in * phm.loc_out + d_in * d_out)
    build = step_cost(moved, 2 * phm.terms * d_in * d_out, CUDA_CORES)
    rate = product_rate(dtype) * LIBRARY_SHARE
    product = step_cost(size * (d_in * d_out + rows * (d_in + d_out)), 2 * rows * d_in * d_out, rate)
    return {"local_first": local_first_cost(rows, phm, dtype), "weight_once": build + product}


def forward(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor | None) -> Tensor:
    """Return y. The arguments are those of ops.SCHEMAS["phm_linear"]."""
    y = x.new_empty(*x.shape[:-1], rule.shape[2] * local.shape[2])
    _product(x.reshape(-1, x.shape[-1]), rule, local, bias, y)
    return y


def backward(grad: Tensor, x: Tensor, rule: Tensor, local: Tensor, needs: int) -> list[Tensor]:
    """Return the gradients that the bits of `needs` ask for. The arguments are those of ops.SCHEMAS."""
    gy = grad.reshape(-1, grad.shape[-1])
    found = []
    if needs & 1:
        grad_x = torch.empty_like(x)
        _product(gy, rule.mT, local.mT, None, grad_x)
        found.append(grad_x)
    if needs & 6:
        grad_weight = torch.mm(x.reshape(-1, x.shape[-1]).T, gy)
        found += phm_weight.backward(grad_weight, rule, local, needs >> 1 & 3)
    if needs & 8:
        found.append(gy.sum(0))
    return found


def _product(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Write y, of any leading dims. x (rows, in) may have any strides; rule and local may both be transposed."""
    costs = plan(x.shape[0], Phm.of(rule, None, local), x.dtype)
    if costs["local_first"] < costs["weight_once"]:
        local_first(x, rule, local, bias, y)
        return
    transposed = not rule.is_contiguous()
    weight = phm_weight.forward(rule.mT, local.mT).T if transposed else phm_weight.forward(rule, local)
    y = y.view(-1, weight.shape[1])
    if bias is None:
        torch.mm(x, weight, out=y)
    else:
        torch.addmm(bias, x, weight, out=y)
