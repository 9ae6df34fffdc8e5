"""The cost of three experts per block in evaluation: a forward pass and a beam search of T5-base, and the plain model.

"dense" is a softmax over the experts: all experts run on all rows. In a hard-routed model each row runs one expert per
block, the expert of its task. With one task this is the same expert for the whole batch; with mixed tasks every expert
runs on the rows that need it. The noise between the experts is small, so all results equal the results of the plain
model. The hard-routed result also equals the result of the model that mop_t5.squeeze makes.
"""

import mop_t5
import pytest
import torch

from benchmarks.support.t5 import SCENARIOS

FORWARD = "task_moe, m = 3, evaluation, T5-base, 8 x (64 -> 32) tokens: forward"
GENERATE = "task_moe, m = 3, generate, T5-base, 8 x 4 beams, 64 tokens -> 8"
PLAIN, DENSE, HARD, MIXED = "the plain model", "dense", "hard-routed, one task", "hard-routed, mixed tasks"
SELECTION = {DENSE: "softmax", HARD: "straight_through", MIXED: "straight_through"}


@pytest.fixture(scope="module")
def backbone_logits(backbone, batch):
    """Return the logits of the plain model."""
    with torch.no_grad():
        return backbone(**batch[0]).logits


def tasks(name: str, rows: int) -> torch.Tensor:
    """Return the scenario ids of a batch."""
    return torch.zeros(rows, dtype=torch.int64) if name == HARD else torch.arange(rows) % len(SCENARIOS)


@torch.no_grad()
def test_forward_plain(backbone, batch, timed):
    timed(lambda: backbone(**batch[0]), FORWARD, PLAIN, kind="form")


@pytest.mark.parametrize("name", SELECTION)
@torch.no_grad()
def test_forward(backbone_logits, attach, name, batch, timed):
    inputs, model = batch[0], attach("task_moe", selection=SELECTION[name])
    ids = tasks(name, len(inputs["input_ids"]))
    got = model(**inputs, scenario_ids=ids).logits
    torch.testing.assert_close(got, backbone_logits, atol=1e-3, rtol=1e-3)
    if name == HARD:
        assert torch.equal(mop_t5.squeeze(model, SCENARIOS[0])(**inputs).logits, got)
    timed(lambda: model(**inputs, scenario_ids=ids), FORWARD, name, kind="form" if name == DENSE else "ours")


def test_generate_plain(backbone, search, timed):
    timed(lambda: backbone.generate(**search), GENERATE, PLAIN, kind="form")


@pytest.mark.parametrize("name", SELECTION)
def test_generate(attach, name, search, timed):
    model = attach("task_moe", selection=SELECTION[name])
    ids = tasks(name, len(search["input_ids"]))
    tokens = model.generate(**search, scenario_ids=ids)
    assert torch.equal(model.generate(**search, scenario_ids=ids, use_cache=False), tokens)
    kind = "form" if name == DENSE else "ours"
    timed(lambda: model.generate(**search, scenario_ids=ids), GENERATE, name, kind=kind)
