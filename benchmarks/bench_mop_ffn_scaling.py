"""The paper's bank forward and backward with one size changed at a time: rows, experts, terms, rank; for the plots.

Right here is what the batched three stages say in float64; bench_mop_ffn.py has proven those against the reference.
"""

import pytest
import torch

import mop_kernels as mk
from benchmarks.support import bank_forms
from benchmarks.support.cases import BOTH, Case, Contender, bank_multiply_adds, compare, mop_arguments, ours
from mop_kernels import testing
from mop_kernels.testing import Bank, Shape

CONTENDERS = [
    *(c for c in ours(mk.mop_ffn, mop_arguments) if c.kind == "ours"),
    Contender("batched, W as one product", bank_forms.built_weights),
    Contender("batched, three stages", bank_forms.three_stages),
]


def bank(rows: int = 40, experts: int = 5, terms: int = 16, rank: int = 1) -> Bank:
    """768 -> 128 -> 2 x 768, `terms` terms down and half as many up."""
    up = terms // 2
    down_shape = Shape(rows, terms, terms, terms, 768 // terms, 128 // terms, rank)
    return Bank(12, experts, down_shape, Shape(rows, up, up, up, 128 // up, 768 // up, rank))


AXES = {
    "rows": (8, 40, 160, 400),
    "experts": (1, 2, 5, 20),
    "terms": (4, 8, 16, 32),
    "rank": (1, 2, 4, 8),
}
POINTS = [(axis, at) for axis, values in AXES.items() for at in values]
SMALL = testing.BANKS["small"]


@pytest.fixture(scope="module")
def case(request, full_size):
    axis, at = request.param
    chosen = bank(**{axis: at}) if full_size else SMALL
    tensors = testing.mop_inputs(chosen, torch.float32)
    label = f"bank with {axis} = {at}"
    return Case(label, tensors, bank_forms.three_stages, bank_multiply_adds(chosen), full_size, outputs_only=True)


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda c: c.name)
@pytest.mark.parametrize("case", POINTS, indirect=True, ids=lambda p: f"{p[0]}={p[1]}", scope="module")
def test_scaling(contender, case, request, timed):
    axis, at = request.node.callspec.params["case"]
    compare(timed, case, contender, BOTH, axis=axis, at=at, effort=0.5)
