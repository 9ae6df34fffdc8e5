"""Full-rank layers, beside PyTorch forms, Compacter's eager way and a dense layer of the same sides.

A full rule saves no multiply-adds, so the bar is the best way to order them; the floor counts a dense product of x
with W, and nothing for building W. In evaluation PHMLinear stands beside the nn.Linear that to_linear gives.
"""

import pytest
import torch

import mop_kernels as mk
from benchmarks.support import layer_forms
from benchmarks.support.cases import DIRECTIONS, Case, Contender, case_by_label, compare, every_pair, ours
from mop_kernels import reference, testing
from mop_kernels.testing import Shape

array_way, _ = layer_forms.linear_by(layer_forms.summed_array)
by_one_product, _ = layer_forms.linear_by(layer_forms.one_product)
COMMON = [
    *ours(mk.phm_linear),
    Contender("terms*d*m array (Compacter's way)", array_way),
    Contender("W as one product", by_one_product),
    Contender("local first", layer_forms.local_first),
    Contender("rule first", layer_forms.rule_first),
    Contender("dense F.linear", kind="stand-in", prepare=layer_forms.dense),
]
COMPILED = [
    Contender("torch.compile, W as one product", by_one_product, compiled=True),
    Contender("torch.compile, local first", layer_forms.local_first, compiled=True),
]
# compiling takes up to a minute a case, so two of them stand for all
CASES = {
    "40 rows, 768 -> 128, terms 16": (Shape(40, 16, 16, 16, 48, 8, 1), [*COMMON, *COMPILED]),
    "40 rows, 128 -> 768, terms 8": (Shape(40, 8, 8, 8, 16, 96, 1), COMMON),
    "512 rows, 1024 -> 1024, terms 4": (Shape(512, 4, 4, 4, 256, 256, 1), [*COMMON, *COMPILED]),
    "4096 rows, 768 -> 768, terms 8": (Shape(4096, 8, 8, 8, 96, 96, 1), COMMON),
    "8 rows, 1024 -> 1024, terms 4": (Shape(8, 4, 4, 4, 256, 256, 1), COMMON),
}
SMALL = Shape(8, 4, 4, 4, 4, 4, 1)


@case_by_label
def case_of(label, full_size):
    shape = CASES[label][0] if full_size else SMALL
    tensors = testing.linear_inputs(shape, torch.float32)
    multiply_adds = shape.rows * shape.d_in * shape.d_out
    return Case(f"phm_linear, {label}", tensors, reference.phm_linear, multiply_adds, full_size)


@pytest.mark.parametrize("direction", DIRECTIONS)
@every_pair({label: contenders for label, (_, contenders) in CASES.items()})
def test_layer(label, contender, direction, case_of, timed):
    compare(timed, case_of(label), contender, direction)


@pytest.mark.parametrize("name", ["PHMLinear", "nn.Linear"])
@pytest.mark.parametrize("rows", [1, 8, 64, 512])
def test_evaluation(rows, name, full_size, timed):
    sides = (1024, 1024) if full_size else (16, 16)
    layer = mk.PHMLinear(*sides, terms=4).eval()
    dense = layer.to_linear().eval()
    x = torch.randn(rows, sides[0])
    chosen = dense if name == "nn.Linear" else layer
    with torch.no_grad():
        right = x.double() @ dense.weight.double().T + dense.bias.double()
        assert testing.relative_error(chosen(x), right) < 1e-5
        nbytes = 4 * (rows * sum(sides) + sides[0] * sides[1])
        work = {"flops": 2 * rows * sides[0] * sides[1], "nbytes": nbytes}
        kind = "stand-in" if name == "nn.Linear" else "ours"
        timed(lambda: chosen(x), f"evaluation, {rows} rows, 1024 -> 1024, terms 4", name, kind=kind, **work)
