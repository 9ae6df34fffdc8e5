"""A small corpus, tokenizer and model, and short trainings of it."""

import mop_t5
import torch
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.data import synthetic_corpus
from mop_t5.training import TrainingConfig, train
from transformers import T5Config

CORPUS = synthetic_corpus(2, general=60, train=60, valid=5, test=5)
SCENARIOS = ["e-commerce", "food", "take-out", "taxi", "ticket"]
MOP = {"scenarios": SCENARIOS, "prefix_length": 3, "d_mid": 8, "terms_down": 4, "terms_up": 4}


def new_tokenizer():
    return train_tokenizer([text for row in CORPUS["general"] for text in (row.dialogue, row.summary)], 600)


def new_model(tokenizer, method="mop", seed=0, **fields):
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4, dropout_rate=0.1
    )
    config.pad_token_id, config.eos_token_id = 0, 1
    model = mop_t5.build_backbone(config, seed=seed)
    torch.manual_seed(0)
    return mop_t5.attach(model, method, **{**MOP, **fields}) if method == "mop" else model.requires_grad_(True)


def run(model, tokenizer, folder, resume=False, **changes):
    fields = {"steps": 4, "batch_size": 2, "warmup_steps": 0, "save_every": 2, "max_source": 24, "max_target": 12}
    config = TrainingConfig(**fields | {"log_every": 3} | changes)
    valid = CORPUS["valid"] if config.evaluate_every else None
    return train(model, tokenizer, CORPUS["train"], config, output=folder, resume=resume, valid=valid, progress=False)
