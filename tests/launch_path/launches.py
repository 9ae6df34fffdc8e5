"""Calls of the operations of backend "triton" on a few numbers, and what the driver must receive from them."""

import sys
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from benchmarks.support.work import Work
from mop_kernels import testing
from mop_kernels.testing import ATTENTIONS, PROMPTS, Bank, Shape

FLOAT, HALF = torch.float32, torch.bfloat16
TINY = Shape(3, 2, 2, 2, 4, 4, 1)
CALLS = 3  # as written, noted, and from the notes


def implementation(name: str):
    from mop_kernels.triton_kernels import IMPLEMENTATIONS

    return IMPLEMENTATIONS[name]


def module(name: str):
    return sys.modules[f"mop_kernels.triton_kernels.{name}"]


class Case(NamedTuple):
    """One operation, forward and backward, on a few numbers."""

    op: str
    inputs: list
    forward: tuple
    local_first: bool | None = None  # of the linear operations: which of their two ways is taken
    mask: int = -1  # of the gradients
    work: Work | None = None  # of an operation of a T5's step

    def backward(self, outputs: list[Tensor]) -> tuple:
        if self.work is not None:
            return self.work.backward_arguments(self.inputs, outputs)
        mask = self.mask & ((1 << len(self.inputs)) - 1)
        if self.op == "mop_ffn":
            return [torch.ones_like(y) for y in outputs], *self.forward, mask
        if self.op == "attempt_mix":
            return *map(torch.ones_like, outputs[:2]), *outputs[2:], *self.forward[2:], mask
        read = self.forward if self.op == "phm_weight" else self.forward[:-1]
        return torch.ones_like(outputs[0]), *read, mask


def bank(bank: Bank, dtype=FLOAT, *, bias=True, experts=None, mask=-1) -> Case:
    tensors = [t for t in testing.mop_inputs(bank, dtype, bias=bias) if t is not None]
    x, *factors = tensors
    width = 4 if bias else 3
    return Case("mop_ffn", tensors, (x, factors[:width], factors[width:], bank.maps, "relu", experts), mask=mask)


def prompts(name: str, *, masked: bool) -> Case:
    tensors, options = testing.prompt_inputs(PROMPTS[name], FLOAT)
    x, source, target, *factors = tensors
    mask = options["mask"] if masked else None
    forward = (x, mask, source, target, options["task_ids"], *factors, options["temperature"])
    return Case("attempt_mix", tensors, forward)


def linear(dtype, *, bias: bool, local_first: bool) -> Case:
    tensors = testing.linear_inputs(TINY, dtype, bias=bias)
    return Case("phm_linear", [t for t in tensors if t is not None], tuple(tensors), local_first)


def low_rank(dtype, *, bias: bool, local_first: bool) -> Case:
    tensors = testing.lowrank_inputs(TINY, dtype, bias=bias)
    return Case("lowrank_phm_linear", [t for t in tensors if t is not None], tuple(tensors), local_first)


def step(op: str, shape, dtype=FLOAT) -> Case:
    work = Work(op, "few numbers", shape)
    tensors = work.inputs(dtype)
    return Case(op, tensors, work.forward_arguments(tensors), work=work)


SMALL = Bank(2, 2, Shape(3, 2, 2, 2, 4, 4, 1), Shape(3, 2, 2, 2, 4, 4, 1), maps=2)
CASES = {
    "mop_ffn": lambda: bank(SMALL),
    "mop_ffn bfloat16, no bias": lambda: bank(SMALL, HALF, bias=False),
    "mop_ffn of one expert, some gradients": lambda: bank(SMALL, experts=torch.tensor([1]), mask=0b0110010110110),
    "mop_ffn, only biases": lambda: bank(SMALL, mask=1 << 8 | 1 << 12),
    "mop_ffn, hidden rows too wide": lambda: bank(Bank(1, 1, TINY._replace(loc_out=1024), TINY._replace(loc_in=1024))),
    "phm_weight": lambda: Case("phm_weight", *[testing.linear_inputs(TINY, FLOAT)[1:3]] * 2),
    "phm_linear, local first": lambda: linear(FLOAT, bias=True, local_first=True),
    "phm_linear, weight once": lambda: linear(HALF, bias=False, local_first=False),
    "lowrank_phm_linear, local first": lambda: low_rank(HALF, bias=False, local_first=True),
    "lowrank_phm_linear, three stages": lambda: low_rank(FLOAT, bias=True, local_first=False),
    "attempt_mix": lambda: prompts("odd", masked=True),
    "attempt_mix without mask": lambda: prompts("one", masked=False),
    "prefix_attention": lambda: step("prefix_attention", ATTENTIONS["odd"]),
    "prefix_attention bfloat16, no prefix": lambda: step("prefix_attention", ATTENTIONS["no_prefix"], HALF),
    "rms_norm": lambda: step("rms_norm", (5, 20)),
    "rms_norm, rows too wide": lambda: step("rms_norm", (2, 8193)),
    "dropout_add": lambda: step("dropout_add", (5, 20)),
    "relu_dropout bfloat16": lambda: step("relu_dropout", (5, 20), HALF),
    "gated_gelu_dropout": lambda: step("gated_gelu_dropout", (5, 20)),
}


def as_list(results) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def tensors_in(args) -> list[Tensor]:
    if isinstance(args, Tensor):
        return [args]
    return [t for value in args for t in tensors_in(value)] if isinstance(args, (list, tuple)) else []


def parameters_of(launch) -> list:
    """Return what a kernel receives: no None, no constexpr, and no 1, which Triton compiles in where it specialises."""
    flat = []

    def add(value, specialised: bool) -> None:
        if isinstance(value, tuple):
            for v in value:
                add(v, specialised)
        elif value is not None and not (specialised and isinstance(value, int) and value == 1):
            flat.append(value)

    for parameter, value in zip(launch.kernel.params, launch.arguments):
        add(value, not parameter.do_not_specialize)
    return flat


class Memory:
    """Which address of this run stands for a tensor of the recorded run: the same one in all launches."""

    def __init__(self, recorded: list[Tensor], real: list[Tensor]):
        self.known = [(a, b.data_ptr()) for a, b in zip(recorded, real, strict=True)]

    def check(self, tensor: Tensor, address: int) -> None:
        if tensor.numel() == 0:
            return
        storage = tensor.untyped_storage().data_ptr()
        offset = tensor.data_ptr() - storage
        for other, there in self.known:
            if other.numel() and other.untyped_storage().data_ptr() == storage:
                assert address - offset == there - (other.data_ptr() - storage)
                return
        self.known.append((tensor, address))


def check_launches(expected: list, found: list, memory: Memory, stream: int = 0, device: int = 0) -> None:
    assert [launch.kernel.fn.__name__ for launch in expected] == [launch.name for launch in found]
    for want, got in zip(expected, found):
        assert got.grid == (*want.grid, 1, 1)[:3]
        assert got.threads == 32 * want.meta["num_warps"]
        assert got.shared <= got.allowed_shared, "the driver was not asked for more than 48 KB"
        assert (got.stream, got.context_device, got.function_device) == (stream, device, device)
        *given, scratch, profile = got.parameters
        assert scratch.integer == profile.integer == 0
        values = parameters_of(want)
        assert len(values) == len(given), (got.name, values)
        spans = []
        for value, parameter in zip(values, given):
            if isinstance(value, Tensor):
                assert len(parameter.raw) == 8
                memory.check(value, parameter.integer)
                spans.append((parameter.integer, parameter.integer + value.nbytes, value.untyped_storage().data_ptr()))
            elif isinstance(value, float):
                assert parameter.float32 == pytest.approx(value, rel=1e-6)
            else:
                assert parameter.integer == value
        for first, end, storage in spans:  # buffers of one launch lie apart
            for other_first, other_end, other in spans:
                assert storage == other or end <= other_first or other_end <= first, got.name


def check_call(stub, name: str, args: tuple, calls: int = CALLS) -> list[Tensor]:
    """Call an operation of the backend several times; each time the driver receives what it would record."""
    from mop_kernels.triton_kernels.launch import recording
    from mop_kernels.triton_kernels.replay import Program

    operation = implementation(name)
    stub.taken()
    with recording() as expected:
        recorded = as_list(operation(*args))
    for _ in range(calls):
        results = as_list(operation(*args))
        assert [(t.shape, t.dtype) for t in results] == [(t.shape, t.dtype) for t in recorded]
        assert all(t.is_contiguous() for t in results)
        given = tensors_in(args)
        check_launches(expected, stub.taken(), Memory([*given, *recorded], [*given, *results]))
    if calls == CALLS:
        assert all(type(program) is Program for program in operation.programs.values()), "not repeated from notes"
    return results


def programs(name: str) -> list:
    """Return the programs of an operation, or what stands in their place."""
    return list(implementation(name).programs.values())


def call_often(name: str, args: tuple, times: int = CALLS):
    """Call an operation of the backend several times. Return the last results."""
    for _ in range(times):
        results = implementation(name)(*args)
    return results
