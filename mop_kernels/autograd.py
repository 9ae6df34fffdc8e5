"""What each operation saves for backward, and which gradients its backward op computes.

The autograd Functions stand outside the ops: `ctx.needs_input_grad` becomes the op's mask, so a frozen factor
costs nothing. Hidden activations are recomputed from the inputs, never saved. Double backward raises.
Every tensor has been validated (functional.py); non-contiguous inputs are made contiguous here, gradients are not.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import ops

_HALF = torch.bfloat16
_SAVED = {"phm_weight": 2, "phm_linear": 3, "lowrank_phm_linear": 4}  # how many inputs backward reads: not the bias


def autocast_is_on(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's kind of device; some kinds, "meta" for one, have none."""
    if tensor.is_cpu:
        return torch.is_autocast_enabled("cpu")
    device = tensor.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


MOST_GRADIENTS = 63  # tensors of one call that can have one: bits of the op's mask, a signed 64-bit integer


def _mask(needs: tuple[bool, ...]) -> int:
    return sum(1 << k for k, needed in enumerate(needs) if needed)


def _spread(gradients: list[Tensor], needs: tuple[bool, ...]) -> list[Tensor | None]:
    """The op's gradients, which are those asked for, at the places of the inputs."""
    found = iter(gradients)
    return [next(found) if needed else None for needed in needs]


def _call(name: str, backend: str, args: tuple):
    """One op call. The CPU kernels compute bfloat16 in float32 and round once, at the end.

    Autocast is off inside: functional.py has cast what it would cast, and an op's own matrix products must keep their
    dtype (backward may run inside an autocast that forward did not see, or float64 inside one).
    """
    first = args[0] if isinstance(args[0], Tensor) else args[0][0]
    if autocast_is_on(first):
        with torch.autocast(first.device.type, enabled=False):
            return _call(name, backend, args)
    op = ops.get(name, backend)
    if backend != "cpu" or first.dtype is not _HALF:
        return op(*args)
    result = op(*_cast(args, torch.float32))
    return result.to(_HALF) if isinstance(result, Tensor) else _cast(result, _HALF)


def _cast(args, dtype: torch.dtype):
    def cast(value):
        if isinstance(value, list):
            return [cast(v) for v in value]
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return [cast(value) for value in args]


class PhmProduct(torch.autograd.Function):
    """phm_weight, phm_linear or lowrank_phm_linear; `tensors` are the op's inputs in order, a bias (or None) last."""

    @staticmethod
    def forward(ctx, name, backend, *tensors):
        tensors = [None if t is None else t.contiguous() for t in tensors]
        ctx.name, ctx.backend = name, backend
        ctx.save_for_backward(*tensors[: _SAVED[name]])
        return _call(name, backend, tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        needs = ctx.needs_input_grad[2:]
        args = (grad, *ctx.saved_tensors, _mask(needs))
        return (None, None, *_spread(_call(f"{ctx.name}_backward", ctx.backend, args), needs))


class MopFFN(torch.autograd.Function):
    """`factors` is the flat list down + ups of ops.py, `num_down` how many of them are the down map's.

    row_gradients: copy the asked experts' factors (k rows of each) and give their gradients as sparse tensors.
    """

    @staticmethod
    def forward(ctx, backend, num_down, num_maps, activation, experts, row_gradients, *tensors):
        ctx.backend = backend
        ctx.layout = (num_down, num_maps, activation)
        ctx.rows_of = None
        if row_gradients and experts is not None:
            num_experts = max(t.shape[1] for t in tensors)
            ctx.rows_of = (experts, num_experts, [t.shape[1] == num_experts > 1 for t in tensors])
            tensors = [t.index_select(1, experts) if own else t for t, own in zip(tensors, ctx.rows_of[2])]
            experts = None
        x, *factors = (t.contiguous() for t in tensors)
        ctx.save_for_backward(experts, x, *factors)
        down, ups = list(factors[:num_down]), list(factors[num_down:])
        return tuple(_call("mop_ffn", backend, (x, down, ups, num_maps, activation, experts)))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        experts, x, *factors = ctx.saved_tensors
        num_down, num_maps, activation = ctx.layout
        down, ups = list(factors[:num_down]), list(factors[num_down:])
        needs = ctx.needs_input_grad[6:]
        args = (list(grads), x, down, ups, num_maps, activation, experts, _mask(needs))
        gradients = _spread(_call("mop_ffn_backward", ctx.backend, args), needs)
        if ctx.rows_of is not None:
            ids, num_experts, own = ctx.rows_of
            gradients = [
                g if g is None or not of_expert else _as_rows(g, ids, num_experts)
                for g, of_expert in zip(gradients, own)
            ]
        return (None, None, None, None, None, None, *gradients)


class AttemptMix(torch.autograd.Function):
    """Saves max(x) and where it stands, not x: its gradient is that of prefixed, plus one number a column."""

    @staticmethod
    def forward(ctx, backend, mask, task_ids, temperature, *tensors):
        x, *factors = (t.contiguous() for t in tensors)
        mask, task_ids = None if mask is None else mask.contiguous(), task_ids.contiguous()
        source, target, *attention_module = factors
        args = (x, mask, source, target, task_ids, *attention_module, temperature)
        prefixed, attention, peak, position = _call("attempt_mix", backend, args)
        ctx.backend, ctx.temperature = backend, temperature
        ctx.save_for_backward(peak, position, source, target, task_ids, *attention_module)
        return prefixed, attention

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        needs = ctx.needs_input_grad[4:]
        args = (*grads, *ctx.saved_tensors, ctx.temperature, _mask(needs))
        return (None, None, None, None, *_spread(_call("attempt_mix_backward", ctx.backend, args), needs))


def _as_rows(gradient: Tensor, experts: Tensor, num_experts: int) -> Tensor:
    """(layers, k, ...) of the asked experts as a sparse tensor (layers, num_experts, ...): nothing is zero-filled."""
    layers, picked = gradient.shape[:2]
    every_layer = torch.arange(layers, device=experts.device).repeat_interleave(picked)
    indices = torch.stack([every_layer, experts.repeat(layers)])
    size = (layers, num_experts, *gradient.shape[2:])
    return torch.sparse_coo_tensor(indices, gradient.flatten(0, 1), size, check_invariants=False)
