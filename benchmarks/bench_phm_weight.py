"""The dense weight W by itself: of a layer, and of all pairs of the paper's down map (768 -> 128, terms 16) at once."""

from benchmarks.support.cases import comparison
from benchmarks.support.contenders import FORMS
from benchmarks.support.work import SHAPES, Shape, Work

DOWN = SHAPES["paper_down"]
ALL = (*FORMS["phm_weight"], "torch.compile, one matrix product")
test_weight = comparison(
    {
        Work("phm_weight", "768 x 128, terms 16", DOWN): ALL,
        Work("phm_weight", "1024 x 1024, terms 4", Shape(1, 4, 4, 4, 256, 256, 1)): ALL,
        # the first two forms compute one pair, and would run 60 times
        Work("phm_weight", "60 pairs of 768 x 128, terms 16", DOWN, pairs=60): ALL[2:],
    }
)
