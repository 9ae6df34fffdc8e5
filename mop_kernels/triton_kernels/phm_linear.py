"""y = x W + bias with W = sum_i rule[i] (x) local[i]; sums in float32.

x (..., g_in*loc_in), rule (terms, g_in, g_out), local (terms, loc_in, loc_out), bias (g_out*loc_out,) ->
(..., g_out*loc_out). A full rule saves no multiply-adds over a dense W, so there are two ways, and `plan` takes one:

    local first    s[(n a), (i v)] = sum_u x[(n a), u] local[u, (i v)], one dense product, and in its epilogue
                   y[n, c, v] = sum_{a, i} s[n, a, i, v] rule[i, a, c]. One launch; no W, s stays on chip.
    weight once    W by phm_weight, then torch.mm: W is written and read, the product runs at the library's rate.

Local first reads terms*loc_in*loc_out numbers where W has in*out, and wins on few rows; the library wins on many.
In 16-bit types s is rounded to the dtype of x, as reference.py rounds between its products.

Backward: gx is the same product with rule[i]^T and local[i]^T, by the way that is cheaper for it. The gradients of rule
and local come from W's, x^T gy, one torch.mm whose inner size is the rows, and phm_weight's backward, which reads it
once. Without W they would take as many multiply-adds, and temporaries of rows*terms*out*g_in/g_out numbers.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch_config, phm_weight
from .launch import input_precision, launch

_SMS = 132
_WIDEST_MIX = 256  # terms*g_in, each padded to a power of two: the inner size of the epilogue's product

# What an H200 does in a microsecond, as measured there (float32 on the CUDA cores: a vendor figure).
_BYTES = 4.3e6
_OPERATIONS = {"16 bits": 790e6, "tf32": 395e6, "ieee": 60e6}
_LAUNCH = 3.0  # microseconds, about
_LIBRARY_SHARE, _OWN_SHARE = 0.9, 0.6  # of the rate of operations; the second is a guess until it is measured
_SATURATING = 64  # so many programs reading at once reach the memory's rate


def forward(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor | None) -> Tensor:
    y = x.new_empty(*x.shape[:-1], rule.shape[2] * local.shape[2])
    _product(x.reshape(-1, x.shape[-1]), rule, local, bias, y)
    return y


def backward(grad: Tensor, x: Tensor, rule: Tensor, local: Tensor, mask: int) -> list[Tensor]:
    gy = grad.reshape(-1, grad.shape[-1])
    asked = []
    if mask & 1:
        grad_x = torch.empty_like(x)
        _product(gy, rule.mT, local.mT, None, grad_x)
        asked.append(grad_x)
    if mask & 6:
        grad_weight = torch.mm(x.reshape(-1, x.shape[-1]).T, gy)
        asked += phm_weight.backward(grad_weight, rule, local, mask >> 1 & 3)
    if mask & 8:
        asked.append(gy.sum(0))
    return asked


def _product(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Writes y; rule and local may be transposed, x (rows, in) may have any strides."""
    (terms, g_in, g_out), (_, loc_in, loc_out) = rule.shape, local.shape
    if plan(x.shape[0], terms, g_in, g_out, loc_in, loc_out, x.dtype)["takes_local_first"]:
        _launch_local_first(x, rule, local, bias, y)
        return
    y = y.view(-1, g_out * loc_out)
    transposed = not rule.is_contiguous()
    weight = phm_weight.forward(rule.mT, local.mT).T if transposed else phm_weight.forward(rule, local)
    if bias is None:
        torch.mm(x, weight, out=y)
    else:
        torch.addmm(bias, x, weight, out=y)


def plan(rows: int, terms: int, g_in: int, g_out: int, loc_in: int, loc_out: int, dtype: torch.dtype) -> dict:
    """The cost model of the two ways, in microseconds on an H200, and the choice; nothing is timed.

    Returns {"local_first": float, "weight_once": float, "takes_local_first": bool}. A step costs the longer of its
    bytes and its operations. Local first: x, local and y once, and the multiply-adds of sizes padded to powers of two,
    at the share of the rate that a kernel of ours is expected to reach; infinite where terms*g_in exceeds the tile of
    the epilogue. Weight once: local read, W written; then x and W read, y written. Each launch is counted.
    """
    size, kind = dtype.itemsize, "16 bits" if dtype.itemsize == 2 else input_precision()
    rate = _OPERATIONS[kind]
    d_in, d_out, locals_ = g_in * loc_in, g_out * loc_out, terms * loc_in * loc_out

    mixed = triton.next_power_of_2(g_in) * triton.next_power_of_2(terms)
    local_first = float("inf")
    if mixed <= _WIDEST_MIX:
        config = heuristic(_sizes(rows, terms, g_in, g_out, loc_in, loc_out), dtype)
        programs = triton.cdiv(loc_out, config["BLOCK_V"]) * max(1, triton.cdiv(rows, config["BLOCK_N"]))
        reach = min(1.0, programs / _SATURATING)
        move = size * (rows * (d_in + d_out) + locals_) / (_BYTES * reach)
        operate = 2 * rows * mixed * loc_out * (loc_in + g_out) / (rate * _OWN_SHARE * min(1.0, programs / _SMS))
        local_first = max(move, operate) + _LAUNCH

    build = size * (locals_ + d_in * d_out) / _BYTES
    move = size * (d_in * d_out + rows * (d_in + d_out)) / _BYTES
    weight_once = build + max(move, 2 * rows * d_in * d_out / (rate * _LIBRARY_SHARE)) + 2 * _LAUNCH
    return {
        "local_first": local_first,
        "weight_once": weight_once,
        "takes_local_first": local_first < weight_once,
    }


@triton.jit
def _local_first(
    x, rule, local, bias, y, rows, x_n, x_k, rule_i, rule_a, rule_c, local_i, local_u, local_v,
    I: tl.constexpr, A: tl.constexpr, C: tl.constexpr, U: tl.constexpr, V: tl.constexpr,
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
        x_tile = tl.load(x + (x_na[:, None] + u[None, :] * x_k), mask=na_mask[:, None] & (u < U)[None, :], other=0.0)
        local_tile = tl.load(
            local + (u[:, None] * local_u + local_iv[None, :]), mask=(u < U)[:, None] & iv_mask[None, :], other=0.0
        )
        s = tl.dot(x_tile, local_tile, s, input_precision=PRECISION)

    # the mixing epilogue
    if MIX_BY_DOT:
        s = tl.permute(tl.reshape(s, (BLOCK_N, BLOCK_A, BLOCK_I, BLOCK_V)), (0, 3, 1, 2))
        s = tl.reshape(s, (BLOCK_N * BLOCK_V, BLOCK_A * BLOCK_I)).to(x.dtype.element_ty)
        ai = tl.arange(0, BLOCK_A * BLOCK_I)
        a, i = ai // BLOCK_I, ai % BLOCK_I
        c = tl.arange(0, BLOCK_C)[None, :]
        rule_tile = tl.load(
            rule + ((i * rule_i + a * rule_a)[:, None] + c * rule_c),
            mask=((i < I) & (a < A))[:, None] & (c < C),
            other=0.0,
        )
        mixed = tl.dot(s, rule_tile, input_precision="ieee")  # [(n v), c]
        nv = tl.arange(0, BLOCK_N * BLOCK_V)[:, None]
        n, v = first_n + nv // BLOCK_V, first_v + nv % BLOCK_V
        mask = (n < rows) & (v < V) & (c < C)
        if HAS_BIAS:
            mixed += tl.load(bias + (c * V + v), mask=mask, other=0.0).to(tl.float32)
        tl.store(y + (n * (C * V) + (c * V + v)), mixed.to(y.dtype.element_ty), mask=mask)
    else:
        s = tl.reshape(s, (BLOCK_N, BLOCK_A * BLOCK_I, BLOCK_V))
        ai = tl.arange(0, BLOCK_A * BLOCK_I)
        a, i = ai // BLOCK_I, ai % BLOCK_I
        n = first_n + tl.arange(0, BLOCK_N)[:, None]
        v = first_v + tl.arange(0, BLOCK_V)[None, :]
        mask = (n < rows) & (v < V)
        for c in range(C):
            rule_c_ai = tl.load(rule + (i * rule_i + a * rule_a + c * rule_c), mask=(i < I) & (a < A), other=0.0)
            mixed = tl.sum(s * rule_c_ai.to(tl.float32)[None, :, None], axis=1)
            if HAS_BIAS:
                mixed += tl.load(bias + (c * V + v), mask=v < V, other=0.0).to(tl.float32)
            tl.store(y + (n * (C * V) + (c * V + v)), mixed.to(y.dtype.element_ty), mask=mask)


def _launch_local_first(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor | None, y: Tensor) -> None:
    rows = x.shape[0]
    (terms, g_in, g_out), (_, loc_in, loc_out) = rule.shape, local.shape
    sizes = _sizes(rows, terms, g_in, g_out, loc_in, loc_out)
    config = launch_config.pick("local_first", sizes, x.dtype, x.device, heuristic)
    programs = triton.cdiv(rows, config["BLOCK_N"]) * triton.cdiv(loc_out, config["BLOCK_V"])
    launch(
        _local_first, (programs,), x, rule, local, y if bias is None else bias, y, rows,
        *x.stride(), *rule.stride(), *local.stride(),
        I=terms, A=g_in, C=g_out, U=loc_in, V=loc_out, HAS_BIAS=bias is not None, PRECISION=input_precision(),
        BLOCK_I=triton.next_power_of_2(terms), BLOCK_A=triton.next_power_of_2(g_in),
        BLOCK_C=triton.next_power_of_2(g_out), **config,
    )  # fmt: skip


def _sizes(rows: int, terms: int, g_in: int, g_out: int, loc_in: int, loc_out: int) -> dict[str, int]:
    return {
        "rows": rows, "terms": terms, "g_in": g_in, "g_out": g_out, "loc_in": loc_in, "loc_out": loc_out,
        "tf32": int(input_precision() == "tf32"),
    }  # fmt: skip


def heuristic(sizes: dict[str, int], dtype: torch.dtype) -> dict[str, int]:
    """As large a tile [(n a), (i v)] as the accumulators allow, cut where the multiprocessors would stand idle."""
    half = dtype.itemsize == 2
    block_i, block_a = triton.next_power_of_2(sizes["terms"]), triton.next_power_of_2(sizes["g_in"])
    accumulators = 32768 if half else 8192
    widest_v = max(16, (128 if half else 64) // block_i)
    block_v = min(widest_v, triton.next_power_of_2(sizes["loc_out"]))
    if not half:  # no product on tensor cores asks for long rows here, and the tile is small
        block_v = min(block_v, max(4, 128 // block_i))
    tallest_n = max(1, min(256, accumulators // (block_i * block_v)) // block_a)
    block_n = min(triton.next_power_of_2(max(1, sizes["rows"])), tallest_n)

    def programs() -> int:
        return triton.cdiv(sizes["rows"], block_n) * triton.cdiv(sizes["loc_out"], block_v)

    while programs() < _SMS and block_v > 16:
        block_v //= 2
    while programs() < _SMS and block_n * block_a > 64:
        block_n //= 2
    height, width = block_n * block_a, block_i * block_v
    if half:
        block_u, num_warps = 64, 8 if height * width > 8192 else 4
    else:
        block_u, num_warps = 32 if height * width <= 1024 else 16, 8 if height * width > 2048 else 4
    block_u = min(block_u, max(16, triton.next_power_of_2(sizes["loc_in"])))
    return {
        "MIX_BY_DOT": half and block_a * block_i >= 16, "BLOCK_N": block_n, "BLOCK_U": block_u, "BLOCK_V": block_v,
        "num_warps": num_warps, "num_stages": 3,
    }  # fmt: skip


def candidates(sizes: dict[str, int], dtype: torch.dtype) -> list[dict[str, int]]:
    own = heuristic(sizes, dtype)
    found = [own | {"num_stages": 4}, own | {"BLOCK_V": own["BLOCK_V"] * 2}]
    if own["BLOCK_V"] >= 16:
        found.append(own | {"BLOCK_V": own["BLOCK_V"] // 2})
    if own["BLOCK_N"] > 1:
        found.append(own | {"BLOCK_N": own["BLOCK_N"] // 2})
    if own["MIX_BY_DOT"]:
        found.append(own | {"MIX_BY_DOT": False})
    return found
