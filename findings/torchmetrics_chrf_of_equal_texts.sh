#!/usr/bin/env bash
# torchmetrics 1.9.0, sacrebleu 2.6.0, torch 2.13.0. chrF of a text against itself.
# Guessed: 100 in both packages, of which the first follows the second. Seen: torchmetrics gives 50 for "yes", and 87.5 in
# chrF++ for a Chinese sentence, which is one word. It counts an order as zero if the texts are too short to have any n-gram
# of it. sacrebleu leaves such an order out of the mean, and gives 100. Long texts get nearly the same scores.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 torchmetrics==1.9.0 sacrebleu==2.6.0
"$folder/venv/bin/python" - <<'PYTHON'
import sacrebleu
from torchmetrics.text import CHRFScore

texts = {("yes", 0): 50.0, ("请帮我预订明天去上海的高铁票", 2): 87.5, ("the train leaves at nine", 2): 100.0}
for (text, word_order), expected in texts.items():
    seen = 100 * CHRFScore(n_word_order=word_order)([text], [[text]]).item()
    other = sacrebleu.corpus_chrf([text], [[text]], word_order=word_order).score
    print(f"{text!r}, word order {word_order}: torchmetrics {seen:.2f}, sacrebleu {other:.2f}")
    assert abs(seen - expected) < 0.01 and abs(other - 100) < 0.01, "changed"
PYTHON
