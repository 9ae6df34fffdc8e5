"""Every error of functional.py: its type, and that the message names the argument and what arrived."""

import math

import pytest
import torch
from errors import raises
from torch import randn

import mop_kernels as mk
from mop_kernels import LowRankPHM, testing

X, RULE, LOCAL, BIAS = randn(5, 12), randn(3, 4, 2), randn(3, 3, 5), randn(10)
RULE_IN, RULE_OUT = randn(3, 4, 1), randn(3, 1, 2)

DOWN = LowRankPHM(randn(1, 2, 3, 4, 1), randn(2, 1, 3, 1, 2), randn(2, 2, 3, 3, 5), randn(2, 1, 10))
UP = LowRankPHM(randn(1, 2, 2, 5, 1), randn(2, 1, 2, 1, 3), randn(2, 2, 2, 2, 4), randn(2, 1, 12))
ROWS = randn(1, 1, 5, 12)

WEIGHT = [
    ((RULE[0], LOCAL), ValueError, ("rule", "(..., terms, g_in, g_out)", "(4, 2)")),
    ((RULE, LOCAL[0]), ValueError, ("local", "(..., terms, loc_in, loc_out)", "(3, 5)")),
    ((RULE, LOCAL[:2]), ValueError, ("-3", "local", "terms", "rule", "3", "local", "(2, 3, 5)")),
    ((RULE[:, :0], LOCAL), ValueError, ("rule", "shape", "(3, 0, 2)")),
    ((RULE.expand(2, 3, 4, 2), LOCAL.expand(5, 3, 3, 5)), ValueError, ("rule", "(2,)", "(5,)")),
    (([[1.0]], LOCAL), TypeError, ("rule", "torch.Tensor", "list")),
    ((RULE, None), TypeError, ("local", "torch.Tensor", "NoneType")),
    ((RULE.long(), LOCAL), TypeError, ("rule", "torch.int64", "rule.float()")),
    ((RULE, LOCAL.double()), TypeError, ("rule", "torch.float32", "local", "torch.float64")),
    (
        (
            RULE,
            LOCAL.to(
                "meta",
            ),
        ),
        ValueError,
        ("rule", "cpu", "local", "meta", "local.to('cpu')"),
    ),
]

LINEAR = [
    ((X, RULE[0], LOCAL), ValueError, ("rule", "(terms, g_in, g_out)", "(4, 2)")),
    ((X, RULE[None], LOCAL), ValueError, ("rule", "(terms, g_in, g_out)", "(1, 3, 4, 2)")),
    ((X, RULE, LOCAL[0]), ValueError, ("local", "(terms, loc_in, loc_out)", "(3, 5)")),
    ((X, RULE, LOCAL[:2]), ValueError, ("0", "local", "terms", "rule", "3")),
    ((X.sum(), RULE, LOCAL), ValueError, ("x", "(..., in)", "scalar")),
    ((X[:, :-1], RULE, LOCAL), ValueError, ("x", "g_in*loc_in", "4*3", "12", "x", "(5, 11)")),
    (
        (X, RULE, LOCAL, BIAS[:9]),
        ValueError,
        ("bias", "(out,)", "(g_out*loc_out,)", "(10,)", "(9,)"),
    ),
    ((X, RULE, LOCAL, BIAS[None]), ValueError, ("bias", "(1, 10)")),
    ((X, RULE, LOCAL, 0.0), TypeError, ("bias", "torch.Tensor", "float")),
    ((X, RULE, LOCAL, BIAS.bfloat16()), TypeError, ("x", "torch.float32", "bias", "torch.bfloat16")),
]

LOWRANK = [
    ((X, RULE_IN[..., 0], RULE_OUT, LOCAL), ValueError, ("rule_in", "(terms, g_in, rank)", "1")),
    ((X, RULE_IN, RULE_OUT[:, 0], LOCAL), ValueError, ("rule_out", "(terms, rank, g_out)", "(3, 2)")),
    ((X, RULE_IN, RULE_OUT[:2], LOCAL), ValueError, ("0", "rule_out", "terms", "rule_in", "3")),
    ((X, RULE_IN, randn(3, 2, 2), LOCAL), ValueError, ("1", "rule_out", "rank", "rule_in", "1")),
    ((X, RULE_IN, RULE_OUT, LOCAL[:2]), ValueError, ("0", "local", "terms", "rule", "3")),
    ((X[:, 1:], RULE_IN, RULE_OUT, LOCAL), ValueError, ("x", "g_in*loc_in")),
    ((X, RULE_IN, RULE_OUT, LOCAL, BIAS[1:]), ValueError, ("bias", "(out,)")),
    ((X, RULE_IN, None, LOCAL), TypeError, ("rule_out", "torch.Tensor", "NoneType")),
]

MOP = [
    ((ROWS, None, [UP]), TypeError, ("down", "LowRankPHM", "NoneType")),
    ((ROWS, tuple(DOWN)[:2], [UP]), TypeError, ("down", "LowRankPHM", "tuple")),
    ((ROWS, DOWN, UP), TypeError, ("ups", "LowRankPHM", "ups=[up]")),
    ((ROWS, DOWN, []), TypeError, ("ups", "LowRankPHM")),
    ((ROWS, DOWN, 3), TypeError, ("ups", "LowRankPHM")),
    ((ROWS, DOWN, [UP, UP[0]]), TypeError, ("ups[1]", "LowRankPHM", "Tensor")),
    ((None, DOWN, [UP]), TypeError, ("x", "torch.Tensor", "NoneType")),
    ((ROWS, DOWN._replace(local=None), [UP]), TypeError, ("down.local", "torch.Tensor", "NoneType")),
    ((ROWS, DOWN._replace(rule_in=None), [UP]), TypeError, ("down.rule_in", "torch.Tensor", "NoneType")),
    ((ROWS, DOWN, [UP._replace(bias="b")]), TypeError, ("ups[0].bias", "torch.Tensor", "str")),
    ((ROWS.int(), DOWN, [UP]), TypeError, ("x", "torch.int32", "x.float()")),
    ((ROWS.double(), DOWN, [UP]), TypeError, ("x", "torch.float64", "down.rule_in", "torch.float32")),
    (
        (
            ROWS,
            DOWN,
            [
                UP._replace(
                    local=UP.local.to(
                        "meta",
                    )
                )
            ],
        ),
        ValueError,
        ("x", "cpu", "ups[0].local", "meta"),
    ),
    ((ROWS, DOWN._replace(rule_in=DOWN.rule_in[0]), [UP]), ValueError, ("down.rule_in", "layers|1")),
    (
        (ROWS, DOWN, [UP._replace(rule_out=UP.rule_out[0])]),
        ValueError,
        ("ups[0].rule_out", "terms, rank, g_out", "(1, 2, 1, 3)"),
    ),
    ((ROWS, DOWN, [UP._replace(bias=UP.bias[0])]), ValueError, ("ups[0].bias", "out)", "(1, 12)")),
    ((ROWS, DOWN._replace(local=DOWN.local[:, :, :2]), [UP]), ValueError, ("2", "down.local", "terms", "3")),
    (
        (ROWS, DOWN._replace(rule_out=randn(2, 1, 2, 1, 2)), [UP]),
        ValueError,
        ("2", "down.rule_out", "terms", "3"),
    ),
    (
        (ROWS, DOWN._replace(rule_out=randn(2, 1, 3, 4, 2)), [UP]),
        ValueError,
        ("3", "down.rule_out", "rank", "1"),
    ),
    (
        (ROWS[0, 0], DOWN, [UP]),
        ValueError,
        ("x", "(layers|1, experts|1, n, in)", "(5, 12)"),
    ),
    ((ROWS[0], DOWN, [UP]), ValueError, ("x", "(1, 5, 12)")),
    (
        (ROWS.expand(3, 1, 5, 12), DOWN, [UP]),
        ValueError,
        ("0", "down.rule_out", "1", "layers", "3"),
    ),
    (
        (ROWS.expand(1, 3, 5, 12), DOWN, [UP]),
        ValueError,
        ("1", "down.rule_in", "1", "experts", "3"),
    ),
    ((ROWS[..., 1:], DOWN, [UP]), ValueError, ("x", "g_in*loc_in", "down", "12", "11")),
    ((ROWS, DOWN, [DOWN]), ValueError, ("down's", "g_in*loc_in", "ups[0]", "12", "10")),
    (
        (ROWS, DOWN._replace(bias=randn(2, 1, 9)), [UP]),
        ValueError,
        ("down.bias", "10", "(2, 1, 9)"),
    ),
    ((ROWS, DOWN, [UP._replace(bias=randn(1, 1, 1))]), ValueError, ("ups[0].bias", "12")),
    ((ROWS, DOWN, [UP, UP._replace(bias=None)]), ValueError, ("ups[0].bias", "(2, 1, 12)", "ups[1].bias", "None")),
    ((ROWS, DOWN, [UP, UP._replace(local=UP.local[:1])]), ValueError, ("ups[0].local", "(2, ", "ups[1].local", "(1, ")),
]

EXPERTS = [
    ([0, 1], TypeError, ("experts", "int64", "(k,)", "list", "torch.tensor")),
    (torch.tensor([0.0]), TypeError, ("experts", "int64", "torch.float32")),
    (torch.tensor([0], dtype=torch.int32), TypeError, ("torch.int32",)),
    (torch.tensor(0), ValueError, ("experts", "(k,)", "()")),
    (torch.tensor([[0]]), ValueError, ("experts", "(k,)", "(1, 1)")),
    (torch.tensor([0, 2]), ValueError, ("experts", "0..1", "2")),
    (torch.tensor([-1]), ValueError, ("experts", "0..1", "-1")),
    (torch.tensor([1, 1]), ValueError, ("experts", "[1, 1]")),
]


def test_the_arguments_these_cases_start_from_are_right():
    assert mk.phm_weight(RULE, LOCAL).shape == (12, 10)
    assert mk.phm_linear(X, RULE, LOCAL, BIAS).shape == (5, 10)
    assert mk.lowrank_phm_linear(X, RULE_IN, RULE_OUT, LOCAL, BIAS).shape == (5, 10)
    up = UP._replace(rule_in=randn(1, 2, 2, 5, 1))
    assert mk.mop_ffn(ROWS, DOWN, [up, up])[1].shape == (2, 2, 5, 12)
    prefixed, attention = mk.attempt_mix(**prompt_arguments(), backend="reference")
    assert prefixed.shape == (5, 16, 13)
    assert attention.shape == (5, 4)


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
    with raises(error, *message):
        getattr(mk, op)(*arguments, backend=backend)


@pytest.mark.parametrize(("experts", "error", "message"), EXPERTS)
def test_message_of_experts(experts, error, message, backend):
    with raises(error, *message):
        mk.mop_ffn(ROWS, DOWN, [UP], experts=experts, backend=backend)


def test_message_of_the_activation(backend):
    with raises(ValueError, "activation", "'relu', 'gelu'", "'swish'"):
        mk.mop_ffn(ROWS, DOWN, [UP], activation="swish", backend=backend)


def test_more_maps_than_gradients_can_be_asked_of():
    many = [UP] * 20
    expected = mk.mop_ffn(ROWS, DOWN, [UP], backend="reference")[0]
    assert all(torch.equal(y, expected) for y in mk.mop_ffn(ROWS, DOWN, many, backend="reference"))
    with raises(ValueError, "ups", "20 maps", "85 tensors", "63"):
        mk.mop_ffn(ROWS.clone().requires_grad_(), DOWN, many, backend="reference")


def prompt_arguments(**changes):
    (x, source, target, *factors), options = testing.prompt_inputs(testing.PROMPTS["odd"], torch.float32)
    names = ("w_down", "w_up", "ln_weight", "ln_bias")
    given = {"x": x, "source_prompts": source, "target_prompts": target, **dict(zip(names, factors)), **options}
    return given | {name: change(given[name]) for name, change in changes.items()}


ATTEMPT = [
    ({"x": lambda t: t[0]}, ValueError, ("x", "(batch, length, d)", "(9, 13)", "x.unsqueeze", "(0)")),
    ({"x": lambda t: t[..., 1:]}, ValueError, ("2", "x", "source_prompts", "13", "(5, 9, 12)")),
    ({"x": lambda t: t.long()}, TypeError, ("x", "torch.int64")),
    ({"x": lambda t: None}, TypeError, ("x", "torch.Tensor", "NoneType")),
    (
        {"source_prompts": lambda t: t[0]},
        ValueError,
        ("source_prompts", "(sources, m, d)"),
    ),
    (
        {"source_prompts": lambda t: t[:0]},
        ValueError,
        ("source_prompts", "(0, 7, 13)"),
    ),
    ({"source_prompts": lambda t: t.double()}, TypeError, ("x", "torch.float32", "source_prompts", "torch.float64")),
    ({"target_prompts": lambda t: t[0]}, ValueError, ("target_prompts", "(tasks, m, d)", "(7, 13)")),
    ({"target_prompts": lambda t: t[:, 1:]}, ValueError, ("1", "target_prompts", "7")),
    ({"target_prompts": lambda t: t[..., 1:]}, ValueError, ("2", "target_prompts", "source_prompts", "13")),
    ({"w_down": lambda t: t.mT}, ValueError, ("w_down", "(d, r)", "(13, 13)", "(5, 13)", "weight.T")),
    ({"w_down": lambda t: t[0]}, ValueError, ("w_down", "(d, r)", "(5,)")),
    ({"w_up": lambda t: t.mT}, ValueError, ("w_up", "(r, d)", "(5, 13)", "(13, 5)", "weight.T")),
    ({"ln_weight": lambda t: t[1:]}, ValueError, ("ln_weight", "(d,)", "(13,)", "(12,)")),
    ({"ln_bias": lambda t: t[None]}, ValueError, ("ln_bias", "(d,)", "(13,)", "(1, 13)")),
    ({"ln_bias": lambda t: None}, TypeError, ("ln_bias", "torch.Tensor", "NoneType")),
    ({"ln_bias": lambda t: t.to("meta")}, ValueError, ("x", "cpu", "ln_bias", "meta")),
    ({"mask": lambda t: t.float()}, TypeError, ("mask", "torch.float32", "mask != 0")),
    ({"mask": lambda t: [1]}, TypeError, ("mask", "torch.Tensor", "list")),
    ({"mask": lambda t: t[0]}, ValueError, ("mask", "(batch, length)", "(5, 9)", "(9,)")),
    ({"task_ids": lambda t: t.int()}, TypeError, ("task_ids", "int64", "torch.int32", "torch.tensor")),
    ({"task_ids": lambda t: 0}, TypeError, ("task_ids", "int64", "(batch,)", "int")),
    ({"task_ids": lambda t: t[:1]}, ValueError, ("task_ids", "(batch,)", "(5,)", "(1,)", "task_ids.expand", "(5)")),
    (
        {"task_ids": lambda t: t + 9},
        ValueError,
        ("task_ids", "0..3", "target_prompts"),
    ),
    ({"task_ids": lambda t: t - 9}, ValueError, ("task_ids", "0..3", "-")),
    (
        {"temperature": lambda t: torch.tensor(t)},
        TypeError,
        ("temperature", "Tensor"),
    ),
    ({"temperature": lambda t: True}, TypeError, ("temperature", "bool")),
    ({"temperature": lambda t: 0.0}, ValueError, ("temperature", "0.0")),
    ({"temperature": lambda t: math.nan}, ValueError, ("temperature", "nan")),
]


@pytest.mark.parametrize(("changes", "error", "message"), ATTEMPT)
def test_message_of_attempt_mix(changes, error, message):
    with raises(error, *message):
        mk.attempt_mix(**prompt_arguments(**changes), backend="reference")
