"""Layers with a low-rank rule, compared with PyTorch forms and a dense layer of the same sides, which they replace."""

import pytest

from benchmarks.support.cases import compare, every_contender
from benchmarks.support.contenders import ARRAY, DENSE, forms, ours
from benchmarks.support.work import DIRECTIONS, LAYER, SMALLER_LAYER, WIDE_LAYER

ALWAYS = ("three stages", DENSE)
PRODUCT, COMPILED_STAGES = "W as one product", "torch.compile, three stages"
# The ways through W take seconds per call at 4096 x 4096, and the dense layer is their lower bound: one of them is
# enough there, and the authors' way would need gigabytes.
FORMS = {
    SMALLER_LAYER: (*ALWAYS, ARRAY, PRODUCT, f"torch.compile, {PRODUCT}", COMPILED_STAGES),
    LAYER: (*ALWAYS, PRODUCT, COMPILED_STAGES),
    WIDE_LAYER: ALWAYS,
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@every_contender({work: [*ours(work.op), *forms(work.op, *names)] for work, names in FORMS.items()})
def test_layer(work, contender, direction, case_of, timed):
    compare(timed, case_of(work), contender, direction)
