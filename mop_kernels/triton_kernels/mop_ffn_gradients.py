"""Compute gradients of the down map or of the up maps of mop_ffn for all pairs: of their factors and their input.

With t and s as in mop_ffn.py, x the input of a map and dy the gradient of its result:
    ds[j, n, v] = sum_c rule_out[j, c] dy[n, c, v]         dt[j, n, u] = sum_v ds[j, n, v] local[i, u, v]
    rows:     dx[n, a, u] = sum_j rule_in[j, a] dt[j, n, u]    drule_in[j, a] = sum_{n, u} dt[j, n, u] x[n, a, u]
    weights:  dlocal[i, u, v] = sum_{n, r} t[j, n, u] ds[j, n, v]    drule_out[j, c] = sum_{n, v} s[j, n, v] dy[n, c, v]
              dbias[c, v] = sum_n dy[n, c, v]
All gradients are linear in x and in dy. Therefore a program may take one block of every side that its results have, and
of one side that they sum over. It writes a partial sum, (L, k, blocks, ...) in float32, for `totals` in
mop_ffn_backward.py. All sums accumulate in float32.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import LowRankPHM
from .device_functions import (
    Phm,
    blocks,
    fold,
    group_of,
    load_local,
    load_rows,
    load_rule_in,
    load_rule_out,
    of_pair,
    row_tile,
    select,
    stage_1,
    unfold,
)
from .launch import Config, Configs, Sizes, launch, pick
from .mop_ffn import SIDES, TILE, Asked, block, even_block, group_strides, launch_options, rows_of_a_block, sides_of


@triton.jit
def gradient_before_local(
    dy, rule_out, first_row, first_j, first_c, first_v, rows, P: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the part of ds of a c block, [j, n, v] in float32, and the tile of dy, [(c f), (n v/f)]."""
    row, column, mask = row_tile(
        first_row, first_c, first_v, rows, P.g_out, P.loc_out, BLOCK_ROWS, P.block_c, P.block_v, P.fold_c
    )
    dy = load_rows(dy, row, column, mask, P.d_out)
    rule = load_rule_out(rule_out, first_j, first_c, P, P.block_c, P.fold_c)
    return unfold(tl.dot(rule, dy, input_precision=PRECISION), BLOCK_ROWS, P.fold_c), dy


@triton.jit(do_not_specialize=["num_experts", "rows"])
def rows_kernel(
    x, grads, rules_in, rules_out, locals_, slope, dx, drules_in, experts, x_experts,
    strides, num_experts, rows,
    P: tl.constexpr, BLOCK_ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write dx (L, k, n, in), the sum over the maps times slope, and drules_in (L, k, blocks, terms, g_in, rank).

    A program computes one block each of rows, u and a. dx, slope and entries of drules_in may be None. x_experts holds
    the ids of the experts in x: `experts`, or None if x has only the k asked experts.
    """
    row_blocks, u_blocks = tl.cdiv(rows, BLOCK_ROWS), tl.cdiv(P.loc_in, P.block_u)
    a_blocks = tl.cdiv(P.g_in, P.block_a)
    program = tl.program_id(0)
    first_a = program % a_blocks * P.block_a
    tile = program // a_blocks % (row_blocks * u_blocks)
    first_row, first_u = tile // u_blocks * BLOCK_ROWS, tile % u_blocks * P.block_u
    pair = program // (a_blocks * row_blocks * u_blocks)
    layer, x_expert = group_of(pair, num_experts, x_experts)
    x = of_pair(x, strides[0], layer, x_expert)
    layer, expert = group_of(pair, num_experts, experts)
    pair = pair.to(tl.int64)

    rows_of_x = tl.zeros((P.block_a * P.fold_j, BLOCK_ROWS * P.block_u // P.fold_j), tl.float32)
    for m in tl.static_range(len(grads)):
        if dx is not None or drules_in[m] is not None:
            dy = grads[m] + pair * rows * P.d_out
            rule_in = of_pair(rules_in[m], strides[1], layer, expert)
            rule_out = of_pair(rules_out[m], strides[2], layer, expert)
            local = of_pair(locals_[m], strides[3], layer, expert)
            for j in range(0, P.size_j, P.block_j):
                dt = tl.zeros((P.block_j, BLOCK_ROWS, P.block_u), tl.float32)
                for v in range(0, P.loc_out, P.block_v):
                    ds = tl.zeros((P.block_j, BLOCK_ROWS, P.block_v), tl.float32)
                    for c in range(0, P.g_out, P.block_c):
                        ds += gradient_before_local(dy, rule_out, first_row, j, c, v, rows, P, BLOCK_ROWS, PRECISION)[0]
                    local_t = tl.permute(load_local(local, j, first_u, v, P), (0, 2, 1))
                    dt = tl.dot(ds.to(local_t.dtype), local_t, dt, input_precision=PRECISION)
                dt = dt.to(x.dtype.element_ty)
                if drules_in[m] is not None:
                    drule_in = drules_in[m] + (pair * row_blocks * u_blocks + tile) * (P.terms * P.g_in * P.rank)
                    store_drule_in(drule_in, x, dt, first_row, j, first_a, first_u, rows, P, BLOCK_ROWS, PRECISION)
                if dx is not None:
                    rule = tl.trans(load_rule_in(rule_in, j, first_a, P, P.block_a, P.fold_j))
                    rows_of_x = tl.dot(rule, fold(dt, P.fold_j), rows_of_x, input_precision=PRECISION)
    if dx is not None:
        row, column, mask = row_tile(
            first_row, first_a, first_u, rows, P.g_in, P.loc_in, BLOCK_ROWS, P.block_a, P.block_u, P.fold_j
        )
        place = (pair * rows + row) * P.d_in + column
        if slope is not None:
            rows_of_x *= tl.load(slope + place, mask=mask, other=0.0)
        tl.store(dx + place, rows_of_x.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def store_drule_in(
    drule_in, x, dt, first_row, first_j, first_a, first_u, rows, P: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Write the part of drule_in from dt [j, n, u]: the sum over n of products of [n, j, u] with x as [n, u, a]."""
    n = (first_row + tl.arange(0, BLOCK_ROWS))[:, None, None]
    u = (first_u + tl.arange(0, P.block_u))[None, :, None]
    a = (first_a + tl.arange(0, P.block_a))[None, None, :]
    mask = (n < rows) & (u < P.loc_in) & (a < P.g_in)
    x = load_rows(x, n, a * P.loc_in + u, mask, P.d_in)
    products = tl.dot(tl.permute(dt, (1, 0, 2)), x, input_precision=PRECISION)
    j = (first_j + tl.arange(0, P.block_j))[:, None]
    i, r = j // P.padded_rank, j % P.padded_rank
    a = (first_a + tl.arange(0, P.block_a))[None, :]
    mask = (i < P.terms) & (r < P.rank) & (a < P.g_in)
    tl.store(drule_in + ((i * P.g_in + a) * P.rank + r), tl.sum(products, 0), mask=mask)


@triton.jit(do_not_specialize=["num_experts", "num_pairs", "rows"])
def weights_kernel(
    x, grads, rules_in, rules_out, locals_, drules_out, dlocals, dbiases, experts, x_experts,
    strides, num_experts, num_pairs, rows,
    P: tl.constexpr, BLOCK_ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write drules_out (L, k, u and v blocks, terms, rank, g_out), dlocals (L, k, c blocks, ...), dbiases (L, k, out).

    A program computes one block each of j, u, v and c of one map, over all rows. Each tuple of gradients holds one
    pointer per map, or None if no map asks for this gradient.
    """
    u_blocks, v_blocks = tl.cdiv(P.loc_in, P.block_u), tl.cdiv(P.loc_out, P.block_v)
    j_blocks, c_blocks = tl.cdiv(P.size_j, P.block_j), tl.cdiv(P.g_out, P.block_c)
    uv = tl.program_id(0) % (u_blocks * v_blocks)
    program = tl.program_id(0) // (u_blocks * v_blocks)
    first_u, first_v = uv // v_blocks * P.block_u, uv % v_blocks * P.block_v
    first_j, c_block = program % j_blocks * P.block_j, program // j_blocks % c_blocks
    first_c = c_block * P.block_c
    m = program // (j_blocks * c_blocks) // num_pairs
    pair = program // (j_blocks * c_blocks) % num_pairs
    layer, x_expert = group_of(pair, num_experts, x_experts)
    x = of_pair(x, strides[0], layer, x_expert)
    layer, expert = group_of(pair, num_experts, experts)
    pair = pair.to(tl.int64)
    dy = select(grads, m) + pair * rows * P.d_out
    rule_in = of_pair(select(rules_in, m), strides[1], layer, expert)
    rule_out = of_pair(select(rules_out, m), strides[2], layer, expert)
    local = of_pair(select(locals_, m), strides[3], layer, expert)
    drule_out = None if drules_out[0] is None else select(drules_out, m)
    dlocal = None if dlocals[0] is None else select(dlocals, m)
    dbias = None if dbiases[0] is None else select(dbiases, m)

    BLOCK_I: tl.constexpr = P.block_j // P.padded_rank
    of_local = tl.zeros((BLOCK_I, P.block_u, P.block_v), tl.float32)
    of_rule = tl.zeros((BLOCK_ROWS, P.block_j, P.block_c), tl.float32)  # summed over the rows at the end
    of_bias = tl.zeros((P.block_c * P.fold_c, BLOCK_ROWS * P.block_v // P.fold_c), tl.float32)
    for first_row in range(0, rows, BLOCK_ROWS):
        ds, dy_tile = gradient_before_local(
            dy, rule_out, first_row, first_j, first_c, first_v, rows, P, BLOCK_ROWS, PRECISION
        )
        if dbias is not None:
            of_bias += dy_tile
        if drule_out is not None or dlocal is not None:
            t = stage_1(x, rule_in, first_row, first_j, first_u, rows, P, BLOCK_ROWS, PRECISION)
            if dlocal is not None:
                # r and n are one axis of the sum: [(i r), n, w] -> [i, (r n), w]
                t_of_i = tl.reshape(t, (BLOCK_I, P.padded_rank * BLOCK_ROWS, P.block_u))
                ds_of_i = tl.reshape(ds.to(t.dtype), (BLOCK_I, P.padded_rank * BLOCK_ROWS, P.block_v))
                of_local = tl.dot(tl.permute(t_of_i, (0, 2, 1)), ds_of_i, of_local, input_precision=PRECISION)
            if drule_out is not None:
                s = tl.dot(t, load_local(local, first_j, first_u, first_v, P), input_precision=PRECISION)
                dy_tile = tl.reshape(dy_tile, (P.block_c, P.fold_c, BLOCK_ROWS, P.block_v // P.fold_c))
                dy_tile = tl.reshape(tl.permute(dy_tile, (2, 1, 3, 0)), (BLOCK_ROWS, P.block_v, P.block_c))
                s = tl.permute(s.to(t.dtype), (1, 0, 2))
                of_rule = tl.dot(s, dy_tile, of_rule, input_precision=PRECISION)

    if dlocal is not None:
        i = (first_j // P.padded_rank + tl.arange(0, BLOCK_I))[:, None, None]
        u = (first_u + tl.arange(0, P.block_u))[None, :, None]
        v = (first_v + tl.arange(0, P.block_v))[None, None, :]
        place = ((pair * c_blocks + c_block) * P.terms + i) * (P.loc_in * P.loc_out) + (u * P.loc_out + v)
        mask = (i < P.terms) & (u < P.loc_in) & (v < P.loc_out)
        tl.store(dlocal + place, of_local.to(dlocal.dtype.element_ty), mask=mask)
    if drule_out is not None:
        j = (first_j + tl.arange(0, P.block_j))[:, None]
        i, r = j // P.padded_rank, j % P.padded_rank
        c = (first_c + tl.arange(0, P.block_c))[None, :]
        drule_out += (pair * u_blocks * v_blocks + uv) * (P.terms * P.rank * P.g_out)
        mask = (i < P.terms) & (r < P.rank) & (c < P.g_out)
        place = (i * P.rank + r) * P.g_out + c
        tl.store(drule_out + place, tl.sum(of_rule, 0).to(drule_out.dtype.element_ty), mask=mask)
    if dbias is not None and first_j + first_u == 0:  # all blocks of j and u compute it
        store_dbias(dbias + pair * P.d_out, of_bias, first_c, first_v, P, BLOCK_ROWS)


@triton.jit
def store_dbias(dbias, of_rows, first_c, first_v, P: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Write the sum over n of [(c f), (n v/f)]."""
    CF: tl.constexpr = of_rows.shape[0]
    NARROW: tl.constexpr = of_rows.shape[1] // BLOCK_ROWS
    _, column, mask = row_tile(0, first_c, first_v, 1, P.g_out, P.loc_out, 1, P.block_c, P.block_v, P.fold_c)
    total = tl.sum(tl.reshape(of_rows, (CF, BLOCK_ROWS, NARROW)), 1)
    tl.store(dbias + column, total.to(dbias.dtype.element_ty), mask=mask)


def gradient_blocks(sizes: Sizes, config: Config, kernel: str) -> Phm:
    """Return the map with the blocks of `kernel`, "rows" or "weights".

    A block has 16 numbers of a side that is summed over, and more of a side of the result.
    """
    P = Phm(*(sizes[name] for name in SIDES))
    rows, u, v = config["BLOCK_ROWS"], config["BLOCK_U"], config["BLOCK_V"]
    most = TILE[torch.float32]  # these kernels hold more tiles at once
    a, c = block(P.g_in, 16), block(P.g_out, 16)
    j = block(P.size_j, min(32, most // (max(rows, u) * max(rows, v))))
    if kernel == "rows":
        a = block(P.g_in, most // (rows * u))
    else:
        j = max(min(j, 8), P.padded_rank)  # a program has all r of a term
        c = block(P.g_out, most // (rows * max(j, v)))
    return P.with_blocks(j, a, c, u, v)


def rows_configs(sizes: Sizes, dtype: torch.dtype, multiprocessors: int) -> Configs:
    """Propose blocks of 16 of u, and of 16 of v in float32 or 32 in 16 bits."""
    return _gradient_configs(sizes, rows_of_a_block(dtype), 16 if dtype is torch.float32 else 32)


def weights_configs(sizes: Sizes, dtype: torch.dtype, multiprocessors: int) -> Configs:
    """Propose the blocks of `rows_configs`, but 16 rows, which are summed over. At a high rank only 16 of v fit."""
    return _gradient_configs(sizes, 16, 16 if dtype is torch.float32 or sizes["rank"] > 8 else 32)


def _gradient_configs(sizes: Sizes, rows: int, most_v: int) -> Configs:
    own = {"BLOCK_ROWS": rows, "BLOCK_U": max(16, even_block(sizes["loc_in"], 16))}
    own |= {"BLOCK_V": max(16, even_block(sizes["loc_out"], most_v)), "num_warps": 4, "num_stages": 2}
    yield own
    v = max(16, even_block(sizes["loc_out"], 48 - own["BLOCK_V"]))
    changes = [{"num_warps": 8}, {"BLOCK_ROWS": 2 * rows}, {"BLOCK_ROWS": 2 * rows, "num_warps": 8}]
    changes += [{"BLOCK_V": v}, {"BLOCK_V": v, "num_warps": 8}, {"num_stages": 1}, {"num_stages": 3}]
    yield from (own | change for change in changes)


class Partial:
    """The partial sums of the gradient of one tensor, (L, k, parts, ...) in float32.

    `done` is True if there is nothing to sum: then `tensor` is the gradient, in the dtype of `like`.
    """

    def __init__(self, like: Tensor, groups: Sequence[int], parts: int, asked: Asked):
        self.like, self.parts = like, parts
        self.summed = tuple(full if size == 1 else 1 for size, full in zip(like.shape, groups))
        self.kept = tuple(1 if size == 1 else full for size, full in zip(like.shape, groups))
        is_sum = (*self.summed, parts) != (1, 1, 1)
        self.done = not is_sum and (asked is None or like.shape[1] == 1)
        dtype = like.dtype if self.done else torch.float32
        self.tensor = torch.empty(*groups, parts, *like.shape[2:], dtype=dtype, device=like.device)


def tensors_of(partials: Sequence[Partial | None]) -> tuple[Tensor | None, ...]:
    """Return the tensors of partial sums, None in the place of None."""
    return tuple([None if p is None else p.tensor for p in partials])


class Maps(NamedTuple):
    """The down map, or up maps of the same sizes, with their input and the gradients of their results."""

    x: Tensor  # of the down map, or the hidden rows
    grads: list[Tensor]  # (L, k, n, out), one per map
    factors: Sequence[LowRankPHM]
    asked: Asked  # the experts that the call asks for
    x_asked: Asked  # `asked`, or None if x has only the k asked experts

    @property
    def sizes(self) -> Sizes:
        """The sizes that launches depend on."""
        layers, num_experts, rows = self.grads[0].shape[:3]
        return {"pairs": layers * num_experts, "maps": len(self.grads), "rows": rows} | sides_of(self.factors[0])

    def partial(self, map_index: int, factor: int, parts: int) -> Partial:
        """Return the partial sums of the gradient of one factor."""
        like = self.factors[map_index][factor]
        assert like is not None, "an absent bias has no gradient"
        return Partial(like, self.grads[0].shape[:2], parts, self.asked)

    def launch(self, kernel: Any, per_pair: int, results: Iterable, config: Config, P: Phm, *numbers: int) -> None:
        """Launch `per_pair` programs per pair that write `results`. numbers: the last arguments of the kernel."""
        sizes, tensors = self.sizes, self.factors[0][:3]
        launch(
            kernel,
            (per_pair * sizes["pairs"],),
            self.x,
            tuple(self.grads),
            *zip(*(factors[:3] for factors in self.factors)),
            *results,
            self.asked,
            self.x_asked,
            group_strides(self.x, *tensors),
            self.grads[0].shape[1],
            *numbers,
            P=P,
            **launch_options(config, self.asked),
        )


def map_gradients(maps: Maps, slope: Tensor | None, dx: Tensor | None, needs: list[list[bool]]) -> list[Partial]:
    """Write dx unless it is None, and return the gradients of the factors that `needs` asks for, in order.

    Args:
        maps: The maps.
        slope: Multiplies dx, unless it is None.
        dx: (L, k, n, in).
        needs: One bool per factor of each map.
    """
    found: list[list[Partial | None]] = [[None] * 4 for _ in needs]
    if dx is not None or any(needed[0] for needed in needs):
        for k, gradient in enumerate(rows_gradients(maps, slope, dx, [needed[0] for needed in needs])):
            found[k][0] = gradient
    for wanted in {tuple(needed[1:]) for needed in needs if any(needed[1:])}:
        chosen = [k for k, needed in enumerate(needs) if tuple(needed[1:]) == wanted]
        some = maps._replace(grads=[maps.grads[k] for k in chosen], factors=[maps.factors[k] for k in chosen])
        for k, gradients in zip(chosen, weights_gradients(some, wanted)):
            found[k][1:] = gradients
    return [gradient for of_map in found for gradient in of_map if gradient is not None]


def rows_gradients(maps: Maps, slope: Tensor | None, dx: Tensor | None, needs: list[bool]) -> list[Partial | None]:
    """Write dx, and return drule_in of the maps that need it."""
    config = pick("mop_ffn_rows", maps.sizes, maps.x.dtype, maps.x.device, rows_configs)
    P = gradient_blocks(maps.sizes, config, "rows")
    tiles = blocks(maps.sizes["rows"], config["BLOCK_ROWS"]) * blocks(P.loc_in, P.block_u)
    partials = [maps.partial(k, 0, tiles) if needed else None for k, needed in enumerate(needs)]
    programs = blocks(P.g_in, P.block_a) * tiles
    maps.launch(rows_kernel, programs, (slope, dx, tensors_of(partials)), config, P, maps.sizes["rows"])
    return partials


def weights_gradients(maps: Maps, needs: tuple[bool, ...]) -> list[list[Partial | None]]:
    """Return [drule_out, dlocal, dbias] of each map, None where `needs` does not ask for it."""
    config = pick("mop_ffn_weights", maps.sizes, maps.x.dtype, maps.x.device, weights_configs)
    P = gradient_blocks(maps.sizes, config, "weights")
    uv_blocks = blocks(P.loc_in, P.block_u) * blocks(P.loc_out, P.block_v)
    c_blocks = blocks(P.g_out, P.block_c)
    wanted = list(zip((1, 2, 3), (uv_blocks, c_blocks, 1), (*needs, False)))
    count = len(maps.factors)
    partials = [
        [maps.partial(k, factor, parts) if needed else None for factor, parts, needed in wanted] for k in range(count)
    ]
    programs = uv_blocks * c_blocks * blocks(P.size_j, P.block_j) * count
    numbers = maps.sizes["pairs"], maps.sizes["rows"]
    maps.launch(weights_kernel, programs, map(tensors_of, zip(*partials)), config, P, *numbers)
    return partials
