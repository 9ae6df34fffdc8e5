"""The dense weight W by itself: one layer's, and all pairs' of the paper's down map at once (768 -> 128, terms 16)."""

import pytest
import torch

import mop_kernels as mk
from benchmarks.support import layer_forms
from benchmarks.support.cases import DIRECTIONS, Case, Contender, case_by_label, compare, every_pair, ours
from mop_kernels import reference, testing
from mop_kernels.testing import Shape

FORMS = [
    Contender("terms*d*m array (Compacter's way)", layer_forms.summed_array),
    Contender("sum of torch.kron", testing.kron_weight),
    Contender("one matrix product", layer_forms.one_product),
    Contender("torch.compile, one matrix product", layer_forms.one_product, compiled=True),
]
# label -> (sides, how many pairs, contenders): the forms of one pair would run 60 times
CASES = {
    "768 x 128, terms 16": (Shape(0, 16, 16, 16, 48, 8, 1), None, [*ours(mk.phm_weight), *FORMS]),
    "1024 x 1024, terms 4": (Shape(0, 4, 4, 4, 256, 256, 1), None, [*ours(mk.phm_weight), *FORMS]),
    "60 pairs of 768 x 128, terms 16": (Shape(0, 16, 16, 16, 48, 8, 1), 60, [*ours(mk.phm_weight), *FORMS[2:]]),
}


@case_by_label
def case_of(label, full_size):
    s, pairs, _ = CASES[label]
    if not full_size:
        s, pairs = Shape(0, 3, 3, 3, 4, 2, 1), pairs and 2
    groups = () if pairs is None else (pairs,)
    g = torch.Generator().manual_seed(0)
    rule = torch.randn(*groups, s.terms, s.g_in, s.g_out, generator=g) / s.terms**0.5
    local = torch.randn(*groups, s.terms, s.loc_in, s.loc_out, generator=g)
    multiply_adds = (pairs or 1) * s.terms * s.d_in * s.d_out
    return Case(f"phm_weight, {label}", [rule, local], reference.phm_weight, multiply_adds, full_size)


@pytest.mark.parametrize("direction", DIRECTIONS)
@every_pair({label: contenders for label, (_, _, contenders) in CASES.items()})
def test_weight(label, contender, direction, case_of, timed):
    compare(timed, case_of(label), contender, direction)
