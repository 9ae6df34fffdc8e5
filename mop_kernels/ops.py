"""The private torch ops behind every backend: schemas, fakes and their registration.

An operation `NAME` of backend `BACKEND` is the op `mop_kernels::NAME_BACKEND`; its gradient is
`mop_kernels::NAME_backward_BACKEND`. The schemas stand here once, for all backends; csrc/ only implements them.
Gradient ops take `needs`, an integer whose bit k is set if the gradient of the k-th differentiable input is requested.
They return the requested gradients only, in the order of the bits. All results are contiguous.

`down` is [rule_in, rule_out, local] or [rule_in, rule_out, local, bias]. `ups` is num_maps such lists in a row.
attempt_mix returns [prefixed, attention, peak, position]. Instead of x, backward reads peak, which is max(x), and
position, its row (int32, -1: no row).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import Parameter

from . import reference, step_ops
from .step_ops import SHARED, fake_gradients

SCHEMAS = {
    "phm_weight": "(Tensor rule, Tensor local) -> Tensor",
    "phm_weight_backward": "(Tensor grad, Tensor rule, Tensor local, int needs) -> Tensor[]",
    "phm_linear": "(Tensor x, Tensor rule, Tensor local, Tensor? bias) -> Tensor",
    "phm_linear_backward": "(Tensor grad, Tensor x, Tensor rule, Tensor local, int needs) -> Tensor[]",
    "lowrank_phm_linear": "(Tensor x, Tensor rule_in, Tensor rule_out, Tensor local, Tensor? bias) -> Tensor",
    "lowrank_phm_linear_backward": (
        "(Tensor grad, Tensor x, Tensor rule_in, Tensor rule_out, Tensor local, int needs) -> Tensor[]"
    ),
    "local_linear": "(Tensor x, Tensor local, Tensor? bias) -> Tensor",
    "local_linear_backward": "(Tensor grad, Tensor x, Tensor local, int needs) -> Tensor[]",
    "mop_ffn": ("(Tensor x, Tensor[] down, Tensor[] ups, int num_maps, str activation, Tensor? experts) -> Tensor[]"),
    "mop_ffn_backward": (
        "(Tensor[] grads, Tensor x, Tensor[] down, Tensor[] ups, int num_maps, str activation, Tensor? experts, "
        "int needs) -> Tensor[]"
    ),
    "attempt_mix": (
        "(Tensor x, Tensor? keep, Tensor source, Tensor target, Tensor task_ids, Tensor w_down, Tensor w_up, "
        "Tensor ln_weight, Tensor ln_bias, float temperature) -> Tensor[]"
    ),
    "attempt_mix_backward": (
        "(Tensor grad_prefixed, Tensor grad_attention, Tensor peak, Tensor position, Tensor source, Tensor target, "
        "Tensor task_ids, Tensor w_down, Tensor w_up, Tensor ln_weight, Tensor ln_bias, float temperature, int needs) "
        "-> Tensor[]"
    ),
    **step_ops.SCHEMAS,
}

_AUTOGRAD, _PRE_DISPATCH = torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.PreDispatch
LIBRARY = torch.library.Library("mop_kernels", "FRAGMENT")


# Fakes compute shapes and dtypes only. There is one fake per schema, for all backends.


def _fake_phm_weight(rule, local):
    return rule.new_empty(*rule.shape[:-3], rule.shape[-2] * local.shape[-2], rule.shape[-1] * local.shape[-1])


def _fake_linear(x, *args):
    *_, last_rule, local, _ = args
    return x.new_empty(*x.shape[:-1], last_rule.shape[-1] * local.shape[-1])


def _fake_local_linear(x, local, bias):
    return x.new_empty(*x.shape[:-1], x.shape[-1] // local.shape[0] * local.shape[1])


def _fake_mop_ffn(x, down, ups, num_maps, activation, experts):
    num_layers, num_experts = reference.group_sizes(x, down, [ups])
    picked = num_experts if experts is None else experts.shape[0]
    width = ups[1].shape[-1] * ups[2].shape[-1]
    return [x.new_empty(num_layers, picked, x.shape[2], width) for _ in range(num_maps)]


def _fake_attempt_mix(x, keep, source, target, task_ids, w_down, w_up, ln_weight, ln_bias, temperature):
    (batch, length, width), (sources, rows, _) = x.shape, source.shape
    return [
        x.new_empty(batch, rows + length, width),
        x.new_empty(batch, sources + 1),
        x.new_empty(batch, width),
        x.new_empty(batch, width, dtype=torch.int32),
    ]


def _inputs_of_linear(grad, *args):
    return [*args[:-1], grad.new_zeros(grad.shape[-1])]  # stands for the bias, whose values do not count


def _inputs_of_attempt_mix(
    grad, grad_attention, peak, position, source, target, task_ids, w_down, w_up, ln_weight, ln_bias, *args
):
    x = grad.new_empty(grad.shape[0], grad.shape[1] - source.shape[1], grad.shape[2])
    return [x, source, target, w_down, w_up, ln_weight, ln_bias]


_FAKES: dict[str, Callable] = {
    "phm_weight": _fake_phm_weight,
    "phm_weight_backward": fake_gradients(lambda grad, rule, local, needs: [rule, local]),
    "phm_linear": _fake_linear,
    "phm_linear_backward": fake_gradients(_inputs_of_linear),
    "lowrank_phm_linear": _fake_linear,
    "lowrank_phm_linear_backward": fake_gradients(_inputs_of_linear),
    "local_linear": _fake_local_linear,
    "local_linear_backward": fake_gradients(_inputs_of_linear),
    "mop_ffn": _fake_mop_ffn,
    "mop_ffn_backward": fake_gradients(lambda grads, x, down, ups, *args: [x, *down, *ups]),
    "attempt_mix": _fake_attempt_mix,
    "attempt_mix_backward": fake_gradients(_inputs_of_attempt_mix),
    **step_ops.FAKES,
}
_ONLY_ON_CPU = ("local_linear", "local_linear_backward")  # other backends run the reference: one product of BLAS
PLAIN = {Tensor, Parameter, type(None)}  # types without a hook of torch; a fake tensor's sizes may be symbols


_autocast_is_on = torch._C._is_any_autocast_enabled
_overloads: dict[tuple[str, str], torch._ops.OpOverload] = {}  # a look into torch.ops takes half a microsecond
_direct: dict[tuple[str, str], Callable] = {}  # Python that `_call` calls without torch's dispatcher


def define(backend: str, implementations: Mapping[str, Callable] | None = None, *, direct: bool = False) -> None:
    """Define the ops of one backend.

    Args:
        backend: Name of the backend.
        implementations: One per schema. None: compiled code registers them.
        direct: The implementations need neither autograd nor anything else of torch's dispatcher.
    """
    for name, schema in SCHEMAS.items():
        qualified = f"{name}_{backend}"
        LIBRARY.define(qualified + schema)
        torch.library.register_fake(f"mop_kernels::{qualified}", _FAKES[name], lib=LIBRARY)
        shared = SHARED.get(name) if backend != "reference" else None
        if name in _ONLY_ON_CPU and backend not in ("cpu", "reference"):
            shared = functools.partial(_by_reference, name)
        implementation = shared or (None if implementations is None else implementations[name])
        if implementation is not None:
            LIBRARY.impl(qualified, implementation, "CompositeExplicitAutograd")
            if direct and shared is None:
                _direct[name, backend] = implementation
        _overloads[name, backend] = getattr(torch.ops.mop_kernels, qualified).default


def _by_reference(name: str, *args) -> Tensor | list[Tensor]:
    return _overloads[name, "reference"](*args)


def is_defined(name: str, backend: str) -> bool:
    """Tell whether this process has the op of a backend."""
    return (name, backend) in _overloads


def get(name: str, backend: str) -> torch._ops.OpOverload:
    """Return the op overload of an operation for a backend."""
    return _overloads[name, backend]


def autocast_is_on(tensor: Tensor) -> bool:
    """Tell whether autocast is on for the tensor's kind of device. Some kinds, "meta" for one, have none."""
    if tensor.is_cpu:
        return torch.is_autocast_enabled("cpu")
    device = tensor.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(tensors: Sequence[Tensor | None]) -> AbstractContextManager:
    """Return a context in which matrix products of these tensors keep their dtype.

    operation.py has cast what autocast would cast, and backward may run inside an autocast that forward did not see.
    """
    if torch._C._is_any_autocast_enabled():
        first = next(t for t in tensors if t is not None)
        if autocast_is_on(first):
            return torch.autocast(first.device.type, enabled=False)
    return nullcontext()


def call(name: str, backend: str, args: Sequence) -> Tensor | list[Tensor]:
    """Call an op, without autocast. The CPU kernels compute bfloat16 in float32 and round once, at the end."""
    first = args[0] if isinstance(args[0], Tensor) else args[0][0]
    if _autocast_is_on():
        with without_autocast([first]):
            return _call(name, backend, args, first)
    return _call(name, backend, args, first)


def _call(name: str, backend: str, args: Sequence, first: Tensor) -> Tensor | list[Tensor]:
    key = name, backend
    if backend != "cpu" and key in _direct and not first.is_meta and _is_plain(args):
        return _direct[key](*args)
    op = _overloads[key]
    if backend != "cpu" or first.dtype is not torch.bfloat16 or name in SHARED:
        return op(*args)
    result = op(*_cast(args, torch.float32))
    if isinstance(result, Tensor):
        return result.to(torch.bfloat16)
    wide = step_ops.WIDE_OUTPUTS.get(name, ())
    return [y if k in wide else _cast([y], torch.bfloat16)[0] for k, y in enumerate(result)]


def _is_plain(args: Sequence) -> bool:
    """Tell whether an op would only call its implementation.

    The question takes 3 us. torch's dispatcher takes 10 us to hand a dozen tensors to Python.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._dispatch_tls_is_dispatch_key_included(_PRE_DISPATCH):
        return False  # modes, profilers and traces must see the op
    if torch._C._len_torch_function_stack() or torch._C._autograd._profiler_enabled():
        return False
    if torch._C._get_tracing_state() is not None or not torch._C._dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD):
        return False
    tensors = []
    for value in args:
        if type(value) is list:
            tensors += value
        elif isinstance(value, Tensor):
            tensors.append(value)
    # a lazy tensor is the negative of its memory, or zeros without memory
    lazy = any(map(Tensor.is_neg, tensors)) or any(map(Tensor._is_zerotensor, tensors))
    return PLAIN.issuperset(map(type, tensors)) and not lazy


def _cast(args: Sequence, dtype: torch.dtype) -> list:
    def cast(value):
        if isinstance(value, list):
            return [cast(v) for v in value]
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return [cast(value) for value in args]


@functools.cache
def _triton(name: str) -> Callable:
    """Return the Triton implementation of an op, imported when it is first called: triton is slow to import."""
    from . import triton_kernels

    return triton_kernels.IMPLEMENTATIONS[name]


define("triton", {name: lambda *args, name=name: _triton(name)(*args) for name in SCHEMAS}, direct=True)
