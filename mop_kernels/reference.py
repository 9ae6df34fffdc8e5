"""The mathematics in plain einsum. Every backend must agree with it.

Index letters, in this file and in all kernels: n row; i term; r rank; a, c the rule's input and output side (g_in,
g_out); u, v the local's input and output side (loc_in, loc_out); l layer; e expert. A row of x is viewed as (a, u), and
a row of y as (c, v). Therefore W[(a u), (c v)] = sum_i rule[i, a, c] local[i, u, v] = sum_i torch.kron(rule[i],
local[i]).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
    "silu": F.silu,
    "identity": lambda x: x,
}


class LowRankPHM(NamedTuple):
    """The factors of one PHM map of `mop_ffn`, each with two leading group dims (layers or 1, experts or 1).

    rule_in (., ., terms, g_in, rank), rule_out (., ., terms, rank, g_out), local (., ., terms, loc_in, loc_out),
    bias (., ., out) or None. A full rule: rule_in (., ., terms, g_in, g_out) and rule_out None.
    """

    rule_in: Tensor
    rule_out: Tensor | None
    local: Tensor
    bias: Tensor | None = None


def flags_of(needs: int, count: int) -> tuple[bool, ...]:
    """Return the first `count` bits of the `needs` of an op, one flag per tensor."""
    return tuple(bool(needs >> k & 1) for k in range(count))


def split_maps(ups: Sequence[Tensor], num_maps: int) -> list[LowRankPHM]:
    """Return the flat list of an op, three or four factors per map, as one LowRankPHM per up map."""
    width = len(ups) // num_maps
    return [LowRankPHM(*ups[k * width : (k + 1) * width]) for k in range(num_maps)]


def phm_weight(rule: Tensor, local: Tensor) -> Tensor:
    """Return W (..., g_in*loc_in, g_out*loc_out).

    rule (..., terms, g_in, g_out), local (..., terms, loc_in, loc_out).
    """
    weight = torch.einsum("...iac,...iuv->...aucv", rule, local)
    return weight.flatten(-2).flatten(-3, -2)


def phm_linear(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W + bias (..., g_out*loc_out) for x (..., g_in*loc_in)."""
    rows = x.unflatten(-1, (rule.shape[-2], local.shape[-2]))
    y = torch.einsum("...au,iac,iuv->...cv", rows, rule, local).flatten(-2)
    return y if bias is None else y + bias


def local_linear(x: Tensor, local: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute y = x (I (x) local) + bias: the local of a Kronecker product alone.

    Args:
        x: (..., groups*width_in).
        local: (width_in, width_out).
        bias: (groups*width_out,), or None.

    Returns:
        y (..., groups*width_out).
    """
    y = (x.unflatten(-1, (-1, local.shape[0])) @ local).flatten(-2)
    return y if bias is None else y + bias


def lowrank_phm_linear(
    x: Tensor, rule_in: Tensor, rule_out: Tensor | None, local: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return x W + bias by the three stages, for tensors with any equal or broadcast leading group dims.

    x (*groups, n, in); rule_in (*groups, terms, g_in, rank); rule_out (*groups, terms, rank, g_out), or None where
    rule_in is a full rule (*groups, terms, g_in, g_out); local (*groups, terms, loc_in, loc_out); bias (*groups, out).
    """
    rows = x.unflatten(-1, (rule_in.shape[-2], local.shape[-2]))
    t = torch.einsum("...nau,...iar->...niru", rows, rule_in)
    s = torch.einsum("...niru,...iuv->...nirv", t, local)
    y = s.sum(-3) if rule_out is None else torch.einsum("...nirv,...irc->...ncv", s, rule_out)
    y = y.flatten(-2)
    return y if bias is None else y + bias.unsqueeze(-2)


def mop_ffn(
    x: Tensor,
    down: Sequence[Tensor | None],
    ups: Sequence[Sequence[Tensor | None]],
    activation: str = "relu",
    experts: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Compute the up maps of the activated down map (MOP, Eq. 4), for all (layer, expert) pairs at once.

    x (1|L, 1|E, n, in); down and each of ups: the factors of a LowRankPHM. Every tensor has the leading group dims
    (1|L, 1|E). Return one tensor (L, E or k, n, out) per up map.
    """
    num_layers, num_experts = group_sizes(x, down, ups)

    def pick(tensor: Tensor) -> Tensor:
        if experts is None or tensor.shape[1] == 1 != num_experts:
            return tensor
        return tensor.index_select(1, experts)

    def picked(phm: Sequence[Tensor | None]) -> LowRankPHM:
        return LowRankPHM._make(None if t is None else pick(t) for t in phm)

    count = num_experts if experts is None else experts.numel()
    hidden = ACTIVATIONS[activation](lowrank_phm_linear(pick(x), *picked(down)))
    outputs = []
    for up in ups:
        y = lowrank_phm_linear(hidden, *picked(up))
        outputs.append(y.expand(num_layers, count, *y.shape[2:]).contiguous())
    return tuple(outputs)


def group_sizes(x: Tensor, down: Sequence[Tensor | None], ups: Sequence[Sequence[Tensor | None]]) -> tuple[int, int]:
    """Return (layers, experts): the largest leading dims among x and all factors. Each tensor has them in full or 1."""
    tensors = [x, *(t for phm in (down, *ups) for t in phm if t is not None)]
    return max(t.shape[0] for t in tensors), max(t.shape[1] for t in tensors)


LAYER_NORM_EPS = 1e-5


def largest(rows: Tensor, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the largest number of each column and its row. Of equal numbers the first row counts. NaN is largest.

    rows (..., n, d); keep (..., n), bool: the rows that count. Both results have shape (..., d), and the row is int32.
    Where no row counts, the number is 0, without gradient, and the row is -1.
    """
    keep = rows.new_ones(rows.shape[:-1], dtype=torch.bool) if keep is None else keep
    if rows.shape[-2] == 0:
        sizes = (*rows.shape[:-2], rows.shape[-1])
        return rows.new_zeros(sizes), rows.new_full(sizes, -1, dtype=torch.int32)
    kept = keep.unsqueeze(-1)
    peak = rows.detach().masked_fill(~kept, -torch.inf).amax(-2, keepdim=True)
    found = kept & ((rows == peak) | rows.isnan())
    position = found.byte().argmax(-2, keepdim=True)  # the first of equal ones
    some = keep.any(-1)[..., None]
    peak = rows.gather(-2, position).squeeze(-2)
    return peak.where(some, 0), position.squeeze(-2).where(some, -1).int()


def layer_norm(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return F.layer_norm over the last dim, in float32 or better, with correct derivatives of any order.

    In third derivatives and in gradients of jvp, torch 2.13 treats the statistics of F.layer_norm as constants, without
    an error. Its vmap fails on second derivatives in the weight.
    """
    wide = rows.float() if rows.dtype.itemsize < 4 else rows
    centered = wide - wide.mean(-1, keepdim=True)
    scale = (centered.square().mean(-1, keepdim=True) + LAYER_NORM_EPS).rsqrt()
    return (centered * scale * weight + bias).to(rows.dtype)


def attempt_prompt(
    peak: Tensor,
    source: Tensor,
    target: Tensor,
    task_ids: Tensor,
    w_down: Tensor,
    w_up: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    *,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return ATTEMPT's instance prompts (b, m, d) and attention (b, t + 1), with the target's own candidate last.

    peak (b, d) holds the largest number of each column of the embeddings. source (t, m, d); target (tasks, m, d);
    task_ids (b,).
    """
    own = F.embedding(task_ids, target.flatten(1)).unflatten(1, target.shape[1:])  # backward sums in order everywhere
    candidates = torch.cat([largest(source)[0].expand(peak.shape[0], -1, -1), largest(own)[0].unsqueeze(1)], 1)
    hidden = F.silu(peak @ w_down) @ w_up
    query = layer_norm(hidden, ln_weight, ln_bias)
    scores = torch.einsum("bjd,bd->bj", candidates, query) / temperature
    attention = scores.softmax(-1)
    mixed = torch.einsum("bj,jmd->bmd", attention[:, :-1], source)
    return own + mixed + attention[:, -1, None, None] * own, attention


def attempt_mix(
    x: Tensor,
    mask: Tensor | None,
    source: Tensor,
    target: Tensor,
    task_ids: Tensor,
    *factors: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the outputs of the op attempt_mix (ATTEMPT, section 3): prefixed, attention, peak and position.

    prefixed is the instance prompts in front of the embeddings x (b, n, d). peak (b, d) and position (b, d) are the
    results of `largest`. mask (b, n), bool: the positions that count for `largest`. factors: w_down (d, r),
    w_up (r, d), ln_weight (d,), ln_bias (d,).
    """
    peak, position = largest(x, mask)
    prompt, attention = attempt_prompt(peak, source, target, task_ids, *factors, temperature=temperature)
    return torch.cat([prompt, x], 1), attention, peak, position


def at_position(values: Tensor, position: Tensor, length: int) -> Tensor:
    """Return (b, length, d): values (b, d) in the rows that position (b, d) names, and zeros elsewhere."""
    found = position.unsqueeze(1) == torch.arange(length, device=position.device)[:, None]
    return values.unsqueeze(1).where(found, 0)
