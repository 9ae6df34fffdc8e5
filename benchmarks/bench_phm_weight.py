"""The dense weight W by itself: of a layer, and of all pairs of the paper's down map (768 -> 128, terms 16) at once."""

import pytest

from benchmarks.support.cases import compare, every_contender
from benchmarks.support.contenders import ARRAY, forms, ours
from benchmarks.support.work import DIRECTIONS, SHAPES, Shape, Work

DOWN = SHAPES["paper_down"]
FORMS = (ARRAY, "sum of torch.kron", "one matrix product", "torch.compile, one matrix product")
# the first two forms are of one pair, and would run 60 times
CONTENDERS = {
    Work("phm_weight", "768 x 128, terms 16", DOWN): FORMS,
    Work("phm_weight", "1024 x 1024, terms 4", Shape(1, 4, 4, 4, 256, 256, 1)): FORMS,
    Work("phm_weight", "60 pairs of 768 x 128, terms 16", DOWN, pairs=60): FORMS[2:],
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@every_contender({work: [*ours("phm_weight"), *forms("phm_weight", *names)] for work, names in CONTENDERS.items()})
def test_weight(work, contender, direction, case_of, timed):
    compare(timed, case_of(work), contender, direction)
