"""The messages that docs/troubleshooting.md quotes are messages of the package."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
ROWS = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| ") and "you see" not in line]
QUOTED = [span for row in ROWS for span in re.findall(r"`([^`]+)`", row[0])]
OF_OTHERS = {  # argparse, transformers, Python, CUDA, Triton; a flag and prefixes of weights
    "no kernel image is available",
    "driver version is insufficient",
    "PTX was compiled with an unsupported toolchain",
    "Failed to find C compiler",
    "Python.h",
    "device-side assert triggered",
    "make gpu",
    "--dialogue -x",
    "expected one argument",
    "We strongly recommend passing in an attention_mask …",
    "IndexError: list index out of range",
    "module.",
    "_orig_mod.",
    "base_model.model.",
}


def texts_of(path: Path) -> list[str]:
    """Every text of a file, with an ellipsis in the place of each value that is filled in."""
    texts = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return texts


@cache
def texts():
    folders = ("mop_kernels", "python", "benchmarks")
    sources = [ROOT / "setup.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    return [text for path in sources for text in texts_of(path)]


def test_the_page_is_read():
    assert len(ROWS) > 40
    assert all(len(row) == 3 for row in ROWS), [row for row in ROWS if len(row) != 3]
    assert set(QUOTED) >= OF_OTHERS


@pytest.mark.parametrize("quoted", [span for span in QUOTED if span not in OF_OTHERS])
def test_every_quoted_message_exists(quoted):
    pieces = [re.escape(piece.strip()) for piece in quoted.split("…") if piece.strip(" .:")]
    pattern = re.compile(".*".join(pieces), re.DOTALL)
    assert any(pattern.search(text) for text in texts()), f"no message of the package reads {quoted!r}"
