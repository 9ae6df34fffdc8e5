"""torch.func and forward mode over every operation and layer: the same numbers as the plain function gives."""

import copy
import threading

import pytest
import torch
from errors import raises
from operations import OPERATIONS, as_tuple
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap

import mop_kernels as mk
from mop_kernels import MOPFeedForward, PHMLinear, testing
from mop_kernels.truth import kron_weight

BATCH = 3


def loss(function):
    return lambda *t: sum((k + 1) * y.pow(2).sum() for k, y in enumerate(as_tuple(function(*t))))


def drawn(tensors, seed, batch=()):
    g = torch.Generator().manual_seed(seed)
    return tuple(testing.normal(g, torch.float64, *batch, *t.shape).to(t.dtype) for t in tensors)


def stacked(tensors, places):
    """The tensors with a batch axis at these places, in turn in front and at the end, and the axes."""
    dims = tuple((0 if place % 2 else -1) if place in places else None for place in range(len(tensors)))
    batches = drawn(tensors, 5, (BATCH,))
    return [t if d is None else b.movedim(0, d) for t, b, d in zip(tensors, batches, dims)], dims


def every(tensors):
    return tuple(range(len(tensors)))


def of_batches(transform):
    """A transform under vmap over x alone, over the last factor alone, over all factors, and over everything."""

    def function(f, tensors):
        found = []
        choices = ([0], [len(tensors) - 1], list(every(tensors))[1:], list(every(tensors)))
        for places in filter(None, choices):  # an operation on one tensor has no others
            batches, dims = stacked(tensors, places)
            found.append(vmap(transform(f, tensors), dims)(*batches))
        return found

    return function


def tangents_by_hand(f, tensors):
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, v) for t, v in zip(tensors, drawn(tensors, 1))]
        return [forward_ad.unpack_dual(y).tangent for y in as_tuple(f(*duals))]


def some_tangents(f, tensors):
    """Of every second input alone: the others have no tangent."""
    places = every(tensors)[::2]

    def of_some(*given):
        full = list(tensors)
        for place, t in zip(places, given):
            full[place] = t
        return f(*full)

    given = [tensors[k] for k in places]
    return jvp(of_some, tuple(given), drawn(given, 1))


def nested_vmap(f, tensors):
    """The outer vmap over x, the inner over everything else."""
    if len(tensors) == 1:
        return vmap(vmap(f))(*drawn(tensors, 3, (BATCH, 2)))
    inner = vmap(f, (None, *(0,) * (len(tensors) - 1)))
    outer = vmap(inner, (0, *(None,) * (len(tensors) - 1)))
    return outer(*drawn(tensors[:1], 3, (BATCH,)), *drawn(tensors[1:], 4, (2,)))


def batched_gradients(f, tensors):
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    outputs = as_tuple(f(*leaves))
    return torch.autograd.grad(outputs, leaves, drawn(outputs, 2, (BATCH,)), is_grads_batched=True)


def vectorized_hessian(f, tensors):
    """By batches of tangents without torch.func."""
    options = {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}
    return torch.autograd.functional.hessian(lambda x: loss(f)(x, *tensors[1:]), tensors[0], **options)


def vmap_of_backward(f, tensors):
    """The gradients of batches of output gradients, by torch.vmap over torch.autograd.grad."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    outputs = as_tuple(f(*leaves))
    batches = drawn(outputs, 2, (BATCH,))
    return vmap(lambda *grads: torch.autograd.grad(outputs, leaves, grads, retain_graph=True))(*batches)


TRANSFORMS = {
    "grad": lambda f, t: grad(loss(f), every(t))(*t),
    "vjp": lambda f, t: vjp(lambda *t: as_tuple(f(*t)), *t)[1](drawn(as_tuple(f(*t)), 2)),
    "jvp": lambda f, t: jvp(f, tuple(t), drawn(t, 1)),
    "jvp of some inputs": some_tangents,
    "forward mode without torch.func": tangents_by_hand,
    "jacrev": lambda f, t: jacrev(f, every(t))(*t),
    "jacfwd": lambda f, t: jacfwd(f, every(t))(*t),
    "hessian": lambda f, t: hessian(loss(f), tuple(sorted({0, len(t) - 1})))(*t),
    "reverse over forward": lambda f, t: grad(lambda *t: loss(lambda *u: jvp(f, u, drawn(u, 1))[1])(*t), every(t))(*t),
    "forward over reverse": lambda f, t: jvp(grad(loss(f), every(t)), tuple(t), drawn(t, 1)),
    "reverse over reverse": lambda f, t: grad(loss(grad(loss(f), every(t))), every(t))(*t),
    "jvp of jvp": lambda f, t: jvp(lambda *u: jvp(f, u, drawn(u, 1))[1], tuple(t), drawn(t, 2)),
    "jacfwd of jacfwd": lambda f, t: jacfwd(jacfwd(f, len(t) - 1), 0)(*t),
    "jvp of grad of jvp": lambda f, t: jvp(
        grad(loss(lambda *u: jvp(f, u, drawn(u, 1))[1]), every(t)), tuple(t), drawn(t, 2)
    ),
    "vectorized hessian": vectorized_hessian,
    "vmap": of_batches(lambda f, t: f),
    "vmap of grad": of_batches(lambda f, t: grad(loss(f), every(t))),
    "vmap of grad in x alone": of_batches(lambda f, t: grad(loss(f))),
    "grad of vmap": lambda f, t: [
        grad(loss(vmap(f, dims)), every(t))(*batches) for batches, dims in (stacked(t, [0]), stacked(t, every(t)))
    ],
    "vmap of vmap": nested_vmap,
    "batched gradients": batched_gradients,
    "vmap of ordinary backward": vmap_of_backward,
}


def test_batched_gradients_in_a_thread_of_its_own():
    """As the backward pass of tensors on a GPU: it does not know how deep the batches are nested."""
    layer, x = PHMLinear(16, 8), torch.randn(3, 16, requires_grad=True)
    y = layer(x)
    grads = torch.randn(5, 3, 8)
    found = []

    def backward(batched):
        thread = threading.Thread(target=lambda: found.append(run(batched)))
        thread.start()
        thread.join()
        return found.pop()

    def run(batched):
        with torch.no_grad():
            return torch.autograd.grad(y, x, batched, retain_graph=True)[0]

    actual = torch._vmap_internals._vmap(backward)(grads)
    torch.testing.assert_close(actual, grads @ layer.weight_matrix().detach().mT)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_equals_the_plain_function(name, transform, backend):
    dtype = torch.float64 if backend in ("reference", "cpu") else torch.float32
    operation = OPERATIONS[name]
    tensors = operation.inputs(dtype)
    expected = TRANSFORMS[transform](operation.truth, testing.in_float64(tensors))
    actual = TRANSFORMS[transform](lambda *t: operation.function(*t, backend=backend), tensors)
    found, structure = torch.utils._pytree.tree_flatten(actual)
    right, expected_structure = torch.utils._pytree.tree_flatten(expected)
    assert len(found) == len(right) > 0
    assert str(structure) == str(expected_structure)
    for a, e in zip(found, right):
        assert a.shape == e.shape
        assert testing.relative_error(a, e) < (1e-10 if dtype == torch.float64 else 1e-3)


KINDS = {"full rule": {}, "low rank": {"rank": 1}, "low rank, low-rank local": {"rank": 2, "local_rank": 1}}


def dense_of(parameters, rank, local_rank):
    """The parameters of the dense layer with the same function, nn.Linear's names."""
    rule = parameters["rule"] if rank is None else parameters["rule_in"] @ parameters["rule_out"]
    local = parameters["local"] if local_rank is None else parameters["local_left"] @ parameters["local_right"]
    return {"weight": kron_weight(rule, local).mT, "bias": parameters["bias"]}


@pytest.mark.parametrize("kind", KINDS)
def test_per_sample_gradients_of_a_layer(kind, backend):
    sizes = {"rank": None, "local_rank": None} | KINDS[kind]
    layer, dense = PHMLinear(16, 8, **KINDS[kind]), torch.nn.Linear(16, 8)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    x, target = torch.randn(5, 16), torch.randn(5, 8)

    def of_layer(p, x, y):
        return (functional_call(layer, p, (x,)) - y).square().sum()

    def of_dense(p, x, y):
        return (functional_call(dense, dense_of(p, **sizes), (x,)) - y).square().sum()

    with mk.use_backend(backend):
        actual = vmap(grad(of_layer), (None, 0, 0))(parameters, x, target)
        in_chunks = vmap(grad(of_layer), (None, 0, 0), chunk_size=2)(parameters, x, target)
    for k in range(5):
        expected = grad(of_dense)(parameters, x[k], target[k])
        for name, gradient in expected.items():
            torch.testing.assert_close(actual[name][k], gradient, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(in_chunks[name][k], gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_ensemble_of_layers(kind, training, backend):
    layers = [PHMLinear(16, 8, **KINDS[kind]).train(training) for _ in range(3)]
    parameters, buffers = stack_module_state(layers)
    base = copy.deepcopy(layers[0]).to("meta")
    x = torch.randn(5, 16)
    with mk.use_backend(backend):
        for gradients_on in (True, False):
            with torch.set_grad_enabled(gradients_on):
                found = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
            for y, layer in zip(found, layers):
                torch.testing.assert_close(y, layer.to_linear()(x), rtol=1e-5, atol=1e-5)
        found.requires_grad or vmap(lambda p: functional_call(base, p, (x,)))(parameters).square().sum().backward()
        for k, layer in enumerate(layers):
            layer.zero_grad()
            layer(x).square().sum().backward()
            for name, p in layer.named_parameters():
                torch.testing.assert_close(parameters[name].grad[k], p.grad, rtol=1e-5, atol=1e-5)


def test_ensemble_of_generators(backend):
    """Mixtures of experts stacked, and the per-sample gradients of one."""
    generators = [MOPFeedForward(2, 3, 8, 4, 6, terms_down=2, terms_up=2) for _ in range(2)]
    parameters, _ = stack_module_state(generators)
    x = torch.randn(5, 8)
    experts = torch.tensor([2, 0])
    with mk.use_backend(backend):
        for chosen in (None, experts):
            found = vmap(lambda p: functional_call(generators[0], p, (x, chosen)))(parameters)  # noqa: B023
            for k, generator in enumerate(generators):
                for y, one in zip(found, generator(x, chosen)):
                    torch.testing.assert_close(y[k], one, rtol=1e-5, atol=1e-5)
        own = dict(generators[0].named_parameters())
        per_row = vmap(
            grad(lambda p, row: sum(y.square().sum() for y in functional_call(generators[0], p, (row[None],)))),
            (None, 0),
        )({k: p.detach() for k, p in own.items()}, x)
        for k in range(5):
            expected = torch.autograd.grad(sum(y.square().sum() for y in generators[0](x[k : k + 1])), own.values())
            for name, gradient in zip(own, expected):
                torch.testing.assert_close(per_row[name][k], gradient, rtol=1e-4, atol=1e-5)


def test_experts_and_task_ids_may_be_batched(backend):
    """Other experts per call, and other tasks per example: ids out of range are still refused on a CPU."""
    if backend == "cuda":
        pytest.skip("it has no attempt_mix")
    generator = MOPFeedForward(2, 3, 8, 4, 6, terms_down=2, terms_up=2)
    x, ids = torch.randn(5, 8), torch.tensor([[2, 0], [1, 2], [0, 1]])
    with mk.use_backend(backend):
        found = vmap(lambda e: generator(x, e))(ids)
        for k, experts in enumerate(ids):
            for y, one in zip(found, generator(x, experts)):
                torch.testing.assert_close(y[k], one, rtol=1e-5, atol=1e-5)
        if ids.is_cpu:
            with raises(ValueError, "experts", "0..2", "3"):
                vmap(lambda e: generator(x, e))(ids + 1)
            tensors, _ = testing.prompt_inputs(testing.PROMPTS["odd"], torch.float32)
            x, source, target, *factors = tensors
            with raises(ValueError, "task_ids", "0..3", "9"):
                vmap(lambda x, t: mk.attempt_mix(x[None], None, source, target, t[None], *factors, 4.0))(
                    x, torch.full((5,), 9)
                )


def test_vmap_keeps_the_kernels(backend):
    """A batch of inputs is a batch of rows: the numbers are those of one call, bit for bit."""
    layer = PHMLinear(16, 8)
    x = torch.randn(4, 5, 16)
    with mk.use_backend(backend), torch.no_grad():
        assert torch.equal(vmap(layer)(x), layer(x))
        assert torch.equal(vmap(layer, in_dims=1, out_dims=1)(x), layer(x.transpose(0, 1).contiguous()).transpose(0, 1))


def test_dead_wrappers(backend):
    """vjp called after the transform has ended, as users keep it."""
    layer = PHMLinear(16, 8)
    x = torch.randn(5, 16)
    with mk.use_backend(backend):
        _, pull = vjp(layer, x)
        (found,) = pull(torch.ones(5, 8, requires_grad=True))
    torch.testing.assert_close(found.detach(), torch.ones(5, 8) @ layer.weight_matrix().detach().mT)


COMPILED = {
    "grad": lambda f, t: grad(loss(f), every(t)),
    "vmap": lambda f, t: vmap(f, (0, *(None,) * (len(t) - 1))),
    "vmap of grad": lambda f, t: vmap(grad(loss(f), every(t)), (0, *(None,) * (len(t) - 1))),
}


@pytest.mark.parametrize("transform", COMPILED)
@pytest.mark.parametrize("name", OPERATIONS)
def test_compiled_transforms(name, transform):
    """torch.compile over torch.func computes by the plain form, whatever the backend.

    All three are traced by dynamo, the last also by AOTAutograd.
    """
    torch.compiler.reset()
    backend = "aot_eager" if transform == "vmap of grad" else "eager"
    operation = OPERATIONS[name]
    tensors = operation.inputs(torch.float32)
    batches = [*drawn(tensors[:1], 3, () if transform == "grad" else (BATCH,)), *tensors[1:]]

    def function(*t):
        return operation.function(*t, backend=None)

    compiled = torch.compile(COMPILED[transform](function, tensors), backend=backend, fullgraph=True)
    expected = COMPILED[transform](operation.truth, tensors)(*testing.in_float64(batches))
    for a, e in zip(as_tuple(compiled(*batches)), as_tuple(expected), strict=True):
        assert testing.relative_error(a, e) < 1e-4


def test_vmap_of_a_compiled_layer():
    layer = PHMLinear(16, 8)
    x = torch.randn(3, 5, 16)
    compiled = torch.compile(layer, backend="aot_eager")
    torch.testing.assert_close(vmap(compiled)(x), layer(x))
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    found = grad(lambda p: functional_call(compiled._orig_mod, p, (x,)).square().sum())(parameters)
    layer(x).square().sum().backward()
    torch.testing.assert_close(found["local"], layer.local.grad)
