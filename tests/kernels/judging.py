"""Judge calls of operations: within the error budget, or two calls that request the same numbers in two ways."""

from contextlib import suppress

import torch
from layouts import LAYOUTS
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mop_kernels as mk
from mop_kernels import LowRankPHM, backends, reference, testing
from mop_kernels.truth import PRODUCTS, kron_mop_ffn

ULPS = 32  # of the largest number: several times what another order of these tests' sums changes


def assert_same(found: Tensor, expected: Tensor, backend: str) -> None:
    """Assert equal bits. On a GPU, compare Triton's within a few ulp.

    There the two calls launch two specialisations of a kernel, compiled each for itself: the compiler may lay out their
    tiles, and so order their sums, differently. The same specialisation twice gives the same bits
    (test_determinism.py). The interpreter sums in one order.
    """
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    if backend != "triton" or backends.interpreting():
        assert torch.equal(found, expected)
    elif found.numel():
        difference, largest = (found.float() - expected.float()).abs().max(), expected.float().abs().max()
        assert difference <= ULPS * torch.finfo(found.dtype).eps * largest


def assert_asked(needed, gradient, full, backend):
    """Assert the gradient that comes with all others where one is needed, and none elsewhere."""
    if needed:
        assert_same(gradient, full, backend)
    else:
        assert gradient is None


class RequestedGradients(TorchDispatchMode):
    """The requests of the gradient ops that ran, as bits."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "mop_kernels" and "_backward_" in func.__name__:
            self.seen.append(args[-1])
        return func(*args, **(kwargs or {}))


def check(functions, tensors, layouts=("contiguous",), needs=None):
    """Check values and all gradients within the error budget.

    functions: the operation by a backend, the same by reference.py, and the truth. layouts: of the gradients of the
    outputs, in turn. needs: flags of the requested gradients.
    """
    function, plain, true = functions
    exact = testing.in_float64(tensors)
    outputs = true(*exact)
    g = torch.Generator().manual_seed(9)
    outputs = [outputs] if isinstance(outputs, Tensor) else outputs
    grads = [testing.normal(g, tensors[0].dtype, *y.shape) for y in outputs]
    grads = [LAYOUTS[layouts[k % len(layouts)]](grad) for k, grad in enumerate(grads)]
    found = testing.value_and_gradients(function, tensors, grads, needs)
    truth = testing.value_and_gradients(true, exact, testing.in_float64(grads), needs)
    assert all(y.is_contiguous() for y in found[0])
    names = [*(f"y {k}" for k in range(len(outputs))), *(f"gradient {k}" for k in range(len(tensors)))]
    forms = [lambda form=form: testing.value_and_gradients(form, tensors, grads, needs) for form in (plain, true)]
    assert_as_exact_as_one(forms, found, truth, names)


def assert_as_exact_as_one(forms, found, truth, names=None):
    """Check results within the error budget of one plain form, which each of `forms` computes in the kernel's dtype.

    The first is reference.py. The rounding of a form depends on the processor: with AVX-512 its products add up 16
    numbers side by side instead of 8, and a small call may be exact by chance. Another order of the sums then shows
    which rounding is usual. All results are pairs of sequences, which are judged together.
    """
    for form in forms[:-1]:
        with suppress(AssertionError):
            return testing.assert_within_budget(*([*a, *b] for a, b in (found, form(), truth)), names)
    return testing.assert_within_budget(*([*a, *b] for a, b in (found, forms[-1](), truth)), names)


def check_product(op, backend, tensors, layout="contiguous"):
    function, true, _ = PRODUCTS[op]
    check((lambda *t: function(*t, backend=backend), getattr(reference, op), true), tensors, (layout,))


def call_bank(tensors, **kwargs):
    x, down, ups = testing.as_mop_arguments(tensors)
    return mk.mop_ffn(x, LowRankPHM(*down), [LowRankPHM(*up) for up in ups], **kwargs)


def check_bank(tensors, backend, *, activation="relu", experts=None, grad_layouts=("contiguous",), needs=None):
    def by(function):
        return lambda *t: function(*testing.as_mop_arguments(t), activation, experts)

    def ours(*t):
        return call_bank(t, activation=activation, experts=experts, backend=backend)

    check((ours, by(reference.mop_ffn), by(kron_mop_ffn)), tensors, grad_layouts, needs)


def call_prompts(tensors, mask=None, *, task_ids, temperature, backend=None):
    x, source, target, *factors = tensors
    return mk.attempt_mix(x, mask, source, target, task_ids, *factors, temperature, backend=backend)


def raw_prompt_arguments(x: Tensor, keep: Tensor | None) -> list:
    tensors, options = testing.prompt_inputs(testing.PromptShape(*x.shape, 3, 2, 2, 4), x.dtype)
    _, source, target, *factors = tensors
    return [x, keep, source, target, options["task_ids"], *factors, options["temperature"]]
