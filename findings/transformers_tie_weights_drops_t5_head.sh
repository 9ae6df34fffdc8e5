#!/usr/bin/env bash
# transformers 5.15.0 and 5.24.0 on torch 2.13.0, CPU. An mT5 checkpoint with a head of its own. from_pretrained keeps the
# head (and logs that it does not tie it). tie_weights(), and resize_token_embeddings to the size that the model has
# already, then put the input embeddings in its place, without a warning: all logits change. Trainer calls tie_weights
# after it has loaded a checkpoint that leaves out frozen weights. Release 4.57.1 keeps the head in all of these calls.
# Guessed: what from_pretrained has untied stays untied. Seen: the head is the embedding matrix in both 5 releases.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
for version in 4.57.1 5.15.0 5.24.0; do
    "$folder/venv/bin/python" -m pip install --quiet --target "$folder/$version" "transformers==$version"
    PYTHONPATH="$folder/$version" FOLDER="$folder/checkpoint" "$folder/venv/bin/python" - <<'PYTHON'
import os

import torch
import transformers
from transformers import MT5Config, MT5ForConditionalGeneration

folder, first = os.environ["FOLDER"], transformers.__version__ == "4.57.1"
if first:  # release 4 writes an untied checkpoint
    sizes = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 2}
    MT5ForConditionalGeneration(MT5Config(**sizes, tie_word_embeddings=False)).save_pretrained(folder)


def head_is_kept(call):
    model = MT5ForConditionalGeneration.from_pretrained(folder)
    head = model.lm_head.weight.detach().clone()
    assert not torch.equal(head, model.shared.weight)
    call(model)
    assert torch.equal(model.lm_head.weight, head) or model.lm_head.weight is model.shared.weight
    return torch.equal(model.lm_head.weight, head)


kept = {
    "nothing": head_is_kept(lambda model: None),
    "tie_weights()": head_is_kept(lambda model: model.tie_weights()),
    "resize_token_embeddings(60)": head_is_kept(lambda model: model.resize_token_embeddings(60)),
}
print("transformers", transformers.__version__, kept)
assert kept == {"nothing": True, "tie_weights()": first, "resize_token_embeddings(60)": first}, "changed"
PYTHON
done
