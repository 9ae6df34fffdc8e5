"""Triton's device functions: none returns None, and ids that the host cannot read are asserted on the device.

The kernels are called below the public functions, which read the ids of CPU tensors themselves.
"""

import ast
import inspect
import textwrap
from functools import cache

import pytest
import torch
from errors import raises

from mop_kernels import backends, ops, testing
from mop_kernels.testing import ATTENTIONS, PROMPTS, Bank, Shape

InterpreterError = pytest.importorskip("triton").runtime.errors.InterpreterError

pytestmark = pytest.mark.skipif(
    not backends.interpreting(), reason="needs TRITON_INTERPRET=1: a device cannot be asked"
)

BANK = Bank(1, 3, Shape(3, 2, 2, 2, 3, 2, 1), Shape(3, 2, 2, 2, 2, 3, 1))


def forward_and_backward(tensors, experts=None, mask=None):
    """Return outputs and gradients; mask: bits of the gradients that are asked for, all by default."""
    x, down, ups = testing.as_mop_arguments(tensors)
    present = [[t for t in phm if t is not None] for phm in (down, *ups)]
    arguments = x, present[0], [t for up in present[1:] for t in up], len(ups), "relu", experts
    outputs = ops.get("mop_ffn", "triton")(*arguments)
    everything = (1 << sum(map(len, present), 1)) - 1
    grads = [torch.ones_like(y) for y in outputs]
    return outputs, ops.get("mop_ffn_backward", "triton")(
        grads, *arguments, everything if mask is None else mask & everything
    )


@pytest.mark.parametrize("mask", [-1, 0b0_0010_0011, 0b0_1000_1000, 0b1_0100_0100])
@pytest.mark.parametrize("bias", [True, False])
def test_no_device_function_returns_none(bias, mask, monkeypatch):
    """Triton 3.6 cannot call one that does; later releases and the interpreter can."""
    from mop_kernels.triton_kernels.device_functions import select

    interpreted = type(select)
    call, called = interpreted.__call__, set()

    @cache
    def returns_something(function):
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        return any(isinstance(node, ast.Return) and node.value is not None for node in ast.walk(tree))

    def checked(self, *args, **kwargs):
        result = call(self, *args, **kwargs)
        if returns_something(self.fn):
            called.add(self.fn.__name__)
            parts = result if isinstance(result, tuple) else (result,)
            assert all(part is not None for part in parts), self.fn.__name__
        return result

    monkeypatch.setattr(interpreted, "__call__", checked)
    forward_and_backward(testing.mop_inputs(BANK._replace(experts=1), torch.float32, bias=bias), mask=mask)
    assert {"select", "of_pair", "group_of", "hidden_before_activation"} <= called


@pytest.mark.parametrize("chosen", [[3], [0, 7], [-1], [2, -5]])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_experts_out_of_range(chosen, direction):
    tensors, experts = testing.mop_inputs(BANK, torch.float32), torch.tensor(chosen)
    call = forward_and_backward if direction == "forward" else backward_alone
    with raises(InterpreterError, "experts", "0..E-1"):
        call(tensors, experts)


def backward_alone(tensors, experts):
    x, down, ups = testing.as_mop_arguments(tensors)
    grads = [torch.ones(BANK.layers, len(experts), 3, BANK.up.d_out) for _ in ups]
    arguments = x, list(down), [t for up in ups for t in up], len(ups), "relu", experts, (1 << len(tensors)) - 1
    return ops.get("mop_ffn_backward", "triton")(grads, *arguments)


@pytest.mark.parametrize("chosen", [[2, 2], [0, 2, 1, 0]])
def test_experts_asked_for_twice(chosen):
    """Forward computes them twice; backward would write one gradient from two programs."""
    tensors, experts = testing.mop_inputs(BANK, torch.float32), torch.tensor(chosen)
    with raises(InterpreterError, "experts", "distinct"):
        forward_and_backward(tensors, experts)
    with torch.no_grad():
        x, down, ups = testing.as_mop_arguments(tensors)
        ups = [t for up in ups for t in up]
        outputs = ops.get("mop_ffn", "triton")(x, list(down), ups, 2, "relu", experts)
    assert all(torch.equal(y[:, 0], y[:, -1]) for y in outputs)


def test_many_distinct_experts():
    """More ids than a block of the comparison holds, the last two of them equal only in the second call."""
    bank = BANK._replace(layers=1, experts=300, down=Shape(1, 1, 1, 1, 1, 1, 1), up=Shape(1, 1, 1, 1, 1, 1, 1), maps=1)
    tensors = testing.mop_inputs(bank, torch.float32)
    from mop_kernels.triton_kernels.mop_ffn_backward import Partial, totals

    experts = torch.arange(300)
    partials = [Partial(tensors[3], (1, 300), 1, (experts, 300))]
    partials[0].tensor.fill_(1.0)
    totals(partials, (experts, 300))
    experts[299] = experts[298]
    with raises(InterpreterError, "experts", "distinct"):
        totals(partials, (experts, 300))


@pytest.mark.parametrize("task", [-1, 4])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_task_ids_out_of_range(task, direction):
    (x, source, target, *factors), options = testing.prompt_inputs(PROMPTS["odd"], torch.float32)
    assert target.shape[0] == 4
    task_ids, temperature = options["task_ids"], options["temperature"]
    saved = ops.get("attempt_mix", "triton")(x, options["mask"], source, target, task_ids, *factors, temperature)
    task_ids = task_ids.clone()
    task_ids[3] = task
    call, first, last = ops.get("attempt_mix", "triton"), (x, options["mask"]), ()
    if direction == "backward":
        call, first, last = (
            ops.get("attempt_mix_backward", "triton"),
            (*map(torch.ones_like, saved[:2]), *saved[2:]),
            (127,),
        )
    with raises(InterpreterError, "task_ids", "0..tasks-1"):
        call(*first, source, target, task_ids, *factors, temperature, *last)


@pytest.mark.parametrize("row", [-1, 2])
@pytest.mark.parametrize("needs", [None, 0b00001, 0b01000, 0b10000], ids=["forward", "query", "keys", "values"])
def test_prefix_rows_out_of_range(row, needs):
    (*tensors, bias), options = testing.attention_inputs(ATTENTIONS["odd"], torch.float32)
    query, key, value = (t.transpose(1, 2).contiguous() for t in tensors[:3])
    rows = options["rows"].clone()
    arguments = query, key, value, *tensors[3:], rows, bias, options["key_mask"], None
    out, lse = ops.get("prefix_attention", "triton")(*arguments, False, 1.0, 0.0)
    rows[1] = row
    call, first, last = ops.get("prefix_attention", "triton"), (), ()
    if needs is not None:
        call, first, last = ops.get("prefix_attention_backward", "triton"), (out,), (needs,)
        arguments = *arguments, lse
    with pytest.raises(InterpreterError, match=r"rows must lie in 0\.\.r-1"):
        call(*first, *arguments, False, 1.0, 0.0, *last)
