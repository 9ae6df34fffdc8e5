"""Rows times a sum of Kronecker products, from whatever factors a layer has, in the order that takes the least work.

y = x sum_i rule_i (x) local_i, where each rule and each local is whole or a product of two. A low-rank local is applied
in two steps. One is a dense product by half of it, on the narrower side. The other is an operation of functional.py,
whose locals are the other half:

    first: z[n,a,(i,r)] = sum_u x[n,a,u] left_i[u,r]          y = z by (rule_i, right_i in the rows of term i)
    last:  s = x by (rule_i, left_i in the columns of term i)   y[n,c,v] = sum_{i,r} s[n,c,(i,r)] right_i[r,v]
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import has_kernel
from ..functional import local_linear, lowrank_phm_linear, phm_linear
from ..multiply_adds import backward_of_stages, three_stages
from ..validation import dtype_of_call

Factor = Tensor | tuple[Tensor, Tensor]


class Sizes(NamedTuple):
    """Sizes of the factors. A rank is None for a whole factor."""

    terms: int
    g_in: int
    g_out: int
    loc_in: int
    loc_out: int
    rule_rank: int | None
    local_rank: int | None


class Way(NamedTuple):
    """An order of the products.

    rule: "low_rank", for rules that have a rank. "whole": the rules.
    local: "first" or "last", for a local that has a rank. "whole": the local.
    """

    rule: str
    local: str


def has_kernels(x: Tensor) -> bool:
    """Tell whether `factored_linear` runs on kernels for these rows."""
    return has_kernel("phm_linear", x, dtype_of_call(x))  # and so has lowrank_phm_linear


def factored_linear(
    x: Tensor, rule: Factor, local: Factor, bias: Tensor | None = None, *, way: Way | None = None
) -> Tensor:
    """Compute y = x W + bias with W = sum_i rule_i (x) local_i; W is not built.

    Args:
        x: (..., in) with in = g_in*loc_in.
        rule: (terms, g_in, g_out), or a pair (terms, g_in, rank), (terms, rank, g_out).
        local: (terms, loc_in, loc_out), or a pair (terms, loc_in, local rank), (terms, local rank, loc_out).
        bias: (out,) with out = g_out*loc_out, or None.
        way: The order of the products. None: the cheapest.

    Returns:
        y (..., out).
    """
    sizes = sizes_of(rule, local)
    chosen = cheapest_way(sizes) if way is None else way
    if not isinstance(local, tuple):
        return _by_rule(x, rule, local, bias, chosen.rule)
    left, right = local
    if chosen.local == "whole":
        return _by_rule(x, rule, left @ right, bias, chosen.rule)
    if chosen.local == "first":
        z = local_linear(x, left.transpose(0, 1).flatten(1))
        return _by_rule(z, rule, _in_place(right, 2).flatten(1, 2), bias, chosen.rule)
    s = _by_rule(x, rule, _in_place(left, 3).flatten(2), None, chosen.rule)
    return local_linear(s, right.flatten(0, 1), bias)


def _in_place(half: Tensor, dim: int) -> Tensor:
    """Return the half of a local, (terms, a, b), with a new dim of all terms, which is zero but for the own term."""
    if half.shape[0] == 1:
        return half.unsqueeze(dim - 1)
    own = torch.eye(half.shape[0], dtype=half.dtype, device=half.device)
    return half.unsqueeze(dim - 1) * (own[:, :, None, None] if dim == 2 else own[:, None, :, None])


def _by_rule(x: Tensor, rule: Factor, local: Tensor, bias: Tensor | None, way: str) -> Tensor:
    """Return x sum_i rule_i (x) local_i + bias for whole locals."""
    if way == "low_rank":
        rule_in, rule_out = rule
        return lowrank_phm_linear(x, rule_in, rule_out, local, bias)
    return phm_linear(x, rule[0] @ rule[1] if isinstance(rule, tuple) else rule, local, bias)


def sizes_of(rule: Factor, local: Factor) -> Sizes:
    """Return the sizes of the factors."""
    rule_in, rule_out = rule if isinstance(rule, tuple) else (rule, rule)
    left, right = local if isinstance(local, tuple) else (local, local)
    rule_rank = rule_in.shape[2] if isinstance(rule, tuple) else None
    local_rank = left.shape[2] if isinstance(local, tuple) else None
    terms, g_in = rule_in.shape[:2]
    return Sizes(terms, g_in, rule_out.shape[2], left.shape[1], right.shape[2], rule_rank, local_rank)


def cheapest_way(sizes: Sizes) -> Way:
    """Return the way with the fewest multiply-adds in a training step. Of equal ways, return the first."""
    return _search(sizes) if torch.compiler.is_compiling() else _search_once(sizes)  # Dynamo warns of caches


def _search(sizes: Sizes) -> Way:
    return min(ways(sizes), key=functools.partial(multiply_adds, sizes))


_search_once = functools.cache(_search)


def ways(sizes: Sizes) -> list[Way]:
    """Return the ways to compute with factors of these sizes."""
    rules = ["whole"] if sizes.rule_rank is None else ["low_rank", "whole"]
    locals_ = ["whole"] if sizes.local_rank is None else ["first", "last", "whole"]
    return [Way(rule, local) for rule in rules for local in locals_]


def multiply_adds(sizes: Sizes, way: Way) -> int:
    """Count the multiply-adds of a training step per row: forward, and the gradients of x and of all factors.

    Products of two factors count as zero: they are made once for all rows.
    """
    terms, g_in, g_out, loc_in, loc_out, rule_rank, local_rank = sizes
    half = 0
    if way.local != "whole":
        assert local_rank is not None
        width = terms * local_rank
        half = g_in * loc_in * width if way.local == "first" else g_out * width * loc_out
        loc_in, loc_out = (width, loc_out) if way.local == "first" else (loc_in, width)
    if way.rule == "whole":  # through W, or rule first
        dense, rule_first = g_in * loc_in * g_out * loc_out, terms * g_out * loc_in * (g_in + loc_out)
        return 3 * half + 3 * min(dense, rule_first)
    assert rule_rank is not None
    stages = three_stages(terms, g_in, rule_rank, g_out, loc_in, loc_out)
    return 3 * half + sum(stages) + backward_of_stages(stages, 1, 1, 1, 1)
