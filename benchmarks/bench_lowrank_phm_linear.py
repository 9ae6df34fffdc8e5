"""Single layers with a low-rank rule, beside PyTorch forms and a dense layer of the same sides, which they replace."""

import pytest
import torch

import mop_kernels as mk
from benchmarks.support import layer_forms
from benchmarks.support.cases import (
    DIRECTIONS,
    Case,
    Contender,
    case_by_label,
    compare,
    every_pair,
    lowrank_multiply_adds,
    ours,
)
from mop_kernels import reference, testing
from mop_kernels.testing import Shape

_, array_way = layer_forms.linear_by(layer_forms.summed_array)
_, by_one_product = layer_forms.linear_by(layer_forms.one_product)

ARRAY = Contender("terms*d*m array (Compacter's way)", array_way)
PRODUCT = Contender("W as one product", by_one_product)
STAGES = Contender("three stages", layer_forms.three_stages)
COMPILED_PRODUCT = Contender("torch.compile, W as one product", by_one_product, compiled=True)
COMPILED_STAGES = Contender("torch.compile, three stages", layer_forms.three_stages, compiled=True)
DENSE = Contender("dense F.linear", kind="stand-in", prepare=layer_forms.dense)
ALWAYS = [*ours(mk.lowrank_phm_linear), STAGES, DENSE]

# The ways through W take seconds a call at 4096 x 4096, which the dense layer bounds from below: once is enough there,
# and the authors' way would need gigabytes.
CASES = {
    "512 rows, 1024 -> 1024, terms 4, rank 1": (
        Shape(512, 4, 4, 4, 256, 256, 1),
        [*ALWAYS, ARRAY, PRODUCT, COMPILED_PRODUCT, COMPILED_STAGES],
    ),
    "4096 rows, 4096 -> 4096, terms 16, rank 1": (
        Shape(4096, 16, 16, 16, 256, 256, 1),
        [*ALWAYS, PRODUCT, COMPILED_STAGES],
    ),
    "4096 rows, 4096 -> 4096, terms 4, rank 1": (Shape(4096, 4, 4, 4, 1024, 1024, 1), ALWAYS),
}
SMALL = Shape(8, 4, 4, 4, 4, 4, 1)


@case_by_label
def case_of(label, full_size):
    shape = CASES[label][0] if full_size else SMALL
    tensors = testing.lowrank_inputs(shape, torch.float32)
    title = f"lowrank_phm_linear, {label}"
    return Case(title, tensors, reference.lowrank_phm_linear, lowrank_multiply_adds(shape), full_size)


@pytest.mark.parametrize("direction", DIRECTIONS)
@every_pair({label: contenders for label, (_, contenders) in CASES.items()})
def test_layer(label, contender, direction, case_of, timed):
    compare(timed, case_of(label), contender, direction)
