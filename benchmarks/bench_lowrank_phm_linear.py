"""Layers with a low-rank rule, compared with PyTorch forms and a dense layer of the same sides, which they replace."""

import pytest

from benchmarks.support.cases import compare, every_contender
from benchmarks.support.contenders import COMPILED, COMPILED_STAGES, DENSE, FORMS, PRODUCT, STAGES, forms, ours
from benchmarks.support.work import DIRECTIONS, LAYER, SMALLER_LAYER, WIDE_LAYER

# The ways through W take seconds per call at 4096 x 4096, and the dense layer is their lower bound: one of them is
# enough there, and the authors' way would need gigabytes.
COMPARED = {
    SMALLER_LAYER: (DENSE, *FORMS["lowrank_phm_linear"], *COMPILED),
    LAYER: (DENSE, STAGES, PRODUCT, COMPILED_STAGES),
    WIDE_LAYER: (DENSE, STAGES),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@every_contender({work: [*ours(work.op), *forms(work.op, *names)] for work, names in COMPARED.items()})
def test_layer(work, contender, direction, case_of, timed):
    compare(timed, case_of(work), contender, direction)
