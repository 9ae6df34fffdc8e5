"""Gradients of one level of mop_ffn, the up maps or the down map, from those of its results, for all pairs.

With t and s as in mop_ffn.py, x a map's input and dy the gradient of its result:
    ds[j, n, v] = sum_c rule_out[j, c] dy[n, c, v]         dt[j, n, u] = sum_v ds[j, n, v] local[i, u, v]
    rows:     dx[n, a, u] = sum_j rule_in[j, a] dt[j, n, u]    drule_in[j, a] = sum_{n, u} dt[j, n, u] x[n, a, u]
    weights:  dlocal[i, u, v] = sum_{n, r} t[j, n, u] ds[j, n, v]    drule_out[j, c] = sum_{n, v} s[j, n, v] dy[n, c, v]
              dbias[c, v] = sum_n dy[n, c, v]
All is linear in x and in dy, so a program may take one block of every side that its results have and of one they sum
over. What it writes is a partial sum, one of (L, k, blocks, ...) in float32, for mop_ffn_sums.py. All accumulates in
float32.
"""

import triton
import triton.language as tl

from . import launch_config
from .arithmetic import blocks
from .device_functions import (
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
from .launch import input_precision, launch
from .mop_ffn_sums import Partial
from .mop_ffn_tiles import checks, gradient_blocks, group_strides, heuristic_rows, heuristic_weights, sizes_of_map


@triton.jit
def gradient_before_local(
    dy, rule_out, first_row, first_j, first_c, first_v, rows, P: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A c block's part of ds, [j, n, v] in float32, and the tile of dy, [(c f), (n v/f)]."""
    FOLD: tl.constexpr = P.fold_c
    row, column, mask = row_tile(
        first_row, first_c, first_v, rows, P.g_out, P.loc_out, BLOCK_ROWS, P.block_c, P.block_v, FOLD
    )
    dy = load_rows(dy, row, column, mask, P.d_out)
    rule = load_rule_out(rule_out, first_j, first_c, P, P.block_c, FOLD)
    return unfold(tl.dot(rule, dy, input_precision=PRECISION), BLOCK_ROWS, FOLD), dy


@triton.jit(do_not_specialize=["num_experts", "rows"])
def rows_kernel(
    x, grads, rules_in, rules_out, locals_, slope, dx, drules_in, experts, x_experts,
    strides, num_experts, rows,
    P: tl.constexpr, BLOCK_ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx (L, k, n, in), the sum over the maps times slope, and a map's drule_in (L, k, blocks, terms, g_in, rank).

    A program computes one block each of rows, u and a. dx, slope and entries of drules_in may be None. x_experts are
    the ids by which x is addressed: `experts`, or None where x has the k asked experts only.
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

    BLOCK_J: tl.constexpr = P.block_j
    BLOCK_A: tl.constexpr = P.block_a
    BLOCK_U: tl.constexpr = P.block_u
    BLOCK_V: tl.constexpr = P.block_v
    FOLD: tl.constexpr = P.fold_j
    rows_of_x = tl.zeros((BLOCK_A * FOLD, BLOCK_ROWS * BLOCK_U // FOLD), tl.float32)
    for map in tl.static_range(len(grads)):
        if dx is not None or drules_in[map] is not None:
            dy = grads[map] + pair * rows * P.d_out
            rule_in = of_pair(rules_in[map], strides[1], layer, expert)
            rule_out = of_pair(rules_out[map], strides[2], layer, expert)
            local = of_pair(locals_[map], strides[3], layer, expert)
            for j in range(0, P.size_j, BLOCK_J):
                dt = tl.zeros((BLOCK_J, BLOCK_ROWS, BLOCK_U), tl.float32)
                for v in range(0, P.loc_out, BLOCK_V):
                    ds = tl.zeros((BLOCK_J, BLOCK_ROWS, BLOCK_V), tl.float32)
                    for c in range(0, P.g_out, P.block_c):
                        ds += gradient_before_local(dy, rule_out, first_row, j, c, v, rows, P, BLOCK_ROWS, PRECISION)[0]
                    local_t = tl.permute(load_local(local, j, first_u, v, P), (0, 2, 1))
                    dt = tl.dot(ds.to(local_t.dtype), local_t, dt, input_precision=PRECISION)
                dt = dt.to(x.dtype.element_ty)
                if drules_in[map] is not None:
                    drule_in = drules_in[map] + (pair * row_blocks * u_blocks + tile) * (P.terms * P.g_in * P.rank)
                    store_drule_in(drule_in, x, dt, first_row, j, first_a, first_u, rows, P, BLOCK_ROWS, PRECISION)
                if dx is not None:
                    rule = tl.trans(load_rule_in(rule_in, j, first_a, P, BLOCK_A, FOLD))
                    rows_of_x = tl.dot(rule, fold(dt, FOLD), rows_of_x, input_precision=PRECISION)
    if dx is not None:
        row, column, mask = row_tile(
            first_row, first_a, first_u, rows, P.g_in, P.loc_in, BLOCK_ROWS, BLOCK_A, BLOCK_U, FOLD
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
    """The part of drule_in of dt [j, n, u]: a product a row, [n, j, u] with x as [n, u, a], summed over the rows."""
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
    """A map's drule_out (L, k, u and v blocks, terms, rank, g_out), dlocal (L, k, c blocks, ...) and dbias (L, k, out).

    A program computes one block each of j, u, v and c of one map, over all rows. The tuples of all three gradients hold
    one pointer a map, or None where no map asks.
    """
    u_blocks, v_blocks = tl.cdiv(P.loc_in, P.block_u), tl.cdiv(P.loc_out, P.block_v)
    j_blocks, c_blocks = tl.cdiv(P.size_j, P.block_j), tl.cdiv(P.g_out, P.block_c)
    uv = tl.program_id(0) % (u_blocks * v_blocks)
    program = tl.program_id(0) // (u_blocks * v_blocks)
    first_u, first_v = uv // v_blocks * P.block_u, uv % v_blocks * P.block_v
    first_j, c_block = program % j_blocks * P.block_j, program // j_blocks % c_blocks
    first_c = c_block * P.block_c
    map = program // (j_blocks * c_blocks) // num_pairs
    pair = program // (j_blocks * c_blocks) % num_pairs
    layer, x_expert = group_of(pair, num_experts, x_experts)
    x = of_pair(x, strides[0], layer, x_expert)
    layer, expert = group_of(pair, num_experts, experts)
    pair = pair.to(tl.int64)
    dy = select(grads, map) + pair * rows * P.d_out
    rule_in = of_pair(select(rules_in, map), strides[1], layer, expert)
    rule_out = of_pair(select(rules_out, map), strides[2], layer, expert)
    local = of_pair(select(locals_, map), strides[3], layer, expert)
    drule_out = None if drules_out[0] is None else select(drules_out, map)
    dlocal = None if dlocals[0] is None else select(dlocals, map)
    dbias = None if dbiases[0] is None else select(dbiases, map)

    RANK: tl.constexpr = P.padded_rank
    BLOCK_J: tl.constexpr = P.block_j
    BLOCK_I: tl.constexpr = BLOCK_J // RANK
    BLOCK_U: tl.constexpr = P.block_u
    BLOCK_V: tl.constexpr = P.block_v
    BLOCK_C: tl.constexpr = P.block_c
    FOLD: tl.constexpr = P.fold_c
    of_local = tl.zeros((BLOCK_I, BLOCK_U, BLOCK_V), tl.float32)
    of_rule = tl.zeros((BLOCK_ROWS, BLOCK_J, BLOCK_C), tl.float32)  # summed over the rows at the end
    of_bias = tl.zeros((BLOCK_C * FOLD, BLOCK_ROWS * BLOCK_V // FOLD), tl.float32)
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
                t_of_i = tl.reshape(t, (BLOCK_I, RANK * BLOCK_ROWS, BLOCK_U))
                ds_of_i = tl.reshape(ds.to(t.dtype), (BLOCK_I, RANK * BLOCK_ROWS, BLOCK_V))
                of_local = tl.dot(tl.permute(t_of_i, (0, 2, 1)), ds_of_i, of_local, input_precision=PRECISION)
            if drule_out is not None:
                s = tl.dot(t, load_local(local, first_j, first_u, first_v, P), input_precision=PRECISION)
                dy_tile = tl.reshape(dy_tile, (BLOCK_C, FOLD, BLOCK_ROWS, BLOCK_V // FOLD))
                dy_tile = tl.reshape(tl.permute(dy_tile, (2, 1, 3, 0)), (BLOCK_ROWS, BLOCK_V, BLOCK_C))
                s = tl.permute(s.to(t.dtype), (1, 0, 2))
                of_rule = tl.dot(s, dy_tile, of_rule, input_precision=PRECISION)

    if dlocal is not None:
        i = (first_j // RANK + tl.arange(0, BLOCK_I))[:, None, None]
        u = (first_u + tl.arange(0, BLOCK_U))[None, :, None]
        v = (first_v + tl.arange(0, BLOCK_V))[None, None, :]
        place = ((pair * c_blocks + c_block) * P.terms + i) * (P.loc_in * P.loc_out) + (u * P.loc_out + v)
        mask = (i < P.terms) & (u < P.loc_in) & (v < P.loc_out)
        tl.store(dlocal + place, of_local.to(dlocal.dtype.element_ty), mask=mask)
    if drule_out is not None:
        j = (first_j + tl.arange(0, BLOCK_J))[:, None]
        i, r = j // RANK, j % RANK
        c = (first_c + tl.arange(0, BLOCK_C))[None, :]
        drule_out += (pair * u_blocks * v_blocks + uv) * (P.terms * P.rank * P.g_out)
        mask = (i < P.terms) & (r < P.rank) & (c < P.g_out)
        place = (i * P.rank + r) * P.g_out + c
        tl.store(drule_out + place, tl.sum(of_rule, 0).to(drule_out.dtype.element_ty), mask=mask)
    if dbias is not None and first_j + first_u == 0:  # all blocks of j and u have it
        store_dbias(dbias + pair * P.d_out, of_bias, first_c, first_v, P, BLOCK_ROWS)


@triton.jit
def store_dbias(dbias, of_rows, first_c, first_v, P: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """The sum over n of [(c f), (n v/f)]."""
    CF: tl.constexpr = of_rows.shape[0]
    NARROW: tl.constexpr = of_rows.shape[1] // BLOCK_ROWS
    _, column, mask = row_tile(0, first_c, first_v, 1, P.g_out, P.loc_out, 1, P.block_c, P.block_v, P.fold_c)
    total = tl.sum(tl.reshape(of_rows, (CF, BLOCK_ROWS, NARROW)), 1)
    tl.store(dbias + column, total.to(dbias.dtype.element_ty), mask=mask)


def level(x, grads, maps, slope, dx, needs, asked, x_asked) -> list[Partial]:
    """Writes dx unless it is None; returns the gradients of the maps' factors that `needs` asks for, in order.

    grads: one (L, k, n, out) a map; maps: their [rule_in, rule_out, local] or [..., bias]. asked: the ids by which the
    factors are addressed, and how many experts there are. x_asked: the same for x, None where x has the k asked experts
    only.
    """
    found = [[None] * 4 for _ in maps]
    if dx is not None or any(needed[0] for needed in needs):
        for of_map, gradient in zip(
            found, rows_gradients(x, grads, maps, slope, dx, [n[0] for n in needs], asked, x_asked)
        ):
            of_map[0] = gradient
    for wanted in {tuple(needed[1:]) for needed in needs if any(needed[1:])}:
        chosen = [k for k, needed in enumerate(needs) if tuple(needed[1:]) == wanted]
        some_grads, some_maps = ([values[k] for k in chosen] for values in (grads, maps))
        for k, gradients in zip(chosen, weights_gradients(x, some_grads, some_maps, wanted, asked, x_asked)):
            found[k][1:] = gradients
    return [gradient for of_map in found for gradient in of_map if gradient is not None]


def rows_gradients(x, grads, maps, slope, dx, needs, asked, x_asked) -> list[Partial | None]:
    """Writes dx; returns drule_in of the maps that need it."""
    groups, rows = grads[0].shape[:2], grads[0].shape[2]
    sizes = sizes_of_map(maps[0], grads)
    config = launch_config.pick("mop_ffn_rows", sizes, x.dtype, x.device, heuristic_rows)
    P = gradient_blocks(sizes, config, "rows")
    tiles = blocks(rows, config["BLOCK_ROWS"]) * blocks(P.loc_in, P.block_u)
    partials = [Partial(m[0], groups, tiles, asked) if needed else None for m, needed in zip(maps, needs)]
    launch(
        rows_kernel,
        (blocks(P.g_in, P.block_a) * tiles * groups[0] * groups[1],),
        x,
        tuple(grads),
        *(tuple(m[k] for m in maps) for k in range(3)),
        slope,
        dx,
        tuple(None if p is None else p.tensor for p in partials),
        asked,
        x_asked,
        tuple(group_strides(t) for t in (x, *maps[0][:3])),
        groups[1],
        rows,
        P=P,
        PRECISION=input_precision(),
        **{name: config[name] for name in ("BLOCK_ROWS", "num_warps", "num_stages")},
        **checks(asked),
    )
    return partials


def weights_gradients(x, grads, maps, needs, asked, x_asked) -> list[list[Partial | None]]:
    """[drule_out, dlocal, dbias] of each map, those that `needs`, a bool for each, asks for."""
    groups, rows = grads[0].shape[:2], grads[0].shape[2]
    sizes = sizes_of_map(maps[0], grads)
    config = launch_config.pick("mop_ffn_weights", sizes, x.dtype, x.device, heuristic_weights)
    P = gradient_blocks(sizes, config, "weights")
    uv_blocks = blocks(P.loc_in, P.block_u) * blocks(P.loc_out, P.block_v)
    c_blocks = blocks(P.g_out, P.block_c)
    partials = [
        [
            Partial(m[k], groups, parts, asked) if needed else None
            for k, parts, needed in zip((1, 2, 3), (uv_blocks, c_blocks, 1), (*needs, False))
        ]
        for m in maps
    ]
    launch(
        weights_kernel,
        (uv_blocks * c_blocks * blocks(P.size_j, P.block_j) * groups[0] * groups[1] * len(maps),),
        x,
        tuple(grads),
        *(tuple(m[k] for m in maps) for k in range(3)),
        *(tuple(None if p[k] is None else p[k].tensor for p in partials) for k in range(3)),
        asked,
        x_asked,
        tuple(group_strides(t) for t in (x, *maps[0][:3])),
        groups[1],
        groups[0] * groups[1],
        rows,
        P=P,
        PRECISION=input_precision(),
        **{name: config[name] for name in ("BLOCK_ROWS", "num_warps", "num_stages")},
        **checks(asked),
    )
    return partials
