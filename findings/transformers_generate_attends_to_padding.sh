#!/usr/bin/env bash
# transformers 4.57.1, 5.15.0, 5.24.0 on torch 2.13.0, CPU. T5's generate is given padded input_ids and no attention_mask.
# Release 4 makes the mask from pad_token_id, so the summary of a row does not depend on the padding beside it. Release 5
# makes none for encoder-decoder models and attends to the padding, without a warning: the row gets other tokens.
# Guessed: as release 4. Seen: equal to the masked call in 4.57.1, unequal in 5.15.0 and 5.24.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
for version in 4.57.1 5.15.0 5.24.0; do
    "$folder/venv/bin/python" -m pip install --quiet --target "$folder/$version" "transformers==$version"
    PYTHONPATH="$folder/$version" "$folder/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import T5Config, T5ForConditionalGeneration

sizes = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 64, "num_layers": 2}
torch.manual_seed(0)
model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, initializer_factor=4.0)).eval()
padded = torch.tensor([[5, 6, 7, 8, 9, 1, 0, 0, 0, 0, 0, 0]])
search = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
masked = model.generate(padded, attention_mask=padded.ne(0).long(), **search)
unmasked = model.generate(padded, **search)
print("transformers", transformers.__version__, "masked", masked[0].tolist(), "no mask given", unmasked[0].tolist())
assert torch.equal(model.generate(padded[:, :6], **search), masked)
assert torch.equal(masked, unmasked) == (transformers.__version__ == "4.57.1"), "changed"
PYTHON
done
