"""Prepare the fields of some datasets for a template, as in the public text-to-text code of T5.

The parameters of a preparation are the names of the fields that it reads. Its result replaces the first of these
fields. A preparation raises ValueError for a row that does not follow the dataset's format.
"""

import math
import re
from collections.abc import Callable


def mark_spans(text: str, span1_text: str, span1_index: str, span2_text: str, span2_index: str) -> str:
    """Mark `* span1 *` and `# span2 #` in a text of WSC. An index counts the words of the text, from 0."""
    words = text.split()
    spans = [(int(span1_index), "*", span1_text.split()), (int(span2_index), "#", span2_text.split())]
    for start, mark, span in sorted(spans, reverse=True):  # from the end, because a mark moves all later words
        there = words[start : start + len(span)]
        match = re.match(re.escape(" ".join(span)), " ".join(there), re.IGNORECASE)
        if not span or match is None:
            raise ValueError(f"no span {' '.join(span)!r} at word {start} of the text; found {' '.join(there)!r}.")
        rest = " ".join(there)[match.end() :]  # punctuation behind the span
        words[start : start + len(span)] = [f"{mark} {match[0]} {mark}{rest}"]
    return " ".join(words)


def without_markup(paragraph: str) -> str:
    """Return a paragraph of MultiRC without <br> and <b>."""
    return re.sub(r"</?b>", "", paragraph.replace("<br>", " "))


def without_highlights(passage: str) -> str:
    """Return a passage of ReCoRD with its highlights as sentences."""
    passage = re.sub(r"([.?!\"'])\n@highlight\n", r"\1 ", passage)
    return re.sub(r"\n@highlight\n", ". ", passage)


def in_fifths(label: str) -> str:
    """Return a score of STS-B rounded to the nearest 0.2, so that it is one of 26 texts."""
    if not math.isfinite(float(label)):
        raise ValueError(f"{label!r} is no score")
    return f"{round(float(label) * 5) / 5:.1f}"


PREPARATIONS: dict[str, Callable[..., str]] = {
    function.__name__: function for function in (mark_spans, without_markup, without_highlights, in_fifths)
}
