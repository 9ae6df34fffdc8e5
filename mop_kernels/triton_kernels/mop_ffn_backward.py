"""Compute the gradients of mop_ffn: the hidden rows again, the gradients of the up maps and the down map, their sums.

The hidden rows (L, k, n, mid) come with `slope`, the derivative of the activation. The dx of the up maps times slope is
the gradient of the down map's result. mop_ffn_gradients.py has the formulas, and writes partial sums in float32,
(L, k, blocks, ...). `totals` adds the partial sums of all tensors of a call in one launch, always in the same order.
"""

from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import flags_of
from .device_functions import ASSERTS, activate, blocks, derivative, group_of, row_tile, select
from .launch import Configs, Sizes, launch, pick
from .mop_ffn import (
    Asked,
    Call,
    forward_configs,
    group_strides,
    hidden_before_activation,
    launch_options,
    with_blocks,
)
from .mop_ffn_gradients import Maps, Partial, map_gradients


@triton.jit(do_not_specialize=["num_experts", "rows"])
def hidden_kernel(
    x, rule_in, rule_out, local, bias, hidden, slope, experts, strides, num_experts, rows,
    P: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Write hidden (L, k, n, mid) = activation(down(x)), and slope, its derivative, unless it is None."""
    row_blocks = tl.cdiv(rows, BLOCK_ROWS)
    first_row = tl.program_id(0) % row_blocks * BLOCK_ROWS
    pair = tl.program_id(0) // row_blocks
    layer, expert = group_of(pair, num_experts, experts)
    y = hidden_before_activation(
        x, rule_in, rule_out, local, bias, strides, layer, expert, first_row, rows, P, BLOCK_ROWS, PRECISION
    )
    row, column, mask = row_tile(first_row, 0, 0, rows, P.g_out, P.loc_out, BLOCK_ROWS, P.block_c, P.block_v, P.fold_j)
    place = (pair.to(tl.int64) * rows + row) * P.d_out + column
    tl.store(hidden + place, activate(y, ACTIVATION).to(hidden.dtype.element_ty), mask=mask)
    if slope is not None:
        tl.store(slope + place, derivative(y, ACTIVATION), mask=mask)


def hidden_configs(sizes: Sizes, dtype: torch.dtype, multiprocessors: int) -> Configs:
    """Propose the blocks of the forward pass."""
    own = next(forward_configs(sizes, dtype, multiprocessors))
    yield own
    yield from (own | {"BLOCK_ROWS": 2 * own["BLOCK_ROWS"]}, own | {"num_warps": 8}, own | {"num_stages": 3})


def hidden_rows(call: Call, activation: str, with_slope: bool) -> tuple[Tensor, Tensor | None]:
    """Return hidden and, if asked for, slope."""
    x, factors = call.x, call.down
    config = pick("mop_ffn_hidden", call.sizes, x.dtype, x.device, hidden_configs)
    P = with_blocks(call.sizes, config, x.dtype)[0]
    hidden = x.new_empty(*call.groups, call.rows, P.d_out)
    slope = x.new_empty(hidden.shape, dtype=torch.float32) if with_slope else None
    launch(
        hidden_kernel,
        (blocks(call.rows, config["BLOCK_ROWS"]) * call.pairs,),
        x,
        *factors,
        hidden,
        slope,
        call.asked,
        group_strides(x, *factors),
        call.groups[1],
        call.rows,
        P=P,
        ACTIVATION=activation,
        **launch_options(config, call.asked),
    )
    return hidden, slope


@triton.jit
def assert_distinct(experts, count, BLOCK_1: tl.constexpr, BLOCK_2: tl.constexpr):
    """Assert that the first `count` ids are distinct. Two programs would write the gradients of a repeated expert."""
    for first_1 in range(0, count, BLOCK_1):
        k_1 = first_1 + tl.arange(0, BLOCK_1)[:, None]
        expert_1 = tl.load(experts + k_1, mask=k_1 < count, other=-1)
        for first_2 in range(0, count, BLOCK_2):
            k_2 = first_2 + tl.arange(0, BLOCK_2)[None, :]
            expert_2 = tl.load(experts + k_2, mask=k_2 < count, other=-2)
            twice = (expert_1 == expert_2) & (k_1 < k_2)
            assert tl.max(tl.max(twice.to(tl.int32), 1), 0) == 0, "experts must be distinct"


@triton.jit(do_not_specialize=["num_experts"])
def sums_kernel(
    partials, totals, experts, first_programs, sizes, parts, layers_summed, experts_summed, layers_kept, experts_kept,
    all_experts, num_experts, BLOCK: tl.constexpr, BLOCK_SUM: tl.constexpr,
):  # fmt: skip
    """Write `totals`. A program writes BLOCK numbers of one tensor.

    Every tuple has one entry per tensor. sizes: numbers per pair.
    """
    program = tl.program_id(0)
    if experts is not None:
        assert_distinct(experts[0], tl.where(program == 0, num_experts, 0), BLOCK_SUM, BLOCK)
    which = tl.zeros((), tl.int32)
    for tensor in tl.static_range(1, len(partials)):
        which += (program >= first_programs[tensor]).to(tl.int32)
    partial, total, size = select(partials, which), select(totals, which), select(sizes, which)
    parts, all_experts = select(parts, which), select(all_experts, which)
    layers_summed, experts_summed = select(layers_summed, which), select(experts_summed, which)
    layers_kept, experts_kept = select(layers_kept, which), select(experts_kept, which)

    place = (program - select(first_programs, which)).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    layer, expert, place = place // (experts_kept * size), place // size % experts_kept, place % size
    inside = layer < layers_kept
    sums = tl.zeros((BLOCK_SUM, BLOCK), tl.float32)
    for first in range(0, layers_summed * experts_summed * parts, BLOCK_SUM):
        k = first + tl.arange(0, BLOCK_SUM)[:, None]
        pair = (layer + k // (parts * experts_summed)) * num_experts + (expert + k // parts % experts_summed)
        mask = inside & (k < layers_summed * experts_summed * parts)
        sums += tl.load(partial + ((pair * parts + k % parts) * size + place), mask=mask, other=0.0)
    if experts is not None:
        asked = inside & (expert < num_experts)  # a call may ask for no expert
        expert = tl.where(all_experts > 1, tl.load(experts[0] + expert, mask=asked, other=0), 0)
    place = (layer * all_experts + expert) * size + place
    tl.store(total + place, tl.sum(sums, 0).to(total.dtype.element_ty), mask=inside)


def totals(gradients: list[Partial], asked: Asked) -> list[Tensor]:
    """Return the gradients, each of the shape and dtype of its tensor.

    A gradient is summed over its blocks and over the group dims that its tensor does not have. If the call asks for
    some experts only, row k goes to expert ids[k] of a gradient that is zero elsewhere.
    """
    waiting = [p for p in gradients if not p.done]
    make = torch.empty_like if asked is None else torch.zeros_like
    results = {id(p): make(p.like) for p in waiting}
    if waiting:
        sizes = [p.like[0, 0].numel() for p in waiting]
        programs = [blocks(size * p.kept[0] * p.kept[1], 256) for p, size in zip(waiting, sizes)]
        launch(
            sums_kernel,
            (sum(programs),),
            tuple(p.tensor for p in waiting),
            tuple(results.values()),
            asked,
            tuple(accumulate(programs[:-1], initial=0)),
            tuple(sizes),
            tuple(p.parts for p in waiting),
            *zip(*(p.summed for p in waiting)),  # layers, experts
            *zip(*(p.kept for p in waiting)),
            tuple(p.like.shape[1] for p in waiting),
            waiting[0].tensor.shape[1],
            BLOCK=256,
            BLOCK_SUM=8,
            num_warps=4,
            **({} if asked is None else ASSERTS),
        )
    return [p.tensor.squeeze(2) if p.done else results[id(p)] for p in gradients]


def backward(
    grads: list[Tensor],
    x: Tensor,
    down: list[Tensor],
    ups: list[Tensor],
    num_maps: int,
    activation: str,
    experts: Tensor | None,
    needs: int,
) -> list[Tensor]:
    """Return the gradients that the bits of `needs` ask for. The arguments are those of ops.SCHEMAS."""
    call = Call(x, down, ups, num_maps, experts)
    if not call.fits:
        op = torch.ops.mop_kernels.mop_ffn_backward_reference
        return op(grads, x, down, ups, num_maps, activation, experts, needs)
    needs_x, *flags = flags_of(needs, 1 + len(down) + len(ups))
    needs_down, width = flags[: len(down)], len(ups) // num_maps
    needs_up = [flags[k : k + width] for k in range(len(down), len(flags), width)]
    grads = [g.contiguous() for g in grads]

    to_down = needs_x or any(needs_down)
    hidden, slope, dpre = grads[0], None, None  # gradients of biases alone read no hidden rows
    if to_down or any(any(needed[:3]) for needed in needs_up):
        hidden, slope = hidden_rows(call, activation, to_down)
    if to_down:
        dpre = torch.empty_like(hidden)
    of_ups = map_gradients(Maps(hidden, grads, call.maps, call.asked, None), slope, dpre, needs_up)
    of_x = [Partial(x, call.groups, 1, call.asked)] if needs_x else []
    of_down = []
    if dpre is not None:
        dx = of_x[0].tensor if needs_x else None
        of_down = map_gradients(Maps(x, [dpre], [call.down], call.asked, call.asked), None, dx, [needs_down])
    return totals([*of_x, *of_down, *of_ups], call.asked)
