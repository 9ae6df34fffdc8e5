#!/usr/bin/env bash
# peft 0.21.2 with transformers 5.23.0 and 5.24.0, torch 2.13.0. Prefix tuning of a T5. Release 5.24 calls the cache of
# generate `cache`, PEFT hands its prefix over as `past_key_values`, which forward still accepts.
# Guessed: generate gives the same text under both releases, or an error. Seen: under 5.24 it gives the text of the model
# without the prefix. forward, so training and the evaluation loss, still uses the prefix. Under 5.23 generate uses it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0 \
    peft==0.21.2
"$folder/venv/bin/python" -m pip install --quiet --no-deps --target "$folder/5.23.0" transformers==5.23.0
for path in "$folder/5.23.0" ""; do
    PYTHONPATH="$path" "$folder/venv/bin/python" - <<'PYTHON'
import copy

import peft
import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
config = T5Config(**sizes, decoder_start_token_id=0, initializer_factor=3.0)
base = T5ForConditionalGeneration(config).eval()
tuned = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=8)
model = peft.get_peft_model(copy.deepcopy(base), tuned).eval()
with torch.no_grad():
    for parameter in model.prompt_encoder.parameters():
        parameter.normal_(0, 5)
source = {"input_ids": torch.randint(2, 64, (4, 9)), "attention_mask": torch.ones(4, 9, dtype=torch.long)}


@torch.no_grad()
def greedy(model):
    """The greedy text by forward alone, without a cache."""
    text = torch.zeros(4, 1, dtype=torch.long)
    for _ in range(10):
        logits = model(**source, decoder_input_ids=text).logits[:, -1].index_fill(-1, torch.tensor([1]), -1e9)
        text = torch.cat([text, logits.argmax(-1, keepdim=True)], 1)
    return text


text = model.generate(**source, max_new_tokens=10, min_new_tokens=10, do_sample=False)
seen = {"with the prefix": torch.equal(text, greedy(model)), "without": torch.equal(text, greedy(base))}
print("transformers", transformers.__version__, "generate gives the text of forward", seen)
lost = transformers.__version__ == "5.24.0"
assert seen == {"with the prefix": not lost, "without": lost}, "changed"
PYTHON
done
