"""Tune a frozen T5 with MOP in a plain PyTorch loop, without the command line and without Trainer.

    python examples/tune_with_mop.py

The backbone here is tiny and has random weights, so the example runs anywhere in seconds. The loss falls, but the
summaries have no meaning. For real work, replace the tokenizer and the model by load_tokenizer("folder-or-hub-name")
and load_backbone("folder-or-hub-name"), and read your own corpus with read_corpus("DIR"). `mop-t5 train` does more:
schedules, validation, checkpoints.
"""

import tempfile

import mop_t5
import torch
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.data import (
    Collator,
    EncodedExamples,
    TemperatureBatchSampler,
    scenario_ids_of,
    scenarios_of,
    synthetic_corpus,
)
from mop_t5.evaluation import generate_summaries
from mop_t5.training import hold_absent_experts
from torch.utils.data import DataLoader
from transformers import T5Config

EPOCHS = 3

torch.manual_seed(0)
corpus = synthetic_corpus(seed=0, general=1, train=400, valid=1, test=5)
tokenizer = train_tokenizer((text for row in corpus["train"] for text in (row.dialogue, row.summary)), vocab_size=900)

# attach freezes the backbone and returns the same model object, with one expert per scenario.
backbone = T5Config(vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
model = mop_t5.build_backbone(backbone)
scenarios = scenarios_of(corpus["train"])
mop_t5.attach(model, "mop", scenarios=scenarios, prefix_length=10, d_mid=32, terms_down=8, terms_up=8)
count = mop_t5.count_parameters(model)
print(f"{count.trained:,} of {count.backbone:,} parameters are trained ({count.share:.1%})")

# Each batch has one scenario. A scenario is drawn with a probability proportional to size^(1/2).
rows = EncodedExamples(corpus["train"], tokenizer, scenarios)
sampler = TemperatureBatchSampler(scenario_ids_of(corpus["train"], scenarios), batch_size=16, temperature=2.0)
loader = DataLoader(rows, batch_sampler=sampler, collate_fn=Collator(tokenizer.pad_token_id, len(scenarios)))

optimizer = torch.optim.AdamW(model.mop.parameters(), lr=5e-3)
hold_absent_experts(optimizer, model.mop.expert_parameters())  # no decay and no momentum for experts without rows
for epoch in range(EPOCHS):
    sampler.set_epoch(epoch)  # each epoch draws other rows; the same seed draws the same rows
    losses = []
    for batch in loader:
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"epoch {epoch}: mean loss {sum(losses) / len(losses):.3f}")

for row, summary in zip(corpus["test"], generate_summaries(model, tokenizer, corpus["test"], max_new_tokens=10)):
    print(f"{row.scenario}: {summary}")

# save writes the method only. detach restores the backbone bit for bit.
with tempfile.TemporaryDirectory() as folder:
    mop_t5.save(model, folder)
    mop_t5.detach(model)
    mop_t5.load(model, folder)
