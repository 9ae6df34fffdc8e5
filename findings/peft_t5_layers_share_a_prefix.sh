#!/usr/bin/env bash
# peft 0.21.2, transformers 5.23.0, torch 2.13.0, CPU. Prefix-tuning of a T5 with four decoder layers.
# Expected: every decoder layer has a prefix of its own, and the trainable parameters that PEFT reports are trained. Seen:
# the prefix of 2L rows of keys and values is doubled for the cross-attention and then cut into L pieces of four. So layer
# i and layer i + L/2 read the same keys and values, and the other half, meant for the cross-attention, is thrown away. Half
# of the reported parameters get no gradient.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 peft==0.21.2 transformers==5.23.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from peft import PrefixTuningConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
sizes = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 32, "num_layers": 4, "dropout_rate": 0.0}
base = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0))
model = get_peft_model(base, PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3))
keys = [layer.keys for layer in model.get_prompt(1).self_attention_cache.layers]
same = [(i, j) for i in range(4) for j in range(i + 1, 4) if torch.equal(keys[i], keys[j])]
ids = torch.randint(2, 60, (2, 7))
model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids).loss.backward()
reported, _ = model.get_nb_trainable_parameters()
trained = sum(int(p.grad.count_nonzero()) for p in model.parameters() if p.grad is not None)
print(f"decoder layers with the same prefix: {same}; parameters reported {reported}, with a gradient {trained}")
raise SystemExit(not (same == [(0, 2), (1, 3)] and trained == reported // 2))
PYTHON
