"""What a PyTorch user would write instead of mop_ffn, with relu and in MOP's own sharing.

Each form takes the flat tensors of `testing.mop_inputs` and returns what mop_ffn returns. Index letters as in
mop_kernels/reference.py: l layer, e expert, n row, i term, r rank, (a, u) input, (c, v) output.
"""

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.support import layer_forms
from mop_kernels import testing


def pair_by_pair(layer):
    """One (layer, expert) pair after the other, each map by `layer(x, rule_in, rule_out, local, bias)`."""

    def form(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, down, ups = testing.as_mop_arguments(tensors)
        num_layers, num_experts = down[2].shape[:2]

        def of_pair(factors, pair):
            rule_in, rule_out, local, bias = factors
            return rule_in[0, pair[1]], rule_out[pair[0], 0], local[pair], bias[pair[0], 0]

        outputs = [[] for _ in ups]
        for pair in product(range(num_layers), range(num_experts)):
            hidden = F.relu(layer(x[0, 0], *of_pair(down, pair)))
            for found, up in zip(outputs, ups):
                found.append(layer(hidden, *of_pair(up, pair)))
        return tuple(torch.stack(found).unflatten(0, (num_layers, num_experts)) for found in outputs)

    return form


def built_weights(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All W of a map as one batched product, terms the inner dimension; then dense batched products."""
    x, down, ups = testing.as_mop_arguments(tensors)

    def phm(rows, rule_in, rule_out, local, bias):
        return rows @ layer_forms.one_product(rule_in @ rule_out, local) + bias.unsqueeze(2)

    hidden = F.relu(phm(x, *down))
    return tuple(phm(hidden, *up) for up in ups)


def three_stages(*tensors: Tensor) -> tuple[Tensor, ...]:
    """W never built: three batched products a map, layouts chosen by hand; stage 1 of the down map once an expert."""
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
