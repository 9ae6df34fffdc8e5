#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0. `neftune_noise_alpha` of Trainer adds noise to the module get_input_embeddings().
# The two stacks of a T5 call embeddings of their own, which share only the weights with this module.
# Guessed: the losses of two passes in training mode differ, as they do for a GPT-2. Seen: they are equal for a T5, so the
# setting has no effect and nobody is told.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet transformers==5.23.0 torch==2.13.0 numpy
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version

import torch
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration
from transformers.integrations.neftune import activate_neftune

print("transformers", version("transformers"))
t5 = T5Config(vocab_size=64, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4, dropout_rate=0.0)
t5.decoder_start_token_id = 0
no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
gpt2 = GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=4, **no_dropout)
ids = torch.arange(8)[None]
for model, acts in ((T5ForConditionalGeneration(t5), False), (GPT2LMHeadModel(gpt2), True)):
    model.train()
    plain = model(input_ids=ids, labels=ids).loss.item()
    activate_neftune(model, 50.0)
    noisy = model(input_ids=ids, labels=ids).loss.item()
    print(type(model).__name__, "without noise", plain, "with noise", noisy)
    assert (noisy != plain) == acts, "the behaviour has changed"
PYTHON
