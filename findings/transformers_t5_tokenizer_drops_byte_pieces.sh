#!/usr/bin/env bash
# transformers 5.23.0, sentencepiece 0.2.3. A spiece.model with byte fallback, as mT5's is: sentencepiece writes a character
# that it does not know as its UTF-8 bytes, which decode back. AutoTokenizer on the same file ignores the byte pieces that
# the vocabulary holds and writes one unknown token, so the character is lost, without a warning.
# Guessed: the ids of sentencepiece. Seen: <unk> in the place of six bytes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet transformers==5.23.0 sentencepiece==0.2.3 protobuf==7.36.2 numpy==2.4.6
FOLDER="$folder/tokenizer" "$folder/venv/bin/python" - <<'PYTHON'
import json
import os
from pathlib import Path

import sentencepiece
import transformers
from transformers import AutoTokenizer

folder = Path(os.environ["FOLDER"])
folder.mkdir()
(folder / "text.txt").write_text("\n".join(["a driver took a long way round and the rider wants money back"] * 40))
special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
sentencepiece.SentencePieceTrainer.train(
    input=str(folder / "text.txt"), model_prefix=str(folder / "spiece"), vocab_size=330, hard_vocab_limit=False,
    byte_fallback=True, minloglevel=2, **special,
)
names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 0}
(folder / "tokenizer_config.json").write_text(json.dumps(names))
(folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
model = sentencepiece.SentencePieceProcessor(str(folder / "spiece.model"))
tokenizer = AutoTokenizer.from_pretrained(folder)
text = "the 司机"
pieces = model.encode(text, out_type=str)
tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
print("transformers", transformers.__version__, "sentencepiece", sentencepiece.__version__)
print("sentencepiece:", pieces, "->", model.decode(model.encode(text)))
print(f"{type(tokenizer).__name__}:", tokens, "->", tokenizer.decode(tokenizer(text)["input_ids"]))
assert pieces[-6:] == ["<0xE5>", "<0x8F>", "<0xB8>", "<0xE6>", "<0x9C>", "<0xBA>"], "changed"
assert tokens[-2:] == ["<unk>", "</s>"] and "<0xE5>" in tokenizer.get_vocab(), "changed"
PYTHON
