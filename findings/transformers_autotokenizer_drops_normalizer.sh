#!/usr/bin/env bash
# transformers 5.23.0, tokenizers 0.23.3. A tokenizer.json with a Unigram model that lower-cases. Where
# tokenizer_config.json names no class, config.json's model type decides what AutoTokenizer does with it. For "t5" it
# takes the vocabulary and builds a T5Tokenizer around it: the normaliser of the file is gone, and upper-case letters
# become other tokens, without a warning. For "umt5" the file is read as it stands.
# Guessed: tokenizer.json says everything. Seen: The Driver -> T, D for t5 and t, d for umt5.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet transformers==5.23.0 tokenizers==0.23.3 sentencepiece==0.2.3 numpy==2.4.6
FOLDER="$folder/tokenizer" "$folder/venv/bin/python" - <<'PYTHON'
import json
import os
from pathlib import Path

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

folder = Path(os.environ["FOLDER"])
folder.mkdir()
tokenizer = Tokenizer(models.Unigram())
tokenizer.normalizer = normalizers.Lowercase()
tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
special = {"special_tokens": ["<pad>", "</s>", "<unk>"], "unk_token": "<unk>"}
texts = ["the driver took a long way round", "The Driver"] * 50
tokenizer.train_from_iterator(texts, trainers.UnigramTrainer(vocab_size=60, **special))
tokenizer.save(str(folder / "tokenizer.json"))
names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
(folder / "tokenizer_config.json").write_text(json.dumps(names))
print("transformers", transformers.__version__)
print("tokenizers:", tokenizer.encode("The Driver").tokens)
for model_type, as_it_stands in (("t5", False), ("umt5", True)):
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    loaded = AutoTokenizer.from_pretrained(folder)
    print(f"AutoTokenizer, {model_type}:", loaded.tokenize("The Driver"), loaded.backend_tokenizer.normalizer)
    assert (loaded.tokenize("The Driver") == tokenizer.encode("The Driver").tokens) == as_it_stands, "changed"
PYTHON
