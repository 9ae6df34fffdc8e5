"""The cost of every method on a T5-base: a training step (forward, backward, AdamW) and a generated batch.

The batch is the batch of bench_training_step, and the search is the search of bench_decode; both mix the 5 scenarios. A
parameter-efficient method has to beat full fine-tuning. The plain frozen model, of which nothing is trained, is the
lower bound.
"""

import pytest
import torch
from mop_lab.suites.systems import all_systems

from benchmarks.bench_training_step import test_step_without_prefixes  # noqa: F401  the floor
from benchmarks.support.t5 import SCENARIOS, training_step

STEP = "training step, T5-base, 8 x (64 -> 32) tokens, each method"
GENERATE = "generate, T5-base, 8 x 4 beams, 64 tokens -> 8, each method"
# widths that every method's defaults divide, one layer more than AdapterDrop drops, a token for each row of a prompt
TINY = {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 64, "num_layers": 6, "vocab_size": 128}
SYSTEMS = {label: (system.method, system.options) for label, system in all_systems().items()}


@pytest.mark.parametrize("label", SYSTEMS)
def test_step(label, attach, batch, timed):
    method, fields = SYSTEMS[label]
    model = attach(method, **fields).train()
    step = training_step(model, batch, learning_rate=1e-5)
    timed(step, STEP, label, kind="form", trained=sum(p.numel() for p in model.parameters() if p.requires_grad))


@pytest.mark.parametrize("label", SYSTEMS)
def test_generate(label, attach, search, timed):
    method, fields = SYSTEMS[label]
    model = attach(method, **fields)
    ids = torch.arange(8) % len(SCENARIOS)
    tokens = model.generate(**search, scenario_ids=ids)
    assert torch.equal(model.generate(**search, scenario_ids=ids), tokens)
    timed(lambda: model.generate(**search, scenario_ids=ids), GENERATE, label, kind="form")


def test_generate_plain(backbone, search, timed):
    timed(lambda: backbone.generate(**search), GENERATE, "the plain model", kind="form")
