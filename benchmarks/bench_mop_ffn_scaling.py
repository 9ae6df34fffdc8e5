"""The paper's bank forward and backward with one size changed at a time: rows, experts, terms, rank; for the plots.

The form "batched, three stages" in float64 gives the right results. bench_mop_ffn.py proves it against the reference.
"""

import pytest

from benchmarks.support.cases import compare
from benchmarks.support.contenders import BATCHED_PRODUCT, BATCHED_STAGES, forms, ours
from benchmarks.support.pytorch_forms import bank_stages
from benchmarks.support.work import BOTH, Bank, Shape, Work

OURS = [c for c in ours("mop_ffn") if c.kind == "ours"]
CONTENDERS = [*OURS, *forms("mop_ffn", BATCHED_PRODUCT, BATCHED_STAGES)]


def bank(rows: int = 40, experts: int = 5, terms: int = 16, rank: int = 1) -> Bank:
    """Return the bank 768 -> 128 -> 2 x 768 with `terms` terms down and half as many up."""
    up = terms // 2
    down_shape = Shape(rows, terms, terms, terms, 768 // terms, 128 // terms, rank)
    return Bank(12, experts, down_shape, Shape(rows, up, up, up, 128 // up, 768 // up, rank))


SIZES = {"rows": (8, 40, 160, 400), "experts": (1, 2, 5, 20), "terms": (4, 8, 16, 32), "rank": (1, 2, 4, 8)}
POINTS = [(axis, at) for axis, values in SIZES.items() for at in values]


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda c: c.name)
@pytest.mark.parametrize(("axis", "at"), POINTS, ids=lambda size: str(size))
def test_scaling(contender, axis, at, case_of, timed):
    work = Work("mop_ffn", f"{axis} = {at}", bank(**{axis: at}))
    case = case_of(work, label=f"bank with {axis} = {at}", judge=bank_stages, outputs_only=True)
    compare(timed, case, contender, BOTH, axis=axis, at=at, effort=0.5)
