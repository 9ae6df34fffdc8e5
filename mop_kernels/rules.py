"""State one rule per operation: the call of its kernels, the tensors that its gradients read, its plain PyTorch form.

autograd.py differentiates and batches operations by these rules. The plain forms (`reference`, `reference_gradients`)
are the reference backend, and from them PyTorch derives second derivatives, forward mode and batching. A rule overrides
a derivation that its kernels can compute:

- Products are linear in each argument. Each derivative of a product, of any order, is a sum of products and of their
  gradients with one argument replaced, so all of them run on the kernels.
- Batching folds the batch axis into an axis of the kernel if a suitable axis exists: leading axes of phm_weight, rows
  of the linear maps, layers of mop_ffn, examples of attempt_mix. All other calls, linear maps with batched factors
  above all, become batched matrix products of PyTorch.

"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from . import ops, reference
from .derivatives import Tensors, autograd_inside_an_op, bits_of, gradients_of, in_front, places_of, spread
from .rule import Call, Rule
from .step_rules import STEP_RULES


class Product(Rule):
    """A product that is linear in each of `num_args` arguments. A bias, the last tensor, may be added to it.

    F(grad, *args) = sum(grad * product(*args)) is linear in each argument, too. The gradients are dF/d(arg). Their
    derivative in the direction v of another argument is dF/d(arg) with v in the place of that argument.
    """

    num_biases = 0

    @property
    def num_args(self) -> int:
        """Return the number of arguments."""
        return self.num_gradients - self.num_biases

    def kept(self, tensors, outputs):
        """Return the tensors that the gradients read."""
        return tensors[: self.num_args]

    def reference_gradients(self, call, needs, tensors):
        """Compute the gradients in plain PyTorch."""
        grad, *args = tensors
        tensors = (*args, *(None,) * self.num_biases)
        gradients = gradients_of(lambda *t: self.reference(call, t), tensors, needs[: self.num_args], (grad,))
        # take the sum of a single row, too: a Function must not return its own input
        return (*gradients, *(grad.reshape(-1, grad.shape[-1]).sum(0) for needed in needs[self.num_args :] if needed))

    def jvp(self, run, call, tensors, tangents):
        """Return the tangents of the outputs."""
        return (self._in_directions(run, call, tensors, tangents),)

    def gradients_jvp(self, run, call, needs, tensors, tangents):
        """Return the tangents of the gradients."""
        grad, *args = tensors
        totals: list[Tensor | None] = [None] * len(needs)
        if tangents[0] is not None:
            totals = spread(run.gradients(call, needs, tangents[0], *args), needs)
        self._add_gradients(run, call, needs, grad, args, tangents[1:], totals)
        like = [*args, grad.new_empty(grad.shape[-1:])]  # the gradient of the bias is the sum of the rows of grad
        return tuple(torch.zeros_like(like[k]) if totals[k] is None else totals[k] for k in places_of(needs))

    def second(self, run, call, needs, tensors, asked, cotangents):
        """Return the gradients of the gradients."""
        grad, *args = tensors
        given = spread(cotangents, needs)
        totals: list[Tensor | None] = [None] * self.num_args
        self._add_gradients(run, call, asked[1:], grad, args, given, totals)
        return [self._in_directions(run, call, args, given) if asked[0] else None, *totals]

    def _in_directions(self, run, call, args: Sequence[Tensor], directions: Tensors) -> Tensor | None:
        """Return the derivative of the output in the directions of all tensors. None without a direction."""
        parts = [run.operation(call, *replaced)[0] for _, replaced in self._replaced(args, directions)]
        parts += [v.expand(*args[0].shape[:-1], -1) for v in directions[self.num_args :] if v is not None]
        return sum(parts[1:], parts[0]) if parts else None

    def _replaced(self, args: Tensors, directions: Tensors) -> Iterator[tuple[int, Tensors]]:
        """Yield (place, the tensors of a call with the direction in that place and no bias) for every direction."""
        for place, direction in enumerate(directions[: self.num_args]):
            if direction is not None:
                yield place, [*args[:place], direction, *args[place + 1 : self.num_args], *(None,) * self.num_biases]

    def _add_gradients(self, run, call, needs, grad, args, directions, totals) -> None:
        """Add to each requested total the derivatives of its gradient in the directions of the other arguments."""
        for place, replaced in self._replaced(args, directions):
            asked = tuple(needs[k] and k != place for k in range(self.num_args)) + (False,) * self.num_biases
            if any(asked):
                for k, part in zip(places_of(asked), run.gradients(call, asked, grad, *replaced[: self.num_args])):
                    totals[k] = part if totals[k] is None else totals[k] + part


class Weight(Product):
    """phm_weight(rule, local). The batch axis is one more leading axis."""

    def vmap(self, run, call, size, dims, tensors):
        """Return the outputs of a batch of calls."""
        return run.operation(call, *(t.expand(size, *t.shape[1:]) for t in in_front(dims, tensors)))

    def gradients_vmap(self, run, call, needs, size, dims, tensors):
        """Return the gradients of a batch of calls."""
        return run.gradients(call, needs, *(t.expand(size, *t.shape[1:]) for t in in_front(dims, tensors)))


class Linear(Product):
    """phm_linear, lowrank_phm_linear and local_linear: tensors (x, *factors, bias).

    If the factors are not batched, the batch axis is one more axis of rows.
    """

    num_biases = 1

    def vmap(self, run, call, size, dims, tensors):
        """Return the outputs of a batch of calls."""
        if dims[0] is None or any(d is not None for d in dims[1:]):
            return super().vmap(run, call, size, dims, tensors)
        return run.operation(call, tensors[0].movedim(dims[0], 0), *tensors[1:])

    def gradients_vmap(self, run, call, needs, size, dims, tensors):
        """Return the gradients of a batch of calls."""
        if any(needs[1:]) or any(d is not None for d in dims[2:]):
            return super().gradients_vmap(run, call, needs, size, dims, tensors)
        grad, x = (t.expand(size, *t.shape[1:]) for t in in_front(dims, tensors[:2]))
        return run.gradients(call, needs, grad, x, *tensors[2:])


class MopFFN(Rule):
    """mop_ffn: tensors (x, *down, *ups, experts), static (num_down, num_maps, activation).

    The batch axis is folded into the layers. A tensor that all layers share is repeated if it is batched.
    """

    def num_grads(self, call):
        """Return the number of outputs whose gradients the gradients read."""
        return call.static[1]

    def arguments(self, call, tensors):
        """Return the arguments of the op."""
        num_down, num_maps, activation = call.static
        x, *factors, experts = tensors
        return x, list(factors[:num_down]), list(factors[num_down:]), num_maps, activation, experts

    def from_arguments(self, args):
        """Split the arguments of the op into (static, tensors)."""
        x, down, ups, num_maps, activation, experts = args
        return (len(down), num_maps, activation), (x, *down, *ups, experts)

    def from_gradient_arguments(self, args):
        """Split the arguments of the gradient op into (static, needs, tensors)."""
        grads, x, down, ups, num_maps, activation, experts, bits = args
        needs = (*reference.flags_of(bits, 1 + len(down) + len(ups)), False)
        return (len(down), num_maps, activation), needs, (*grads, x, *down, *ups, experts)

    def gradients(self, call, needs, tensors):
        """Run the gradient op of the backend."""
        num_maps = call.static[1]
        grads, kept = list(tensors[:num_maps]), tensors[num_maps:]
        if any(g is None for g in grads):
            zeros = torch.zeros_like(next(g for g in grads if g is not None))  # the maps have equal shapes
            grads = [zeros if g is None else g for g in grads]
        args = (grads, *self.arguments(call, kept), bits_of(needs))
        return tuple(ops.call("mop_ffn_backward", call.backend, args))

    def vmap(self, run, call, size, dims, tensors):
        """Return the outputs of a batch of calls."""
        if dims[-1] is not None:  # other experts per call
            return super().vmap(run, call, size, dims, tensors)
        front = in_front(dims, tensors[:-1])
        layers = max(t.shape[1] for t in front)
        merged = [t[0] if d is None and t.shape[1] == 1 else _merge(t, size, layers) for d, t in zip(dims, front)]
        outputs = run.operation(call, *merged, tensors[-1])
        return tuple(y.unflatten(0, (size, layers)) for y in outputs)

    def gradients_vmap(self, run, call, needs, size, dims, tensors):
        """Return the gradients of a batch of calls."""
        if dims[-1] is not None:
            return super().gradients_vmap(run, call, needs, size, dims, tensors)
        front = in_front(dims, tensors[:-1])
        num_maps = call.static[1]
        layers = max(t.shape[1] for t in front if t is not None)
        merged = [None if t is None else _merge(t, size, layers) for t in front]
        gradients = run.gradients(call, needs, *merged, tensors[-1])
        result = []
        for place, gradient in zip(places_of(needs), gradients):
            gradient = gradient.unflatten(0, (size, layers))
            shared = front[num_maps + place].shape[1] == 1 < layers
            result.append(gradient.sum(1, keepdim=True) if shared else gradient)
        return tuple(result)


def _merge(tensor: Tensor, size: int, layers: int) -> Tensor:
    """Return a tensor (size|1, layers|1, ...) as (size*layers, ...)."""
    return tensor.expand(size, layers, *tensor.shape[2:]).flatten(0, 1)


class AttemptMix(Rule):
    """attempt_mix: tensors (x, mask, source, target, task_ids, *factors), static (temperature, length).

    The outputs are prefixed, attention, peak and position. Instead of x the gradients read peak, the largest number of
    each column, and position, its row. The gradient of x is the gradient of prefixed, plus one number per column.
    """

    non_differentiable = (3,)

    def num_grads(self, call):
        """Return the number of outputs whose gradients the gradients read."""
        return 3

    def kept(self, tensors, outputs):
        """Return the tensors that the gradients read."""
        return (*outputs[2:], *tensors[2:])

    def arguments(self, call, tensors):
        """Return the arguments of the op."""
        return (*tensors, call.static[0])

    def from_arguments(self, args):
        """Split the arguments of the op into (static, tensors)."""
        *tensors, temperature = args
        return (temperature, args[0].shape[1]), tensors

    def from_gradient_arguments(self, args):
        """Split the arguments of the gradient op into (static, needs, tensors)."""
        grad, grad_attention, *kept, temperature, bits = args
        x, source, target, *factors = reference.flags_of(bits, 7)
        needs = (x, False, source, target, False, *factors)
        return (temperature, grad.shape[1] - kept[2].shape[1]), needs, (grad, grad_attention, None, *kept)

    def gradients(self, call, needs, tensors):
        """Run the gradient op of the backend."""
        grad, grad_attention, grad_peak, peak, position, source, *rest = tensors
        batch, (sources, rows, width) = peak.shape[0], source.shape
        if grad is None:
            grad = peak.new_zeros(batch, rows + call.static[1], width)
        if grad_attention is None:
            grad_attention = peak.new_zeros(batch, sources + 1)
        asked = (needs[0], *needs[2:4], *needs[5:])  # without the mask and the task ids
        args = (grad, grad_attention, peak, position, source, *rest, call.static[0], bits_of(asked))
        gradients = tuple(ops.call("attempt_mix_backward", call.backend, args))
        if needs[0] and grad_peak is not None:
            return (gradients[0] + reference.at_position(grad_peak, position, call.static[1]), *gradients[1:])
        return gradients

    def reference_gradients(self, call, needs, tensors):
        """Compute the gradients in plain PyTorch."""
        grad, grad_attention, grad_peak, peak, position, *factors = tensors
        rows = factors[0].shape[1]
        grads = (None if grad is None else grad[:, :rows], grad_attention, grad_peak)

        def function(peak, *factors):
            return *reference.attempt_prompt(peak, *factors, temperature=call.static[0]), peak

        gradients = gradients_of(function, (peak, *factors), (needs[0], *needs[2:]), grads)
        if not needs[0]:
            return gradients
        grad_x = reference.at_position(gradients[0], position, call.static[1])
        return (grad_x if grad is None else grad_x + grad[:, rows:], *gradients[1:])

    def vmap(self, run, call, size, dims, tensors):
        """Return the outputs of a batch of calls."""
        if any(d is not None for d in (*dims[2:4], *dims[5:])):
            return super().vmap(run, call, size, dims, tensors)
        x, mask, _, _, task_ids, *_ = in_front(dims, tensors)
        batch = x.shape[1]
        x, mask, task_ids = (None if t is None else _merge(t, size, batch) for t in (x, mask, task_ids))
        outputs = run.operation(call, x, mask, *tensors[2:4], task_ids, *tensors[5:])
        return tuple(y.unflatten(0, (size, batch)) for y in outputs)


def _lowrank_phm_linear(x: Tensor, rule_in: Tensor, rule_out: Tensor, local: Tensor, bias: Tensor | None) -> Tensor:
    """Compute reference.lowrank_phm_linear for x of any leading dims."""
    y = reference.lowrank_phm_linear(x.reshape(-1, x.shape[-1]), rule_in, rule_out, local, bias)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _mop_ffn(
    x: Tensor, down: Sequence[Tensor], ups: Sequence[Tensor], num_maps: int, activation: str, experts: Tensor | None
) -> tuple[Tensor, ...]:
    """Compute reference.mop_ffn of the arguments of the op."""
    maps = reference.split_maps(ups, num_maps)
    return reference.mop_ffn(x, reference.LowRankPHM(*down), maps, activation, experts)


RULES: dict[str, Rule] = {
    "phm_weight": Weight(reference.phm_weight, num_gradients=2),
    "phm_linear": Linear(reference.phm_linear, num_gradients=4),
    "lowrank_phm_linear": Linear(_lowrank_phm_linear, num_gradients=5),
    "local_linear": Linear(reference.local_linear, num_gradients=3),
    "mop_ffn": MopFFN(_mop_ffn),
    "attempt_mix": AttemptMix(lambda *args: reference.attempt_mix(*args[:-1], temperature=args[-1])),
    **STEP_RULES,
}


def _reference_ops(name: str, rule: Rule) -> dict[str, Callable]:
    """Return the op and the gradient op of the reference backend, by their names."""

    def forward(*args):
        result = rule.plain(*args)
        return result.contiguous() if isinstance(result, Tensor) else [y.contiguous() for y in result]

    def gradients(*args):
        static, needs, tensors = rule.from_gradient_arguments(args)
        with autograd_inside_an_op(), torch.no_grad():
            found = rule.reference_gradients(Call(name, "reference", static), needs, tensors)
        # cloned: the gradient of a bias may be the output's gradient itself, and an op's result must not be its input
        return [g.clone(memory_format=torch.contiguous_format) for g in found]

    return {name: forward, f"{name}_backward": gradients}


_reference: dict[str, Callable] = {}
for _name, _rule in RULES.items():
    _reference |= _reference_ops(_name, _rule)
_saved = "linear_cross_entropy_backward"  # the forward op has computed the gradient
ops.define("reference", _reference | {_saved: ops.SHARED[_saved]})
