"""What some datasets need before their fields fit a template, as in the public text-to-text code of T5.

A preparation is a function of the fields of a row that gives fields in place of them, with the names of those it reads.
It raises ValueError for a row that is not what the dataset says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple


class Preparation(NamedTuple):
    """needs: the fields that `function` reads, the first of which it replaces."""

    needs: tuple[str, ...]
    function: Callable[..., str]


def mark_spans(text: str, span1_text: str, span1_index: str, span2_text: str, span2_index: str) -> str:
    """WSC: `* span1 *` and `# span2 #` in the text. An index counts the words of the text, from 0."""
    words = text.split()
    spans = [(int(span1_index), "*", span1_text.split()), (int(span2_index), "#", span2_text.split())]
    for start, mark, span in sorted(spans, reverse=True):  # from the end: what is put in moves no earlier word
        there = words[start : start + len(span)]
        match = re.match(re.escape(" ".join(span)), " ".join(there), re.IGNORECASE)
        if not span or match is None:
            raise ValueError(
                f"no span {' '.join(span)!r} at word {start} of the text; there stands {' '.join(there)!r}."
            )
        rest = " ".join(there)[match.end() :]  # punctuation behind the span
        words[start : start + len(span)] = [f"{mark} {match[0]} {mark}{rest}"]
    return " ".join(words)


def without_markup(paragraph: str) -> str:
    """MultiRC: without <br> and <b>."""
    return re.sub(r"</?b>", "", paragraph.replace("<br>", " "))


def without_highlights(passage: str) -> str:
    """ReCoRD: the highlights of a passage as sentences of it."""
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", passage)
    return re.sub(r"\n@highlight\n", ". ", passage)


def in_fifths(label: str) -> str:
    """STS-B: the score to the nearest 0.2, so that it is one of 26 texts."""
    if not math.isfinite(float(label)):
        raise ValueError(f"{label!r} is no score")
    return f"{round(float(label) * 5) / 5:.1f}"


PREPARATIONS = {
    "mark_spans": Preparation(("text", "span1_text", "span1_index", "span2_text", "span2_index"), mark_spans),
    "without_markup": Preparation(("paragraph",), without_markup),
    "without_highlights": Preparation(("passage",), without_highlights),
    "in_fifths": Preparation(("label",), in_fifths),
}
