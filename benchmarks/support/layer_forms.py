"""What a PyTorch user would write instead of the kernels, for one weight or one layer.

Index letters as in mop_kernels/reference.py: n row, i term, r rank, (a, u) input, (c, v) output.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def summed_array(rule: Tensor, local: Tensor) -> Tensor:
    """W as the MOP authors' code and Compacter build it: an array of terms*d*m by broadcasting, then its sum."""
    terms, g_in, g_out = rule.shape
    array = rule.view(terms, g_in, 1, g_out, 1) * local.unsqueeze(1).unsqueeze(3)  # (i, a, u, c, v)
    return array.sum(0).view(g_in * local.shape[1], g_out * local.shape[2])


def one_product(rule: Tensor, local: Tensor) -> Tensor:
    """W as one (batched) matrix product with the terms as its inner dimension; any equal leading group dims."""
    *groups, _, g_in, g_out = rule.shape
    loc_in, loc_out = local.shape[-2:]
    products = rule.flatten(-2).mT @ local.flatten(-2)  # (a c, i) @ (i, u v)
    products = products.view(*groups, g_in, g_out, loc_in, loc_out).transpose(-3, -2)
    return products.reshape(*groups, g_in * loc_in, g_out * loc_out)


def linear_by(weight):
    """phm_linear and lowrank_phm_linear through W, which `weight(rule, local)` builds."""

    def phm_linear(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor) -> Tensor:
        return torch.addmm(bias, x, weight(rule, local))

    def lowrank_phm_linear(x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor, bias: Tensor) -> Tensor:
        return torch.addmm(bias, x, weight(rule_in @ rule_out, local))

    return phm_linear, lowrank_phm_linear


def local_first(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor) -> Tensor:
    """phm_linear without W: all locals in one product, then the rule mixes terms and groups."""
    terms, g_in, g_out = rule.shape
    loc_in, loc_out = local.shape[1:]
    n = x.shape[0]
    s = x.view(n * g_in, loc_in) @ local.transpose(0, 1).reshape(loc_in, terms * loc_out)  # (n a, i v)
    mix = rule.transpose(0, 1).reshape(g_in * terms, g_out).T  # (c, a i)
    y = mix @ s.view(n, g_in * terms, loc_out)  # (n, c, v)
    return y.reshape(n, g_out * loc_out) + bias


def rule_first(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor) -> Tensor:
    """phm_linear without W: the rule first, then all terms' locals in one product."""
    terms, g_in, g_out = rule.shape
    loc_in, loc_out = local.shape[1:]
    n = x.shape[0]
    mix = rule.permute(2, 0, 1).reshape(g_out * terms, g_in)  # (c i, a)
    t = mix @ x.view(n, g_in, loc_in)  # (n, c i, u)
    y = t.view(n * g_out, terms * loc_in) @ local.view(terms * loc_in, loc_out)
    return y.view(n, g_out * loc_out) + bias


def one_einsum(x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor, bias: Tensor) -> Tensor:
    """lowrank_phm_linear as its formula reads; torch.einsum picks the order."""
    rows = x.unflatten(-1, (rule_in.shape[1], local.shape[1]))
    return torch.einsum("nau,iar,irc,iuv->ncv", rows, rule_in, rule_out, local).flatten(1) + bias


def three_stages(x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor, bias: Tensor) -> Tensor:
    """lowrank_phm_linear as three matrix products."""
    terms, g_in, rank = rule_in.shape
    loc_in, loc_out = local.shape[1:]
    g_out, n = rule_out.shape[2], x.shape[0]
    rows = x.view(n, g_in, loc_in).transpose(0, 1).reshape(g_in, n * loc_in)
    t = rule_in.mT.reshape(terms * rank, g_in) @ rows  # (i r, n u)
    s = torch.bmm(t.view(terms, rank * n, loc_in), local)  # (i, r n, v)
    y = rule_out.view(terms * rank, g_out).T @ s.view(terms * rank, n * loc_out)  # (c, n v)
    return y.view(g_out, n, loc_out).transpose(0, 1).reshape(n, g_out * loc_out) + bias


def dense(tensors: list[Tensor]) -> tuple:
    """F.linear and its tensors: a plain layer of the same W; its gradients are of W, not of the factors."""
    x, *rules, local, bias = tensors
    rule = rules[0] if len(rules) == 1 else rules[0] @ rules[1]
    return F.linear, [x, one_product(rule, local).T.contiguous(), bias]
