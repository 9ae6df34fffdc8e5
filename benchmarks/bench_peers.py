"""Other packages that multiply by Kronecker products, on the shapes of bench_phm_linear.py.

No package is required. A package that is not installed is skipped; `pip install peft lycoris-lora pyfastkron` installs
all of them. They compute a single Kronecker term, so a sum takes one adapter, one call or one batch entry per term.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.support.cases import compare
from benchmarks.support.contenders import Contender, ours
from benchmarks.support.pytorch_forms import lycoris_bypass
from benchmarks.support.work import DIRECTIONS, FULL_DOWN, FULL_UP


def peft_lokr(tensors: list[Tensor]) -> tuple[Callable, list[Tensor]]:
    """Return PEFT's LoKr, one adapter per term on a zero layer. It builds every torch.kron in every forward pass."""
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


def fastkron(x: Tensor, rule: Tensor, local: Tensor, bias: Tensor) -> Tensor:
    """Compute phm_linear by pyfastkron, with the terms as its batch axis."""
    from pyfastkron import fastkrontorch

    return fastkrontorch.gemkm(x.unsqueeze(0), (rule, local)).sum(0) + bias


CONTENDERS = [
    *(("mop_kernels", contender) for contender in ours("phm_linear") if contender.kind == "ours"),
    ("peft", Contender("PEFT LoKr", peft_lokr, kind="stand-in")),
    ("lycoris", Contender("LyCORIS kron_bypass", lycoris_bypass())),
    ("pyfastkron", Contender("pyfastkron", fastkron)),
]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("package", "contender"), CONTENDERS, ids=[package for package, _ in CONTENDERS])
@pytest.mark.parametrize("work", [FULL_DOWN, FULL_UP], ids=lambda work: work.label)
def test_peer(package, contender, work, direction, case_of, timed):
    pytest.importorskip(package, exc_type=ImportError)
    compare(timed, case_of(work, label=f"peers, {work.label}"), contender, direction)
