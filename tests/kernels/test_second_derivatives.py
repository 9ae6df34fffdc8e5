"""Second derivatives of every operation on every backend, for every choice of inputs that ask for gradients."""

import itertools

import pytest
import torch
from judging import assert_as_exact_as_one
from operations import OPERATIONS, OTHER_ORDERS, as_tuple

import mop_kernels as mk
from mop_kernels import testing
from mop_kernels.truth import kron_linear, kron_weight

SAVE_AN_OUTPUT = ("attempt_mix", "relu_dropout", "prefix_attention", "linear_cross_entropy")
# norms and sums keep their dtype, and a loss is float32, as in PyTorch
KEEP_THEIR_DTYPE = ("rms_norm", "dropout_add", "relu_dropout", "gated_gelu_dropout", "linear_cross_entropy")
UNDER_AUTOCAST = dict.fromkeys(KEEP_THEIR_DTYPE, torch.float32)


def second_derivatives(function, tensors, needs, seed=0):
    """The gradients of a weighted sum of gradients, in the outputs' gradients and in each input that asks."""
    leaves = [t.detach().clone().requires_grad_(needed) for t, needed in zip(tensors, needs)]
    outputs = as_tuple(function(*leaves))
    g = torch.Generator().manual_seed(seed)

    def drawn(t):
        return testing.normal(g, torch.float64, *t.shape).to(t.dtype)

    asked = [leaf for leaf in leaves if leaf.requires_grad]
    grads = [drawn(y).requires_grad_() for y in outputs]
    pairs = [
        (y, grad) for y, grad in zip(outputs, grads) if y.requires_grad
    ]  # a plain map of no input that asks has none
    first = torch.autograd.grad([y for y, _ in pairs], asked, [grad for _, grad in pairs], create_graph=True)
    total = sum((drawn(f) * f).sum() for f in first)
    return [f.detach() for f in first], list(torch.autograd.grad(total, [*grads, *asked], materialize_grads=True))


def choices(name: str) -> list[tuple[bool, ...]]:
    count = len(OPERATIONS[name].inputs(torch.float64))
    every = [c for c in itertools.product([False, True], repeat=count) if any(c)]
    if count < 6:
        return every
    # of hundreds or thousands: each alone, each pair, all, all but one
    return [c for c in every if sum(c) in (1, 2, count - 1, count)]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_choice_of_inputs(name, backend):
    dtype = torch.float64 if backend in ("reference", "cpu") else torch.float32
    operation = OPERATIONS[name]
    tensors = operation.inputs(dtype)
    exact = testing.in_float64(tensors)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    for needs in choices(name) if dtype == torch.float64 else [(True,) * len(tensors)]:
        truth = second_derivatives(operation.truth, exact, needs)
        actual = second_derivatives(lambda *t: operation.function(*t, backend=backend), tensors, needs)
        for some, right in zip(actual, truth):
            for a, t in zip(some, right, strict=True):
                assert a.shape == t.shape
                assert testing.relative_error(a, t) <= tolerance if t.any() else not a.any(), needs


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_error_budget(name, backend, dtype):
    """As first derivatives: at most twice the error of the reference in the same dtype, plus 4 ulp."""
    operation = OPERATIONS[name]
    tensors = operation.inputs(dtype)
    needs = (True,) * len(tensors)
    truth = second_derivatives(operation.truth, testing.in_float64(tensors), needs)
    actual = second_derivatives(lambda *t: operation.function(*t, backend=backend), tensors, needs)
    plain = [lambda *t: operation.function(*t, backend="reference"), OTHER_ORDERS[name]]
    assert_as_exact_as_one([lambda f=f: second_derivatives(f, tensors, needs) for f in plain], actual, truth)


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradgradcheck(name, backend, float64):
    operation = OPERATIONS[name]
    leaves = [t.requires_grad_() for t in operation.inputs(float64)]

    def function(*t):
        return operation.function(*t, backend=backend)

    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(
        function, leaves, check_batched_grad=True, check_fwd_over_rev=True, fast_mode=True
    )


@pytest.mark.parametrize("op", ["phm_weight", "phm_linear", "lowrank_phm_linear"])
def test_third_derivatives(op, backend, float64):
    operation = OPERATIONS[op]
    tensors = operation.inputs(float64)

    def third(function):
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        total = as_tuple(function(*leaves))[0].pow(3).sum()
        for _ in range(3):
            found = torch.autograd.grad(total, leaves, create_graph=True)
            total = sum((k + 1) * f.square().sum() for k, f in enumerate(found))
        return found

    expected = third(operation.truth)
    for a, e in zip(third(lambda *t: operation.function(*t, backend=backend)), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", OPERATIONS)
def test_inputs_that_are_not_contiguous_keep_their_part(name, backend, float64):
    """A copy made inside a Function has no history: the part through it would be left out silently."""
    operation = OPERATIONS[name]
    leaves = [t.requires_grad_() for t in operation.inputs(float64)]

    def penalty(function, layout):
        tensors = [layout(t) for t in leaves]
        total = sum(y.square().sum() for y in as_tuple(function(*tensors)))
        first = torch.autograd.grad(total, tensors, create_graph=True)
        return torch.autograd.grad(sum(f.square().sum() for f in first), leaves, materialize_grads=True)

    actual = penalty(
        lambda *t: operation.function(*t, backend=backend),
        lambda t: t.mT.contiguous().mT if t.dim() > 1 else torch.stack([t, t], -1)[:, 0],
    )
    for a, e in zip(actual, penalty(operation.truth, torch.clone), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [None, 1])
def test_gradient_penalty_of_the_last_layer(rank, backend, float64):
    """Here the incoming gradient asks for no gradient itself: nothing but the layer can carry the second derivative."""
    layer = mk.PHMLinear(16, 4, rank=rank, dtype=float64)
    rule = layer.rule if rank is None else layer.rule_in @ layer.rule_out
    weight = kron_weight(rule.detach(), layer.local.detach())
    x = torch.ones(6, 16, dtype=float64, requires_grad=True)
    with mk.use_backend(backend):
        (slope,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
        slope.square().sum().backward()
    local = layer.local.detach().requires_grad_()
    slopes = kron_weight(rule.detach(), local).sum(1)
    torch.testing.assert_close(slope.detach(), weight.sum(1).expand(6, 16))
    (expected,) = torch.autograd.grad(6 * slopes.square().sum(), local)
    torch.testing.assert_close(layer.local.grad, expected)
    assert layer.bias.grad is None


def test_maml(backend, float64):
    """The outer gradient through an inner step, in the parameters that the step started from."""
    layer = mk.PHMLinear(8, 4, terms=2, dtype=float64)
    x, target = torch.randn(5, 8, dtype=float64), torch.randn(5, 4, dtype=float64)
    parameters = [layer.rule, layer.local, layer.bias]

    def outer(function):
        loss = (function(x, *parameters) - target).square().mean()
        inner = torch.autograd.grad(loss, parameters, create_graph=True)
        fast = [p - 0.5 * g for p, g in zip(parameters, inner)]
        return torch.autograd.grad((function(x, *fast) - target).square().mean(), parameters)

    actual = outer(lambda *t: mk.phm_linear(*t, backend=backend))
    for a, e in zip(actual, outer(kron_linear), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("name", OPERATIONS)
def test_backward_inside_autocast_keeps_the_dtype_of_forward(name, backend):
    """An autocast that forward did not see must not round second derivatives to bfloat16."""
    operation = OPERATIONS[name]
    leaves = [t.requires_grad_() for t in operation.inputs(torch.float32)]
    outputs = as_tuple(operation.function(*leaves, backend=backend))

    def penalty():
        first = torch.autograd.grad(sum(y.square().sum() for y in outputs), leaves, create_graph=True)
        return torch.autograd.grad(sum(f.square().sum() for f in first), leaves, retain_graph=True)

    expected = penalty()
    with torch.autocast(leaves[0].device.type, dtype=torch.bfloat16):
        found = penalty()
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OPERATIONS)
def test_autocast_casts_second_derivatives_as_first(name):
    """Inside autocast products run in bfloat16, and gradients come in the dtype of the leaves."""
    operation = OPERATIONS[name]
    leaves = [t.requires_grad_() for t in operation.inputs(torch.float32)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = as_tuple(operation.function(*leaves, backend=None))
        assert outputs[0].dtype == UNDER_AUTOCAST.get(name, torch.bfloat16)
        first = torch.autograd.grad(sum(y.float().square().sum() for y in outputs), leaves, create_graph=True)
        found = torch.autograd.grad(sum(f.square().sum() for f in first), leaves)
    exact = testing.in_float64(leaves)
    exact = [t.detach().requires_grad_() for t in exact]
    first = torch.autograd.grad(
        sum(y.square().sum() for y in as_tuple(operation.truth(*exact))), exact, create_graph=True
    )
    for a, e in zip(found, torch.autograd.grad(sum(f.square().sum() for f in first), exact), strict=True):
        assert a.dtype == torch.float32
        assert testing.relative_error(a, e) < 0.3


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_second_derivatives_of_compiled_layers(compiler):
    """Right where the compiler keeps autograd, refused by AOTAutograd; never left out."""
    torch.compiler.reset()
    layer = mk.PHMLinear(8, 4, terms=2)
    x = torch.randn(3, 8, requires_grad=True)

    def penalty(function):
        y = function(x)
        (slope,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(y.sum() + slope.square().sum(), list(layer.parameters()))

    compiled = torch.compile(layer, backend=compiler, fullgraph=True)
    if compiler == "aot_eager":
        with pytest.raises(RuntimeError, match="double backward"):
            penalty(compiled)
    else:
        for a, e in zip(penalty(compiled), penalty(layer), strict=True):
            torch.testing.assert_close(a, e)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in SAVE_AN_OUTPUT])
def test_graphs_that_contain_a_gradient(name):
    """make_fx records the gradient op: it must be differentiable by itself.

    Not an operation that saves an output: make_fx cuts the link to it, as it does for torch.exp (findings/).
    """
    operation = OPERATIONS[name]
    tensors = operation.inputs(torch.float64)
    leaves = [t.requires_grad_() for t in tensors]

    def slopes(*t):
        total = sum(y.square().sum() for y in as_tuple(operation.function(*t, backend=None)))
        return torch.autograd.grad(total, t, create_graph=True)

    graph = torch.fx.experimental.proxy_tensor.make_fx(slopes)(*leaves)
    found, expected = (torch.autograd.grad(sum(s.square().sum() for s in f(*leaves)), leaves) for f in (graph, slopes))
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("name", OPERATIONS)
def test_hooks_of_saved_tensors(name):
    """torch.func refuses them; second derivatives do not need it."""
    operation = OPERATIONS[name]
    leaves = [t.requires_grad_() for t in operation.inputs(torch.float64)]

    def penalty():
        total = sum(y.square().sum() for y in as_tuple(operation.function(*leaves, backend=None)))
        first = torch.autograd.grad(total, leaves, create_graph=True)
        return torch.autograd.grad(sum(f.square().sum() for f in first), leaves)

    expected = penalty()
    with torch.autograd.graph.save_on_cpu():
        for a, e in zip(penalty(), expected, strict=True):
            torch.testing.assert_close(a, e)
