"""Other packages that multiply by Kronecker products, on the shapes of bench_phm_linear.py.

None is a requirement; one that is not installed is skipped. `pip install peft lycoris-lora pyfastkron` brings them.
They know a single Kronecker term, so a sum takes one adapter, one call or one batch entry a term.
"""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import mop_kernels as mk
from benchmarks.support.cases import DIRECTIONS, Case, Contender, compare, ours
from mop_kernels import reference, testing
from mop_kernels.testing import Shape


def peft_lokr(tensors: list[Tensor]) -> tuple[Callable, list[Tensor]]:
    """PEFT's LoKr, one adapter a term on a zero layer; it builds every torch.kron in every forward."""
    import peft

    x, rule, local, bias = tensors
    terms, g_in, _ = rule.shape
    base = torch.nn.Linear(x.shape[1], bias.numel())
    torch.nn.init.zeros_(base.weight)
    base.bias.data.copy_(bias)
    names = [f"t{i}" for i in range(terms)]
    rank = 2 * max(*local.shape[1:], g_in)  # from half the sides on LoKr keeps its factors full
    options = {"r": rank, "alpha": rank, "decompose_factor": g_in, "target_modules": ["0"]}
    model = peft.get_peft_model(torch.nn.Sequential(base), peft.LoKrConfig(**options), adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, peft.LoKrConfig(**options))
    layer = model.base_model.model[0]
    layer.set_adapter(names)
    for i, name in enumerate(names):
        layer.lokr_w1[name].data.copy_(rule[i].T)
        layer.lokr_w2[name].data.copy_(local[i].T)
    parameters = [factors[name].requires_grad_() for name in names for factors in (layer.lokr_w1, layer.lokr_w2)]
    return lambda rows, *_: layer(rows), [x, *parameters]


def lycoris_bypass(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor) -> Tensor:
    """LyCORIS' kron_bypass a term; on a CPU it is eager PyTorch."""
    from lycoris.functional.lokr import kron_bypass

    return bias + sum(kron_bypass(x, a.T, None, None, b.T, None, None, None, 1.0) for a, b in zip(rule, local))


def fastkron(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor) -> Tensor:
    """pyfastkron's product, terms as its batch."""
    from pyfastkron import fastkrontorch

    return fastkrontorch.gemkm(x.unsqueeze(0), (rule, local)).sum(0) + bias


PEERS = {
    "peft": Contender("PEFT LoKr", kind="stand-in", prepare=peft_lokr),
    "lycoris": Contender("LyCORIS kron_bypass", lycoris_bypass),
    "pyfastkron": Contender("pyfastkron", fastkron),
}
CASES = {
    "40 rows, 768 -> 128, terms 16": Shape(40, 16, 16, 16, 48, 8, 1),
    "40 rows, 128 -> 768, terms 8": Shape(40, 8, 8, 8, 16, 96, 1),
}
OURS = next((c for c in ours(mk.phm_linear) if c.kind == "ours"), None)


@pytest.fixture(scope="module", params=CASES)
def case(request, full_size):
    shape = CASES[request.param] if full_size else Shape(8, 4, 4, 4, 8, 8, 1)
    tensors = testing.linear_inputs(shape, torch.float32)
    multiply_adds = shape.rows * shape.d_in * shape.d_out
    return Case(f"peers, {request.param}", tensors, reference.phm_linear, multiply_adds, full_size)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("package", ["mop_kernels", *PEERS])
def test_peer(package, direction, case, timed):
    try:
        importlib.import_module(package)
    except ImportError as error:
        pytest.skip(f"{package} cannot be imported: {error}")
    contender = OURS if package == "mop_kernels" else PEERS[package]
    if contender is None:
        pytest.skip("the compiled backend is missing here")
    compare(timed, case, contender, direction)
