"""mop_ffn: y_map = up_map(activation(down(x))) for all (layer, expert) pairs and all up maps in one launch.

x (1|L, 1|E, n, in), factors with the group dims (1|L, 1|E) -> num_maps tensors (L, k, n, out); k = E or len(experts).
One program computes a block of rows of one pair, for `MAPS` up maps and `BLOCKS_V` blocks of v:
    t[j, n, u] = sum_a rule_in[j, a] x[n, a, u];  s[j, n, v] = sum_u t[j, n, u] local[i, u, v]
    y[c, n, v] = sum_j rule_out[j, c] s[j, n, v] + bias[c, v]
for the down map, then for the up maps on the activated hidden rows. Those never leave the chip and are computed once
per program. W is never formed. Sums are accumulated in float32; t, s and the hidden rows, which feed matrix products,
are rounded to the dtype of x between them, as torch's eager operations do.

The up maps' factors, any number of maps, are handed over as tuples of pointers: nothing is stacked or copied. Where the
hidden rows are too wide to stay on chip (`fits` in mop_ffn_tiles.py: 1024 numbers a row in float32, 2048 in 16 bits, or
a rank above 32), a call takes the same three stages as batched matrix products of torch.
"""

import torch
import triton
import triton.language as tl

from . import launch_config
from .arithmetic import blocks
from .device_functions import (
    activate,
    fold,
    group_of,
    load_local,
    load_rule_in,
    load_rule_out,
    of_pair,
    row_tile,
    select,
    stage_1,
    unfold,
)
from .launch import input_precision, launch
from .mop_ffn_tiles import (
    TILE,
    asked_of,
    block,
    checks,
    even_block,
    fits,
    group_strides,
    groups_of,
    maps_of,
    maps_of_list,
    rows_of_a_block,
    size_of_hidden,
    sizes_of,
    with_blocks,
)


@triton.jit
def hidden_before_activation(
    x, rule_in, rule_out, local, bias, first_row, rows, P: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The down map of a block of rows, [(c f), (n v/f)] with f = P.fold_j, in float32; all of c and v."""
    BLOCK_J: tl.constexpr = P.block_j
    BLOCK_V: tl.constexpr = P.block_v
    FOLD: tl.constexpr = P.fold_j
    _, column, mask = row_tile(first_row, 0, 0, rows, P.g_out, P.loc_out, BLOCK_ROWS, P.block_c, BLOCK_V, FOLD)
    if bias is None:
        y = tl.zeros(mask.shape, tl.float32)
    else:
        y = tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
    for j in range(0, P.size_j, BLOCK_J):
        s = tl.zeros((BLOCK_J, BLOCK_ROWS, BLOCK_V), tl.float32)
        for u in range(0, P.loc_in, P.block_u):
            t = stage_1(x, rule_in, first_row, j, u, rows, P, BLOCK_ROWS, PRECISION)
            s = tl.dot(t, load_local(local, j, u, 0, P), s, input_precision=PRECISION)
        rule = tl.trans(load_rule_out(rule_out, j, 0, P, P.block_c, FOLD))
        y = tl.dot(rule, fold(s, FOLD).to(rule.dtype), y, input_precision=PRECISION)
    return y


@triton.jit
def view_as_up(h, DOWN: tl.constexpr, UP: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Hidden rows [(c f), (n v/f)] of the down map as [(a f), (n u/f)] of the up map.

    What stands in padded places is of the same row and meets zeros of the factors.
    """
    C: tl.constexpr = DOWN.block_c
    V: tl.constexpr = DOWN.block_v
    A: tl.constexpr = UP.block_a
    U: tl.constexpr = UP.block_u
    DOWN_FOLD: tl.constexpr = DOWN.fold_j
    UP_FOLD: tl.constexpr = UP.fold_a
    h = tl.permute(tl.reshape(h, (C, DOWN_FOLD, BLOCK_ROWS, V // DOWN_FOLD)), (2, 0, 1, 3))
    h = tl.reshape(h, (BLOCK_ROWS, C * V))
    if DOWN.loc_out != V or UP.loc_in != U or C * V != A * U:  # padding stands between the columns of either view
        column = tl.arange(0, A * U)
        column = tl.minimum(column // U * UP.loc_in + column % U, DOWN.d_out - 1)
        place = column // DOWN.loc_out * V + column % DOWN.loc_out
        h = tl.gather(h, tl.broadcast_to(place[None, :], (BLOCK_ROWS, A * U)), 1)
    h = tl.permute(tl.reshape(h, (BLOCK_ROWS, A, UP_FOLD, U // UP_FOLD)), (1, 2, 0, 3))
    return tl.reshape(h, (A * UP_FOLD, BLOCK_ROWS * U // UP_FOLD))


@triton.jit
def up_stage_1(h, rule_in, first_j, P: tl.constexpr, BLOCK_ROWS: tl.constexpr, PRECISION: tl.constexpr):
    """t[j, n, u] from hidden rows on chip, [(a f), (n u/f)], all of a and u."""
    rule = load_rule_in(rule_in, first_j, 0, P, P.block_a, P.fold_a)
    return unfold(tl.dot(rule, h, input_precision=PRECISION), BLOCK_ROWS, P.fold_a).to(h.dtype)


@triton.jit
def up_stage_2(t, local, first_j, first_v, P: tl.constexpr, PRECISION: tl.constexpr):
    """s[j, n, v] as [(j f), (n v/f)], folded for the product with rule_out."""
    s = tl.dot(t, load_local(local, first_j, 0, first_v, P), input_precision=PRECISION)
    return fold(s, P.fold_j).to(t.dtype)


@triton.jit(do_not_specialize=["num_experts", "num_pairs", "rows"])
def mop_ffn_kernel(
    x, down_rule_in, down_rule_out, down_local, down_bias, rules_in, rules_out, locals_, biases, outs, experts,
    strides, num_experts, num_pairs, rows,
    DOWN: tl.constexpr, UP: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    MAPS: tl.constexpr, BLOCKS_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write `outs`. MAPS is 1 or the number of up maps.

    rules_in, rules_out, locals_, biases, outs: one pointer per up map; strides: the group strides of `group_strides`.

    Programs that read the same factors stand side by side.
    """
    row_blocks = tl.cdiv(rows, BLOCK_ROWS)
    splits = tl.cdiv(UP.loc_out, BLOCKS_V * UP.block_v)
    program = tl.program_id(0)
    first_row = program % row_blocks * BLOCK_ROWS
    first_v = program // row_blocks % splits * (BLOCKS_V * UP.block_v)
    first_map = program // (row_blocks * splits) // num_pairs * MAPS
    pair = program // (row_blocks * splits) % num_pairs
    layer, expert = group_of(pair, num_experts, experts)

    h = hidden_before_activation(
        of_pair(x, strides[0], layer, expert),
        of_pair(down_rule_in, strides[1], layer, expert),
        of_pair(down_rule_out, strides[2], layer, expert),
        of_pair(down_local, strides[3], layer, expert),
        None if down_bias is None else of_pair(down_bias, strides[4], layer, expert),
        first_row, rows, DOWN, BLOCK_ROWS, PRECISION,
    )  # fmt: skip
    h = view_as_up(activate(h, ACTIVATION).to(x.dtype.element_ty), DOWN, UP, BLOCK_ROWS)

    ONE_J: tl.constexpr = UP.block_j >= UP.size_j  # then t serves all v, and s all c
    BLOCK_C: tl.constexpr = UP.block_c
    BLOCK_V: tl.constexpr = UP.block_v
    FOLD: tl.constexpr = UP.fold_j
    for k in range(MAPS):
        map = first_map + k
        rule_in = of_pair(select(rules_in, map), strides[5], layer, expert)
        rule_out = of_pair(select(rules_out, map), strides[6], layer, expert)
        local = of_pair(select(locals_, map), strides[7], layer, expert)
        bias = None if biases[0] is None else of_pair(select(biases, map), strides[8], layer, expert)
        out = select(outs, map) + pair.to(tl.int64) * rows * UP.d_out
        t = up_stage_1(h, rule_in, 0, UP, BLOCK_ROWS, PRECISION)
        for v in range(first_v, min(first_v + BLOCKS_V * BLOCK_V, UP.loc_out), BLOCK_V):
            s = up_stage_2(t, local, 0, v, UP, PRECISION)
            for c in range(0, UP.g_out, BLOCK_C):
                row, column, mask = row_tile(
                    first_row, c, v, rows, UP.g_out, UP.loc_out, BLOCK_ROWS, BLOCK_C, BLOCK_V, FOLD
                )
                if bias is None:
                    y = tl.zeros(mask.shape, tl.float32)
                else:
                    y = tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
                for j in range(0, UP.size_j, UP.block_j):
                    if not ONE_J:
                        t = up_stage_1(h, rule_in, j, UP, BLOCK_ROWS, PRECISION)
                        s = up_stage_2(t, local, j, v, UP, PRECISION)
                    rule = tl.trans(load_rule_out(rule_out, j, c, UP, BLOCK_C, FOLD))
                    y = tl.dot(rule, s, y, input_precision=PRECISION)
                tl.store(out + (row.to(tl.int64) * UP.d_out + column), y.to(out.dtype.element_ty), mask=mask)


RESIDENT = 4  # programs on a multiprocessor: of 4 warps and at most 128 registers


def heuristic(sizes: dict[str, int], dtype: torch.dtype, multiprocessors: int) -> dict[str, int]:
    """Choose the blocks, and how a pair's work is shared: as few programs as fill the GPU.

    The hidden rows are computed once per program, so a program takes all maps, unless one program per map can be
    resident as well: its chain of barriers is shorter. A program takes all v, unless that leaves a multiprocessor with
    fewer than two programs.
    """
    down, up = maps_of(sizes)
    rows = block(rows_of_a_block(dtype), TILE[dtype] // size_of_hidden(down, up))
    block_v = even_block(up.loc_out, 32)
    v_blocks = blocks(up.loc_out, block_v)
    programs = sizes["pairs"] * sizes["maps"] * blocks(sizes["rows"], rows)
    maps = sizes["maps"] if programs > RESIDENT * multiprocessors else 1
    # plain multiply-adds keep their operands in registers: 8 sums per thread leave room for four programs
    sums = 1024 if rows_of_a_block(dtype) == 8 else TILE[dtype]
    return {
        "BLOCK_ROWS": rows,
        "BLOCK_U": max(16, even_block(down.loc_in, 16)),
        "BLOCK_V": block_v,
        "BLOCK_C": block(up.g_out, sums // (rows * block_v)),
        "MAPS": maps,
        "BLOCKS_V": blocks(v_blocks, min(v_blocks, max(1, 2 * multiprocessors // max(1, programs)))),
        "num_warps": 4,
        "num_stages": 2,
    }


def candidates(sizes: dict[str, int], dtype: torch.dtype, multiprocessors: int) -> list[dict[str, int]]:
    own = heuristic(sizes, dtype, multiprocessors)
    down, up = maps_of(sizes)
    rows, v = own["BLOCK_ROWS"], even_block(up.loc_out, 16)
    changes = [{"num_warps": 8}, {"BLOCK_ROWS": 2 * rows}, {"BLOCK_ROWS": 2 * rows, "num_warps": 8}]
    changes += [{"BLOCK_V": v, "BLOCKS_V": blocks(up.loc_out, v)}, {"BLOCKS_V": 1}]
    changes += [{"MAPS": m} for m in (1, sizes["maps"]) if m != own["MAPS"]] + [{"BLOCK_C": 2 * own["BLOCK_C"]}]
    changes += [{"BLOCK_U": max(16, even_block(down.loc_in, 64))}, {"num_stages": 1}, {"num_stages": 3}]
    return [own | change for change in changes]


def forward(x, down, ups, num_maps, activation, experts):
    maps = maps_of_list(ups, num_maps)
    groups, rows = groups_of(x, down, maps, experts), x.shape[2]
    sizes = sizes_of(x, down, maps[0], num_maps, groups)
    if not fits(sizes, x.dtype):
        return torch.ops.mop_kernels.mop_ffn_reference(x, down, ups, num_maps, activation, experts)
    asked = asked_of(x, down, maps, experts)
    config = launch_config.pick("mop_ffn", sizes, x.dtype, x.device, heuristic)
    down_map, up_map = with_blocks(sizes, config, x.dtype)
    outs = [x.new_empty(*groups, rows, up_map.d_out) for _ in maps]
    # with a bias or None, the up maps' as one tuple a factor
    factors = [down[k] if k < len(down) else None for k in range(4)]
    factors += [tuple(m[k] if k < len(m) else None for m in maps) for k in range(4)]
    launch(
        mop_ffn_kernel,
        (
            blocks(rows, config["BLOCK_ROWS"])
            * blocks(up_map.loc_out, up_map.block_v * config["BLOCKS_V"])
            * groups[0]
            * groups[1]
            * (num_maps // config["MAPS"]),
        ),
        x,
        *factors,
        tuple(outs),
        asked,
        tuple(group_strides(t[0] if isinstance(t, tuple) else t) for t in (x, *factors)),
        groups[1],
        groups[0] * groups[1],
        rows,
        DOWN=down_map,
        UP=up_map,
        ACTIVATION=activation,
        PRECISION=input_precision(),
        **{name: config[name] for name in ("BLOCK_ROWS", "MAPS", "BLOCKS_V", "num_warps", "num_stages")},
        **checks(asked),
    )
    return outs
