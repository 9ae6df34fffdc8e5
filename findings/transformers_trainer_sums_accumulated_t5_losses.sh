#!/usr/bin/env bash
# transformers 5.24.0, accelerate 1.15.0, torch 2.13.0. Trainer with gradient_accumulation_steps=4 and batches of one row,
# against one batch of four rows. All labels have the same length.
# Guessed: the same loss and gradient. Seen: both are four times as large for a T5, and the same for a GPT-2. Trainer leaves
# the division by the number of tokens to models whose forward takes keyword arguments. T5's forward takes them and ignores
# them. Clipping hides the gradient, but not the logged loss.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import copy

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration, Trainer, TrainerCallback
from transformers import TrainingArguments

torch.manual_seed(0)
sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
t5 = T5ForConditionalGeneration(T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0))
small = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
gpt2 = GPT2LMHeadModel(GPT2Config(**small, attn_pdrop=0.0, bos_token_id=0, eos_token_id=1))
rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(2, 64, (4, 6))]


class Norm(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()


def step(model, batch, accumulation):
    """The logged loss and the norm of the gradient of one step over the four rows."""
    fields = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_grad_norm": 0}
    settings = TrainingArguments("out", **fields, max_steps=1, logging_steps=1, use_cpu=True, report_to=[], optim="sgd")
    settings.save_strategy, settings.disable_tqdm = "no", True
    norm = Norm()
    trainer = Trainer(copy.deepcopy(model), settings, train_dataset=rows, callbacks=[norm])
    trainer.train()
    return trainer.state.log_history[0]["loss"], norm.norm


print("transformers", transformers.__version__)
for model, expected in ((t5, 4), (gpt2, 1)):
    whole, parts = step(model, 4, 1), step(model, 1, 4)
    ratios = [part / one for part, one in zip(parts, whole)]
    print(type(model).__name__, "accumulated over whole: loss %.3f, gradient %.3f" % tuple(ratios))
    assert all(abs(ratio - expected) < 0.02 for ratio in ratios), "changed"
PYTHON
