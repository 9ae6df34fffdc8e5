#!/usr/bin/env bash
# tokenizers 0.23.3. A WordPiece is trained on the same sentences in five processes, with one thread.
# Guessed: the same vocabulary with the same ids. Seen: other ids in each process, and now and then other pieces. So a
# model does not fit a tokenizer that was trained again on the same texts. BpeTrainer gives the same ids each time.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet tokenizers==0.23.3
cat >"$folder/train.py" <<'PYTHON'
import json
import sys

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

parts = ["请问", "明天", "去上海", "的高铁", "还有票吗", "我想", "订一间", "靠窗的", "座位", "谢谢", "两个人", "几点", "出发"]
texts = [a + b + c for a in parts for b in parts for c in parts[:6]]
vocabularies = []
for model, trainer in ((models.WordPiece, trainers.WordPieceTrainer), (models.BPE, trainers.BpeTrainer)):
    tokenizer = Tokenizer(model(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(texts, trainer(vocab_size=150, special_tokens=["[UNK]"], show_progress=False))
    vocabularies.append(tokenizer.get_vocab())
json.dump(vocabularies, open(sys.argv[1], "w"), sort_keys=True)
PYTHON
for process in 1 2 3 4 5; do
    RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false "$folder/venv/bin/python" "$folder/train.py" "$folder/$process.json"
done
FOLDER="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import json
import os
from pathlib import Path

runs = [json.loads(path.read_text()) for path in sorted(Path(os.environ["FOLDER"]).glob("*.json"))]
for place, name in enumerate(("WordPiece", "BPE")):
    pieces = {tuple(sorted(run[place])) for run in runs}
    ids = {tuple(sorted(run[place].items())) for run in runs}
    moved = len(set(runs[0][place].items()) - set(runs[1][place].items()))
    print(f"{name}: {len(pieces)} set(s) of pieces and {len(ids)} numbering(s) in {len(runs)} processes; {moved} ids moved")
    assert len(runs) == 5 and (len(ids) > 1) == (name == "WordPiece"), "changed"
PYTHON
