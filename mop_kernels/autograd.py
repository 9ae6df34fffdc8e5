"""Make every operation an autograd Function, and its gradients another, differentiable any number of times.

The Functions call the ops. `ctx.needs_input_grad` becomes the flags of the gradient op, so that a frozen factor costs
nothing. The rule of an operation (rules.py) states which tensors it saves, and its derivatives. Hidden
activations are recomputed from the inputs. Every tensor has been validated (operation.py).
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import backends, multiply_adds, ops
from .derivatives import Needs, Tensors, places_of, spread
from .rule import Call, Differentiable
from .rules import RULES, Product

# looked up once: each look into torch takes a few hundredths of a microsecond
_grad_is_enabled = torch.is_grad_enabled
_below_autograd = torch._C._AutoDispatchBelowAutograd
_are_transforms_active = torch._C._are_functorch_transforms_active
_num_modes, _num_function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
MOST_GRADIENTS = 63  # tensors of one call that can have a gradient: bits of a signed 64-bit integer, `needs` of the op


def _nests_forward_mode() -> bool:
    """Tell whether two levels of forward mode are active. PyTorch then silently drops inner tangents of a Function."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack) > 1


def transforms_are_active() -> bool:
    """Tell whether torch.func or forward mode looks at the tensors of a call."""
    return _are_transforms_active() or forward_ad._current_level >= 0


def anything_looks_on() -> bool:
    """Tell whether a transform or a mode of torch has to see a call."""
    return bool(transforms_are_active() or _num_modes() or _num_function_modes())


def compute(call: Call, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Return the outputs of an operation, differentiable in all floating-point tensors."""
    rule = RULES[call.name]
    if torch.compiler.is_compiling():  # the op itself, which is differentiable, stands in the graph
        given = [None if t is None else t.contiguous() for t in tensors]
        if torch._C._are_functorch_transforms_active():  # Dynamo takes no op of ours there
            return rule.reference(call, given)
        return rule.forward(call, given)
    # tensors that escaped from a transform of torch.func that has ended are unwrapped
    given = [None if t is None else _unwrap_if_dead(t).contiguous() for t in tensors]
    if transforms_are_active():
        if _nests_forward_mode():
            return rule.reference(call, given)
        return TransformableFunction.apply(call, *given)
    if torch._C._get_tracing_state() is not None:
        return rule.forward(call, given)
    if torch.is_grad_enabled():
        return _apply_operation(call, *given)
    with torch._C._AutoDispatchBelowAutograd():
        return rule.forward(call, given)


class Ready(NamedTuple):
    """A call whose op takes the tensors of the caller as they are: they are on a CPU, and nothing looks on.

    op: The op of the CPU backend, without its differentiable form. It copies tensors that are not contiguous.
    num_kept: Number of tensors that the gradients read: the first ones.
    """

    call: Call
    op: Callable[..., Tensor]
    num_kept: int


def ready(call: Call, dtype: torch.dtype) -> Ready | None:
    """Return a call of the backend "cpu" in its ready form. Return None if it does more than call its op."""
    rule = RULES[call.name]
    if not isinstance(rule, Product) or dtype not in (torch.float32, torch.float64):
        return None
    return Ready(call, getattr(torch.ops.mop_kernels, f"{call.name}_cpu").ready._op, rule.num_args)


def compute_ready(call: Ready, tensors: Tensors) -> tuple[Tensor, ...]:
    """Return the outputs of `compute`."""
    if _grad_is_enabled():
        return (_apply_ready(call, *tensors),)
    return (call.op(*tensors),)


def gradients(call: Call, needs: Needs, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """Return the requested gradients (Rule.gradients), differentiable in all floating-point tensors."""
    transformed = transforms_are_active()
    if transformed and _nests_forward_mode():
        return RULES[call.name].reference_gradients(call, needs, tensors)
    if transformed or torch.is_grad_enabled():
        return GradientsFunction.apply(call, needs, *tensors)
    with torch._C._AutoDispatchBelowAutograd():
        return RULES[call.name].gradients(call, needs, tensors)


RUN = Differentiable(compute, gradients)


def _save(ctx, call: Call, tensors: Tensors, outputs: Tensors) -> None:
    rule = RULES[call.name]
    ctx.call = call
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*rule.kept(tensors, outputs))
    if rule.non_differentiable:
        ctx.mark_non_differentiable(*(outputs[k] for k in rule.non_differentiable))


class OperationFunction(Function):
    """An operation. Its op runs below autograd."""

    @staticmethod
    def forward(ctx, call, *tensors):
        """Run the op and save what the gradients read."""
        with _below_autograd():
            outputs = RULES[call.name].forward(call, tensors)
        _save(ctx, call, tensors, outputs)
        return outputs

    @staticmethod
    def backward(ctx, *grads):
        """Return the requested gradients."""
        call, needs = ctx.call, ctx.needs_input_grad[1:]
        grads = grads[: RULES[call.name].num_grads(call)]
        tensors = (*grads, *ctx.saved_tensors)
        if _are_batched(grads):
            found = _by_vmap(lambda *t: gradients(call, needs, *t), tensors)
        elif all(grad is None for grad in grads):
            return (None,) * (1 + len(needs))
        else:
            found = gradients(call, needs, *tensors)
        return (None, *spread(found, needs))


class ReadyFunction(OperationFunction):
    """A ready call, with the least work in Python."""

    @staticmethod
    def forward(ctx, ready, *tensors):
        """Run the op and save what the gradients read."""
        ctx.call = ready.call
        ctx.save_for_backward(*tensors[: ready.num_kept])
        return ready.op(*tensors)


_unwrap_if_dead = torch._C._functorch.unwrap_if_dead
# `compute` has done the rest of Function.apply, which takes 2 us
_apply_operation, _apply_ready = (super(Function, f).apply for f in (OperationFunction, ReadyFunction))


class TransformableFunction(OperationFunction):
    """An operation in the form that torch.func and forward mode need. A call takes 18 us more."""

    @staticmethod
    def forward(call, *tensors):  # type: ignore[override]  # torch takes two forms: with ctx, or with setup_context
        """Run the op."""
        with torch._C._AutoDispatchBelowAutograd():
            return RULES[call.name].forward(call, tensors)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        """Save what the derivatives read."""
        call, *tensors = inputs
        _save(ctx, call, tensors, outputs)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def jvp(ctx, _, *tangents):
        """Return the tangents of the outputs."""
        return _tangents(functools.partial(RULES[ctx.call.name].jvp, RUN, ctx.call), ctx.saved_tensors, tangents)

    @staticmethod
    def vmap(info, dims, call, *tensors):
        """Return the outputs of a batch of calls."""
        with ops.without_autocast(tensors):
            outputs = RULES[call.name].vmap(RUN, call, info.batch_size, dims[1:], tensors)
        return outputs, (0,) * len(outputs)


class GradientsFunction(Function):
    """The gradients of an operation, as a function of the gradients of its outputs and of the saved tensors."""

    @staticmethod
    def forward(call, needs, *tensors):
        """Run the gradient op."""
        with torch._C._AutoDispatchBelowAutograd():
            return RULES[call.name].gradients(call, needs, tensors)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        """Save what the derivatives read."""
        ctx.call, ctx.needs, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, *cotangents):
        """Return the second derivatives."""
        rule, asked, tensors = RULES[ctx.call.name], ctx.needs_input_grad[2:], ctx.saved_tensors

        def second(*t):
            found = rule.second(RUN, ctx.call, ctx.needs, t[: len(tensors)], asked, t[len(tensors) :])
            return tuple(torch.zeros_like(t[k]) if found[k] is None else found[k] for k in places_of(asked))

        every = (*tensors, *cotangents)
        with ops.without_autocast(tensors):
            found = _by_vmap(second, every) if _are_batched(every) else second(*every)
        return (None, None, *spread(found, asked))

    @staticmethod
    def jvp(ctx, _, __, *tangents):
        """Return the tangents of the gradients."""
        jvp = functools.partial(RULES[ctx.call.name].gradients_jvp, RUN, ctx.call, ctx.needs)
        return _tangents(jvp, ctx.saved_tensors, tangents)

    @staticmethod
    def vmap(info, dims, call, needs, *tensors):
        """Return the gradients of a batch of calls."""
        with ops.without_autocast(tensors):
            outputs = RULES[call.name].gradients_vmap(RUN, call, needs, info.batch_size, dims[2:], tensors)
        return outputs, (0,) * len(outputs)


def _tangents(jvp: Callable, tensors: Tensors, tangents: Tensors) -> tuple[Tensor | None, ...]:
    """Return jvp(tensors, tangents) for a method of a rule. The tensors may be batched."""
    every = (*tensors, *tangents)
    with ops.without_autocast(every):
        if not _are_batched(every):
            return tuple(jvp(tensors, tangents))
        count = len(tensors)
        present: list[bool] = []

        def of_present(*t):
            found = jvp(t[:count], t[count:])
            present[:] = [y is not None for y in found]
            return tuple(y for y in found if y is not None)

        return tuple(spread(_by_vmap(of_present, every), present))


def _are_batched(tensors: Tensors) -> bool:
    """Tell whether torch.autograd.grad(is_grads_batched=True) batches some tensors. torch.func does not know these."""
    for t in tensors:  # noqa: SIM110 a generator costs every backward pass half a microsecond
        if t is not None and torch._C._functorch.is_legacy_batchedtensor(t):
            return True
    return False


def _by_vmap(function: Callable, tensors: Tensors) -> tuple[Tensor, ...]:
    """Return function(*tensors) of tensors that torch.autograd.grad has batched, by torch.vmap."""

    def plain_at(level: int) -> list[Tensor | None]:
        return [_without_batch(t, level) if t is not None and _are_batched([t]) else None for t in tensors]

    # all levels that exist: a backward pass in a thread of its own does not know the current level
    by_level = ((level, plain_at(level)) for level in range(1, 65))
    level, plain = next((level, plain) for level, plain in by_level if any(t is not None for t in plain))
    dims = tuple(None if p is None else 0 for p in plain)
    outputs = torch.vmap(function, dims)(*(t if p is None else p for t, p in zip(tensors, plain)))
    return tuple(torch._add_batch_dim(y, 0, level) for y in outputs)


def _without_batch(tensor: Tensor, level: int) -> Tensor | None:
    """Return the tensor with its batch axis of this level as dim 0. Return None if the tensor has no such axis."""
    found = torch._remove_batch_dim(tensor, level, 0, 0)  # adds an axis of the given size, 0, if there is no such axis
    return found if len(found) > 0 else None


def _autograd_kernel(name: str, backend: str) -> Callable:
    """Return the differentiable form of an op, for exported and traced programs, which call the op itself.

    torch.library.register_autograd would drop the tangents of forward mode silently (torch 2.13).
    """
    rule, returns_tensor = RULES[name], ops.SCHEMAS[name].endswith("-> Tensor")

    def kernel(*args):
        static, tensors = rule.from_arguments(args)
        call = Call(name, backend, static)
        if forward_ad._current_level >= 0:
            outputs = TransformableFunction.apply(call, *tensors)
        elif torch.is_grad_enabled():
            outputs = OperationFunction.apply(call, *tensors)
        else:
            with torch._C._AutoDispatchBelowAutograd():
                outputs = rule.forward(call, tensors)
        return outputs[0] if returns_tensor else list(outputs)

    return kernel


def _autograd_kernel_of_gradients(name: str, backend: str) -> Callable:
    """Return the differentiable form of a gradient op, for graphs that contain a backward pass."""
    rule = RULES[name]

    def kernel(*args):
        static, needs, tensors = rule.from_gradient_arguments(args)
        return list(gradients(Call(name, backend, static), needs, *tensors))

    return kernel


for _name, _backend in itertools.product(RULES, backends.NAMES):
    if ops.is_defined(_name, _backend):
        ops.LIBRARY.impl(f"{_name}_{_backend}", _autograd_kernel(_name, _backend), "Autograd")
        ops.LIBRARY.impl(f"{_name}_backward_{_backend}", _autograd_kernel_of_gradients(_name, _backend), "Autograd")

# The CPU kernels of products have a second op, NAME_cpu.ready. torch passes over its differentiable form, which no call
# needs that has a node of autograd already: to leave autograd out from Python takes half a microsecond.
for _name, _rule in RULES.items():
    if isinstance(_rule, Product) and ops.is_defined(_name, "cpu"):
        ops.LIBRARY.define(f"{_name}_cpu.ready{ops.SCHEMAS[_name]}")
        ops.LIBRARY.impl(f"{_name}_cpu.ready", torch.library.fallthrough_kernel, "Autograd")

multiply_adds.serve_flop_counter()
