#!/usr/bin/env bash
# jieba 0.42.1. add_word with a name that has a middle dot or a space, as names of persons, stations and hotels have.
# Guessed: a word that was added is found, whatever characters it has. Seen: add_word and get_FREQ accept it and the text is
# cut at these characters before the dictionary is asked, so the word is never found. The characters - . + # & _ % do not
# cut: such a word is found.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet setuptools==84.2.1 jieba==0.42.1
TMPDIR="$folder" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import jieba

jieba.setLogLevel(60)
print("jieba", jieba.__version__)
texts = {
    "安娜·李": ("请帮安娜·李订一间房", False),
    "云水 酒店": ("住在云水 酒店两晚", False),
    "云水-酒店": ("住在云水-酒店两晚", True),
    "云水.酒店": ("住在云水.酒店两晚", True),
}
for word, (text, found) in texts.items():
    jieba.add_word(word, 1_000_000)
    words = jieba.lcut(text)
    print(word, "has the frequency", jieba.get_FREQ(word), "and", text, "is cut into", words)
    assert jieba.get_FREQ(word) == 1_000_000 and (word in words) == found, "changed"
    assert (word in jieba.lcut(text, HMM=False)) == found, "changed"
PYTHON
