"""The paper's bank (12 layers, 5 experts, 40 rows, 768 -> 128 -> 2 x 768, terms 16 and 8, rank 1, float32) in one call.

Beside the backends of this machine: one pair after the other by einsum, all W built by one batched product, and the
three stages as batched products with stage 1 of the down map shared over layers, which is the bar.
"""

import peers
import pytest
import torch

import mop_kernels as mk
from mop_kernels import LowRankPHM, reference, testing

OURS = {f"mop_kernels {name}": name for name in mk.available_backends()}
PEERS = {
    "three stages, batched": peers.three_stages,
    "W built as one product": peers.built_weights,
    "einsum, pair by pair": peers.einsum_loop,
}


@pytest.fixture(scope="module")
def case(full_size):
    bank = testing.BANKS["paper" if full_size else "small"]
    tensors = testing.mop_inputs(bank, torch.float32)
    g = torch.Generator().manual_seed(1)
    rows, out = bank.up.rows, bank.up.d_out
    grads = [torch.randn(bank.layers, bank.experts, rows, out, generator=g) for _ in range(bank.maps)]
    judge = [
        testing.value_and_gradients(lambda *t: reference.mop_ffn(*testing.as_mop_arguments(t)), given, given_grads)
        for given, given_grads in ((tensors, grads), (testing.in_float64(tensors), testing.in_float64(grads)))
    ]
    expected, truth = ([*outputs, *gradients] for outputs, gradients in judge)
    return bank, tensors, grads, expected, truth


def contender(name):
    if name in PEERS:
        return lambda *tensors: PEERS[name](*testing.as_mop_arguments(tensors))

    def ours(*tensors):
        x, down, ups = testing.as_mop_arguments(tensors)
        return mk.mop_ffn(x, LowRankPHM(*down), [LowRankPHM(*up) for up in ups], backend=OURS[name])

    return ours


def prove(name, function, case):
    """Ours within the error budget; another form right to five digits."""
    _, tensors, grads, expected, truth = case
    outputs, gradients = testing.value_and_gradients(function, tensors, grads)
    if name in OURS:
        testing.assert_within_budget([*outputs, *gradients], expected, truth)
    else:
        for actual, right in zip([*outputs, *gradients], truth, strict=True):
            assert testing.relative_error(actual, right) < 1e-5


def multiply_adds(bank) -> int:
    """Of the three stages, forward, with stage 1 of the down map once an expert."""

    def last_stages(s):
        return s.rows * s.rank * s.terms * (s.loc_in * s.loc_out + s.d_out)

    down, up = bank.down, bank.up
    stage_1_up = up.rows * up.rank * up.terms * up.d_in
    a_pair = last_stages(down) + bank.maps * (stage_1_up + last_stages(up))
    return bank.layers * bank.experts * a_pair + bank.experts * down.rows * down.rank * down.terms * down.d_in


def test_the_operations_counted():
    """The floor stands on this number: 115.5 M multiply-adds for the paper's bank."""
    assert multiply_adds(testing.BANKS["paper"]) == 115_507_200


def size(tensors) -> int:
    return sum(t.nbytes for t in tensors)


@pytest.mark.parametrize("name", [*OURS, *PEERS])
def test_forward(name, case, timed):
    bank, tensors, grads, _, _ = case
    function = contender(name)
    prove(name, function, case)
    nbytes = size(tensors) + size(grads)  # read all inputs, write all outputs
    with torch.no_grad():
        work = {"flops": 2 * multiply_adds(bank), "nbytes": nbytes}
        timed(lambda: function(*tensors), "mop_ffn forward", name, ours=name in OURS, **work)


@pytest.mark.parametrize("name", [*OURS, *PEERS])
def test_forward_and_backward(name, case, timed):
    bank, tensors, grads, _, _ = case
    function = contender(name)
    prove(name, function, case)
    leaves = [t.clone().requires_grad_() for t in tensors]
    nbytes = 3 * size(tensors) + 2 * size(grads)  # and read inputs and output gradients again, write input gradients
    work = {"flops": 6 * multiply_adds(bank), "nbytes": nbytes}

    def step():
        return torch.autograd.grad(function(*leaves), leaves, grads)

    timed(step, "mop_ffn forward + backward", name, ours=name in OURS, **work)
