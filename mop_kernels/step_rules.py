"""The rules (rules.py) of the operations of a frozen T5's training step."""

from collections.abc import Sequence

from torch import Tensor

from . import ops, step_reference
from .derivatives import Needs, Tensors, autograd_inside_an_op, bits_of, gradients_of, places_of, requested
from .rule import Call, Rule


class StepRule(Rule):
    """A rule whose op takes `num_tensors` tensors and then its settings.

    Only outputs from the second on are integers, or numbers that backward reads: they have no gradient.

    Args:
        num_tensors: Number of tensors.
        differentiable: Places of the tensors whose gradients the gradient op gives, in order.
        num_kept: Number of tensors that the gradient op takes after `grad`.
    """

    def __init__(self, num_tensors: int, differentiable: tuple[int, ...], num_kept: int):
        self.num_tensors, self.differentiable, self.num_kept = num_tensors, differentiable, num_kept

    def from_arguments(self, args: Sequence) -> tuple[tuple, Sequence]:
        """Split the arguments of the op into (static, tensors)."""
        return tuple(args[self.num_tensors :]), args[: self.num_tensors]

    def from_gradient_arguments(self, args: Sequence) -> tuple[tuple, Needs, Sequence]:
        """Split the arguments of the gradient op into (static, needs, tensors)."""
        asked = requested(self.differentiable, args[-1])
        needs = tuple(place in asked for place in range(self.num_tensors))
        return tuple(args[1 + self.num_kept : -1]), needs, args[: 1 + self.num_kept]

    def reference(self, call: Call, tensors: Tensors) -> tuple[Tensor, ...]:
        """Compute the outputs in plain PyTorch."""
        result = getattr(step_reference, call.name)(*tensors, *call.static)
        return (result,) if isinstance(result, Tensor) else result

    def gradients(self, call: Call, needs: Needs, tensors: Tensors) -> tuple[Tensor, ...]:
        """Run the gradient op of the backend, or the plain form for a gradient that the op does not give."""
        if any(place not in self.differentiable for place in places_of(needs)):
            with autograd_inside_an_op(), ops.without_autocast(tensors):
                return self.reference_gradients(call, needs, tensors)
        asked = bits_of([needs[place] for place in self.differentiable])
        return tuple(ops.call(f"{call.name}_backward", call.backend, (*tensors, *call.static, asked)))


class DropoutAdd(StepRule):
    """dropout_add: tensors (x, residual, seed), static (p,). The gradient of residual is the gradient of the output."""

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

    def kept(self, tensors, outputs):
        """Return the tensors that the gradients read."""
        return outputs[1:]

    def reference_gradients(self, call, needs, tensors):
        """Compute the gradients in plain PyTorch."""
        return (step_reference.relu_dropout_gradient(*tensors, *call.static),)


class WithSavedOutput(StepRule):
    """A rule whose gradients read all tensors, and the second output."""

    non_differentiable = (1,)

    def kept(self, tensors, outputs):
        """Return the tensors that the gradients read."""
        return (*tensors, outputs[1])

    def reference_gradients(self, call, needs, tensors):
        """Compute the gradients in plain PyTorch."""
        grad, *given, _ = tensors
        return gradients_of(lambda *t: self.reference(call, t)[:1], given, needs, (grad,))


# The arguments of each operation, and its static part:
#   rms_norm                tensors (x, weight), static (eps,)
#   gated_gelu_dropout      tensors (gate, x, seed), static (p,)
#   prefix_attention        tensors (query, key, value, prefix_key, prefix_value, rows, bias, key_mask, seed), static
#                           (causal, scale, dropout); outputs out and lse. A gradient of the bias takes the plain form.
#   linear_cross_entropy    tensors (x, weight, labels), static (label_smoothing, ignore_index); outputs the loss and
#                           its gradient in x. A gradient of the weight takes the plain form.
STEP_RULES: dict[str, Rule] = {
    "rms_norm": StepRule(2, (0, 1), num_kept=2),
    "dropout_add": DropoutAdd(3, (0,), num_kept=1),
    "relu_dropout": ReluDropout(2, (0,), num_kept=1),
    "gated_gelu_dropout": StepRule(3, (0, 1), num_kept=3),
    "prefix_attention": WithSavedOutput(9, (0, 1, 2, 3, 4), num_kept=10),
    "linear_cross_entropy": WithSavedOutput(3, (0,), num_kept=4),
}
