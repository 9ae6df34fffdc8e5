"""What every method costs on a T5-base: a training step (forward, backward, AdamW) and a generated batch.

The batch of bench_training_step and the search of bench_decode, the 5 scenarios mixed. Full fine-tuning is what a
parameter-efficient method has to beat; the plain frozen model, of which nothing is trained, is as fast as it can be.
"""

import mop_t5
import pytest
import torch
from mop_lab.suites.systems import all_systems

from benchmarks.bench_training_step import SCENARIOS, batch, test_step_without_prefixes  # noqa: F401  fixtures, floor

STEP = "training step, T5-base, 8 x (64 -> 32) tokens, each method"
GENERATE = "generate, T5-base, 8 x 4 beams, 64 tokens -> 8, each method"
# widths that every method's defaults divide, one layer more than AdapterDrop drops, a token for each row of a prompt
SMALL = {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 64, "num_layers": 6, "vocab_size": 128}
SYSTEMS = {label: (system.method, system.options) for label, system in all_systems().items()}


@pytest.fixture(scope="module")
def backbone(full_size):
    return mop_t5.build_backbone("t5-base", **({} if full_size else SMALL))


@pytest.fixture
def attached(request, backbone):
    method, fields = SYSTEMS[request.param]
    torch.manual_seed(0)
    yield mop_t5.attach(backbone, method, scenarios=SCENARIOS, **fields)
    mop_t5.detach(backbone).eval()


@pytest.mark.parametrize(("attached", "label"), [(label, label) for label in SYSTEMS], indirect=["attached"])
def test_step(attached, label, batch, timed):  # noqa: F811
    model = attached.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    inputs, scenario_ids = batch

    def step():
        loss = model(**inputs, scenario_ids=scenario_ids).loss
        loss.backward()
        gradients = [p.grad for p in trained]
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach(), gradients

    loss, gradients = step()
    assert loss.isfinite()
    assert all(g is not None and g.isfinite().all() for g in gradients)
    timed(step, STEP, label, kind="form", trained=sum(p.numel() for p in trained))


@pytest.fixture
def search(backbone, full_size):
    g = torch.Generator().manual_seed(0)
    source, beams, tokens = (64, 4, 8) if full_size else (6, 2, 3)
    ids = torch.randint(2, backbone.config.vocab_size, (8, source), generator=g)
    return {"input_ids": ids, "num_beams": beams, "max_new_tokens": tokens, "min_new_tokens": tokens}


@pytest.mark.parametrize(("attached", "label"), [(label, label) for label in SYSTEMS], indirect=["attached"])
def test_generate(attached, label, search, timed):
    ids = torch.arange(8) % len(SCENARIOS)
    tokens = attached.generate(**search, scenario_ids=ids)
    assert torch.equal(attached.generate(**search, scenario_ids=ids), tokens)
    timed(lambda: attached.generate(**search, scenario_ids=ids), GENERATE, label, kind="form")


def test_generate_plain(backbone, search, timed):
    timed(lambda: backbone.generate(**search), GENERATE, "the plain model", kind="form")
