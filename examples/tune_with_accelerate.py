"""Tune a frozen T5 with MOP in an accelerate loop, with gradient accumulation, in one process or several.

    python examples/tune_with_accelerate.py
    torchrun --nproc_per_node 2 examples/tune_with_accelerate.py      # prints the same losses

The backbone here is tiny and has random weights, so the example runs anywhere in seconds. For real work, replace
the tokenizer and the model by load_tokenizer("folder-or-hub-name") and load_backbone("folder-or-hub-name"), and read
your own corpus with read_corpus("DIR").
"""

from contextlib import nullcontext

import mop_t5
import torch
from accelerate import Accelerator
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.data import (
    Collator,
    EncodedExamples,
    TemperatureBatchSampler,
    scenario_ids_of,
    scenarios_of,
    synthetic_corpus,
)
from mop_t5.training import hold_absent_experts
from torch.utils.data import DataLoader
from transformers import T5Config

STEPS = 12
BATCHES = 4  # batches per step, over all processes

accelerator = Accelerator(cpu=not torch.accelerator.is_available())
torch.manual_seed(0)
corpus = synthetic_corpus(seed=0, general=1, train=200, valid=1, test=1)
tokenizer = train_tokenizer((text for row in corpus["train"] for text in (row.dialogue, row.summary)), vocab_size=900)

backbone = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0)
model = mop_t5.build_backbone(backbone)
scenarios = scenarios_of(corpus["train"])
mop_t5.attach(model, "mop", scenarios=scenarios, prefix_length=10, d_mid=32, terms_down=8, terms_up=8)

# There is one stream of batches, and each batch has one scenario. prepare gives every process its share of the stream.
# So in one step the processes may have different scenarios. Experts whose scenario no process has are not updated.
rows = EncodedExamples(corpus["train"], tokenizer, scenarios)
ids = scenario_ids_of(corpus["train"], scenarios)
sampler = TemperatureBatchSampler(ids, batch_size=4, temperature=2.0, num_batches=STEPS * BATCHES)
loader = DataLoader(rows, batch_sampler=sampler, collate_fn=Collator(tokenizer.pad_token_id, len(scenarios)))
optimizer = torch.optim.AdamW(model.mop.parameters(), lr=5e-3)
hold_absent_experts(optimizer, model.mop.expert_parameters())
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

accumulation = BATCHES // accelerator.num_processes
batches = iter(loader)
losses = []
for step in range(STEPS):
    micro_batches = [next(batches) for _ in range(accumulation)]
    # Summaries differ in length. So every loss is divided by the number of tokens in the whole step, not in its batch.
    tokens = accelerator.reduce(sum((batch["labels"] != -100).sum() for batch in micro_batches))
    loss = torch.zeros((), device=accelerator.device)
    for i, batch in enumerate(micro_batches):
        last = i == accumulation - 1
        with nullcontext() if last else accelerator.no_sync(model):  # the processes synchronise once per step
            share = model(**batch, num_items_in_batch=tokens).loss
            accelerator.backward(share * accelerator.num_processes)  # gradients are averaged over processes, not summed
        loss += share.detach()
    accelerator.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(accelerator.reduce(loss).item())
    accelerator.print(f"step {step}: loss {losses[-1]:.4f}")

if accelerator.is_main_process:
    mop_t5.save(accelerator.unwrap_model(model), "runs/tune_with_accelerate")
accelerator.wait_for_everyone()
accelerator.end_training()  # without this, processes that exit can abort each other
