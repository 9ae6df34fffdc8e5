"""The private torch ops behind every backend: schemas, fakes, and the registration of the reference.

An operation `NAME` of backend `BACKEND` is the op `mop_kernels::NAME_BACKEND`; its gradient is
`mop_kernels::NAME_backward_BACKEND`. The schemas stand here once, for all backends; csrc/ only implements them.
Gradient ops take `mask`, an integer whose bit k says that the k-th differentiable input asks for a gradient, and
return those gradients only, in that order. All results are contiguous.

`down` is [rule_in, rule_out, local] or [rule_in, rule_out, local, bias]; `ups` is num_maps such lists in a row.
attempt_mix returns [prefixed, attention, peak, position]: backward reads the last two, max(x) and where it stands
(int32, -1: nowhere), instead of x.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn import Parameter

from . import reference

SCHEMAS = {
    "phm_weight": "(Tensor rule, Tensor local) -> Tensor",
    "phm_weight_backward": "(Tensor grad, Tensor rule, Tensor local, int mask) -> Tensor[]",
    "phm_linear": "(Tensor x, Tensor rule, Tensor local, Tensor? bias) -> Tensor",
    "phm_linear_backward": "(Tensor grad, Tensor x, Tensor rule, Tensor local, int mask) -> Tensor[]",
    "lowrank_phm_linear": "(Tensor x, Tensor rule_in, Tensor rule_out, Tensor local, Tensor? bias) -> Tensor",
    "lowrank_phm_linear_backward": (
        "(Tensor grad, Tensor x, Tensor rule_in, Tensor rule_out, Tensor local, int mask) -> Tensor[]"
    ),
    "mop_ffn": ("(Tensor x, Tensor[] down, Tensor[] ups, int num_maps, str activation, Tensor? experts) -> Tensor[]"),
    "mop_ffn_backward": (
        "(Tensor[] grads, Tensor x, Tensor[] down, Tensor[] ups, int num_maps, str activation, Tensor? experts, "
        "int mask) -> Tensor[]"
    ),
    "attempt_mix": (
        "(Tensor x, Tensor? keep, Tensor source, Tensor target, Tensor task_ids, Tensor w_down, Tensor w_up, "
        "Tensor ln_weight, Tensor ln_bias, float temperature) -> Tensor[]"
    ),
    "attempt_mix_backward": (
        "(Tensor grad_prefixed, Tensor grad_attention, Tensor peak, Tensor position, Tensor source, Tensor target, "
        "Tensor task_ids, Tensor w_down, Tensor w_up, Tensor ln_weight, Tensor ln_bias, float temperature, int mask) "
        "-> Tensor[]"
    ),
}

_AUTOGRAD, _PRE_DISPATCH = torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.PreDispatch
LIBRARY = torch.library.Library("mop_kernels", "FRAGMENT")


def split_maps(ups: list[Tensor], num_maps: int) -> list[list[Tensor | None]]:
    """The flat list of an op as one (rule_in, rule_out, local, bias | None) an up map."""
    width = len(ups) // num_maps
    return [_padded(ups[k * width : (k + 1) * width]) for k in range(num_maps)]


def _padded(factors: list[Tensor]) -> list[Tensor | None]:
    return [*factors, None] if len(factors) == 3 else list(factors)


def _asked(tensors: list[Tensor], mask: int) -> list[Tensor]:
    return [t for k, t in enumerate(tensors) if mask >> k & 1]


# Fakes: shapes and dtypes only; one a schema, for all backends.


def _fake_phm_weight(rule, local):
    return rule.new_empty(*rule.shape[:-3], rule.shape[-2] * local.shape[-2], rule.shape[-1] * local.shape[-1])


def _fake_phm_linear(x, rule, local, bias):
    return x.new_empty(*x.shape[:-1], rule.shape[-1] * local.shape[-1])


def _fake_lowrank_phm_linear(x, rule_in, rule_out, local, bias):
    return x.new_empty(*x.shape[:-1], rule_out.shape[-1] * local.shape[-1])


def _fake_mop_ffn(x, down, ups, num_maps, activation, experts):
    maps = split_maps(ups, num_maps)
    num_layers, num_experts = reference.group_sizes(x, down, maps)
    picked = num_experts if experts is None else experts.shape[0]
    return [x.new_empty(num_layers, picked, x.shape[2], m[1].shape[-1] * m[2].shape[-1]) for m in maps]


def _fake_attempt_mix(x, keep, source, target, task_ids, w_down, w_up, ln_weight, ln_bias, temperature):
    (batch, length, width), (sources, rows, _) = x.shape, source.shape
    return [
        x.new_empty(batch, rows + length, width),
        x.new_empty(batch, sources + 1),
        x.new_empty(batch, width),
        x.new_empty(batch, width, dtype=torch.int32),
    ]


def _fake_attempt_mix_backward(
    grad, grad_attention, peak, position, source, target, task_ids, w_down, w_up, ln_weight, ln_bias, temperature, mask
):
    x = grad.new_empty(grad.shape[0], grad.shape[1] - source.shape[1], grad.shape[2])
    return _fake_gradients([x, source, target, w_down, w_up, ln_weight, ln_bias], mask)


def _fake_gradients(tensors: list[Tensor], mask: int) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in _asked(tensors, mask)]


def _fake_bias(x: Tensor, rule: Tensor, local: Tensor) -> Tensor:
    return x.new_empty(rule.shape[-1] * local.shape[-1])


_FAKES = {
    "phm_weight": _fake_phm_weight,
    "phm_weight_backward": lambda grad, rule, local, mask: _fake_gradients([rule, local], mask),
    "phm_linear": _fake_phm_linear,
    "phm_linear_backward": lambda grad, x, rule, local, mask: _fake_gradients(
        [x, rule, local, _fake_bias(x, rule, local)], mask
    ),
    "lowrank_phm_linear": _fake_lowrank_phm_linear,
    "lowrank_phm_linear_backward": lambda grad, x, rule_in, rule_out, local, mask: _fake_gradients(
        [x, rule_in, rule_out, local, _fake_bias(x, rule_out, local)], mask
    ),
    "mop_ffn": _fake_mop_ffn,
    "mop_ffn_backward": lambda grads, x, down, ups, num_maps, activation, experts, mask: _fake_gradients(
        [x, *down, *ups], mask
    ),
    "attempt_mix": _fake_attempt_mix,
    "attempt_mix_backward": _fake_attempt_mix_backward,
}


# The reference backend: the einsum forms, and their gradients by autograd on a fresh graph.


def _differentiate(function, tensors: list[Tensor], grads: list[Tensor], mask: int) -> list[Tensor]:
    with _autograd_inside_an_op(), torch.enable_grad():
        leaves = [t.detach().requires_grad_(bool(mask >> k & 1)) for k, t in enumerate(tensors)]
        outputs = function(*leaves)
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        # an up map whose factors are all frozen has no part in the gradients of another's
        kept = [k for k, y in enumerate(outputs) if y.requires_grad]
        asked = torch.autograd.grad([outputs[k] for k in kept], _asked(leaves, mask), [grads[k] for k in kept])
    # cloned: the gradient of a bias may be the output's gradient itself, and an op's result must not be its input
    return [g.clone(memory_format=torch.contiguous_format) for g in asked]


@contextmanager
def _autograd_inside_an_op() -> Iterator[None]:
    """Under a TorchDispatchMode (a FLOP counter, selective checkpointing) an op runs with autograd excluded."""
    excluded = torch._C._dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD)
    torch._C._dispatch_tls_set_dispatch_key_excluded(_AUTOGRAD, False)
    try:
        yield
    finally:
        torch._C._dispatch_tls_set_dispatch_key_excluded(_AUTOGRAD, excluded)


def _phm_linear_backward(grad, x, rule, local, mask):
    bias = _fake_bias(x, rule, local).zero_()
    return _differentiate(reference.phm_linear, [x, rule, local, bias], [grad], mask)


def _lowrank_phm_linear(x, rule_in, rule_out, local, bias):
    y = reference.lowrank_phm_linear(x.reshape(-1, x.shape[-1]), rule_in, rule_out, local, bias)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _lowrank_phm_linear_backward(grad, x, rule_in, rule_out, local, mask):
    bias = _fake_bias(x, rule_out, local).zero_()
    return _differentiate(_lowrank_phm_linear, [x, rule_in, rule_out, local, bias], [grad], mask)


def _mop_ffn(x, down, ups, num_maps, activation, experts):
    return list(reference.mop_ffn(x, _padded(down), split_maps(ups, num_maps), activation, experts))


def _mop_ffn_backward(grads, x, down, ups, num_maps, activation, experts, mask):
    def function(x, *factors):
        return _mop_ffn(x, list(factors[: len(down)]), list(factors[len(down) :]), num_maps, activation, experts)

    return _differentiate(function, [x, *down, *ups], grads, mask)


def _attempt_mix(x, keep, source, target, task_ids, w_down, w_up, ln_weight, ln_bias, temperature):
    peak, position = reference.largest(x, keep)
    factors = (w_down, w_up, ln_weight, ln_bias, temperature)
    prompt, attention = reference.attempt_prompt(peak, source, target, task_ids, *factors)
    return [torch.cat([prompt, x], 1), attention, peak, position]


def _attempt_mix_backward(grad, grad_attention, peak, position, source, target, task_ids, *factors_and_mask):
    *factors, temperature, mask = factors_and_mask

    def function(peak, source, target, *factors):
        return reference.attempt_prompt(peak, source, target, task_ids, *factors, temperature)

    rows = source.shape[1]
    tensors = [peak, source, target, *factors]
    gradients = _differentiate(function, tensors, [grad[:, :rows], grad_attention], mask)
    if mask & 1:
        found = position.unsqueeze(1) == torch.arange(grad.shape[1] - rows, device=grad.device)[:, None]
        gradients[0] = (grad[:, rows:] + gradients[0].unsqueeze(1).where(found, 0)).contiguous()
    return gradients


_REFERENCE = {
    "phm_weight": lambda rule, local: reference.phm_weight(rule, local).contiguous(),
    "phm_weight_backward": lambda grad, rule, local, mask: _differentiate(
        reference.phm_weight, [rule, local], [grad], mask
    ),
    "phm_linear": lambda x, rule, local, bias: reference.phm_linear(x, rule, local, bias).contiguous(),
    "phm_linear_backward": _phm_linear_backward,
    "lowrank_phm_linear": lambda *args: _lowrank_phm_linear(*args).contiguous(),
    "lowrank_phm_linear_backward": _lowrank_phm_linear_backward,
    "mop_ffn": _mop_ffn,
    "mop_ffn_backward": _mop_ffn_backward,
    "attempt_mix": _attempt_mix,
    "attempt_mix_backward": _attempt_mix_backward,
}


_overloads = {}  # looking one up in torch.ops costs a call half a microsecond
_direct = {}  # the implementations that are Python and may be called without torch's dispatcher, see `_is_plain`


def define(backend: str, implementations: dict | None = None, *, direct: bool = False) -> None:
    """Define the ops of one backend; `implementations` is None where compiled code registers them itself.

    direct: They need neither autograd nor anything else of torch's dispatcher.
    """
    for name, schema in SCHEMAS.items():
        qualified = f"{name}_{backend}"
        LIBRARY.define(qualified + schema)
        torch.library.register_fake(f"mop_kernels::{qualified}", _FAKES[name], lib=LIBRARY)
        if implementations is not None:
            LIBRARY.impl(qualified, implementations[name], "CompositeExplicitAutograd")
        if direct:
            _direct[name, backend] = implementations[name]
        _overloads[name, backend] = getattr(torch.ops.mop_kernels, qualified).default


def is_defined(name: str, backend: str) -> bool:
    return (name, backend) in _overloads


def get(name: str, backend: str):
    """The op overload of an operation for a backend."""
    return _overloads[name, backend]


def autocast_is_on(tensor: Tensor) -> bool:
    """Tell whether autocast is on for the tensor's kind of device. Some kinds, "meta" for one, have none."""
    if tensor.is_cpu:
        return torch.is_autocast_enabled("cpu")
    device = tensor.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(tensors: Sequence[Tensor | None]) -> AbstractContextManager:
    """Return a context in which matrix products of these tensors keep their dtype.

    functional.py has cast what autocast would cast, and backward may run inside an autocast that forward did not see.
    """
    if torch._C._is_any_autocast_enabled():
        first = next(t for t in tensors if t is not None)
        if autocast_is_on(first):
            return torch.autocast(first.device.type, enabled=False)
    return nullcontext()


def call(name: str, backend: str, args: Sequence):
    """Call an op, without autocast. The CPU kernels compute bfloat16 in float32 and round once, at the end."""
    first = args[0] if isinstance(args[0], Tensor) else args[0][0]
    if torch._C._is_any_autocast_enabled():
        with without_autocast([first]):
            return _call(name, backend, args, first)
    return _call(name, backend, args, first)


def _call(name: str, backend: str, args: Sequence, first: Tensor):
    if (name, backend) in _direct and not first.is_meta and _is_plain(args):
        return _direct[name, backend](*args)
    op = _overloads[name, backend]
    if backend != "cpu" or first.dtype is not torch.bfloat16:
        return op(*args)
    result = op(*_cast(args, torch.float32))
    return result.to(torch.bfloat16) if isinstance(result, Tensor) else _cast(result, torch.bfloat16)


_PLAIN = {Tensor, Parameter}


def _is_plain(args: Sequence) -> bool:
    """Tell whether an op would do nothing but call its implementation.

    Finding that out takes 3 us; torch's dispatcher takes 10 us to hand a dozen tensors to Python.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._dispatch_tls_is_dispatch_key_included(_PRE_DISPATCH):
        return False  # modes want to see the op, as a profiler and a trace do
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
    # a tensor may be minus its memory, or zeros without any
    lazy = any(map(Tensor.is_neg, tensors)) or any(map(Tensor._is_zerotensor, tensors))
    return _PLAIN.issuperset(map(type, tensors)) and not lazy


def _cast(args: Sequence, dtype: torch.dtype) -> list:
    def cast(value):
        if isinstance(value, list):
            return [cast(v) for v in value]
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return [cast(value) for value in args]


def _on_first_use(name: str):
    """The Triton implementation of an operation, imported when it is first called: triton is slow to import."""
    found = None

    def implementation(*args):
        nonlocal found
        if found is None:
            from . import triton_kernels

            found = triton_kernels.IMPLEMENTATIONS[name]
        return found(*args)

    return implementation


# The rows of some experts. An op, because torch.compile traces no autograd.Function whose backward builds a sparse
# tensor. Its autograd is a Function, because torch.library.register_autograd drops forward-mode tangents silently.


class _ExpertRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor, experts):
        ctx.size = tensor.shape
        ctx.save_for_backward(experts)
        with torch._C._AutoDispatchBelowAutograd():
            return expert_rows(tensor, experts)

    @staticmethod
    def backward(ctx, grad):
        """Return a sparse tensor (layers, experts, ...) that holds the selected rows only."""
        (experts,) = ctx.saved_tensors
        return _SparseRows.apply(grad, experts, ctx.size), None


class _SparseRows(torch.autograd.Function):
    """The rows (layers, k, ...) as a sparse tensor. The gradient of sparse_coo_tensor has no graph (torch 2.13)."""

    @staticmethod
    def forward(ctx, rows, experts, size):
        ctx.save_for_backward(experts)
        layers = torch.arange(size[0], device=experts.device).repeat_interleave(experts.shape[0])
        indices = torch.stack([layers, experts.repeat(size[0])])
        return torch.sparse_coo_tensor(indices, rows.flatten(0, 1), size, check_invariants=False)

    @staticmethod
    def backward(ctx, grad):
        (experts,) = ctx.saved_tensors
        return expert_rows(grad.to_dense() if grad.is_sparse else grad, experts), None, None


def _fake_expert_rows(tensor, experts):
    return tensor.new_empty(tensor.shape[0], experts.shape[0], *tensor.shape[2:])


LIBRARY.define("expert_rows(Tensor tensor, Tensor experts) -> Tensor")
LIBRARY.impl("expert_rows", lambda tensor, experts: tensor.index_select(1, experts), "CompositeExplicitAutograd")
LIBRARY.impl("expert_rows", _ExpertRows.apply, "Autograd")
torch.library.register_fake("mop_kernels::expert_rows", _fake_expert_rows, lib=LIBRARY)
expert_rows = torch.ops.mop_kernels.expert_rows.default


define("reference", _REFERENCE)
define("triton", {name: _on_first_use(name) for name in SCHEMAS}, direct=True)
