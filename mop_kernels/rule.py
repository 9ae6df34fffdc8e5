"""The base of all rules (rules.py): derivatives and batching of an operation, derived from its plain form.

Conventions. `tensors`: the tensors of a call in a fixed order, None for an absent tensor. `needs`: one flag per tensor,
set where a gradient is requested. Gradients are a tuple with one tensor per set flag, in order. `gradients` takes the
gradients of the first `num_grads` outputs, None for zero, then the tensors that `kept` returns. `dims`: the batch axis
of each tensor, None for a tensor without one. Results of a batched call have the batch axis as dim 0.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from . import ops
from .derivatives import Dims, Needs, Tensors, autograd_inside_an_op, bits_of, gradients_of, spread, tangents_of
from .reference import flags_of


class Call(NamedTuple):
    """A call without its tensors. static: the arguments of the op that are not tensors."""

    name: str
    backend: str
    static: tuple = ()


class Differentiable(NamedTuple):
    """The functions by which rules call operations, from autograd.py.

    operation(call, *tensors) returns the outputs. gradients(call, needs, *tensors) returns the gradients.
    """

    operation: Callable[..., tuple[Tensor, ...]]
    gradients: Callable[..., tuple[Tensor, ...]]


class Rule:
    """Derivatives and batching of an operation, derived from its plain form.

    The op takes its tensors and then its settings, which are the static part of a call. The gradient op takes the
    gradients of the outputs, the tensors that `kept` returns, the settings and `needs`.

    Args:
        plain: The operation in plain PyTorch, on the arguments of the op.
        num_gradients: The gradient op gives the gradients of the first `num_gradients` tensors. 0: the rule has its own
            form of the gradient op.
        num_settings: Number of settings.
    """

    non_differentiable: ClassVar[tuple[int, ...]] = ()  # places of the outputs that have no gradient

    def __init__(self, plain: Callable[..., Tensor | Sequence[Tensor]], num_gradients: int = 0, num_settings: int = 0):
        self.plain, self.num_gradients, self.num_settings = plain, num_gradients, num_settings

    def arguments(self, call: Call, tensors: Tensors) -> Sequence:
        """Return the arguments of the op."""
        return (*tensors, *call.static)

    def from_arguments(self, args: Sequence) -> tuple[tuple, Sequence]:
        """Split the arguments of the op into (static, tensors)."""
        end = len(args) - self.num_settings
        return tuple(args[end:]), args[:end]

    def from_gradient_arguments(self, args: Sequence) -> tuple[tuple, Needs, Sequence]:
        """Split the arguments of the gradient op into (static, needs, tensors)."""
        static, tensors = self.from_arguments(args[:-1])
        return static, flags_of(args[-1], self.num_gradients), tensors

    def forward(self, call: Call, tensors: Tensors) -> tuple[Tensor, ...]:
        """Run the op of the backend."""
        return _as_tuple(ops.call(call.name, call.backend, self.arguments(call, tensors)))

    def gradients(self, call: Call, needs: Needs, tensors: Tensors) -> tuple[Tensor, ...]:
        """Run the gradient op of the backend, or the plain form for a gradient that the op does not give."""
        bits = bits_of(needs)
        if bits >> self.num_gradients:
            with autograd_inside_an_op(), ops.without_autocast(tensors):
                return self.reference_gradients(call, needs, tensors)
        return tuple(ops.call(f"{call.name}_backward", call.backend, (*tensors, *call.static, bits)))

    def reference(self, call: Call, tensors: Tensors) -> tuple[Tensor, ...]:
        """Compute the outputs in plain PyTorch."""
        return _as_tuple(self.plain(*self.arguments(call, tensors)))

    def reference_gradients(self, call: Call, needs: Needs, tensors: Tensors) -> tuple[Tensor, ...]:
        """Compute the gradients in plain PyTorch."""
        num_grads = self.num_grads(call)
        grads, kept = tensors[:num_grads], tensors[num_grads:]
        return gradients_of(lambda *t: self.reference(call, t), kept, needs, grads)

    def kept(self, tensors: Tensors, outputs: Tensors) -> Tensors:
        """Return the tensors that the gradients read."""
        return tensors

    def num_grads(self, call: Call) -> int:
        """Return the number of outputs whose gradients the gradients read."""
        return 1

    def jvp(self, run: Differentiable, call: Call, tensors: Tensors, tangents: Tensors) -> Tensors:
        """Return the tangents of the outputs. A tangent of None is zero."""
        found = tangents_of(lambda *t: self.reference(call, t)[: self.num_grads(call)], tensors, tangents)
        return (*found, *(None for _ in self.non_differentiable))

    def gradients_jvp(self, run: Differentiable, call: Call, needs: Needs, tensors: Tensors, tangents: Tensors):
        """Return the tangents of the gradients."""
        return tangents_of(lambda *t: self.reference_gradients(call, needs, t), tensors, tangents)

    def second(
        self, run: Differentiable, call: Call, needs: Needs, tensors: Tensors, asked: Needs, cotangents: Tensors
    ):
        """Return the gradient of sum(gradient * cotangent) in each of `tensors` that is requested, None elsewhere."""
        gradients = gradients_of(lambda *t: self.reference_gradients(call, needs, t), tensors, asked, cotangents)
        return spread(gradients, asked)

    def vmap(self, run: Differentiable, call: Call, size: int, dims: Dims, tensors: Tensors) -> tuple[Tensor, ...]:
        """Return the outputs of a batch of `size` calls."""
        return torch.vmap(lambda *t: self.reference(call, t), tuple(dims))(*tensors)

    def gradients_vmap(self, run: Differentiable, call: Call, needs: Needs, size: int, dims: Dims, tensors: Tensors):
        """Return the gradients of a batch of `size` calls, one per call."""
        return torch.vmap(lambda *t: self.reference_gradients(call, needs, t), tuple(dims))(*tensors)


def _as_tuple(result: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)
