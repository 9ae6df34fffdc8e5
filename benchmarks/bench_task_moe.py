"""What three experts a block cost in evaluation: a forward pass and a beam search of T5-base, beside the plain model.

Dense is a softmax over the experts: all run on all rows. Hard-routed, each row runs one expert a block, of its task: of
one task, the same for the whole batch; of mixed tasks, every expert on the rows that need it. The noise between the
experts is small, so all compute what the plain model does; hard-routed also what mop_t5.squeeze makes of it.
"""

import mop_t5
import pytest
import torch

from benchmarks.bench_decode import backbone, search  # noqa: F401  fixtures
from benchmarks.bench_training_step import SCENARIOS, batch  # noqa: F401  a fixture

FORWARD = "task_moe, m = 3, evaluation, T5-base, 8 x (64 -> 32) tokens: forward"
GENERATE = "task_moe, m = 3, generate, T5-base, 8 x 4 beams, 64 tokens -> 8"
PLAIN, DENSE, HARD, MIXED = "the plain model", "dense", "hard-routed, one task", "hard-routed, mixed tasks"
SELECTION = {DENSE: "softmax", HARD: "straight_through", MIXED: "straight_through"}


@pytest.fixture(scope="module")
def backbone_logits(backbone, batch):  # noqa: F811
    with torch.no_grad():
        return backbone(**batch[0]).logits


@pytest.fixture
def attached(request, backbone):  # noqa: F811
    torch.manual_seed(0)
    yield mop_t5.attach(backbone, "task_moe", scenarios=SCENARIOS, selection=SELECTION[request.param])
    mop_t5.detach(backbone)


def tasks(name: str, rows: int):
    return torch.zeros(rows, dtype=torch.int64) if name == HARD else torch.arange(rows) % len(SCENARIOS)


@torch.no_grad()
def test_forward_plain(backbone, batch, timed):  # noqa: F811
    timed(lambda: backbone(**batch[0]), FORWARD, PLAIN, kind="form")


@pytest.mark.parametrize(("attached", "name"), [(name, name) for name in SELECTION], indirect=["attached"])
@torch.no_grad()
def test_forward(backbone_logits, attached, name, batch, timed):  # noqa: F811
    inputs, model = batch[0], attached
    ids = tasks(name, len(inputs["input_ids"]))
    got = model(**inputs, scenario_ids=ids).logits
    torch.testing.assert_close(got, backbone_logits, atol=1e-3, rtol=1e-3)
    if name == HARD:
        assert torch.equal(mop_t5.squeeze(model, SCENARIOS[0])(**inputs).logits, got)
    timed(lambda: model(**inputs, scenario_ids=ids), FORWARD, name, kind="form" if name == DENSE else "ours")


def test_generate_plain(backbone, search, timed):  # noqa: F811
    timed(lambda: backbone.generate(**search), GENERATE, PLAIN, kind="form")


@pytest.mark.parametrize(("attached", "name"), [(name, name) for name in SELECTION], indirect=["attached"])
def test_generate(attached, name, search, timed):  # noqa: F811
    ids = tasks(name, len(search["input_ids"]))
    tokens = attached.generate(**search, scenario_ids=ids)
    assert torch.equal(attached.generate(**search, scenario_ids=ids, use_cache=False), tokens)
    kind = "form" if name == DENSE else "ours"
    timed(lambda: attached.generate(**search, scenario_ids=ids), GENERATE, name, kind=kind)
