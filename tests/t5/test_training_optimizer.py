"""Parameter groups, and experts that a step must leave alone."""

import pytest
import torch
from errors import raises
from mop_t5.training import group_parameters, hold_absent_experts
from transformers import Adafactor

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "adamw without foreach": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, foreach=False),
    "adam with l2": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, amsgrad=True),
    "sgd with momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1, initial_accumulator_value=0.5),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, weight_decay=0.1),
}


def bank():
    torch.manual_seed(0)
    return torch.nn.Parameter(torch.randn(2, 3, 4)), torch.nn.Parameter(torch.randn(5))


def step(optimizer, experts, shared, present, seed):
    generator = torch.Generator().manual_seed(seed)
    optimizer.zero_grad()
    ((experts * torch.randn(experts.shape, generator=generator))[:, present].sum() + shared.square().sum()).backward()
    optimizer.step()


def state_of(optimizer, parameter):
    return {key: t.clone() for key, t in optimizer.state[parameter].items() if t.dim() > 0}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_absent_expert_keeps_its_weights_and_its_state(make):
    experts, shared = bank()
    optimizer = make([experts, shared])
    hold_absent_experts(optimizer, [(experts, 1)])
    step(optimizer, experts, shared, [0, 1, 2], seed=1)
    before, state, others = experts.detach().clone(), state_of(optimizer, experts), shared.detach().clone()
    step(optimizer, experts, shared, [0, 2], seed=2)
    assert torch.equal(experts[:, 1], before[:, 1])
    assert (experts[:, [0, 2]] != before[:, [0, 2]]).all()
    assert (shared != others).all()
    assert state
    for key, tensor in state_of(optimizer, experts).items():
        assert torch.equal(tensor[:, 1], state[key][:, 1])
        assert not torch.equal(tensor[:, 0], state[key][:, 0])


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_absent_from_the_very_first_step(make):
    experts, shared = bank()
    optimizer = make([experts, shared])
    hold_absent_experts(optimizer, [(experts, 1)])
    for seed in range(3):
        step(optimizer, experts, shared, [0, 2], seed)
    assert torch.equal(experts[:, 1], bank()[0][:, 1])


def test_adafactor_keeps_what_belongs_to_one_expert():
    """A mean over the experts has as many columns as there are experts here, and is no state of an expert."""
    torch.manual_seed(0)
    experts = torch.nn.Parameter(torch.randn(3, 3))
    optimizer = Adafactor([experts], lr=0.1, scale_parameter=False, relative_step=False, weight_decay=0.1)
    hold_absent_experts(optimizer, [(experts, 0)])
    for present in ([0, 1, 2], [0, 2]):
        before = experts.detach().clone()
        state = {key: t.clone() for key, t in optimizer.state[experts].items() if torch.is_tensor(t)}
        optimizer.zero_grad()
        (experts * torch.randn(3, 3))[present].sum().backward()
        optimizer.step()
    rows, columns = (optimizer.state[experts][f"exp_avg_sq_{part}"] for part in ("row", "col"))
    assert (experts == before).all(1).tolist() == [False, True, False]
    assert (rows == state["exp_avg_sq_row"]).tolist() == [False, True, False]
    assert (columns != state["exp_avg_sq_col"]).all()


def test_an_expert_that_comes_late_starts_like_a_new_one():
    experts, shared = bank()
    optimizer = OPTIMIZERS["sgd with momentum"]([experts, shared])
    hold_absent_experts(optimizer, [(experts, 1)])
    for seed in range(3):
        step(optimizer, experts, shared, [0, 2], seed)
    step(optimizer, experts, shared, [1], seed=9)
    fresh, other = bank()
    step(OPTIMIZERS["sgd with momentum"]([fresh, other]), fresh, other, [1], seed=9)
    torch.testing.assert_close(experts[:, 1], fresh[:, 1])


def test_without_the_hooks_decay_and_momentum_do_move_it():
    experts, shared = bank()
    optimizer = OPTIMIZERS["adamw"]([experts, shared])
    step(optimizer, experts, shared, [0, 1, 2], seed=1)
    before = experts.detach().clone()
    step(optimizer, experts, shared, [0, 2], seed=2)
    assert (experts[:, 1] != before[:, 1]).all()


def test_when_all_experts_are_present_the_step_is_the_usual_one():
    results = []
    for hold in (True, False):
        experts, shared = bank()
        optimizer = OPTIMIZERS["adamw"]([experts, shared])
        if hold:
            hold_absent_experts(optimizer, [(experts, 1)])
        for seed in range(3):
            step(optimizer, experts, shared, [0, 1, 2], seed)
        results.append(experts.detach().clone())
    assert torch.equal(*results)


def test_a_parameter_without_a_gradient_is_skipped():
    experts, shared = bank()
    optimizer = OPTIMIZERS["adamw"]([experts, shared])
    hold_absent_experts(optimizer, [(experts, 1)])
    shared.sum().backward()
    optimizer.step()
    assert torch.equal(experts, bank()[0])


def test_groups_carry_rates_and_spare_some_parameters_decay():
    a, b, c, frozen = (torch.nn.Parameter(torch.zeros(2)) for _ in range(4))
    frozen.requires_grad_(False)
    groups = group_parameters(
        {"experts": [a, b], "shared": [c, frozen]},
        learning_rate=0.1,
        weight_decay=0.01,
        rates={"experts": 10},
        decays=lambda p: p is not b,
    )
    assert [(g["name"], g["lr"], g["weight_decay"], [id(p) for p in g["params"]]) for g in groups] == [
        ("experts", 1.0, 0.01, [id(a)]),
        ("experts", 1.0, 0.0, [id(b)]),
        ("shared", 0.1, 0.01, [id(c)]),
    ]
    with raises(ValueError, "group_rates", "gates", "experts"):
        group_parameters({"experts": [a]}, learning_rate=1, weight_decay=0, rates={"gates": 2}, decays=lambda p: True)
