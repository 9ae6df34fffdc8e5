"""Every error of functional.py: its type, and that the message names the argument and what arrived."""

import pytest
import torch
from torch import randn

import mop_kernels as mk
from mop_kernels import LowRankPHM

X, RULE, LOCAL, BIAS = randn(5, 12), randn(3, 4, 2), randn(3, 3, 5), randn(10)
RULE_IN, RULE_OUT = randn(3, 4, 1), randn(3, 1, 2)

DOWN = LowRankPHM(randn(1, 2, 3, 4, 1), randn(2, 1, 3, 1, 2), randn(2, 2, 3, 3, 5), randn(2, 1, 10))
UP = LowRankPHM(randn(1, 2, 2, 5, 1), randn(2, 1, 2, 1, 3), randn(2, 2, 2, 2, 4), randn(2, 1, 12))
ROWS = randn(1, 1, 5, 12)

WEIGHT = [
    ((RULE[0], LOCAL), ValueError, r"rule must have shape \(\.\.\., terms, g_in, g_out\); got \(4, 2\).*unsqueeze"),
    ((RULE, LOCAL[0]), ValueError, r"local must have shape \(\.\.\., terms, loc_in, loc_out\); got \(3, 5\)"),
    ((RULE, LOCAL[:2]), ValueError, r"dim -3 of local must equal the terms of rule, 3; got local of shape \(2, 3, 5\)"),
    ((RULE[:, :0], LOCAL), ValueError, r"rule must have no empty dimension; got shape \(3, 0, 2\)"),
    ((RULE.expand(2, 3, 4, 2), LOCAL.expand(5, 3, 3, 5)), ValueError, r"rule \(2,\) and local \(5,\) must broadcast"),
    (([[1.0]], LOCAL), TypeError, r"rule must be a torch\.Tensor; got list"),
    ((RULE, None), TypeError, r"local must be a torch\.Tensor; got NoneType"),
    ((RULE.long(), LOCAL), TypeError, r"rule must be a floating-point tensor; got torch\.int64.*rule\.float\(\)"),
    ((RULE, LOCAL.double()), TypeError, r"rule has torch\.float32, local has torch\.float64"),
    ((RULE, LOCAL.to("meta")), ValueError, r"rule is on cpu, local on meta.*local\.to\('cpu'\)"),
]

LINEAR = [
    ((X, RULE[0], LOCAL), ValueError, r"rule must have shape \(terms, g_in, g_out\); got \(4, 2\)"),
    ((X, RULE[None], LOCAL), ValueError, r"rule must have shape \(terms, g_in, g_out\); got \(1, 3, 4, 2\)"),
    ((X, RULE, LOCAL[0]), ValueError, r"local must have shape \(terms, loc_in, loc_out\); got \(3, 5\)"),
    ((X, RULE, LOCAL[:2]), ValueError, r"dim 0 of local must equal the terms of the rule, 3"),
    ((X.sum(), RULE, LOCAL), ValueError, r"x must have shape \(\.\.\., in\); got a scalar"),
    ((X[:, :-1], RULE, LOCAL), ValueError, r"last dim of x must be g_in\*loc_in = 4\*3 = 12; got x of shape \(5, 11\)"),
    (
        (X, RULE, LOCAL, BIAS[:9]),
        ValueError,
        r"bias must have shape \(out,\) = \(g_out\*loc_out,\) = \(10,\); got \(9,\)",
    ),
    ((X, RULE, LOCAL, BIAS[None]), ValueError, r"bias must have shape.*got \(1, 10\)"),
    ((X, RULE, LOCAL, 0.0), TypeError, r"bias must be a torch\.Tensor; got float"),
    ((X, RULE, LOCAL, BIAS.bfloat16()), TypeError, r"x has torch\.float32, bias has torch\.bfloat16.*autocast"),
]

LOWRANK = [
    ((X, RULE_IN[..., 0], RULE_OUT, LOCAL), ValueError, r"rule_in must have shape \(terms, g_in, rank\).*rank 1"),
    ((X, RULE_IN, RULE_OUT[:, 0], LOCAL), ValueError, r"rule_out must have shape \(terms, rank, g_out\); got \(3, 2\)"),
    ((X, RULE_IN, RULE_OUT[:2], LOCAL), ValueError, r"dim 0 of rule_out must equal the terms of rule_in, 3"),
    ((X, RULE_IN, randn(3, 2, 2), LOCAL), ValueError, r"dim 1 of rule_out must equal the rank of rule_in, 1"),
    ((X, RULE_IN, RULE_OUT, LOCAL[:2]), ValueError, r"dim 0 of local must equal the terms of the rule, 3"),
    ((X[:, 1:], RULE_IN, RULE_OUT, LOCAL), ValueError, r"last dim of x must be g_in\*loc_in"),
    ((X, RULE_IN, RULE_OUT, LOCAL, BIAS[1:]), ValueError, r"bias must have shape \(out,\)"),
    ((X, RULE_IN, None, LOCAL), TypeError, r"rule_out must be a torch\.Tensor; got NoneType"),
]

MOP = [
    ((ROWS, None, [UP]), TypeError, r"down must be a LowRankPHM.*got NoneType"),
    ((ROWS, tuple(DOWN)[:2], [UP]), TypeError, r"down must be a LowRankPHM"),
    ((ROWS, DOWN, UP), TypeError, r"ups must be a non-empty sequence.*ups=\[up\]"),
    ((ROWS, DOWN, []), TypeError, r"ups must be a non-empty sequence"),
    ((ROWS, DOWN, 3), TypeError, r"ups must be a non-empty sequence"),
    ((ROWS, DOWN, [UP, UP[0]]), TypeError, r"ups\[1\] must be a LowRankPHM.*got Tensor"),
    ((None, DOWN, [UP]), TypeError, r"x must be a torch\.Tensor; got NoneType"),
    ((ROWS, DOWN._replace(local=None), [UP]), TypeError, r"down\.local must be a torch\.Tensor; got NoneType"),
    ((ROWS, DOWN._replace(rule_in=None), [UP]), TypeError, r"down\.rule_in must be a torch\.Tensor; got NoneType"),
    ((ROWS, DOWN, [UP._replace(bias="b")]), TypeError, r"ups\[0\]\.bias must be a torch\.Tensor; got str"),
    ((ROWS.int(), DOWN, [UP]), TypeError, r"x must be a floating-point tensor"),
    ((ROWS.double(), DOWN, [UP]), TypeError, r"x has torch\.float64, down\.rule_in has torch\.float32"),
    ((ROWS, DOWN, [UP._replace(local=UP.local.to("meta"))]), ValueError, r"x is on cpu, ups\[0\]\.local on meta"),
    ((ROWS, DOWN._replace(rule_in=DOWN.rule_in[0]), [UP]), ValueError, r"down\.rule_in must have shape \(layers\|1"),
    ((ROWS, DOWN, [UP._replace(rule_out=UP.rule_out[0])]), ValueError, r"ups\[0\]\.rule_out must have shape"),
    ((ROWS, DOWN, [UP._replace(bias=UP.bias[0])]), ValueError, r"ups\[0\]\.bias must have shape.*two group dims"),
    ((ROWS, DOWN._replace(local=DOWN.local[:, :, :2]), [UP]), ValueError, r"dim 2 of down\.local must equal the terms"),
    (
        (ROWS, DOWN._replace(rule_out=randn(2, 1, 2, 1, 2)), [UP]),
        ValueError,
        r"dim 2 of down\.rule_out must equal the te",
    ),
    (
        (ROWS, DOWN._replace(rule_out=randn(2, 1, 3, 4, 2)), [UP]),
        ValueError,
        r"dim 3 of down\.rule_out must equal the ra",
    ),
    (
        (ROWS[0, 0], DOWN, [UP]),
        ValueError,
        r"x must have shape \(layers\|1, experts\|1, n, in\); got \(5, 12\).*None, None",
    ),
    ((ROWS[0], DOWN, [UP]), ValueError, r"x must have shape .*; got \(1, 5, 12\)"),
    (
        (ROWS.expand(3, 1, 5, 12), DOWN, [UP]),
        ValueError,
        r"dim 0 of down\.rule_out must be 1 or the number of layers, 3",
    ),
    (
        (ROWS.expand(1, 3, 5, 12), DOWN, [UP]),
        ValueError,
        r"dim 1 of down\.rule_in must be 1 or the number of experts, 3",
    ),
    ((ROWS[..., 1:], DOWN, [UP]), ValueError, r"last dim of x must be g_in\*loc_in of down, 12; got 11"),
    ((ROWS, DOWN, [DOWN]), ValueError, r"last dim of down's output must be g_in\*loc_in of ups\[0\], 12; got 10"),
    (
        (ROWS, DOWN._replace(bias=randn(2, 1, 9)), [UP]),
        ValueError,
        r"down\.bias must have shape.*out = 10; got \(2, 1, 9\)",
    ),
    ((ROWS, DOWN, [UP._replace(bias=randn(1, 1, 1))]), ValueError, r"ups\[0\]\.bias must have shape.*out = 12"),
    ((ROWS, DOWN, [UP, UP._replace(bias=None)]), ValueError, r"ups\[0\]\.bias has \(2, 1, 12\), ups\[1\]\.bias None"),
    ((ROWS, DOWN, [UP, UP._replace(local=UP.local[:1])]), ValueError, r"all up maps must have equal shapes.*local"),
]

EXPERTS = [
    ([0, 1], TypeError, r"experts must be an int64 tensor of shape \(k,\); got list.*torch\.tensor"),
    (torch.tensor([0.0]), TypeError, r"experts must be an int64 tensor.*got torch\.float32"),
    (torch.tensor([0], dtype=torch.int32), TypeError, r"got torch\.int32"),
    (torch.tensor(0), ValueError, r"experts must have shape \(k,\); got \(\)"),
    (torch.tensor([[0]]), ValueError, r"experts must have shape \(k,\); got \(1, 1\)"),
    (torch.tensor([0, 2]), ValueError, r"experts must lie in 0\.\.1; got 2"),
    (torch.tensor([-1]), ValueError, r"experts must lie in 0\.\.1; got -1"),
    (torch.tensor([1, 1]), ValueError, r"experts must be distinct; got \[1, 1\].*unique"),
]


def test_the_arguments_these_cases_start_from_are_right():
    assert mk.phm_weight(RULE, LOCAL).shape == (12, 10)
    assert mk.phm_linear(X, RULE, LOCAL, BIAS).shape == (5, 10)
    assert mk.lowrank_phm_linear(X, RULE_IN, RULE_OUT, LOCAL, BIAS).shape == (5, 10)
    up = UP._replace(rule_in=randn(1, 2, 2, 5, 1))
    assert mk.mop_ffn(ROWS, DOWN, [up, up])[1].shape == (2, 2, 5, 12)


@pytest.mark.parametrize(
    ("op", "arguments", "error", "message"),
    [
        *(("phm_weight", *case) for case in WEIGHT),
        *(("phm_linear", *case) for case in LINEAR),
        *(("lowrank_phm_linear", *case) for case in LOWRANK),
        *(("mop_ffn", *case) for case in MOP),
    ],
)
def test_message(op, arguments, error, message, backend):
    with pytest.raises(error, match=message):
        getattr(mk, op)(*arguments, backend=backend)


@pytest.mark.parametrize(("experts", "error", "message"), EXPERTS)
def test_message_of_experts(experts, error, message, backend):
    with pytest.raises(error, match=message):
        mk.mop_ffn(ROWS, DOWN, [UP], experts=experts, backend=backend)


def test_message_of_the_activation(backend):
    with pytest.raises(ValueError, match=r"activation must be one of 'relu', 'gelu', .*; got 'swish'"):
        mk.mop_ffn(ROWS, DOWN, [UP], activation="swish", backend=backend)


def test_more_maps_than_gradients_can_be_asked_of():
    many = [UP] * 20
    expected = mk.mop_ffn(ROWS, DOWN, [UP], backend="reference")[0]
    assert all(torch.equal(y, expected) for y in mk.mop_ffn(ROWS, DOWN, many, backend="reference"))
    with pytest.raises(ValueError, match=r"ups has 20 maps, \d+ tensors in all with x and down; gradients are"):
        mk.mop_ffn(ROWS.clone().requires_grad_(), DOWN, many, backend="reference")
