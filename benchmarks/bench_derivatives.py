"""torch.func and second derivatives of layers, beside the same function by batched einsum and beside a dense layer.

Per-sample gradients: vmap(grad(loss)) over one layer. Ensembles: vmap over the parameters of several layers. Second
derivatives: the gradient of a gradient penalty in every parameter, as in WGAN-GP and MAML. The dense layer has the same
W as its own parameter, so it shows what the factors cost or save.
"""

import pytest
import torch
from torch.func import grad, vmap

import mop_kernels as mk
from benchmarks.support.cases import mop_arguments
from mop_kernels import reference, testing
from mop_kernels.testing import Shape

FULL = {"sides": (768, 768), "samples": 64, "rows": 16, "layers": 8}
SMALL = {"sides": (16, 16), "samples": 3, "rows": 2, "layers": 2}
KINDS = {"terms 8, full rule": None, "terms 8, rank 1": 1}
TERMS = 8


def factors_of(kind: str, sides: tuple[int, int], layers: int = 1) -> list[torch.Tensor]:
    """The factors and the bias of each of some layers, stacked."""
    rank, (d_in, d_out) = KINDS[kind], sides
    terms = TERMS if d_in % TERMS == 0 else 1
    shape = Shape(1, terms, terms, terms, d_in // terms, d_out // terms, rank or 1)
    inputs = testing.linear_inputs if rank is None else testing.lowrank_inputs
    drawn = [inputs(shape, torch.float32, seed=k)[1:] for k in range(layers)]
    return [torch.stack(parts) for parts in zip(*drawn)]


def einsum_layer(x, *factors):
    """The plain form of one layer: PyTorch's vmap makes batched matrix products of it."""
    *rules, local, bias = factors
    lead = x.shape[:-1]
    if len(rules) == 2:
        y = reference.lowrank_phm_linear(x.reshape(-1, x.shape[-1]), *rules, local, bias)
        return y.reshape(*lead, y.shape[-1])
    rule = rules[0]
    rows = x.unflatten(-1, (rule.shape[-2], local.shape[-2]))
    t = torch.einsum("...au,iac->...ciu", rows, rule)
    return torch.einsum("...ciu,iuv->...cv", t, local).flatten(-2) + bias


def kernel_layer(x, *factors):
    return (mk.phm_linear if len(factors) == 3 else mk.lowrank_phm_linear)(x, *factors)


def dense_of(factors: list[torch.Tensor]) -> list[torch.Tensor]:
    """(W, bias) of stacked layers."""
    *rules, local, bias = factors
    return [mk.phm_weight(rules[0] if len(rules) == 1 else rules[0] @ rules[1], local), bias]


def dense_layer(x, weight, bias):
    return x @ weight + bias


WAYS = {
    "mop_kernels": (kernel_layer, "ours", lambda factors: factors),
    "batched einsum": (einsum_layer, "form", lambda factors: factors),
    "dense, x W": (dense_layer, "stand-in", dense_of),
}


def prove(found, right, kind: str, loose: float = 1e-4) -> None:
    """Gradients of a dense layer are of W, not of the factors: nothing to compare."""
    if kind != "stand-in":
        for a, e in zip(found, right, strict=True):
            assert testing.relative_error(a.detach(), e.detach().double()) < loose


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", ["one row", "rows"])
@pytest.mark.parametrize("kind", KINDS)
def test_per_sample_gradients(kind, rows, way, full_size, timed):
    sizes = FULL if full_size else SMALL
    count = 1 if rows == "one row" else sizes["rows"]
    function, mark, prepare = WAYS[way]
    factors = [t[0] for t in factors_of(kind, sizes["sides"])]
    x = torch.randn(sizes["samples"], count, sizes["sides"][0], generator=torch.Generator().manual_seed(1))

    def per_sample(layer, parameters):
        def loss(parameters, x):
            return layer(x, *parameters).square().sum()

        return vmap(grad(loss), (None, 0))(tuple(parameters), x)

    parameters = [t[0] for t in prepare([t[None] for t in factors])]
    prove(per_sample(function, parameters), per_sample(einsum_layer, factors), mark)
    group = f"per-sample gradients, {sizes['samples']} samples of {count} rows, 768 -> 768, {kind}"
    timed(lambda: per_sample(function, parameters), group, way, kind=mark)


@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_ensemble(kind, way, direction, full_size, timed):
    sizes = FULL if full_size else SMALL
    function, mark, prepare = WAYS[way]
    factors = factors_of(kind, sizes["sides"], sizes["layers"])
    x = torch.randn(sizes["samples"], sizes["sides"][0], generator=torch.Generator().manual_seed(1))

    def run(layer, parameters):
        leaves = [t.detach().requires_grad_(direction != "forward") for t in parameters]
        y = vmap(layer, (None, *(0,) * len(leaves)))(x, *leaves)
        return [y] if direction == "forward" else torch.autograd.grad(y.sum(), leaves)

    parameters = prepare(factors)
    prove(run(function, parameters), run(einsum_layer, factors), mark)
    group = f"ensemble of {sizes['layers']} layers, {sizes['samples']} rows, 768 -> 768, {kind}: {direction}"
    timed(lambda: run(function, parameters), group, way, kind=mark)


def linear_case(kind: str, full_size: bool):
    sizes = FULL if full_size else SMALL
    factors = [t[0] for t in factors_of(kind, sizes["sides"])]
    x = torch.randn(512 if full_size else 4, sizes["sides"][0], generator=torch.Generator().manual_seed(1))
    return [x, *factors], kernel_layer, einsum_layer


def weight_case(full_size: bool):
    rule, local = (t[0] for t in factors_of("terms 8, full rule", (FULL if full_size else SMALL)["sides"])[:2])
    return [rule, local], mk.phm_weight, reference.phm_weight


def bank_case(full_size: bool):
    tensors = testing.mop_inputs(testing.BANKS["paper" if full_size else "small"], torch.float32)

    def plain(*t):
        return reference.mop_ffn(*testing.as_mop_arguments(t), "gelu")

    return tensors, lambda *t: mk.mop_ffn(*mop_arguments(*t), activation="gelu"), plain


def prompts_case(full_size: bool):
    tensors, options = testing.prompt_inputs(testing.PROMPTS["paper" if full_size else "odd"], torch.float32)
    mask, ids, temperature = options["mask"], options["task_ids"], options["temperature"]

    def ours(x, source, target, *factors):
        return mk.attempt_mix(x, mask, source, target, ids, *factors, temperature)

    def plain(x, source, target, *factors):
        return reference.attempt_mix(x, mask, source, target, ids, *factors, temperature=temperature)

    return tensors, ours, plain


SECOND = {
    "phm_weight, 768 x 768": weight_case,
    "phm_linear, 512 rows, 768 -> 768": lambda full_size: linear_case("terms 8, full rule", full_size),
    "lowrank_phm_linear, 512 rows, 768 -> 768": lambda full_size: linear_case("terms 8, rank 1", full_size),
    "mop_ffn, the paper's bank": bank_case,
    "attempt_mix, the paper's shapes": prompts_case,
}
STEPS = ("forward", "forward + backward", "gradient penalty")


@pytest.mark.parametrize("way", ["mop_kernels", "einsum"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", SECOND)
def test_second_derivatives(name, step, way, full_size, timed):
    """The penalty: the squares of the gradients in every tensor, differentiated in every tensor."""
    tensors, ours, plain = SECOND[name](full_size)
    leaves, exact = ([t.clone().requires_grad_() for t in some] for some in (tensors, testing.in_float64(tensors)))

    def run(function, step, leaves=leaves):
        outputs = function(*leaves)
        outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        loss = sum(y.square().sum() for y in outputs)
        if step == "forward":
            return [loss]
        if step == "forward + backward":
            return torch.autograd.grad(loss, leaves)
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    # sums of squares of squares: eager float32 keeps three digits
    prove(run(ours, step), run(plain, step, exact), "ours", loose=1e-3)
    function, mark = (ours, "ours") if way == "mop_kernels" else (plain, "form")
    timed(lambda: run(function, step), f"{name}: {step}", way, kind=mark)
