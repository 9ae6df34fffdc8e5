"""What notes of a call hold, and calls that they cannot repeat (triton_kernels/notes.py, replay.py)."""

import math
from types import SimpleNamespace

import pytest
import torch
from launches import SMALL, TINY, bank, call_often, check_call, programs

from mop_kernels import testing
from mop_kernels.triton_kernels import notes, replay


def test_known_launchers():
    class Known:
        def __call__(self, gridX, gridY, gridZ, stream, function, *args): ...

    class Other:
        def __call__(self, grid, stream, function, *args): ...

    known, other = (SimpleNamespace(run=run(), function=None, packed_metadata=None) for run in (Known, Other))
    assert notes.is_known(known)
    assert not notes.is_known(other)
    assert not notes.is_known(SimpleNamespace(run=Known()))


def test_numbers_are_not_computed_with():
    """A function that did would freeze the float of its first calls."""
    number = notes.Number(2.0, 0)
    for compute in (lambda: 1 + number, lambda: number / 2, lambda: -number, lambda: 2 * number):
        with pytest.raises(TypeError):
            compute()


def test_a_function_that_computes_with_its_float(stub):
    """It is called as it is written, each time with its own float, unless the float belongs to the kind of the call."""
    x = torch.arange(4.0)
    for compute in (lambda x, scale: x * scale, lambda x, scale: x.new_full((4,), math.exp(scale))):
        operation, of_kinds = replay.Replayed(compute, any_floats=True), replay.Replayed(compute)
        for scale in (2.0, 3.0, 0.5, 2.0, 2.0, 3.0):
            assert torch.equal(operation(x, scale), compute(x, scale))
            assert torch.equal(of_kinds(x, scale), compute(x, scale))
        assert list(operation.programs.values()) == ["not repeatable"]
        assert len(of_kinds.programs) == 3


def test_calls_of_torch_are_repeated(stub):
    """Views, copies, results that are written into, and what is changed in place, on the tensors of each call."""

    def function(grad, x, weights):
        flat = grad.reshape(-1, grad.shape[-1])
        y = x.new_empty(x.shape[0], weights[0].shape[1])
        torch.mm(x, weights[0], out=y)
        unused = torch.empty_like(x)
        total = torch.zeros_like(y).add_(y).add_(1.0)
        halves = torch.cat([y, unused.zero_()], 1).chunk(2, 1)
        columns = y.view(x.shape[0], 2, -1).transpose(0, 1)
        return [columns.contiguous(), flat.T.sum(0), total, halves[0].to(x.dtype) * 1, torch.bmm(columns, weights[1])]

    operation = replay.Replayed(function)
    for seed in range(5):
        g = torch.Generator().manual_seed(seed)
        grad, x, first = (torch.randn(*size, generator=g) for size in ((3, 2, 4), (6, 4), (4, 4)))
        second = torch.randn(2, 2, 3, generator=g)
        for gradient in (grad, grad[:1, :1].expand(3, 2, 4)):
            expected = function(gradient, x, [first, second])
            for found, want in zip(operation(gradient, x, [first, second]), expected, strict=True):
                assert torch.equal(found, want)
                assert found.stride() == want.stride()
    assert all(type(program) is replay.Program for program in operation.programs.values())


def test_the_bank_repeats_launches_only(stub):
    """Every tensor that only kernels see is scratch; views and copies of torch cost a call microseconds."""
    case = bank(SMALL)
    outputs = call_often("mop_ffn", case.forward)
    call_often("mop_ffn_backward", case.backward(outputs))
    for name, count in (("mop_ffn", len(outputs)), ("mop_ffn_backward", len(case.inputs))):
        (program,) = programs(name)
        assert all(type(planned.step) is notes.Launched for planned in program.plan)
        assert len(program.buffers) == count


def test_whose_memory_a_tensor_looks_at():
    """Kernels receive addresses: behind the start of another tensor, or of memory of its own."""
    grad = torch.ones(2, 1, 4).expand(2, 3, 4)
    with notes.Notes([grad], has_floats=False) as found:
        copied, row = grad.reshape(6, 4), grad[1]
        part = grad.new_empty(4, 4)[1:3]
        part.fill_(2.0)
    names = {id(t): k for k, t in enumerate(found.tensors)}
    assert found.roots[names[id(copied)]] != 0
    assert found._pointer(copied).offset == 0
    assert found.roots[names[id(row)]] == 0
    assert found._pointer(row) == (0, 16)
    (made,) = found.allocations
    assert found._pointer(part) == (made, 16)
    (buffer,) = replay.Program(found, [part]).buffers
    assert buffer[2] == (4, 4), "all of it, for kernels that write beside the part"


def test_numbers_of_a_tensor_cannot_be_repeated(stub):
    operation = replay.Replayed(lambda x: x * x.sum().item())
    for value in (1.0, 2.0, 3.0, 4.0):
        x = torch.full((2,), value)
        assert torch.equal(operation(x), torch.full((2,), 2 * value**2))


def test_many_sizes_are_forgotten(stub, monkeypatch):
    monkeypatch.setattr(replay, "MOST_PROGRAMS", 3)
    for terms in range(1, 9):
        check_call(stub, "phm_weight", tuple(testing.linear_inputs(TINY._replace(terms=terms), torch.float32)[1:3]))
        assert len(programs("phm_weight")) <= 3
