#!/usr/bin/env bash
# transformers 4.57.1, 5.15.0, 5.23.0, 5.24.0 on torch 2.13.0, CPU. One umT5 checkpoint with a head of its own, as all
# published ones have, and one batch. 5.15 to 5.23 force tie_word_embeddings=True and so multiply the decoder output by
# d_model^-0.5 before the head; 4.57 and 5.24 do not. The largest logit stays the largest, losses and sampling change.
# Guessed: one loss. Seen: 4.3 in 5.15.0 and 5.23.0 (a uniform guess is log 60 = 4.1), 16.0 in 4.57.1 and 5.24.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
for version in 4.57.1 5.15.0 5.23.0 5.24.0; do
    "$folder/venv/bin/python" -m pip install --quiet --target "$folder/$version" "transformers==$version"
    PYTHONPATH="$folder/$version" FOLDER="$folder/checkpoint" "$folder/venv/bin/python" - <<'PYTHON'
import os

import torch
import transformers
from transformers import UMT5Config, UMT5ForConditionalGeneration

folder, version = os.environ["FOLDER"], transformers.__version__
if version == "4.57.1":
    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "d_model": 64, "d_kv": 16, "num_heads": 4, "d_ff": 64, "num_layers": 2}
    model = UMT5ForConditionalGeneration(UMT5Config(**sizes, tie_word_embeddings=False))
    torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(folder)
model = UMT5ForConditionalGeneration.from_pretrained(folder, attn_implementation="eager").eval()
assert model.lm_head.weight is not model.shared.weight
tokens = torch.tensor([[5, 6, 7, 8, 9, 1]])
with torch.no_grad():
    output = model(input_ids=tokens, labels=tokens)
best = [50, 50, 7, 55, 20, 16]
print("transformers", version, "loss", round(output.loss.item(), 3), "argmax", output.logits.argmax(-1)[0].tolist())
assert output.logits.argmax(-1)[0].tolist() == best, "changed"
assert (output.loss.item() < 6) == (version in ("5.15.0", "5.23.0")), "changed"
PYTHON
done
