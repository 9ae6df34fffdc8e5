"""Which gradients are computed, and gradcheck. Second derivatives: test_second_derivatives.py."""

import itertools

import pytest
import torch
from judging import RequestedGradients, assert_asked, call_bank

import mop_kernels as mk
from mop_kernels import ops, reference, testing
from mop_kernels.testing import BANKS, SHAPES

SUBSETS = [s for s in itertools.product([False, True], repeat=5) if any(s)]
MOP_SUBSETS = {
    "x": [0],
    "down": [1, 2, 3, 4],
    "rules": [1, 2, 5, 6, 9, 10],
    "locals": [3, 7, 11],
    "biases": [4, 8, 12],
    "second map": [9, 10, 11, 12],
    "down.rule_in": [1],
    "ups[0].rule_out": [6],
    "ups[1].local": [11],
    "ups[0].bias": [8],
    "all but x": list(range(1, 13)),
    "all but the locals": [0, 1, 2, 4, 5, 6, 8, 9, 10, 12],
}


@pytest.mark.parametrize("needs", SUBSETS, ids=lambda needs: "".join("01"[n] for n in needs))
def test_lowrank_phm_linear_computes_what_is_asked(needs, backend):
    tensors = testing.lowrank_inputs(SHAPES["odd"], torch.float32)
    grad = torch.randn(SHAPES["odd"].rows, SHAPES["odd"].d_out)

    def function(*t):
        return mk.lowrank_phm_linear(*t, backend=backend)

    _, every = testing.value_and_gradients(function, tensors, [grad])
    with RequestedGradients() as requests:
        _, some = testing.value_and_gradients(function, tensors, [grad], needs)
    assert requests.seen == [sum(1 << k for k, needed in enumerate(needs) if needed)]
    for needed, gradient, full in zip(needs, some, every, strict=True):
        assert_asked(needed, gradient, full, backend)


@pytest.mark.parametrize("op", ["phm_weight", "phm_linear"])
def test_full_rule_operations_compute_what_is_asked(op, backend):
    tensors = testing.linear_inputs(SHAPES["prime"], torch.float32)
    tensors = tensors[1:3] if op == "phm_weight" else tensors

    def function(*t):
        return getattr(mk, op)(*t, backend=backend)

    grad = torch.randn_like(function(*tensors))
    _, every = testing.value_and_gradients(function, tensors, [grad])
    for needs in itertools.product([False, True], repeat=len(tensors)):
        if any(needs):
            _, some = testing.value_and_gradients(function, tensors, [grad], needs)
            for needed, gradient, full in zip(needs, some, every, strict=True):
                assert_asked(needed, gradient, full, backend)


@pytest.mark.parametrize("asked", MOP_SUBSETS.values(), ids=MOP_SUBSETS)
@pytest.mark.parametrize("experts", [None, [2, 0]], ids=["all", "some"])
def test_mop_ffn_computes_what_is_asked(asked, experts, backend):
    tensors = testing.mop_inputs(BANKS["small"], torch.float32)
    experts = None if experts is None else torch.tensor(experts)

    def function(*t):
        return call_bank(t, experts=experts, backend=backend)

    grads = [torch.randn_like(y) for y in function(*tensors)]
    needs = [k in asked for k in range(len(tensors))]
    _, every = testing.value_and_gradients(function, tensors, grads)
    with RequestedGradients() as requests:
        _, some = testing.value_and_gradients(function, tensors, grads, needs)
    assert requests.seen == [sum(1 << k for k in asked)]
    for needed, gradient, full in zip(needs, some, every, strict=True):
        assert_asked(needed, gradient, full, backend)


def test_the_identity_of_a_full_rule_asks_for_no_gradient(backend):
    tensors = testing.mop_inputs(BANKS["small"], torch.float32, full_rule=True)
    leaves = [None if t is None else t.requires_grad_() for t in tensors]
    outputs = call_bank(leaves, backend=backend)
    with RequestedGradients() as requests:
        sum(y.sum() for y in outputs).backward()
    # x, then [rule_in, identity, local, bias] three times
    assert requests.seen == [0b1101_1101_1101_1]


def test_raw_gradient_ops_return_only_what_the_mask_names(backend):
    x, rule_in, rule_out, local, bias = testing.lowrank_inputs(SHAPES["odd"], torch.float32)
    grad = torch.randn(x.shape[0], bias.shape[0])
    backward = ops.get("lowrank_phm_linear_backward", backend)
    sizes = [t.shape for t in (x, rule_in, rule_out, local, bias)]
    for mask in range(1, 32):
        found = backward(grad, x, rule_in, rule_out, local, mask)
        assert [g.shape for g in found] == [size for k, size in enumerate(sizes) if mask >> k & 1]
        assert all(g.is_contiguous() for g in found)
        assert [g.stride() for g in found] == [torch.empty(g.shape).stride() for g in found]


def test_no_graph_where_nothing_asks(backend):
    tensors = testing.lowrank_inputs(SHAPES["odd"], torch.float32)
    assert not mk.lowrank_phm_linear(*tensors, backend=backend).requires_grad
    with torch.no_grad():
        leaves = [t.requires_grad_() for t in tensors]
        assert not mk.lowrank_phm_linear(*leaves, backend=backend).requires_grad


@pytest.mark.parametrize("name", ["odd", "high_rank", "reading_b"])
@pytest.mark.parametrize("op", ["phm_weight", "phm_linear", "lowrank_phm_linear"])
def test_gradcheck(op, name, backend, float64):
    shape = SHAPES[name]._replace(rows=2, loc_in=2, loc_out=3)
    inputs = testing.lowrank_inputs if op == "lowrank_phm_linear" else testing.linear_inputs
    tensors = inputs(shape, float64)
    tensors = tensors[1:3] if op == "phm_weight" else tensors
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(lambda *t: getattr(mk, op)(*t, backend=backend), leaves)


@pytest.mark.parametrize("activation", [a for a in reference.ACTIVATIONS if a != "relu"])
def test_gradcheck_of_mop_ffn(activation, backend, float64):
    bank = testing.Bank(2, 2, testing.Shape(2, 2, 2, 2, 3, 1, 1), testing.Shape(2, 1, 1, 1, 2, 2, 2))
    tensors = [t.requires_grad_() for t in testing.mop_inputs(bank, float64)]
    experts = torch.tensor([1, 0])
    assert torch.autograd.gradcheck(lambda *t: call_bank(t, activation=activation, backend=backend), tensors)
    assert torch.autograd.gradcheck(
        lambda *t: call_bank(t, activation=activation, experts=experts[:1], backend=backend), tensors, fast_mode=True
    )


def test_relu_passes_no_gradient_at_zero(backend):
    """As torch's: the derivative at 0 is 0."""
    tensors = testing.mop_inputs(BANKS["small"], torch.float32, bias=False)
    tensors[0] = torch.zeros_like(tensors[0])
    grads = [torch.ones(2, 3, 6, 18)] * 2
    _, gradients = testing.value_and_gradients(lambda *t: call_bank(t, backend=backend), tensors, grads)
    assert all(g is None or not g.any() for g in gradients)


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_an_input_changed_before_backward_is_noticed(where, backend):
    tensors = [t.requires_grad_() for t in testing.lowrank_inputs(SHAPES["odd"], torch.float32)]
    y = mk.lowrank_phm_linear(*tensors, backend=backend)
    with torch.no_grad():
        tensors[3].mul_(2)
    if where == "inside":  # a bias is not read by backward: it may change
        tensors[4].data.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
