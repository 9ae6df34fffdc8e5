"""Every operation with small inputs, beside the same function in plain PyTorch: what derivatives are compared with."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from test_mop_ffn import call
from torch import Tensor

import mop_kernels as mk
from mop_kernels import reference, testing
from mop_kernels.testing import Bank, PromptShape, Shape

SMALL = Shape(3, 2, 2, 3, 3, 2, 2)
BANK = Bank(2, 2, Shape(3, 2, 2, 2, 3, 2, 2), Shape(3, 1, 2, 3, 2, 2, 1), maps=2)
PROMPTS = PromptShape(3, 4, 4, 2, 2, 3, 3)


class Operation(NamedTuple):
    function: Callable  # function(*tensors, backend=...) -> a tensor or a tuple
    plain: Callable  # plain(*tensors)
    inputs: Callable  # inputs(dtype) -> tensors, floating-point all


def _mop_ffn(activation: str, experts: list[int] | None = None) -> Operation:
    def ids():
        return None if experts is None else torch.tensor(experts)

    def function(*tensors, backend):
        return call(tensors, activation=activation, experts=ids(), backend=backend)

    def plain(*tensors):
        x, down, ups = testing.as_mop_arguments(tensors)
        return testing.kron_mop_ffn(x, down, ups, activation, ids())

    return Operation(function, plain, lambda dtype: testing.mop_inputs(BANK, dtype))


def _attempt_mix() -> Operation:
    _, options = testing.prompt_inputs(PROMPTS, torch.float64)

    def here(tensors):
        return {k: v.to(tensors[0].device) if isinstance(v, Tensor) else v for k, v in options.items()}

    def function(*tensors, backend):
        x, *factors = tensors
        given = here(tensors)
        mask, task_ids, temperature = given["mask"], given["task_ids"], given["temperature"]
        return mk.attempt_mix(x, mask, *factors[:2], task_ids, *factors[2:], temperature, backend=backend)

    def plain(*tensors):
        x, *factors = tensors
        given = here(tensors)
        return reference.attempt_mix(
            x, given["mask"], *factors[:2], given["task_ids"], *factors[2:], temperature=given["temperature"]
        )

    return Operation(function, plain, lambda dtype: testing.prompt_inputs(PROMPTS, dtype)[0])


OPERATIONS = {
    "phm_weight": Operation(mk.phm_weight, testing.kron_weight, lambda dtype: testing.linear_inputs(SMALL, dtype)[1:3]),
    "phm_linear": Operation(mk.phm_linear, testing.kron_linear, lambda dtype: testing.linear_inputs(SMALL, dtype)),
    "lowrank_phm_linear": Operation(
        mk.lowrank_phm_linear, testing.kron_lowrank_linear, lambda dtype: testing.lowrank_inputs(SMALL, dtype)
    ),
    "mop_ffn": _mop_ffn("gelu"),
    "mop_ffn of one expert": _mop_ffn("tanh", [1]),
    "attempt_mix": _attempt_mix(),
}


def as_tuple(outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
