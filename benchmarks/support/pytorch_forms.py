"""The code that a PyTorch user would write instead of the kernels, and the product of LyCORIS.

Index letters as in mop_kernels/reference.py: l layer, e expert, n row, i term, r rank, (a, u) input, (c, v) output.
A form of a bank takes the flat tensors of `testing.mop_inputs`, with relu and with the sharing of MOP.
"""

import math
from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.support.work import public_arguments
from mop_kernels import testing


def summed_array(rule: Tensor, local: Tensor) -> Tensor:
    """Return W as the MOP authors' code and Compacter build it: an array of terms*d*m by broadcasting, then its sum."""
    terms, g_in, g_out = rule.shape
    array = rule.view(terms, g_in, 1, g_out, 1) * local.unsqueeze(1).unsqueeze(3)  # (i, a, u, c, v)
    return array.sum(0).view(g_in * local.shape[1], g_out * local.shape[2])


def one_product(rule: Tensor, local: Tensor) -> Tensor:
    """Return W by one (batched) matrix product whose contracted axis is the terms; leading group dims must be equal."""
    *groups, _, g_in, g_out = rule.shape
    loc_in, loc_out = local.shape[-2:]
    products = rule.flatten(-2).mT @ local.flatten(-2)  # (a c, i) @ (i, u v)
    products = products.view(*groups, g_in, g_out, loc_in, loc_out).transpose(-3, -2)
    return products.reshape(*groups, g_in * loc_in, g_out * loc_out)


def full_rule(rules: Sequence[Tensor]) -> Tensor:
    """Return the full rule of phm_linear, or the product of the two factors of lowrank_phm_linear."""
    return rules[0] if len(rules) == 1 else rules[0] @ rules[1]


def through(weight: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Return a function that computes phm_linear or lowrank_phm_linear through W = weight(rule, local)."""

    def layer(x: Tensor, *factors: Tensor) -> Tensor:
        *rules, local, bias = factors
        return torch.addmm(bias, x, weight(full_rule(rules), local))

    return layer


def local_first(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor) -> Tensor:
    """Compute phm_linear without W: one product with all locals, then the rule mixes terms and groups."""
    terms, g_in, g_out = rule.shape
    loc_in, loc_out = local.shape[1:]
    n = x.shape[0]
    s = x.view(n * g_in, loc_in) @ local.transpose(0, 1).reshape(loc_in, terms * loc_out)  # (n a, i v)
    mix = rule.transpose(0, 1).reshape(g_in * terms, g_out).T  # (c, a i)
    y = mix @ s.view(n, g_in * terms, loc_out)  # (n, c, v)
    return y.reshape(n, g_out * loc_out) + bias


def rule_first(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor) -> Tensor:
    """Compute phm_linear without W: the rule first, then one product with the locals of all terms."""
    terms, g_in, g_out = rule.shape
    loc_in, loc_out = local.shape[1:]
    n = x.shape[0]
    mix = rule.permute(2, 0, 1).reshape(g_out * terms, g_in)  # (c i, a)
    t = mix @ x.view(n, g_in, loc_in)  # (n, c i, u)
    y = t.view(n * g_out, terms * loc_in) @ local.view(terms * loc_in, loc_out)
    return y.view(n, g_out * loc_out) + bias


def one_einsum(x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor, bias: Tensor) -> Tensor:
    """Compute lowrank_phm_linear as its formula reads; torch.einsum picks the order."""
    rows = x.unflatten(-1, (rule_in.shape[1], local.shape[1]))
    return torch.einsum("nau,iar,irc,iuv->ncv", rows, rule_in, rule_out, local).flatten(1) + bias


def three_stages(x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor, bias: Tensor) -> Tensor:
    """Compute lowrank_phm_linear by three matrix products."""
    terms, g_in, rank = rule_in.shape
    loc_in, loc_out = local.shape[1:]
    g_out, n = rule_out.shape[2], x.shape[0]
    rows = x.view(n, g_in, loc_in).transpose(0, 1).reshape(g_in, n * loc_in)
    t = rule_in.mT.reshape(terms * rank, g_in) @ rows  # (i r, n u)
    s = torch.bmm(t.view(terms, rank * n, loc_in), local)  # (i, r n, v)
    y = rule_out.view(terms * rank, g_out).T @ s.view(terms * rank, n * loc_out)  # (c, n v)
    return y.view(g_out, n, loc_out).transpose(0, 1).reshape(n, g_out * loc_out) + bias


def pair_by_pair(layer: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """Return the bank computed one (layer, expert) pair after the other.

    Each map is `layer(x, rule_in, rule_out, local, bias)`.
    """

    def form(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, down, ups = testing.as_mop_arguments(tensors)
        num_layers, num_experts = down[2].shape[:2]

        def of_pair(factors, pair):
            rule_in, rule_out, local, bias = factors
            return rule_in[0, pair[1]], rule_out[pair[0], 0], local[pair], bias[pair[0], 0]

        outputs: list[list[Tensor]] = [[] for _ in ups]
        for pair in product(range(num_layers), range(num_experts)):
            hidden = F.relu(layer(x[0, 0], *of_pair(down, pair)))
            for found, up in zip(outputs, ups):
                found.append(layer(hidden, *of_pair(up, pair)))
        return tuple(torch.stack(found).unflatten(0, (num_layers, num_experts)) for found in outputs)

    return form


def bank_weights(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Build all W of a map by one batched product whose contracted axis is the terms; then multiply by them."""
    x, down, ups = testing.as_mop_arguments(tensors)

    def phm(rows, rule_in, rule_out, local, bias):
        return rows @ one_product(rule_in @ rule_out, local) + bias.unsqueeze(2)

    hidden = F.relu(phm(x, *down))
    return tuple(phm(hidden, *up) for up in ups)


def bank_stages(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Compute each map by three batched products, without W, in layouts chosen by hand.

    Stage 1 of the down map runs once per expert.
    """
    x, down, ups = testing.as_mop_arguments(tensors)
    hidden = _down_stages(x[0, 0], *down)  # (l, e, n, m)
    return tuple(_up_stages(hidden, *up) for up in ups)


def _down_stages(x, rule_in, rule_out, local, bias):
    layers, experts, terms, loc_in, loc_out = local.shape
    g_in, rank, g_out, n = rule_in.shape[3], rule_in.shape[4], rule_out.shape[4], x.shape[0]
    rows = x.view(n, g_in, loc_in).transpose(0, 1).reshape(g_in, n * loc_in)
    t = rule_in[0].mT.reshape(experts * terms * rank, g_in) @ rows  # (e i r, n u)
    columns = local.permute(1, 2, 3, 0, 4).reshape(experts * terms, loc_in, layers * loc_out)
    s = torch.bmm(t.view(experts * terms, rank * n, loc_in), columns)  # (e i, r n, l v)
    s = s.view(experts, terms, rank, n, layers, loc_out).permute(4, 1, 2, 0, 3, 5)
    s = s.reshape(layers, terms * rank, experts * n * loc_out)
    y = torch.bmm(rule_out.view(layers, terms * rank, g_out).mT, s)  # (l, c, e n v)
    y = y.view(layers, g_out, experts, n, loc_out) + bias.view(layers, g_out, 1, 1, loc_out)
    return F.relu(y).permute(0, 2, 3, 1, 4).reshape(layers, experts, n, g_out * loc_out)


def _up_stages(hidden, rule_in, rule_out, local, bias):
    layers, experts, terms, loc_in, loc_out = local.shape
    g_in, rank, g_out, n = rule_in.shape[3], rule_in.shape[4], rule_out.shape[4], hidden.shape[2]
    rows = hidden.view(layers, experts, n, g_in, loc_in).transpose(2, 3).reshape(layers, experts, g_in, n * loc_in)
    t = rule_in.mT.reshape(1, experts, terms * rank, g_in) @ rows  # (l, e, i r, n u)
    s = torch.bmm(t.view(-1, rank * n, loc_in), local.view(-1, loc_in, loc_out))  # (l e i, r n, v)
    s = s.view(layers, experts, terms * rank, n * loc_out)
    y = rule_out.reshape(layers, 1, terms * rank, g_out).mT @ s  # (l, e, c, n v)
    y = y.view(layers, experts, g_out, n, loc_out).transpose(2, 3) + bias.view(layers, 1, 1, g_out, loc_out)
    return y.reshape(layers, experts, n, g_out * loc_out)


def attempt_mix(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the prompts with x behind them, and the attention, from the inputs of a work."""
    x, mask, source, target, task_ids, w_down, w_up, ln_weight, ln_bias, temperature = public_arguments(
        "attempt_mix", tensors
    )
    peak = x.masked_fill(~mask.unsqueeze(-1), -math.inf).max(1).values
    query = F.layer_norm(F.silu(peak @ w_down) @ w_up, ln_weight.shape, ln_weight, ln_bias)
    own = target[task_ids]
    scores = torch.cat([query @ source.max(1).values.T, (query * own.max(1).values).sum(1, keepdim=True)], 1)
    attention = (scores / temperature).softmax(1)
    mixed = (attention[:, :-1] @ source.flatten(1)).view_as(own)
    return torch.cat([own * (1 + attention[:, -1, None, None]) + mixed, x], 1), attention


def dense(tensors: Sequence[Tensor]) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """Return F.linear and its tensors: a plain layer with the same W. It has a gradient for W, not for the factors."""
    x, *rules, local, bias = tensors
    return F.linear, [x, one_product(full_rule(rules), local).T.contiguous(), bias]


def lycoris_bypass(**options: str) -> Callable[..., Tensor]:
    """Return phm_linear as one kron_bypass of LyCORIS per term. The options go to kron_bypass."""

    def layer(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor) -> Tensor:
        from lycoris.functional.lokr import kron_bypass

        terms = (kron_bypass(x, a.T, None, None, b.T, None, None, None, 1.0, **options) for a, b in zip(rule, local))
        return bias + sum(terms)

    return layer
