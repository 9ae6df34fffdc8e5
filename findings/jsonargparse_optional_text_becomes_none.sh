#!/usr/bin/env bash
# jsonargparse 4.53.0. A flag of the type Optional[str] gets a text that YAML reads as nothing: a comment (every line of
# DialogSum begins with "#Person1#:"), "~", "null", "---", "&x". The function gets None, without a message, although the
# user gave a text. A flag of the type str gets the text as typed. Numbers and dates stay texts in both.
# Guessed: Optional[str] takes any text. Seen: None for all five.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet jsonargparse==4.53.0 PyYAML==6.0.3
"$folder/venv/bin/python" - <<'PYTHON'
from importlib.metadata import version
from typing import Optional

from jsonargparse import CLI


def optional(text: Optional[str] = "not given"):
    return text


def plain(text: str = "not given"):
    return text


print("jsonargparse", version("jsonargparse"))
for text, seen in {
    "#Person1#: Hello.": None,
    "~": None,
    "null": None,
    "---": None,
    "&x": None,
    "1e3": "1e3",
    "2024-01-01": "2024-01-01",
    "a: b": "a: b",
}.items():
    got = CLI(optional, args=[f"--text={text}"])
    print(repr(text), "Optional[str]:", repr(got), "str:", repr(CLI(plain, args=[f"--text={text}"])))
    assert got == seen, "changed"
    assert CLI(plain, args=[f"--text={text}"]) == text, "changed"
PYTHON
