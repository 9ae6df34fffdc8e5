"""Full-rank layers, compared with PyTorch forms, Compacter's eager way and a dense layer of the same sides.

A full rule saves no multiply-adds, so the form to beat is the best order of the multiply-adds. The floor counts a dense
product of x with W, and does not count the construction of W. In evaluation PHMLinear is compared with the nn.Linear
that to_linear returns.
"""

import pytest
import torch

import mop_kernels as mk
from benchmarks.support.cases import comparison
from benchmarks.support.contenders import ARRAY, COMPILED_PRODUCT, DENSE, PRODUCT
from benchmarks.support.work import FULL_DOWN, FULL_UP, Shape, Work
from mop_kernels import multiply_adds, testing

COMMON = (ARRAY, PRODUCT, "local first", "rule first", DENSE)
# compiling takes up to a minute per case, so two cases stand for all
WITH_COMPILED = (*COMMON, COMPILED_PRODUCT, "torch.compile, local first")
test_layer = comparison(
    {
        FULL_DOWN: WITH_COMPILED,
        FULL_UP: COMMON,
        Work("phm_linear", "512 rows, 1024 -> 1024, terms 4", Shape(512, 4, 4, 4, 256, 256, 1)): WITH_COMPILED,
        Work("phm_linear", "4096 rows, 768 -> 768, terms 8", Shape(4096, 8, 8, 8, 96, 96, 1)): COMMON,
        Work("phm_linear", "8 rows, 1024 -> 1024, terms 4", Shape(8, 4, 4, 4, 256, 256, 1)): COMMON,
    }
)


@pytest.mark.parametrize("name", ["PHMLinear", "nn.Linear"])
@pytest.mark.parametrize("rows", [1, 8, 64, 512])
def test_evaluation(rows, name, full_size, timed):
    sides = (1024, 1024) if full_size else (16, 16)
    layer = mk.PHMLinear(*sides, terms=4).eval()
    dense = layer.to_linear().eval()
    x = torch.randn(rows, sides[0])
    chosen, kind = (dense, "stand-in") if name == "nn.Linear" else (layer, "ours")
    with torch.no_grad():
        right = x.double() @ dense.weight.double().T + dense.bias.double()
        nbytes = sum(t.nbytes for t in (x, dense.weight, right.float()))
        work = {"flops": 2 * multiply_adds.phm_linear(x, layer.rule, layer.local), "bytes": nbytes}
        assert testing.relative_error(chosen(x), right) < 1e-5
        timed(lambda: chosen(x), f"evaluation, {rows} rows, 1024 -> 1024, terms 4", name, kind=kind, **work)
