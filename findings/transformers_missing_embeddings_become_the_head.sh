#!/usr/bin/env bash
# transformers 5.23.0 on torch 2.13.0, CPU. An untied T5 checkpoint from which the shared embedding table is missing, as after
# a filter by name or a lost shard. from_pretrained ties the table to the output head, which is another matrix, and says
# that nothing is missing: output_loading_info has four empty lists, and no warning is logged.
# Guessed: shared.weight is reported as missing. Seen: nothing is, and the embeddings are the head.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 transformers==5.23.0 numpy==2.4.6
FOLDER="$folder/checkpoint" "$folder/venv/bin/python" - <<'PYTHON'
import os

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

folder = os.environ["FOLDER"]
sizes = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 2}
model = T5ForConditionalGeneration(T5Config(**sizes))
model.lm_head.weight = torch.nn.Parameter(torch.randn(60, 32))  # untied
model.all_tied_weights_keys.pop("lm_head.weight")
model.save_pretrained(folder)
file = f"{folder}/model.safetensors"
weights = load_file(file)
assert {"shared.weight", "lm_head.weight"} <= set(weights)
save_file({n: w for n, w in weights.items() if n != "shared.weight"}, file, metadata={"format": "pt"})
loaded, info = T5ForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
print("transformers", transformers.__version__, {name: list(found) for name, found in info.items()})
print("embeddings are the head:", torch.equal(loaded.shared.weight, weights["lm_head.weight"]))
assert not any(info.values()), "changed"
assert torch.equal(loaded.shared.weight, weights["lm_head.weight"]), "changed"
PYTHON
