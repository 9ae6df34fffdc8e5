"""A repeated call of a CPU kernel goes straight to its op. It must end as the first one: in the same error, or bits."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mop_kernels as mk
from mop_kernels import functional, operation

SIZES = {
    "phm_weight": [(2, 3, 4, 5), (2, 3, 2, 3)],
    "phm_linear": [(7, 8), (3, 4, 5), (3, 2, 3), (15,)],
    "lowrank_phm_linear": [(7, 8), (3, 4, 2), (3, 2, 5), (3, 2, 3), (15,)],
    "local_linear": [(7, 8), (4, 3), (6,)],
}

pytestmark = pytest.mark.skipif("cpu" not in mk.available_backends(), reason="needs the compiled CPU kernels")


def tensors_of(name, dtype=torch.float32):
    g = torch.Generator().manual_seed(3)
    return [torch.randn(size, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for size in SIZES[name]]


def outcome(name, tensors):
    """Return the error, or the output and the gradients."""
    try:
        y = getattr(functional, name)(*tensors, backend="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        return type(error), str(error)
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    asked = [t for t in tensors if t is not None and t.requires_grad and not wrapped(t)]
    return [y.detach(), *(torch.autograd.grad(y, asked, torch.ones_like(y)) if asked else ())]


def assert_ends_as_the_first(name, tensors, monkeypatch):
    outcome(name, tensors_of(name))
    assert (name, "cpu", *[torch.float32] * len(tensors)) in operation._ready
    again = outcome(name, tensors)
    with monkeypatch.context() as patch:
        patch.setattr(operation, "_ready", {})
        patch.setattr(operation, "_passed", {})
        first = outcome(name, tensors)
    if isinstance(first, tuple):
        assert again == first
    else:
        assert all(map(torch.equal, again, first)), (again, first)
    return first


def other_sizes(size):
    """Return sizes near `size`: a dim more or less, one longer, shorter or empty, two swapped."""
    yield (1, *size)
    yield size[1:]
    for k in range(len(size)):
        for other in (0, 1, size[k] - 1, size[k] + 1, 2 * size[k]):
            yield (*size[:k], other, *size[k + 1 :])
        yield (*size[:k], *reversed(size[k : k + 2]), *size[k + 2 :])


CASES = [
    (name, k, size)
    for name, sizes in SIZES.items()
    for k in range(len(sizes))
    for size in dict.fromkeys(other_sizes(sizes[k]))
]


def test_other_shapes(monkeypatch):
    ends = set()
    for name, k, size in CASES:
        tensors = tensors_of(name)
        tensors[k] = torch.randn(size, requires_grad=True)
        first = assert_ends_as_the_first(name, tensors, monkeypatch)
        ends.add("error" if isinstance(first, tuple) else "result")
    assert ends == {"error", "result"}


@pytest.mark.parametrize("name", SIZES)
def test_factors_of_the_same_number_of_elements(name, monkeypatch):
    """The guards compare sizes, not numbers of elements."""
    tensors = [t.detach().transpose(0, 1).contiguous().requires_grad_() if t.dim() > 1 else t for t in tensors_of(name)]
    assert_ends_as_the_first(name, tensors, monkeypatch)
    assert_ends_as_the_first(name, [t.reshape(-1) for t in tensors_of(name)], monkeypatch)


@pytest.mark.parametrize("name", SIZES)
def test_other_tensors(name, monkeypatch):
    for change in (torch.Tensor.double, torch.Tensor.bfloat16, torch.Tensor.int, lambda t: None, lambda t: [1.0]):
        for k in range(len(SIZES[name])):
            tensors = [t.detach() for t in tensors_of(name)]
            tensors[k] = change(tensors[k])
            outcome(name, tensors_of(name))
            again = outcome(name, tensors)
            with monkeypatch.context() as patch:
                patch.setattr(operation, "_ready", {})
                first = outcome(name, tensors)
            assert (again == first) if isinstance(first, tuple) else all(map(torch.equal, again, first))


@pytest.mark.parametrize("name", SIZES)
def test_tensors_without_their_own_numbers(name, monkeypatch):
    """The numbers of a negative view, a lazy zero, and a tensor that outlived torch.func are not in its memory."""
    for k in range(len(SIZES[name])):
        for change in (
            lambda t: t.detach()._neg_view(),
            lambda t: torch._efficientzerotensor(t.shape),
            lambda t: _outlived(t.detach()),
            lambda t: t.detach().double().float().t().contiguous().t() if t.dim() == 2 else t,
        ):
            tensors = tensors_of(name)
            tensors[k] = change(tensors[k])
            assert isinstance(assert_ends_as_the_first(name, tensors, monkeypatch), list)


def _outlived(t):
    kept = []
    torch.func.grad(lambda v: (kept.append(v), v.sum())[1])(t)
    return kept[0]


@pytest.mark.parametrize("name", SIZES)
def test_modes_and_profilers_see_the_op(name):
    tensors = tensors_of(name)
    outcome(name, tensors)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            seen.append(op)
            return op(*args, **(kwargs or {}))

    with Watch():
        getattr(functional, name)(*tensors, backend="cpu")
    assert getattr(torch.ops.mop_kernels, f"{name}_cpu").default in seen
    with torch.profiler.profile() as profile:
        getattr(functional, name)(*tensors, backend="cpu")
    assert f"mop_kernels::{name}_cpu" in {event.name for event in profile.events()}
