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
from .derivatives import Dims, Needs, Tensors, gradients_of, spread, tangents_of


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
    """Derivatives and batching of an operation, derived from its plain form `reference`."""

    non_differentiable: ClassVar[tuple[int, ...]] = ()  # places of the outputs that have no gradient

    def forward(self, call: Call, tensors: Tensors) -> tuple[Tensor, ...]:
        """Run the op of the backend."""
        result = ops.call(call.name, call.backend, (*tensors, *call.static))
        return (result,) if isinstance(result, Tensor) else tuple(result)

    def gradients(self, call: Call, needs: Needs, tensors: Tensors) -> tuple[Tensor, ...]:
        """Run the gradient op of the backend."""
        raise NotImplementedError

    def reference(self, call: Call, tensors: Tensors) -> tuple[Tensor, ...]:
        """Compute the outputs in plain PyTorch."""
        raise NotImplementedError

    def reference_gradients(self, call: Call, needs: Needs, tensors: Tensors) -> tuple[Tensor, ...]:
        """Compute the gradients in plain PyTorch."""
        num_grads = self.num_grads(call)
        grads, kept = tensors[:num_grads], tensors[num_grads:]
        return gradients_of(lambda *t: self.reference(call, t), kept, needs, grads)

    def kept(self, tensors: Tensors, outputs: Tensors) -> Tensors:
        """Return the tensors that the gradients read."""
        return tensors

    def from_arguments(self, args: Sequence) -> tuple[tuple, Sequence]:
        """Split the arguments of the op into (static, tensors)."""
        return (), args

    def from_gradient_arguments(self, args: Sequence) -> tuple[tuple, Needs, Sequence]:
        """Split the arguments of the gradient op into (static, needs, tensors)."""
        raise NotImplementedError

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
