"""What a PyTorch user would write instead of the kernels.

Each form takes the tensors of `testing.mop_inputs` in MOP's own sharing, or of `testing.lowrank_inputs`, and returns
what mop_ffn or lowrank_phm_linear returns.

Index letters as in mop_kernels/reference.py: l layer, e expert, n row, i term, r rank, (a, u) input, (c, v) output.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def einsum_loop(x: Tensor, down, ups) -> tuple[Tensor, ...]:
    """One (layer, expert) pair after the other, each W by einsum."""
    num_layers, num_experts = down[2].shape[:2]

    def phm(rows, factors, layer, expert):
        rule_in, rule_out, local, bias = factors
        rule = rule_in[0, expert] @ rule_out[layer, 0]
        weight = torch.einsum("iac,iuv->aucv", rule, local[layer, expert])
        return rows @ weight.reshape(rows.shape[-1], -1) + bias[layer, 0]

    outputs = [[] for _ in ups]
    for layer in range(num_layers):
        for expert in range(num_experts):
            hidden = F.relu(phm(x[0, 0], down, layer, expert))
            for found, up in zip(outputs, ups):
                found.append(phm(hidden, up, layer, expert))
    return tuple(torch.stack(found).unflatten(0, (num_layers, num_experts)) for found in outputs)


def built_weights(x: Tensor, down, ups) -> tuple[Tensor, ...]:
    """All W of a map as one batched product, terms the inner dimension; then dense batched products."""

    def weights(rule_in, rule_out, local):
        rule = rule_in @ rule_out  # (l, e, i, a, c)
        groups, (g_in, g_out), (loc_in, loc_out) = local.shape[:2], rule.shape[3:], local.shape[3:]
        products = rule.flatten(3).mT @ local.flatten(3)  # (l, e, a c, i) @ (l, e, i, u v)
        products = products.view(*groups, g_in, g_out, loc_in, loc_out).transpose(3, 4)
        return products.reshape(*groups, g_in * loc_in, g_out * loc_out)

    hidden = F.relu(x @ weights(*down[:3]) + down[3].unsqueeze(2))
    return tuple(hidden @ weights(*up[:3]) + up[3].unsqueeze(2) for up in ups)


def three_stages(x: Tensor, down, ups) -> tuple[Tensor, ...]:
    """W never built: three batched products a map, layouts chosen by hand; stage 1 of the down map once an expert."""
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


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A plain layer of the same sides: what the low-rank layer stands in for, not the same function."""
    return F.linear(x, weight, bias)


def three_stages_of_one_layer(x: Tensor, rule_in, rule_out, local, bias) -> Tensor:
    """lowrank_phm_linear as three matrix products."""
    terms, g_in, rank = rule_in.shape
    loc_in, loc_out = local.shape[1:]
    g_out, n = rule_out.shape[2], x.shape[0]
    rows = x.view(n, g_in, loc_in).transpose(0, 1).reshape(g_in, n * loc_in)
    t = rule_in.mT.reshape(terms * rank, g_in) @ rows  # (i r, n u)
    s = torch.bmm(t.view(terms, rank * n, loc_in), local)  # (i, r n, v)
    y = rule_out.view(terms * rank, g_out).T @ s.view(terms * rank, n * loc_out)  # (c, n v)
    return y.view(g_out, n, loc_out).transpose(0, 1).reshape(n, g_out * loc_out) + bias
