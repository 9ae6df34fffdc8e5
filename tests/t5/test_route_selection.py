"""From logits to routes: golden values and gradients of the public code, what evaluation promises, fixed routes."""

import math

import pytest
import torch
from errors import raises
from mop_t5.methods.task_moe.config import TaskMoEConfig
from mop_t5.methods.task_moe.selection import (
    entropy,
    expert_mask,
    explore,
    fixed_routes,
    masked,
    random_experts,
    select,
    temperature_at,
)
from safetensors.torch import load_file

GOLDEN = __file__.rsplit("/", 2)[0] + "/golden/moe_selection_mixture.safetensors"
KINDS = {"gumbel": "gumbel_softmax", "straight_through": "gumbel_softmax_st"}


@pytest.fixture(scope="module")
def golden():
    return {name: t.double() if t.is_floating_point() else t for name, t in load_file(GOLDEN).items()}


def drawn_logits(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize(
    ("name", "temperature"), [("default_tau5", 5), ("T1", 1), ("tau300.0", 300), ("tau2.0", 2), ("tau0.1", 0.1)]
)
def test_golden_softmax(golden, name, temperature):
    routes = select(golden["sel.logits"], "softmax", temperature)
    torch.testing.assert_close(routes, golden[f"sel.softmax_{name}"], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [2.0, 0.1])
def test_golden_gumbel_and_straight_through(golden, kind, temperature):
    stored = {
        part: golden[f"sel.{KINDS[kind]}_tau{temperature}.{part}"] for part in ("noise", "out", "gout", "glogits")
    }
    logits = golden["sel.logits"].clone().requires_grad_()
    routes = select(logits, kind, temperature, noise=stored["noise"])
    torch.testing.assert_close(routes, stored["out"], atol=1e-6, rtol=1e-6)
    (gradient,) = torch.autograd.grad(routes, logits, stored["gout"])
    torch.testing.assert_close(gradient, stored["glogits"], atol=1e-6, rtol=1e-5)


def test_straight_through_is_exactly_one_expert_in_every_precision():
    for dtype in (torch.float32, torch.bfloat16):
        routes = select(drawn_logits(6, 50, 3, dtype=dtype), "straight_through", 0.7)
        assert set(routes.unique().tolist()) == {0.0, 1.0}
        assert (routes.sum(-1) == 1).all()


def test_deterministic_evaluation_and_noise():
    logits = drawn_logits(2, 2000, 3)
    soft = (logits / 0.5).softmax(-1)
    for kind in ("softmax", "gumbel"):
        assert select(logits, kind, 0.5, deterministic=True).equal(soft)
    best = select(logits, "straight_through", 0.5, deterministic=True)
    assert best.argmax(-1).equal(logits.argmax(-1))
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(select(logits, "gumbel", 0.5))
    one, again, other = drawn
    assert one.equal(again)
    assert not one.equal(other)
    # the Gumbel-max trick: experts are drawn by their probability at temperature 1, whatever the temperature
    constant = logits[:1, :1].expand(1, 20_000, 3)
    shares = select(constant, "straight_through", 0.5).mean((0, 1))
    torch.testing.assert_close(shares, logits[0, 0].softmax(-1), atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", ["softmax", "gumbel", "straight_through"])
def test_disabled_experts_have_no_weight_at_any_temperature(kind):
    logits = drawn_logits(3, 40, 3).requires_grad_()
    mask = expert_mask([(0, 1), (2, 0), (2, 2)], 3, 3)
    for temperature in (300, 0.1):
        routes = select(masked(logits, mask), kind, temperature)
        assert not routes[mask.expand_as(routes)].any()
        torch.testing.assert_close(routes.sum(-1), torch.ones(3, 40, dtype=torch.float64))
        (gradient,) = torch.autograd.grad((routes * drawn_logits(3, 40, 3)).sum(), logits)
        assert gradient.isfinite().all()
        assert gradient[1].any()
        if kind == "softmax":  # what the public code does in float32: subtract 1e10 from the logits
            subtracted = ((logits.detach().float() - 1e10 * mask) / temperature).softmax(-1)
            torch.testing.assert_close(routes.detach().float(), subtracted)


def test_masks_that_are_wrong():
    with raises(ValueError, "pairs", "layer below 2, expert below 3", "(2, 0)"):
        expert_mask([(2, 0)], 2, 3)
    with raises(ValueError, "all 3", "layer 1"):
        expert_mask([(1, 0), (1, 1), (1, 2)], 2, 3)


def test_exploration_is_out_of_place_and_takes_whole_routes():
    logits = drawn_logits(4, 5000, 3).requires_grad_()
    routes = select(logits)
    torch.manual_seed(0)
    explored = explore(routes, 0.3)
    changed = (explored != routes).any(-1)
    assert changed.double().mean() == pytest.approx(0.3, abs=0.02)
    assert set(explored[changed].unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(explored[changed].mean(0), torch.full((3,), 1 / 3).double(), atol=0.02, rtol=0)
    (gradient,) = torch.autograd.grad((explored * drawn_logits(4, 5000, 3)).sum(), logits)  # raised in the public code
    assert gradient[~changed].any(-1).all()
    assert not gradient[changed].any()
    assert explore(routes, 0.0).equal(routes)
    mask = expert_mask([(1, 2)], 4, 3)
    assert not explore(select(masked(logits, mask)), 1.0, mask=mask)[1, :, 2].any()


def test_a_random_expert_a_row():
    like = torch.empty(2, 9000, 3)
    torch.manual_seed(0)
    routes = random_experts(like)
    assert (routes.sort(-1).values == torch.tensor([0.0, 0, 1])).all()
    torch.testing.assert_close(routes.mean(1), torch.full((2, 3), 1 / 3), atol=0.02, rtol=0)
    assert not routes[0].equal(routes[1])


def test_golden_fixed_routes(golden):
    for top in (1, 2):
        stored = golden[f"rand.route_top{top}"].float()  # (tasks, layers * experts)
        routes = fixed_routes(top, 6, 4, 3, seed=21)
        torch.testing.assert_close(routes.transpose(0, 1).flatten(1), stored)
        assert fixed_routes(top, 6, 7, 3, seed=21)[:, :4].equal(routes)
        assert not fixed_routes(top, 6, 4, 3, seed=22).equal(routes)
        assert TaskMoEConfig(["a"], routes=f"random_{top}").drawn_experts == top
    average = TaskMoEConfig(["a"], routes="average").drawn_experts
    assert fixed_routes(average, 6, 4, 3).unique().tolist() == pytest.approx([1 / 3])
    assert not fixed_routes(1, 6, 4, 3).requires_grad
    for wrong in ("random_0", "random_4", "random", "averages", "random_-1"):
        with raises(ValueError, "'random_N'", "1 to 3", f"'{wrong}'"):
            TaskMoEConfig(["a"], routes=wrong)


@pytest.mark.parametrize(("stage", "schedule"), [("stage1_default", (2.0, 3e-4, 0.1)), ("stage2", (300.0, 1e-4, 1.0))])
def test_golden_temperatures(golden, stage, schedule):
    values = [temperature_at(step, *schedule) for step in golden[f"tau.{stage}.steps"].tolist()]
    assert values == pytest.approx(golden[f"tau.{stage}.values"].tolist(), rel=1e-6)


def test_entropy():
    routes = torch.tensor([[1.0, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]])
    torch.testing.assert_close(entropy(routes), torch.tensor([0, math.log(3), math.log(2)]))


def test_unknown_selection():
    with raises(ValueError, "selection", "'softmax', 'gumbel'", "'hard'"):
        select(torch.zeros(1, 1, 2), "hard")
