"""Compute mop_ffn, y_map = up_map(activation(down(x))), for all (layer, expert) pairs and up maps in one launch.

x (1|L, 1|E, n, in), factors with the group dims (1|L, 1|E) -> num_maps tensors (L, k, n, out); k = E or len(experts).
One program computes a block of rows of one pair, for `MAPS` up maps and `BLOCKS_V` blocks of v:
    t[j, n, u] = sum_a rule_in[j, a] x[n, a, u];  s[j, n, v] = sum_u t[j, n, u] local[i, u, v]
    y[c, n, v] = sum_j rule_out[j, c] s[j, n, v] + bias[c, v]
first for the down map, then for the up maps on the activated hidden rows. The hidden rows never leave the chip, and
each program computes them once. W is never formed. Sums are accumulated in float32. t, s and the hidden rows feed
matrix products; between the products they are rounded to the dtype of x, as torch's eager operations do.

The kernel takes the factors of the up maps, any number of maps, as tuples of pointers: nothing is stacked or copied.
Where the hidden rows are too wide to stay on chip (`Call.fits`: 1024 numbers per row in float32, 2048 in 16 bits, or a
rank above 32), a call takes the same three stages as batched matrix products of torch.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import LowRankPHM, group_sizes, split_maps
from .device_functions import (
    ASSERTS,
    Phm,
    activate,
    blocks,
    fold,
    group_of,
    load_local,
    load_rule_in,
    load_rule_out,
    of_pair,
    power_of_2,
    row_tile,
    select,
    stage_1,
    unfold,
)
from .launch import Config, Configs, Sizes, input_precision, launch, pick

Asked = tuple[Tensor, int] | None
"""The ids of the experts that a call asks for, and the number of experts; None for all experts."""


@triton.jit
def hidden_before_activation(
    x, rule_in, rule_out, local, bias, strides, layer, expert, first_row, rows, P: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the down map of a pair's block of rows, [(c f), (n v/f)] with f = P.fold_j, in float32; all of c and v."""
    x = of_pair(x, strides[0], layer, expert)
    rule_in = of_pair(rule_in, strides[1], layer, expert)
    rule_out = of_pair(rule_out, strides[2], layer, expert)
    local = of_pair(local, strides[3], layer, expert)
    _, column, mask = row_tile(first_row, 0, 0, rows, P.g_out, P.loc_out, BLOCK_ROWS, P.block_c, P.block_v, P.fold_j)
    if bias is None:
        y = tl.zeros(mask.shape, tl.float32)
    else:
        bias = of_pair(bias, strides[4], layer, expert)
        y = tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
    for j in range(0, P.size_j, P.block_j):
        s = tl.zeros((P.block_j, BLOCK_ROWS, P.block_v), tl.float32)
        for u in range(0, P.loc_in, P.block_u):
            t = stage_1(x, rule_in, first_row, j, u, rows, P, BLOCK_ROWS, PRECISION)
            s = tl.dot(t, load_local(local, j, u, 0, P), s, input_precision=PRECISION)
        rule = tl.trans(load_rule_out(rule_out, j, 0, P, P.block_c, P.fold_j))
        y = tl.dot(rule, fold(s, P.fold_j).to(rule.dtype), y, input_precision=PRECISION)
    return y


@triton.jit
def view_as_up(h, DOWN: tl.constexpr, UP: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Return hidden rows [(c f), (n v/f)] of the down map as [(a f), (n u/f)] of the up map.

    Padded places hold numbers of the same row. They meet zeros of the factors.
    """
    C: tl.constexpr = DOWN.block_c
    V: tl.constexpr = DOWN.block_v
    A: tl.constexpr = UP.block_a
    U: tl.constexpr = UP.block_u
    DOWN_FOLD: tl.constexpr = DOWN.fold_j
    UP_FOLD: tl.constexpr = UP.fold_a
    h = tl.permute(tl.reshape(h, (C, DOWN_FOLD, BLOCK_ROWS, V // DOWN_FOLD)), (2, 0, 1, 3))
    h = tl.reshape(h, (BLOCK_ROWS, C * V))
    if DOWN.loc_out != V or UP.loc_in != U or C * V != A * U:  # padding lies between the columns of either view
        column = tl.arange(0, A * U)
        column = tl.minimum(column // U * UP.loc_in + column % U, DOWN.d_out - 1)
        place = column // DOWN.loc_out * V + column % DOWN.loc_out
        h = tl.gather(h, tl.broadcast_to(place[None, :], (BLOCK_ROWS, A * U)), 1)
    h = tl.permute(tl.reshape(h, (BLOCK_ROWS, A, UP_FOLD, U // UP_FOLD)), (1, 2, 0, 3))
    return tl.reshape(h, (A * UP_FOLD, BLOCK_ROWS * U // UP_FOLD))


@triton.jit
def up_stage_1(h, rule_in, first_j, P: tl.constexpr, BLOCK_ROWS: tl.constexpr, PRECISION: tl.constexpr):
    """Return t[j, n, u] from hidden rows on chip, [(a f), (n u/f)], all of a and u."""
    rule = load_rule_in(rule_in, first_j, 0, P, P.block_a, P.fold_a)
    return unfold(tl.dot(rule, h, input_precision=PRECISION), BLOCK_ROWS, P.fold_a).to(h.dtype)


@triton.jit
def up_stage_2(t, local, first_j, first_v, P: tl.constexpr, PRECISION: tl.constexpr):
    """Return s[j, n, v] as [(j f), (n v/f)], folded for the product with rule_out."""
    s = tl.dot(t, load_local(local, first_j, 0, first_v, P), input_precision=PRECISION)
    return fold(s, P.fold_j).to(t.dtype)


@triton.jit(do_not_specialize=["num_experts", "num_pairs", "rows"])
def mop_ffn_kernel(
    x, down_rule_in, down_rule_out, down_local, down_bias, rules_in, rules_out, locals_, biases, outs, experts,
    strides, num_experts, num_pairs, rows,
    DOWN: tl.constexpr, UP: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_ROWS: tl.constexpr,
    MAPS: tl.constexpr, BLOCKS_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write `outs`. Programs that read the same factors are neighbours.

    MAPS: up maps per program, 1 or all. rules_in, rules_out, locals_, biases, outs: one pointer per up map. strides:
    those of `group_strides`.
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
        x, down_rule_in, down_rule_out, down_local, down_bias, strides, layer, expert, first_row, rows, DOWN,
        BLOCK_ROWS, PRECISION,
    )  # fmt: skip
    h = view_as_up(activate(h, ACTIVATION).to(x.dtype.element_ty), DOWN, UP, BLOCK_ROWS)

    ONE_J: tl.constexpr = UP.block_j >= UP.size_j  # then t serves all v, and s all c
    for k in range(MAPS):
        up_map = first_map + k
        rule_in = of_pair(select(rules_in, up_map), strides[5], layer, expert)
        rule_out = of_pair(select(rules_out, up_map), strides[6], layer, expert)
        local = of_pair(select(locals_, up_map), strides[7], layer, expert)
        bias = None if biases[0] is None else of_pair(select(biases, up_map), strides[8], layer, expert)
        out = select(outs, up_map) + pair.to(tl.int64) * rows * UP.d_out
        t = up_stage_1(h, rule_in, 0, UP, BLOCK_ROWS, PRECISION)
        for v in range(first_v, min(first_v + BLOCKS_V * UP.block_v, UP.loc_out), UP.block_v):
            s = up_stage_2(t, local, 0, v, UP, PRECISION)
            for c in range(0, UP.g_out, UP.block_c):
                row, column, mask = row_tile(
                    first_row, c, v, rows, UP.g_out, UP.loc_out, BLOCK_ROWS, UP.block_c, UP.block_v, UP.fold_j
                )
                if bias is None:
                    y = tl.zeros(mask.shape, tl.float32)
                else:
                    y = tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
                for j in range(0, UP.size_j, UP.block_j):
                    if not ONE_J:
                        t = up_stage_1(h, rule_in, j, UP, BLOCK_ROWS, PRECISION)
                        s = up_stage_2(t, local, j, v, UP, PRECISION)
                    rule = tl.trans(load_rule_out(rule_out, j, c, UP, UP.block_c, UP.fold_j))
                    y = tl.dot(rule, s, y, input_precision=PRECISION)
                tl.store(out + (row.to(tl.int64) * UP.d_out + column), y.to(out.dtype.element_ty), mask=mask)


class Call:
    """The tensors of one call, and what its launches depend on."""

    def __init__(self, x: Tensor, down: list[Tensor], ups: list[Tensor], num_maps: int, experts: Tensor | None):
        self.x, self.down, self.maps = x, LowRankPHM(*down), split_maps(ups, num_maps)
        layers, num_experts = group_sizes(x, down, self.maps[:1])  # all maps have the shapes of the first
        self.asked: Asked = None if experts is None else (experts, num_experts)
        self.groups = layers, num_experts if experts is None else experts.shape[0]
        self.pairs, self.rows = self.groups[0] * self.groups[1], x.shape[2]
        self.sizes = {"pairs": self.pairs, "maps": num_maps, "rows": self.rows}
        self.sizes |= sides_of(self.down, "down_") | sides_of(self.maps[0], "up_")

    @property
    def fits(self) -> bool:
        """True if the kernels serve these sizes: four hidden rows or more on chip, all r of a term in a block.

        All other calls take the three stages as batched matrix products of torch, by the reference op.
        """
        down, up = maps_of(self.sizes)
        return 4 * size_of_hidden(down, up) <= TILE[self.x.dtype] and max(down.padded_rank, up.padded_rank) <= 32


def group_strides(*tensors: Tensor | None) -> tuple[tuple[int, int], ...]:
    """Return, per tensor, the strides to the next layer and to the next expert; 0 where the group dim is 1."""
    shapes = [((1, 1), (0, 0)) if t is None else (t.shape, t.stride()) for t in tensors]
    return tuple([(0 if n[0] == 1 else s[0], 0 if n[1] == 1 else s[1]) for n, s in shapes])


def launch_options(config: Config, asked: Asked, *more: str) -> dict[str, Any]:
    """Return the constexprs and options that all kernels take. Only launches that read ids have asserts."""
    options = {name: config[name] for name in ("BLOCK_ROWS", "num_warps", "num_stages", *more)}
    return options | {"PRECISION": input_precision()} | ({} if asked is None else ASSERTS)


SIDES = ("terms", "rank", "g_in", "g_out", "loc_in", "loc_out")


def sides_of(factors: LowRankPHM, prefix: str = "") -> Sizes:
    """Return the sizes of a map, each name behind `prefix`."""
    phm = Phm.of(*factors[:3])
    return {prefix + name: getattr(phm, name) for name in SIDES}


def maps_of(sizes: Sizes) -> tuple[Phm, Phm]:
    """Return the down and the up map, without blocks."""
    return Phm(*(sizes[f"down_{name}"] for name in SIDES)), Phm(*(sizes[f"up_{name}"] for name in SIDES))


# Numbers in a tile: with 128 threads at most 64 registers of each thread. In float32 at most 32, because the products
# keep their operands in registers as well.
TILE = {torch.float32: 4096, torch.bfloat16: 8192, torch.float16: 8192}
RESIDENT = 4  # programs on a multiprocessor: of 4 warps and at most 128 registers


def block(size: int, most: int) -> int:
    """Return a power of two for a side of `size`: all of it, or at most `most`."""
    return max(1, min(power_of_2(size), 1 << max(most, 1).bit_length() - 1))


def even_block(size: int, most: int) -> int:
    """Return the largest power of two up to `most` that divides `size`, if it is 16 or more; otherwise as `block`."""
    return min(most, size & -size) if size % 16 == 0 else block(size, most)


def size_of_hidden(down: Phm, up: Phm) -> int:
    """Return the columns of the hidden rows, with the padding of either view."""
    return max(power_of_2(down.g_out) * power_of_2(down.loc_out), power_of_2(up.g_in) * max(16, power_of_2(up.loc_in)))


def rows_of_a_block(dtype: torch.dtype) -> int:
    """Return 8 if products are plain multiply-adds, or the 16 of an instruction if they are matrix instructions."""
    return 8 if dtype is torch.float32 and input_precision() == "ieee" else 16


def with_blocks(sizes: Sizes, config: Config, dtype: torch.dtype) -> tuple[Phm, Phm]:
    """Return both maps with the blocks of a configuration. A block has whole sides of the hidden rows, kept on chip."""
    down, up = maps_of(sizes)
    rows, block_v = config["BLOCK_ROWS"], config["BLOCK_V"]
    tile = TILE[dtype]
    # at least one hidden number per thread: Triton 3.6 to 3.8 end in an assertion on a smaller tl.gather (view_as_up)
    v = max(power_of_2(down.loc_out), 32 * config["num_warps"] // (rows * power_of_2(down.g_out)))
    j = block(down.size_j, min(32, tile // (v * max(rows, config["BLOCK_U"]))))
    down = down.with_blocks(j, block(down.g_in, 16), power_of_2(down.g_out), config["BLOCK_U"], max(v, 16 // j))
    u = max(16, power_of_2(up.loc_in))
    j = block(up.size_j, min(32, tile // (rows * max(u, block_v)), tile // (u * block_v)))
    c = min(config["BLOCK_C"], power_of_2(up.g_out))
    return down, up.with_blocks(j, power_of_2(up.g_in), c, u, max(block_v, 16 // j))


def forward_configs(sizes: Sizes, dtype: torch.dtype, multiprocessors: int) -> Configs:
    """Propose blocks, and how the programs share the work of a pair: as few programs as fill the GPU.

    The hidden rows are computed once per program. Therefore a program takes all maps, unless one program per map can be
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
    block_c = block(up.g_out, sums // (rows * block_v))
    own = {
        "BLOCK_ROWS": rows,
        "BLOCK_U": max(16, even_block(down.loc_in, 16)),
        "BLOCK_V": block_v,
        "BLOCK_C": block_c,
        "MAPS": maps,
        "BLOCKS_V": blocks(v_blocks, min(v_blocks, max(1, 2 * multiprocessors // max(1, programs)))),
        "num_warps": 4,
        "num_stages": 2,
    }
    yield own
    v = even_block(up.loc_out, 16)
    changes = [{"num_warps": 8}, {"BLOCK_ROWS": 2 * rows}, {"BLOCK_ROWS": 2 * rows, "num_warps": 8}]
    changes += [{"BLOCK_V": v, "BLOCKS_V": blocks(up.loc_out, v)}, {"BLOCKS_V": 1}]
    changes += [{"MAPS": m} for m in (1, sizes["maps"]) if m != maps] + [{"BLOCK_C": 2 * block_c}]
    changes += [{"BLOCK_U": max(16, even_block(down.loc_in, 64))}, {"num_stages": 1}, {"num_stages": 3}]
    yield from (own | change for change in changes)


def forward(
    x: Tensor, down: list[Tensor], ups: list[Tensor], num_maps: int, activation: str, experts: Tensor | None
) -> list[Tensor]:
    """Return the result of each up map. The arguments are those of ops.SCHEMAS["mop_ffn"]."""
    call = Call(x, down, ups, num_maps, experts)
    if not call.fits:
        return torch.ops.mop_kernels.mop_ffn_reference(x, down, ups, num_maps, activation, experts)
    config = pick("mop_ffn", call.sizes, x.dtype, x.device, forward_configs)
    down_map, up_map = with_blocks(call.sizes, config, x.dtype)
    outs = [x.new_empty(*call.groups, call.rows, up_map.d_out) for _ in call.maps]
    row_blocks = blocks(call.rows, config["BLOCK_ROWS"])
    v_blocks = blocks(up_map.loc_out, up_map.block_v * config["BLOCKS_V"])
    launch(
        mop_ffn_kernel,
        (row_blocks * v_blocks * call.pairs * (num_maps // config["MAPS"]),),
        x,
        *call.down,
        *zip(*call.maps),  # one tuple per factor
        tuple(outs),
        call.asked,
        group_strides(x, *call.down, *call.maps[0]),
        call.groups[1],
        call.pairs,
        call.rows,
        DOWN=down_map,
        UP=up_map,
        ACTIVATION=activation,
        **launch_options(config, call.asked, "MAPS", "BLOCKS_V"),
    )
    return outs
