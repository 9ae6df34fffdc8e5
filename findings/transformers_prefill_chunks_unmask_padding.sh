#!/usr/bin/env bash
# transformers 5.23.0 and 5.24.0, torch 2.13.0. `prefill_chunk_size` of generate, which saves memory, on a padded batch.
# Guessed: the same texts with and without it. Seen: other texts for the padded rows of a T5. generate cuts the encoder's mask
# to the length of the decoder's chunk, one here, and its first column then stands for all source tokens: the decoder
# attends to the padding when it chooses the first token. Rows without padding, and GPT-2, give the same texts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0
"$folder/venv/bin/python" -m pip install --quiet --no-deps --target "$folder/5.23.0" transformers==5.23.0
for path in "$folder/5.23.0" ""; do
    PYTHONPATH="$path" "$folder/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
t5 = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0, initializer_factor=3.0)).eval()
small = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 1}
gpt2 = GPT2LMHeadModel(GPT2Config(**small, initializer_range=0.3)).eval()
source, mask = torch.randint(2, 64, (4, 9)), torch.ones(4, 9, dtype=torch.long)
mask[2:, 5:] = 0  # rows 2 and 3 end with padding
fields = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 10, "min_new_tokens": 10}
seen = {}
for model, padding in ((t5, mask), (gpt2, mask.flip(1))):  # a decoder-only model takes its padding on the left
    whole, chunked = (
        model.generate(source, attention_mask=padding, **fields, **chunks) for chunks in ({}, {"prefill_chunk_size": 4})
    )
    seen[type(model).__name__] = (whole == chunked).all(1).tolist()
    if model is t5:
        encoded, start = t5.encoder(source, attention_mask=mask), torch.zeros(4, 1, dtype=torch.long)
        unmasked = t5(encoder_outputs=encoded, attention_mask=torch.ones_like(mask), decoder_input_ids=start).logits
        first_tokens = (chunked[:, 1], unmasked[:, 0, 2:].argmax(-1) + 2)
print("transformers", transformers.__version__, "the same texts with prefill_chunk_size:", seen)
assert seen["T5ForConditionalGeneration"][:2] == [True, True], "changed"
assert not all(seen["T5ForConditionalGeneration"][2:]) and all(seen["GPT2LMHeadModel"]), "changed"
assert torch.equal(*first_tokens), "changed"
PYTHON
done
