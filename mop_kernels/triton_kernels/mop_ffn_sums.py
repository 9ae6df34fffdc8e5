"""Sums of partial gradients: (L, k, blocks, ...) in float32 -> (1|L, 1|E, ...), all tensors of a call in one launch.

A gradient is summed over its blocks and over the group dims that its tensor has not, always in the same order. Where
only `experts` were asked for, row k goes to expert experts[k] of a gradient that is zero elsewhere.
"""

from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import blocks
from .device_functions import select
from .launch import launch
from .mop_ffn_tiles import checks


class Partial:
    """Where the kernels write the gradient of a tensor, a pair and block apart; `done` if that is the gradient."""

    def __init__(self, like: Tensor, groups: tuple[int, int], parts: int, asked: tuple | None):
        self.like, self.parts = like, parts
        self.summed = tuple(full if size == 1 else 1 for size, full in zip(like.shape, groups))
        self.kept = tuple(1 if size == 1 else full for size, full in zip(like.shape, groups))
        is_sum = (*self.summed, parts) != (1, 1, 1)
        self.done = not is_sum and (asked is None or like.shape[1] == 1)
        dtype = like.dtype if self.done else torch.float32
        self.tensor = torch.empty(*groups, parts, *like.shape[2:], dtype=dtype, device=like.device)


@triton.jit
def assert_distinct(experts, count, BLOCK_1: tl.constexpr, BLOCK_2: tl.constexpr):
    """Of the first `count` ids: two programs would write the gradients of an expert that is asked for twice."""
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
    """Every tuple has one entry a tensor; sizes are the numbers of one pair. A program writes BLOCK numbers of one."""
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
        asked = inside & (expert < num_experts)  # none may be asked for
        expert = tl.where(all_experts > 1, tl.load(experts[0] + expert, mask=asked, other=0), 0)
    place = (layer * all_experts + expert) * size + place
    tl.store(total + place, tl.sum(sums, 0).to(total.dtype.element_ty), mask=inside)


def totals(gradients: list[Partial], asked: tuple[Tensor, int] | None) -> list[Tensor]:
    """The gradients, each of its tensor's shape and dtype. asked: the ids and the number of experts, or None."""
    block, block_sum = 256, 8
    waiting = [p for p in gradients if not p.done]
    make = torch.empty_like if asked is None else torch.zeros_like
    results = {id(p): make(p.like) for p in waiting}
    if waiting:
        sizes = [p.like[0, 0].numel() for p in waiting]
        programs = [blocks(size * p.kept[0] * p.kept[1], block) for p, size in zip(waiting, sizes)]
        launch(
            sums_kernel,
            (sum(programs),),
            tuple(p.tensor for p in waiting),
            tuple(results[id(p)] for p in waiting),
            asked,
            tuple(accumulate(programs[:-1], initial=0)),
            tuple(sizes),
            tuple(p.parts for p in waiting),
            *(tuple(p.summed[dim] for p in waiting) for dim in (0, 1)),
            *(tuple(p.kept[dim] for p in waiting) for dim in (0, 1)),
            tuple(p.like.shape[1] for p in waiting),
            waiting[0].tensor.shape[1],
            BLOCK=block,
            BLOCK_SUM=block_sum,
            num_warps=4,
            **checks(asked),
        )
    return [p.tensor.squeeze(2) if p.done else results[id(p)] for p in gradients]
