"""The paper's bank (12 layers, 5 experts, 40 rows, 768 -> 128 -> 2 x 768, terms 16 and 8, rank 1, float32) in one call.

Beside what a PyTorch user would write; the batched three stages with stage 1 of the down map shared over layers are
the bar. Then the same bank in bfloat16, and a thousand experts of which a batch asks for five, which must cost what a
bank of five costs.
"""

import pytest
import torch

import mop_kernels as mk
from benchmarks.support import bank_forms, layer_forms
from benchmarks.support.cases import DIRECTIONS, Case, Contender, bank_multiply_adds, compare, mop_arguments, ours
from mop_kernels import reference, testing

_, array_way = layer_forms.linear_by(layer_forms.summed_array)
_, by_einsum = layer_forms.linear_by(reference.phm_weight)
CONTENDERS = [
    *ours(mk.mop_ffn, mop_arguments),
    Contender("pair by pair, terms*d*m array (the authors' way)", bank_forms.pair_by_pair(array_way)),
    Contender("pair by pair, one einsum a map", bank_forms.pair_by_pair(layer_forms.one_einsum)),
    Contender("pair by pair, W by einsum", bank_forms.pair_by_pair(by_einsum)),
    Contender("batched, W as one product", bank_forms.built_weights),
    Contender("batched, three stages", bank_forms.three_stages),
    Contender("torch.compile, W as one product", bank_forms.built_weights, compiled=True),
    Contender("torch.compile, three stages", bank_forms.three_stages, compiled=True),
]


def judge(*tensors):
    return reference.mop_ffn(*testing.as_mop_arguments(tensors))


@pytest.fixture(scope="module")
def case(full_size):
    bank = testing.BANKS["paper" if full_size else "small"]
    tensors = testing.mop_inputs(bank, torch.float32)
    return Case("paper bank", tensors, judge, bank_multiply_adds(bank), full_size)


@pytest.fixture(scope="module")
def case_in_bfloat16(full_size):
    bank = testing.BANKS["paper" if full_size else "small"]
    tensors = testing.mop_inputs(bank, torch.bfloat16)
    # a rounding to bfloat16 decides the sign of many a hidden number, and with it which gradients relu lets pass
    options = {"outputs_only": True, "loose": 0.1}
    return Case("paper bank, bfloat16", tensors, judge, bank_multiply_adds(bank), full_size, **options)


def test_the_operations_counted():
    """The floor stands on this number."""
    assert bank_multiply_adds(testing.BANKS["paper"]) == 115_507_200


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda c: c.name)
def test_bank(contender, direction, case, timed):
    compare(timed, case, contender, direction)


IN_BFLOAT16 = [c for c in CONTENDERS if c.name.startswith(("mop_kernels", "batched, three"))]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("contender", IN_BFLOAT16, ids=lambda c: c.name)
def test_bank_in_bfloat16(contender, direction, case_in_bfloat16, timed):
    compare(timed, case_in_bfloat16, contender, direction)


@pytest.fixture(scope="module")
def many_experts(case, full_size):
    """The bank's experts over and over: expert e equals expert e % 5, so the right answer is known."""
    num_experts = 1024 if full_size else 16
    few = testing.BANKS["paper" if full_size else "small"].experts

    def repeat(tensor):
        if tensor.shape[1] == 1:
            return tensor
        return tensor.index_select(1, torch.arange(num_experts) % few)

    spread = torch.linspace(0, num_experts - few, few).long()
    experts = spread - spread % few + torch.arange(few)  # distinct, far apart, and = 0, 1, 2, ... modulo few
    return [repeat(t) for t in case.tensors], experts


@pytest.mark.parametrize("asked", ["E = 5", "E = 1024, 5 asked for"])
def test_experts_asked_for(asked, case, many_experts, timed):
    tensors, experts = (case.tensors, None) if asked == "E = 5" else many_experts

    def call():
        return mk.mop_ffn(*mop_arguments(*tensors), experts=experts)

    with torch.no_grad():
        for found, right in zip(call(), case.truth):
            assert testing.relative_error(found, right) < 1e-5
        timed(call, "experts asked for: forward", asked, kind="ours", **case.least_work("forward"))
