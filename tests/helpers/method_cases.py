"""Small fields for every method, a small corpus, and a short training run."""

import mop_t5
import pytest
import torch
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.data import synthetic_corpus
from mop_t5.training import TrainingConfig, train
from t5_oracle import tiny

SCENARIOS = ["taxi", "ticket", "food"]
SMALL = {
    "mop": {"scenarios": SCENARIOS, "prefix_length": 5, "d_mid": 8, "terms_down": 4, "terms_up": 4},
    "prefix_tuning": {"prefix_length": 5, "d_mid": 8},
    "prompt_tuning": {"prefix_length": 5},
    "fine_tuning": {},
    "hyperformer": {"scenarios": SCENARIOS, "d_embedding": 8, "d_hidden": 10, "d_projected": 6, "reduction": 4},
    "hyper_prefix": {"scenarios": SCENARIOS, "prefix_length": 5, "d_embedding": 8, "d_hidden": 10, "d_projected": 6},
    "compacter": {"reduction": 3},
    "adapter": {"reduction": 4, "drop_layers": 0},
    "bitfit": {},
    "task_moe": {"scenarios": SCENARIOS, "experts": 2, "d_task": 8, "hidden": 4, "noise": 0.1},
    "attempt": {"scenarios": SCENARIOS, "untrained_sources": 2, "prompt_length": 5, "init": "uniform"},
}


def backbone(**options):
    # X-MoE's residual needs heads that are as wide together as the model
    return tiny(**{"d_kv": 6, "num_decoder_layers": 2, "dropout_rate": 0.0, **options})


def attach_moved(model, name="mop", **fields):
    """Attach a method with its small fields, and move its parameters away from their initial values."""
    torch.manual_seed(11)
    mop_t5.attach(model, name, **{"scenarios": SCENARIOS, **SMALL[name], **fields})
    generator = torch.Generator().manual_seed(3)
    for parameter in model.mop.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device), alpha=0.1)
    return model


@pytest.fixture(scope="module")
def corpus():
    rows = synthetic_corpus(2, general=60, train=60, valid=5, test=5)
    tokenizer = train_tokenizer([text for row in rows["general"] for text in (row.dialogue, row.summary)], 500)
    chosen = [row for name in SCENARIOS for row in [r for r in rows["train"] if r.scenario == name][:5]]
    return tokenizer, chosen


def run(model, corpus, folder, rows=None, resume=False, **changes):
    tokenizer, chosen = corpus
    fields = {"steps": 20, "batch_size": 8, "learning_rate": 0.05, "warmup_steps": 0, "max_source": 40}
    config = TrainingConfig(**fields | {"max_target": 20, "batching": "mixed", "schedule": "constant"} | changes)
    valid = chosen[::5] if config.evaluate_every else None
    return train(model, tokenizer, rows or chosen, config, output=folder, valid=valid, resume=resume, progress=False)
