"""Layers with a low-rank rule, compared with PyTorch forms and with the dense layer that they replace."""

from benchmarks.support.cases import comparison
from benchmarks.support.contenders import COMPILED, COMPILED_STAGES, DENSE, FORMS, PRODUCT, STAGES
from benchmarks.support.work import LAYER, SMALLER_LAYER, WIDE_LAYER

# At 4096 x 4096 the ways through W take seconds per call, and the dense layer is their lower bound. One of these ways
# is enough there. The authors' way would need gigabytes.
test_layer = comparison(
    {
        SMALLER_LAYER: (DENSE, *FORMS["lowrank_phm_linear"], *COMPILED),
        LAYER: (DENSE, STAGES, PRODUCT, COMPILED_STAGES),
        WIDE_LAYER: (DENSE, STAGES),
    }
)
