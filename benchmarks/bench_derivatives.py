"""torch.func and second derivatives of layers, compared with batched einsum and with a dense layer.

Per-sample gradients: vmap(grad(loss)) over one layer. Ensembles: vmap over the parameters of several layers. Second
derivatives: the gradient of a gradient penalty in every parameter, as in WGAN-GP and MAML. The dense layer has the same
W as its own parameter, so it shows the time that the factors cost or save.
"""

import pytest
import torch
from torch.func import grad, vmap

import mop_kernels as mk
from benchmarks.support.pytorch_forms import full_rule
from benchmarks.support.work import (
    BANK,
    BOTH,
    DIRECTIONS,
    FORWARD,
    PROMPT,
    Shape,
    Work,
    by_reference,
    listed,
    public_arguments,
    stacked,
)
from mop_kernels import reference, testing

KINDS = {"terms 8, full rule": "phm_linear", "terms 8, rank 1": "lowrank_phm_linear"}


@pytest.fixture(scope="module")
def sizes(full_size):
    """Return the side of a layer, the samples, the rows of a sample, and the layers of an ensemble."""
    return (768, 64, 16, 8) if full_size else (16, 3, 2, 2)


def square(rows: int, side: int) -> Shape:
    """Return the shape of a square layer of 8 terms and rank 1."""
    return Shape(rows, 8, 8, 8, side // 8, side // 8, 1)


def factors_of(kind: str, side: int, layers: int) -> list[torch.Tensor]:
    """Return the factors and the bias of several layers, stacked."""
    layer = Work(KINDS[kind], "", square(1, side))
    return stacked([layer.inputs(torch.float32, seed=k)[1:] for k in range(layers)])


def einsum_layer(x, *factors):
    """Compute one layer in its plain form. PyTorch's vmap turns it into batched matrix products."""
    *rules, local, bias = factors
    if len(rules) == 2:
        y = reference.lowrank_phm_linear(x.reshape(-1, x.shape[-1]), *factors)
        return y.reshape(*x.shape[:-1], y.shape[-1])
    rows = x.unflatten(-1, (rules[0].shape[-2], local.shape[-2]))
    t = torch.einsum("...au,iac->...ciu", rows, rules[0])
    return torch.einsum("...ciu,iuv->...cv", t, local).flatten(-2) + bias


def kernel_layer(x, *factors):
    """Compute one layer by our kernels."""
    return (mk.phm_linear if len(factors) == 3 else mk.lowrank_phm_linear)(x, *factors)


def dense_of(factors):
    """Return (W, bias) of stacked layers."""
    *rules, local, bias = factors
    return [mk.phm_weight(full_rule(rules), local), bias]


WAYS = {
    "mop_kernels": (kernel_layer, "ours", list),
    "batched einsum": (einsum_layer, "form", list),
    "dense, x W": (lambda x, weight, bias: x @ weight + bias, "stand-in", dense_of),
}


def prove(found, right, kind: str, largest_error: float = 1e-4) -> None:
    """Compare gradients. A dense layer has a gradient for W, not for the factors, so nothing is compared."""
    if kind != "stand-in":
        for a, e in zip(found, right, strict=True):
            assert testing.relative_error(a.detach(), e.detach().double()) < largest_error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", ["one row", "rows"])
@pytest.mark.parametrize("kind", KINDS)
def test_per_sample_gradients(kind, rows, way, sizes, timed):
    side, samples, count, _ = sizes if rows == "rows" else (*sizes[:2], 1, 0)
    function, mark, prepare = WAYS[way]
    stack = factors_of(kind, side, 1)
    x = testing.normal(torch.Generator().manual_seed(1), torch.float32, samples, count, side)

    def per_sample(layer, parameters):
        def loss(parameters, x):
            return layer(x, *parameters).square().sum()

        return vmap(grad(loss), (None, 0))(tuple(parameters), x)

    parameters, factors = ([t[0] for t in some] for some in (prepare(stack), stack))
    prove(per_sample(function, parameters), per_sample(einsum_layer, factors), mark)
    group = f"per-sample gradients, {samples} samples of {count} rows, 768 -> 768, {kind}"
    timed(lambda: per_sample(function, parameters), group, way, kind=mark)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_ensemble(kind, way, direction, sizes, timed):
    side, samples, _, layers = sizes
    function, mark, prepare = WAYS[way]
    factors = factors_of(kind, side, layers)
    x = testing.normal(torch.Generator().manual_seed(1), torch.float32, samples, side)

    def run(layer, parameters):
        leaves = [t.detach().requires_grad_(direction == BOTH) for t in parameters]
        y = vmap(layer, (None, *(0,) * len(leaves)))(x, *leaves)
        return [y] if direction == FORWARD else torch.autograd.grad(y.sum(), leaves)

    parameters = prepare(factors)
    prove(run(function, parameters), run(einsum_layer, factors), mark)
    group = f"ensemble of {layers} layers, {samples} rows, 768 -> 768, {kind}: {direction}"
    timed(lambda: run(function, parameters), group, way, kind=mark)


SECOND = [
    Work("phm_weight", "768 x 768", square(1, 768)),
    Work("phm_linear", "512 rows, 768 -> 768", square(512, 768)),
    Work("lowrank_phm_linear", "512 rows, 768 -> 768", square(512, 768)),
    BANK._replace(label="the paper's bank"),
    PROMPT._replace(label="the paper's shapes"),
]


def forms_of(op: str):
    """Return our form and the plain form. In a bank the activation is gelu, which has second derivatives."""
    options = {"activation": "gelu"} if op == "mop_ffn" else {}
    plain = einsum_layer if op == "phm_linear" else by_reference(op, **options)
    return lambda *given: getattr(mk, op)(*public_arguments(op, given), **options), plain


@pytest.mark.parametrize("way", ["mop_kernels", "einsum"])
@pytest.mark.parametrize("step", [*DIRECTIONS, "gradient penalty"])
@pytest.mark.parametrize("work", SECOND, ids=lambda work: work.name)
def test_second_derivatives(work, step, way, full_size, timed):
    """The penalty is the sum of the squares of all gradients, differentiated in every tensor."""
    tensors = (work if full_size else work.small()).inputs(torch.float32)
    ours, plain = forms_of(work.op)
    leaves = [t.clone().requires_grad_() for t in tensors]
    exact = [t.double().requires_grad_() for t in tensors]

    def run(function, step, leaves=leaves):
        loss = squares(listed(function(*leaves)))
        if step == FORWARD:
            return [loss]
        first = torch.autograd.grad(loss, leaves, create_graph=step != BOTH)
        return first if step == BOTH else torch.autograd.grad(squares(first), leaves)

    # sums of squares of squares: eager float32 keeps three digits
    prove(run(ours, step), run(plain, step, exact), "ours", largest_error=1e-3)
    function, mark = (ours, "ours") if way == "mop_kernels" else (plain, "form")
    timed(lambda: run(function, step), f"{work.name}: {step}", way, kind=mark)


def squares(tensors) -> torch.Tensor:
    """Return the sum of the squares of all numbers."""
    return torch.stack([t.square().sum() for t in tensors]).sum()
