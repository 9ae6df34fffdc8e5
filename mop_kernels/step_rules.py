"""The rules (rules.py) of the operations of a frozen T5's training step."""

from . import ops, step_reference
from .derivatives import gradients_of
from .rule import Rule


class DropoutAdd(Rule):
    """dropout_add: tensors (x, residual, seed), static (p,). The gradient of residual is the gradient of the output."""

    def kept(self, tensors, outputs):
        """Return the tensors that the gradients read."""
        return tensors[2:]

    def gradients(self, call, needs, tensors):
        """Run the gradient op of the backend, and pass the gradient of the output on to the residual."""
        found = ops.call("dropout_add_backward", call.backend, (*tensors, *call.static, 1)) if needs[0] else ()
        return (*found, tensors[0].view_as(tensors[0])) if any(needs[1:]) else tuple(found)

    def reference_gradients(self, call, needs, tensors):
        """Compute the gradients in plain PyTorch."""
        found = step_reference.dropout_add_gradients(*tensors, *call.static)
        return tuple(g for g, needed in zip(found, needs) if needed)


class ReluDropout(Rule):
    """relu_dropout: tensors (x, seed), static (p,). The outputs are y and the bits that backward reads."""

    non_differentiable = (1,)

    def kept(self, tensors, outputs):
        """Return the tensors that the gradients read."""
        return outputs[1:]

    def reference_gradients(self, call, needs, tensors):
        """Compute the gradients in plain PyTorch."""
        return (step_reference.relu_dropout_gradient(*tensors, *call.static),) if needs[0] else ()


class WithSavedOutput(Rule):
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
    "rms_norm": Rule(step_reference.rms_norm, num_gradients=2, num_settings=1),
    "dropout_add": DropoutAdd(step_reference.dropout_add, num_gradients=1, num_settings=1),
    "relu_dropout": ReluDropout(step_reference.relu_dropout, num_gradients=1, num_settings=1),
    "gated_gelu_dropout": Rule(step_reference.gated_gelu_dropout, num_gradients=2, num_settings=1),
    "prefix_attention": WithSavedOutput(step_reference.prefix_attention, num_gradients=5, num_settings=3),
    "linear_cross_entropy": WithSavedOutput(step_reference.linear_cross_entropy, num_gradients=1, num_settings=2),
}
