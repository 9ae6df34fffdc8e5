"""Gradients of mop_ffn: hidden rows recomputed, then rows and weights of the up maps, then those of the down map.

The hidden rows (L, k, n, mid) come with the activation's derivative, `slope`, by which the up maps' dx is multiplied:
that is the gradient of the down map's result. Formulas and partial sums: mop_ffn_gradients.py.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import launch_config
from .arithmetic import blocks
from .device_functions import activate, derivative, group_of, of_pair, row_tile
from .launch import input_precision, launch
from .mop_ffn import heuristic, hidden_before_activation
from .mop_ffn_gradients import level
from .mop_ffn_sums import Partial, totals
from .mop_ffn_tiles import asked_of, checks, fits, group_strides, groups_of, maps_of_list, sizes_of, with_blocks


@triton.jit(do_not_specialize=["num_experts", "rows"])
def hidden_kernel(
    x, rule_in, rule_out, local, bias, hidden, slope, experts, strides, num_experts, rows,
    P: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """hidden (L, k, n, mid) = activation(down(x)) and, unless None, slope, the activation's derivative."""
    row_blocks = tl.cdiv(rows, BLOCK_ROWS)
    first_row = tl.program_id(0) % row_blocks * BLOCK_ROWS
    pair = tl.program_id(0) // row_blocks
    layer, expert = group_of(pair, num_experts, experts)
    y = hidden_before_activation(
        of_pair(x, strides[0], layer, expert),
        of_pair(rule_in, strides[1], layer, expert),
        of_pair(rule_out, strides[2], layer, expert),
        of_pair(local, strides[3], layer, expert),
        None if bias is None else of_pair(bias, strides[4], layer, expert),
        first_row, rows, P, BLOCK_ROWS, PRECISION,
    )  # fmt: skip
    row, column, mask = row_tile(first_row, 0, 0, rows, P.g_out, P.loc_out, BLOCK_ROWS, P.block_c, P.block_v, P.fold_j)
    place = (pair.to(tl.int64) * rows + row) * P.d_out + column
    tl.store(hidden + place, activate(y, ACTIVATION).to(hidden.dtype.element_ty), mask=mask)
    if slope is not None:
        tl.store(slope + place, derivative(y, ACTIVATION), mask=mask)


def heuristic_hidden(sizes: dict[str, int], dtype: torch.dtype, multiprocessors: int) -> dict[str, int]:
    return heuristic(sizes, dtype, multiprocessors)


def candidates_hidden(sizes: dict[str, int], dtype: torch.dtype, multiprocessors: int) -> list[dict[str, int]]:
    own = heuristic(sizes, dtype, multiprocessors)
    return [own | {"BLOCK_ROWS": 2 * own["BLOCK_ROWS"]}, own | {"num_warps": 8}, own | {"num_stages": 3}]


def hidden_rows(x, down, sizes, groups, activation, asked, with_slope) -> tuple[Tensor, Tensor | None]:
    rows = x.shape[2]
    config = launch_config.pick("mop_ffn_hidden", sizes, x.dtype, x.device, heuristic_hidden)
    P = with_blocks(sizes, config, x.dtype)[0]
    factors = down if len(down) == 4 else [*down, None]
    hidden = x.new_empty(*groups, rows, P.d_out)
    slope = x.new_empty(hidden.shape, dtype=torch.float32) if with_slope else None
    launch(
        hidden_kernel,
        (blocks(rows, config["BLOCK_ROWS"]) * groups[0] * groups[1],),
        x,
        *factors,
        hidden,
        slope,
        asked,
        tuple(group_strides(t) for t in (x, *factors)),
        groups[1],
        rows,
        P=P,
        ACTIVATION=activation,
        PRECISION=input_precision(),
        **{name: config[name] for name in ("BLOCK_ROWS", "num_warps", "num_stages")},
        **checks(asked),
    )
    return hidden, slope


def backward(grads, x, down, ups, num_maps, activation, experts, mask):
    maps = maps_of_list(ups, num_maps)
    groups = groups_of(x, down, maps, experts)
    sizes = sizes_of(x, down, maps[0], num_maps, groups)
    if not fits(sizes, x.dtype):
        return torch.ops.mop_kernels.mop_ffn_backward_reference(
            grads, x, down, ups, num_maps, activation, experts, mask
        )
    asked = asked_of(x, down, maps, experts)
    needs = [bool(mask >> k & 1) for k in range(1 + len(down) + len(ups))]
    needs_x, needs_down = needs[0], needs[1 : 1 + len(down)]
    needs_up = maps_of_list(needs[1 + len(down) :], num_maps)
    grads = [g.contiguous() for g in grads]

    to_down = needs_x or any(needs_down)
    hidden = slope = dpre = None
    if to_down or any(any(needed[:3]) for needed in needs_up):
        hidden, slope = hidden_rows(x, down, sizes, groups, activation, asked, to_down)
    if to_down:
        dpre = torch.empty_like(hidden)
    # biases alone read no input
    of_ups = level(grads[0] if hidden is None else hidden, grads, maps, slope, dpre, needs_up, asked, None)
    of_x = [Partial(x, groups, 1, asked)] if needs_x else []
    of_down = []
    if to_down:
        dx = of_x[0].tensor if needs_x else None
        of_down = level(x, [dpre], [down], None, dx, [needs_down], asked, asked)
    return totals([*of_x, *of_down, *of_ups], asked)
