"""mop_ffn(experts=...): a subset, in any order; the others get zero gradients."""

import contextlib
import subprocess
import sys

import pytest
import torch
from errors import raises
from judging import assert_same, call_bank, check_bank
from layouts import SHARINGS
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from mop_kernels import testing
from mop_kernels.experts import expert_rows
from mop_kernels.testing import Bank, Shape

BANK = Bank(2, 5, Shape(6, 4, 4, 4, 6, 4, 1), Shape(6, 2, 2, 2, 8, 9, 2))
SUBSETS = ([3], [4, 0], [2, 0, 4, 1], [4, 3, 2, 1, 0])


@pytest.mark.parametrize("chosen", SUBSETS)
@pytest.mark.parametrize("sharing", SHARINGS)
def test_values_and_gradients(sharing, chosen, backend):
    tensors = testing.mop_inputs(BANK, torch.float32, sharing=SHARINGS[sharing])
    check_bank(tensors, backend, experts=torch.tensor(chosen))


@pytest.mark.parametrize("chosen", SUBSETS)
def test_dtypes_and_full_rule(chosen, dtype, backend):
    check_bank(testing.mop_inputs(BANK, dtype), backend, experts=torch.tensor(chosen))
    check_bank(testing.mop_inputs(BANK, dtype, full_rule=True), backend, experts=torch.tensor(chosen))


@pytest.mark.parametrize("sharing", ["mop", "no_both", "x_per_pair"])
def test_the_others_get_zero_gradients(sharing, backend):
    tensors = testing.mop_inputs(BANK, torch.float32, sharing=SHARINGS[sharing])
    experts = torch.tensor([3, 1])
    grads = [torch.randn(2, 2, 6, 18) for _ in range(2)]
    _, gradients = testing.value_and_gradients(
        lambda *t: call_bank(t, experts=experts, backend=backend), tensors, grads
    )
    per_expert = [g for g in gradients if g.shape[1] == 5]
    assert per_expert
    for gradient in per_expert:
        assert torch.equal(gradient[:, [0, 2, 4]], torch.zeros_like(gradient[:, [0, 2, 4]]))
        assert gradient[:, [1, 3]].any()


def test_a_subset_gives_the_bits_of_the_whole(backend):
    tensors = testing.mop_inputs(BANK, torch.float32)
    chosen = torch.tensor([4, 0, 2])
    for whole, part in zip(
        call_bank(tensors, backend=backend), call_bank(tensors, experts=chosen, backend=backend), strict=True
    ):
        torch.testing.assert_close(part, whole[:, chosen], rtol=1e-5, atol=1e-5)
        if backend != "reference":  # a batched matrix product may differ with the size of its batch
            assert_same(part, whole[:, chosen], backend)


STOPPED = """
import sys
import torch
from mop_kernels import testing
from mop_kernels.testing import Bank, Shape

direction, *chosen = sys.argv[1:]
bank = Bank(2, 5, Shape(6, 4, 4, 4, 6, 4, 1), Shape(6, 2, 2, 2, 8, 9, 2))
with testing.device_of("cuda"):
    x, *factors = testing.mop_inputs(bank, torch.float32)
    arguments = (x, factors[:4], factors[4:], 2, "relu", torch.tensor([int(k) for k in chosen]))
    if direction == "forward":
        torch.ops.mop_kernels.mop_ffn_cuda(*arguments)
    else:
        grads = [torch.ones(2, len(chosen), 6, 18)] * 2
        torch.ops.mop_kernels.mop_ffn_backward_cuda(grads, *arguments, 2**13 - 1)
    if x.is_cuda:
        torch.cuda.synchronize()
"""


@pytest.mark.parametrize(
    ("direction", "chosen", "message"),
    [
        ("forward", [5], "experts must lie in 0..num_experts - 1"),
        ("backward", [-1], "experts must lie in 0..num_experts - 1"),
        ("forward", [-1], "experts must lie in 0..num_experts - 1"),
        ("backward", [2, 0, 2], "experts must be distinct"),
    ],
)
def test_the_kernel_stops_at_experts_that_the_host_cannot_read(direction, chosen, message, backend):
    """Memory of other tensors would be read, and written with gradients. In a process that may die."""
    if backend != "cuda":
        pytest.skip("of the CUDA kernels")
    command = [sys.executable, "-c", STOPPED, direction, *map(str, chosen)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr


def test_an_expanded_or_strided_index(backend):
    tensors = testing.mop_inputs(BANK, torch.float32)
    strided = torch.tensor([4, 9, 0, 9, 2, 9])[::2]
    for a, b in zip(
        call_bank(tensors, experts=strided, backend=backend),
        call_bank(tensors, experts=strided.clone(), backend=backend),
    ):
        assert torch.equal(a, b)


def test_no_expert(backend):
    tensors = testing.mop_inputs(BANK, torch.float32)
    none = torch.tensor([], dtype=torch.int64)
    outputs, gradients = testing.value_and_gradients(
        lambda *t: call_bank(t, experts=none, backend=backend), tensors, [torch.empty(2, 0, 6, 18)] * 2
    )
    assert [y.shape for y in outputs] == [(2, 0, 6, 18)] * 2
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


def test_one_expert_of_one(backend):
    tensors = testing.mop_inputs(BANK._replace(experts=1), torch.float32)
    check_bank(tensors, backend, experts=torch.tensor([0]))


def rows_and_dense(tensors, chosen, backend, around=contextlib.nullcontext):
    """Return outputs and gradients, first with row_gradients=True, then without."""
    experts = torch.tensor(chosen, dtype=torch.int64)
    results = []
    for row_gradients in (True, False):

        def function(*tensors, row_gradients=row_gradients):
            with around():
                return call_bank(tensors, experts=experts, row_gradients=row_gradients, backend=backend)

        shapes = function(*tensors)
        g = torch.Generator().manual_seed(3)
        grads = [testing.normal(g, y.dtype, *y.shape) for y in shapes]
        results.append(testing.value_and_gradients(function, tensors, grads))
    return results


def assert_rows_of(results, chosen, backend, num_experts=5):
    """Assert equal outputs, and sparse gradients that are the rows of the dense gradients, bit for bit."""
    (rows_y, rows), (dense_y, dense) = results
    for a, b in zip(dense_y, rows_y, strict=True):
        assert_same(a, b, backend)
    for d, r in zip(dense, rows, strict=True):
        if d is None:
            assert r is None
            continue
        assert r.is_sparse == (d.shape[1] == num_experts > 1)
        assert (r.shape, r.dtype) == (d.shape, d.dtype)
        if r.is_sparse:
            assert r._nnz() == d.shape[0] * len(chosen), "only the asked rows are stored"
            r = r.to_dense()
        assert_same(r, d, backend)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_row_gradients_are_the_dense_ones(sharing, backend):
    tensors = testing.mop_inputs(BANK, torch.float32, sharing=SHARINGS[sharing])
    assert_rows_of(rows_and_dense(tensors, [3, 1], backend), [3, 1], backend)


@pytest.mark.parametrize("full_rule", [False, True])
def test_row_gradients_of_every_dtype(dtype, full_rule, backend):
    tensors = testing.mop_inputs(BANK, dtype, full_rule=full_rule)
    assert_rows_of(rows_and_dense(tensors, [4, 0, 2], backend), [4, 0, 2], backend)


@pytest.mark.parametrize(("chosen", "num_experts"), [([], 5), ([0], 5), ([0], 1)])
def test_row_gradients_of_no_expert_and_of_a_single_one(chosen, num_experts, backend):
    tensors = testing.mop_inputs(BANK._replace(experts=num_experts), torch.float32)
    assert_rows_of(rows_and_dense(tensors, chosen, backend), chosen, backend, num_experts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row_gradients_under_autocast(dtype, backend):
    tensors = testing.mop_inputs(BANK, dtype)
    device = testing.device_of(backend).type
    results = rows_and_dense(tensors, [3, 1], backend, lambda: torch.autocast(device, torch.bfloat16))
    assert results[0][0][0].dtype == (torch.bfloat16 if dtype == torch.float32 else dtype)
    assert_rows_of(results, [3, 1], backend)


class Casts(TorchDispatchMode):
    """Count the numbers that are cast to bfloat16."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and result.dtype == torch.bfloat16:
            self.numbers += result.numel()
        return result


def test_autocast_casts_the_asked_rows_only():
    tensors = testing.mop_inputs(BANK, torch.float32)
    expected = sum(t.numel() // 5 * 2 if t.shape[1] == 5 else t.numel() for t in tensors if t is not None)
    with Casts() as casts, torch.autocast("cpu"):
        call_bank(tensors, experts=torch.tensor([3, 1]), row_gradients=True, backend="reference")
    assert casts.numbers == expected


def test_row_gradients_of_a_cast_call_have_the_errors_of_any_other():
    x, *factors = testing.mop_inputs(BANK, torch.float32)
    wrong = [x, factors[0], factors[1], factors[2][:, :4], *factors[3:]]
    with raises(ValueError, "1", "down.local", "experts", "5", "(2, 4, 4, 6, 4)"), torch.autocast("cpu"):
        call_bank(wrong, experts=torch.tensor([3, 1]), row_gradients=True)
    mixed = [x, factors[0].double(), *factors[1:]]
    with raises(TypeError, "x", "torch.bfloat16", "down.rule_in", "torch.float64"), torch.autocast("cpu"):
        call_bank(mixed, experts=torch.tensor([3, 1]), row_gradients=True)
    with raises(ValueError, "experts", "0..4", "5"), torch.autocast("cpu"):
        call_bank([x, *factors], experts=torch.tensor([5]), row_gradients=True)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_row_gradients_under_compile(compiler, backend):
    """Compile once for all numbers of experts above one, without a graph break."""
    torch._dynamo.reset()
    leaves = [None if t is None else torch.nn.Parameter(t) for t in testing.mop_inputs(BANK, torch.float32)]
    asked = [t for t in leaves if t is not None]
    counter = CompileCounterWithBackend(compiler)

    def step(experts):
        outputs = call_bank(leaves, experts=experts, row_gradients=True, backend=backend)
        return sum(y.float().square().sum() for y in outputs)

    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for chosen in ([0, 2, 4], [3, 1], [4, 3, 2, 1, 0]):
        experts = torch.tensor(chosen)
        torch._dynamo.mark_dynamic(experts, 0)
        found, expected = (torch.autograd.grad(f(experts), asked) for f in (compiled, step))
        for a, b in zip(found, expected, strict=True):
            assert a.layout == b.layout
            torch.testing.assert_close(a.to_dense(), b.to_dense(), rtol=1e-5, atol=1e-5)
            assert not a.is_sparse or a._nnz() == a.shape[0] * len(chosen)
    assert counter.frame_count == 1
    torch._dynamo.reset()


def test_row_gradients_under_compile_and_autocast():
    torch._dynamo.reset()
    tensors, experts = testing.mop_inputs(BANK, torch.float32), torch.tensor([3, 1])
    leaves = [None if t is None else t.requires_grad_() for t in tensors]

    def step():
        with torch.autocast("cpu"):
            return call_bank(leaves, experts=experts, row_gradients=True)[0].float().square().sum()

    local = leaves[3]
    (found,) = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(), [local])
    (expected,) = torch.autograd.grad(step(), [local])
    assert found.is_sparse
    assert (found.dtype, local.shape[1]) == (torch.float32, 5)
    assert torch.equal(found.to_dense(), expected.to_dense())
    torch._dynamo.reset()


def test_row_gradients_add_up(backend):
    """Accumulate over two backward passes, over two calls of one pass, and onto a dense gradient."""
    tensors = testing.mop_inputs(BANK, torch.float32)

    def gradient(row_gradients, passes, start=None):
        leaves = [None if t is None else t.detach().requires_grad_() for t in tensors]
        leaves[3].grad = start
        for calls in passes:
            losses = []
            for chosen in calls:
                y = call_bank(leaves, experts=torch.tensor(chosen), row_gradients=row_gradients, backend=backend)
                losses.append(y[0].square().sum())
            sum(losses).backward()
        return leaves[3].grad

    for passes in ([[[3, 1]], [[1, 0]]], [[[3, 1], [1, 0]]]):
        found, expected = gradient(True, passes), gradient(False, passes)
        assert found.is_sparse
        torch.testing.assert_close(found.to_dense(), expected, rtol=1e-5, atol=1e-5)
        start = torch.ones_like(tensors[3])
        found, expected = gradient(True, passes, start.clone()), gradient(False, passes, start.clone())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
def test_row_gradients_train_with_sparse_adam(autocast):
    tensors = [None if t is None else t.requires_grad_() for t in testing.mop_inputs(BANK, torch.float32)]
    own = [t for t in tensors if t is not None and t.shape[1] == 5]
    before = [t.detach().clone() for t in own]
    optimizer = torch.optim.SparseAdam(own)
    with torch.autocast("cpu", enabled=autocast):
        outputs = call_bank(tensors, experts=torch.tensor([2]), row_gradients=True)
    sum(y.float().square().sum() for y in outputs).backward()
    optimizer.step()
    for old, new in zip(before, own, strict=True):
        assert torch.equal(old[:, [0, 1, 3, 4]], new[:, [0, 1, 3, 4]])
        assert not torch.equal(old[:, 2], new[:, 2])


@pytest.mark.parametrize("sharing", ["mop", "x_per_expert", "no_both", "only_x_per_pair"])
@pytest.mark.parametrize("num_experts", [1, 5])
def test_no_expert_has_zero_gradients(num_experts, sharing, backend):
    bank = BANK._replace(experts=num_experts)
    tensors = testing.mop_inputs(bank, torch.float32, sharing=SHARINGS[sharing])
    grads = [torch.zeros(bank.layers, 0, bank.down.rows, bank.up.d_out)] * bank.maps
    none = torch.tensor([], dtype=torch.int64)
    _, gradients = testing.value_and_gradients(lambda *t: call_bank(t, experts=none, backend=backend), tensors, grads)
    for tensor, gradient in zip(tensors, gradients, strict=True):
        assert gradient.shape == tensor.shape
        assert not gradient.any()


def test_higher_derivatives_of_row_gradients_are_the_dense_ones(backend):
    tensors = testing.mop_inputs(BANK, torch.float32)

    def second(row_gradients):
        leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
        own = [leaves[k] for k in (1, 3, 7)]
        y = call_bank(
            leaves, experts=torch.tensor([2]), row_gradients=row_gradients, activation="tanh", backend=backend
        )[0]
        first = torch.autograd.grad(y.square().sum(), own, create_graph=True)
        assert all(g.is_sparse == row_gradients for g in first)
        total = sum(g.to_dense().square().sum() for g in first)
        second = torch.autograd.grad(total, [*own, leaves[0]], create_graph=True)
        third = torch.autograd.grad(sum(g.to_dense().square().sum() for g in second), [*own, leaves[0]])
        return [g.to_dense() if g.is_sparse else g for g in (*second, *third)]

    for found, expected in zip(second(True), second(False), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "forward mode"])
def test_row_gradients_and_transforms_do_not_meet(transform):
    tensors = testing.mop_inputs(BANK, torch.float32)

    def function(local):
        return call_bank([*tensors[:3], local, *tensors[4:]], experts=torch.tensor([2]), row_gradients=True)[0].sum()

    def forward_mode():
        with torch.autograd.forward_ad.dual_level():
            function(torch.autograd.forward_ad.make_dual(tensors[3], torch.ones_like(tensors[3])))

    transforms = {
        "grad": lambda: torch.func.grad(function)(tensors[3]),
        "vmap": lambda: torch.vmap(function)(tensors[3][None]),
        "jvp": lambda: torch.func.jvp(function, (tensors[3],), (tensors[3],)),
        "forward mode": forward_mode,
    }
    with raises(RuntimeError, "row_gradients=False"):
        transforms[transform]()


@pytest.mark.parametrize("chosen", [[3, 1], []])
def test_opcheck_of_expert_rows(chosen, dtype):
    tensor = torch.randn(2, 5, 3, 4).to(dtype).requires_grad_()
    torch.library.opcheck(expert_rows, (tensor, torch.tensor(chosen, dtype=torch.int64)))


def test_the_second_derivative_of_expert_rows():
    """Differentiate twice: the backward of the op consists of operations that autograd knows."""
    tensor = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    rows = expert_rows(tensor, torch.tensor([3, 1]))
    (gradient,) = torch.autograd.grad(rows.pow(3).sum(), tensor, create_graph=True)
    (second,) = torch.autograd.grad(gradient.to_dense().square().sum(), tensor)
    expected = torch.zeros_like(tensor)
    expected[:, [3, 1]] = 36 * rows.detach() ** 3
    torch.testing.assert_close(second.to_dense(), expected)
