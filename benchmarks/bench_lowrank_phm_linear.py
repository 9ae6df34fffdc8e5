"""One layer on many rows (4096 rows, 1024 -> 1024, terms 16, rank 1, float32), beside a dense layer of the same sides.

The dense layer is another function; it is here because it is what the low-rank layer replaces.
"""

import peers
import pytest
import torch

import mop_kernels as mk
from mop_kernels import reference, testing
from mop_kernels.testing import Shape

OURS = {f"mop_kernels {name}": name for name in mk.available_backends()}
NAMES = (*OURS, "three stages", "dense F.linear")
FULL, SMALL = Shape(4096, 16, 16, 16, 64, 64, 1), Shape(8, 4, 4, 4, 4, 4, 1)


@pytest.fixture(scope="module")
def case(full_size):
    shape = FULL if full_size else SMALL
    tensors = testing.lowrank_inputs(shape, torch.float32)
    grad = torch.randn(shape.rows, shape.d_out, generator=torch.Generator().manual_seed(1))
    judge = [
        testing.value_and_gradients(reference.lowrank_phm_linear, given, given_grads)
        for given, given_grads in ((tensors, [grad]), (testing.in_float64(tensors), [grad.double()]))
    ]
    expected, truth = ([*outputs, *gradients] for outputs, gradients in judge)
    return shape, tensors, grad, expected, truth


def contender(name, case):
    """The function and its tensors."""
    tensors = case[1]
    if name == "dense F.linear":
        weight = testing.kron_weight(tensors[1] @ tensors[2], tensors[3])
        return peers.dense_linear, [tensors[0], weight.T.contiguous(), tensors[4]]
    if name == "three stages":
        return peers.three_stages_of_one_layer, tensors
    return lambda *t: mk.lowrank_phm_linear(*t, backend=OURS[name]), tensors


def prove(name, function, tensors, case):
    """Ours within the error budget; another form right to five digits, the dense one in its output."""
    _, _, grad, expected, truth = case
    outputs, gradients = testing.value_and_gradients(function, tensors, [grad])
    if name in OURS:
        testing.assert_within_budget([*outputs, *gradients], expected, truth)
        return
    found = outputs if name == "dense F.linear" else [*outputs, *gradients]
    for actual, right in zip(found, truth):
        assert testing.relative_error(actual, right) < 1e-5


@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
@pytest.mark.parametrize("name", NAMES)
def test_layer(name, direction, case, timed):
    shape, tensors, grad, _, _ = case
    function, own = contender(name, case)
    prove(name, function, own, case)
    flops = 2 * shape.rows * shape.rank * shape.terms * (shape.d_in + shape.loc_in * shape.loc_out + shape.d_out)
    read, written = sum(t.nbytes for t in tensors), grad.nbytes
    group = f"lowrank_phm_linear {direction}"
    if direction == "forward":
        with torch.no_grad():
            work = {"flops": flops, "nbytes": read + written}
            timed(lambda: function(*own), group, name, ours=name in OURS, **work)
        return
    leaves = [t.clone().requires_grad_() for t in own]
    work = {"flops": 3 * flops, "nbytes": 3 * read + 2 * written}
    timed(lambda: torch.autograd.grad(function(*leaves), leaves, grad), group, name, ours=name in OURS, **work)
