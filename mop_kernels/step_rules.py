"""The rules (rules.py) of the operations of a frozen T5's training step."""

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from . import ops, reference, step_reference
from .derivatives import Needs, Tensors, autograd_inside_an_op, bits_of, gradients_of, places_of, tangents_of
from .rule import Call, Rule


class StepRule(Rule):
    """A rule whose op takes `num_tensors` tensors and then its settings.

    Only outputs from the second on are integers, or numbers that backward reads: they have no gradient.
    """

    num_tensors: ClassVar[int]
    differentiable: ClassVar[tuple[int, ...]]  # places of the tensors whose gradients the gradient op gives, in order
    num_kept: ClassVar[int]  # tensors that the gradient op takes after `grad`

    def from_arguments(self, args: Sequence) -> tuple[tuple, Sequence]:
        """Split the arguments of the op into (static, tensors)."""
        return tuple(args[self.num_tensors :]), args[: self.num_tensors]

    def from_gradient_arguments(self, args: Sequence) -> tuple[tuple, Needs, Sequence]:
        """Split the arguments of the gradient op into (static, needs, tensors)."""
        flags = reference.flags_of(args[-1], len(self.differentiable))
        needs = [False] * self.num_tensors
        for place, flag in zip(self.differentiable, flags):
            needs[place] = bool(flag)
        return tuple(args[1 + self.num_kept : -1]), tuple(needs), args[: 1 + self.num_kept]

    def forward(self, call: Call, tensors: Tensors) -> tuple[Tensor, ...]:
        """Run the op of the backend."""
        result = ops.call(call.name, call.backend, (*tensors, *call.static))
        return (result,) if isinstance(result, Tensor) else tuple(result)

    def reference(self, call: Call, tensors: Tensors) -> tuple[Tensor, ...]:
        """Compute the outputs in plain PyTorch."""
        result = getattr(step_reference, call.name)(*tensors, *call.static)
        return (result,) if isinstance(result, Tensor) else result

    def gradients(self, call: Call, needs: Needs, tensors: Tensors) -> tuple[Tensor, ...]:
        """Run the gradient op of the backend, or the plain form for a gradient that the op does not give."""
        if any(needs[place] for place in places_of(needs) if place not in self.differentiable):
            with autograd_inside_an_op(), ops.without_autocast(tensors):
                return self.reference_gradients(call, needs, tensors)
        asked = bits_of([needs[place] for place in self.differentiable])
        return tuple(ops.call(f"{call.name}_backward", call.backend, (*tensors, *call.static, asked)))

    def jvp(self, run, call, tensors, tangents):
        """Return the tangents of the outputs."""
        found = tangents_of(lambda *t: self.reference(call, t)[:1], tensors, tangents)
        return (*found, *(None for _ in self.non_differentiable))


class RMSNorm(StepRule):
    """rms_norm: tensors (x, weight), static (eps,)."""

    returns_tensor = True
    num_tensors, differentiable, num_kept = 2, (0, 1), 2


class DropoutAdd(StepRule):
    """dropout_add: tensors (x, residual, seed), static (p,). The gradient of residual is the gradient of the output."""

    returns_tensor = True
    num_tensors, differentiable, num_kept = 3, (0,), 1

    def kept(self, tensors, outputs):
        """Return the tensors that the gradients read."""
        return tensors[2:]

    def gradients(self, call, needs, tensors):
        """Run the gradient op of the backend, and pass the gradient of the output on to the residual."""
        found = ops.call("dropout_add_backward", call.backend, (*tensors, *call.static, 1)) if needs[0] else ()
        return (*found, tensors[0].view_as(tensors[0])) if needs[1] else tuple(found)

    def reference_gradients(self, call, needs, tensors):
        """Compute the gradients in plain PyTorch."""
        found = step_reference.dropout_add_gradients(*tensors, *call.static)
        return tuple(g for g, needed in zip(found, needs) if needed)


class ReluDropout(StepRule):
    """relu_dropout: tensors (x, seed), static (p,). The outputs are y and the bits that backward reads."""

    non_differentiable = (1,)
    num_tensors, differentiable, num_kept = 2, (0,), 1

    def kept(self, tensors, outputs):
        """Return the tensors that the gradients read."""
        return outputs[1:]

    def reference_gradients(self, call, needs, tensors):
        """Compute the gradients in plain PyTorch."""
        return (step_reference.relu_dropout_gradient(*tensors, *call.static),)


class GatedGeluDropout(StepRule):
    """gated_gelu_dropout: tensors (gate, x, seed), static (p,)."""

    returns_tensor = True
    num_tensors, differentiable, num_kept = 3, (0, 1), 3


class _WithSavedOutput(StepRule):
    """A rule whose gradients read all tensors, and the second output."""

    non_differentiable = (1,)

    def kept(self, tensors, outputs):
        """Return the tensors that the gradients read."""
        return (*tensors, outputs[1])

    def reference_gradients(self, call, needs, tensors):
        """Compute the gradients in plain PyTorch."""
        grad, *given, _ = tensors
        return gradients_of(lambda *t: self.reference(call, t)[:1], given, needs, (grad,))


class PrefixAttention(_WithSavedOutput):
    """prefix_attention, static (causal, scale, dropout). The outputs are out and lse, which backward reads.

    Tensors: query, key, value, prefix_key, prefix_value, rows, bias, key_mask, seed. A gradient of the bias takes the
    plain form.
    """

    num_tensors, differentiable, num_kept = 9, (0, 1, 2, 3, 4), 10


class LinearCrossEntropy(_WithSavedOutput):
    """linear_cross_entropy: tensors (x, weight, labels), static (label_smoothing, ignore_index).

    The outputs are the loss and its gradient in x. A gradient of the weight takes the plain form.
    """

    num_tensors, differentiable, num_kept = 3, (0,), 4


STEP_RULES: dict[str, Rule] = {
    "rms_norm": RMSNorm(),
    "dropout_add": DropoutAdd(),
    "relu_dropout": ReluDropout(),
    "gated_gelu_dropout": GatedGeluDropout(),
    "prefix_attention": PrefixAttention(),
    "linear_cross_entropy": LinearCrossEntropy(),
}
