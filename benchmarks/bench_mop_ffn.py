"""The paper's bank (12 layers, 5 experts, 40 rows, 768 -> 128 -> 2 x 768, terms 16 and 8, rank 1, float32) in one call.

It is compared with the forms that a PyTorch user would write. The form to beat is "batched, three stages", which shares
stage 1 of the down map over layers. Further tests time the same bank in bfloat16, and a thousand experts of which a
batch asks for five. This call must take the time of a bank of five.
"""

import pytest
import torch

import mop_kernels as mk
from benchmarks.support.cases import comparison
from benchmarks.support.contenders import BATCHED_STAGES, COMPILED, FORMS
from benchmarks.support.work import BANK, BFLOAT16, FORWARD, least_multiply_adds, public_arguments
from mop_kernels import testing

test_bank = comparison({BANK: (*FORMS["mop_ffn"], *COMPILED)}, label="paper bank")
test_bank_in_bfloat16 = comparison({BANK: [BATCHED_STAGES]}, precision=BFLOAT16, label="paper bank, bfloat16")


def test_the_operations_counted():
    """The floor follows from this number."""
    with torch.device("meta"):
        assert least_multiply_adds("mop_ffn", BANK.inputs(torch.float32)) == 115_507_200


@pytest.mark.parametrize("asked", ["E = 5", "E = 1024, 5 asked for"])
def test_experts_asked_for(asked, case_of, full_size, timed):
    """The experts of the bank are repeated: expert e equals expert e % 5, so the right result is known."""
    case = case_of(BANK, label="paper bank")
    tensors, experts = case.tensors, None
    if asked != "E = 5":
        few, num_experts = case.work.shape.experts, 1024 if full_size else 16
        repeated = torch.arange(num_experts) % few
        tensors = [t if t.shape[1] == 1 else t.index_select(1, repeated) for t in tensors]
        spread = torch.linspace(0, num_experts - few, few).long()
        experts = spread - spread % few + torch.arange(few)  # distinct, far apart, and = 0, 1, 2, ... modulo few

    def call():
        return mk.mop_ffn(*public_arguments("mop_ffn", tensors), experts=experts)

    with torch.no_grad():
        for found, right in zip(call(), case.truth):
            assert testing.relative_error(found, right) < 1e-5
        timed(call, f"experts asked for: {FORWARD}", asked, kind="ours", **case.least_columns(FORWARD))
