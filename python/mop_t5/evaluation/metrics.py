"""Metrics of text-to-text tasks. Each metric is a function of the right answers and the texts of a whole split.

The argument `golds` holds all right answers of each row. The first answer of a row is its label or its number. Labels
and numbers are compared without case and white space. A text that is not a label is wrong: it is a class of its own for
accuracy, f1_macro and matthews, and the opposite of the right answer for f1. A text that is not a number counts as the
lowest right number minus one (on STS-B's scale of 0 to 5: -1, as in the public code of T5 and ATTEMPT).
"""

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

Golds = Sequence[Sequence[str]]
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(golds: Golds, texts: Sequence[str]) -> float:
    """Return the share of texts that are one of their right answers."""
    return _mean([_label(text) in map(_label, right) for right, text in zip(golds, texts)])


def f1(golds: Golds, texts: Sequence[str], positive: str) -> float:
    """Return the F1 of one of two labels, as for MRPC and QQP in GLUE and for MultiRC in SuperGLUE."""
    from sklearn.metrics import f1_score

    positive = _label(positive)
    labels = {positive, *_firsts(golds)}
    right = [label == positive for label in _firsts(golds)]
    given = [_label(text) == positive if _label(text) in labels else not r for r, text in zip(right, texts)]
    return float(f1_score(right, given, zero_division=0.0))


def f1_macro(golds: Golds, texts: Sequence[str]) -> float:
    """Return the mean F1 over the labels of the right answers, as for CB in SuperGLUE."""
    from sklearn.metrics import f1_score

    right = _firsts(golds)
    given = [_label(text) for text in texts]
    return float(f1_score(right, given, labels=sorted(set(right)), average="macro", zero_division=0.0))


def matthews(golds: Golds, texts: Sequence[str]) -> float:
    """Return Matthews' correlation coefficient. 0 if all texts, or all right answers, are the same label."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(_firsts(golds), [_label(text) for text in texts]))


def pearson(golds: Golds, texts: Sequence[str]) -> float:
    """Return Pearson's correlation. 0 if all texts, or all right answers, are the same number."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, golds, texts)


def spearman(golds: Golds, texts: Sequence[str]) -> float:
    """Return Spearman's rank correlation. 0 if all texts, or all right answers, are the same number."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, golds, texts)


def exact_match(golds: Golds, texts: Sequence[str]) -> float:
    """Return the share of texts that equal one of their right answers, as in SQuAD.

    Texts are compared in lower case, without English articles, ASCII punctuation and superfluous white space.
    """
    return _mean([_answer(text) in map(_answer, right) for right, text in zip(golds, texts)])


def token_f1(golds: Golds, texts: Sequence[str]) -> float:
    """Return the mean over rows of the best F1 of words over the right answers, as in SQuAD (see exact_match)."""
    return _mean([max(_overlap(_answer(one), _answer(text)) for one in right) for right, text in zip(golds, texts)])


# "f1" also takes the positive label; ROUGE is in rouge.py
FUNCTIONS: dict[str, Callable[..., float]] = {
    function.__name__: function
    for function in (accuracy, f1, f1_macro, matthews, pearson, spearman, exact_match, token_f1)
}
_OF_LABELS = {"accuracy", "f1", "f1_macro", "matthews"}
_OF_NUMBERS = {"pearson", "spearman"}


def strays(metrics: Sequence[str], golds: Golds, texts: Sequence[str]) -> tuple[str, int] | None:
    """Return the kind of text that the metrics need, and the number of texts that are not of this kind.

    Args:
        metrics: Names of metrics.
        golds: All right answers of each row.
        texts: One text per row.

    Returns:
        "label" or "number", and a count. A label is the right answer of some row. None if the metrics take any text.
    """
    if _OF_NUMBERS & set(metrics):
        return "number", sum(_number(text) is None for text in texts)
    if _OF_LABELS & set(metrics):
        labels = {_label(one) for right in golds for one in right}
        return "label", sum(_label(text) not in labels for text in texts)
    return None


def _correlation(measure: Callable[..., Any], golds: Golds, texts: Sequence[str]) -> float:
    right = []
    for text, *_ in golds:
        if (number := _number(text)) is None:
            raise ValueError(f"pearson and spearman need numbers; the reference is {text!r}. Correct it.")
        right.append(number)
    lowest = min(right) - 1
    given = [lowest if (number := _number(text)) is None else number for text in texts]
    if len(set(right)) == 1 or len(set(given)) == 1:
        return 0.0
    return float(measure(right, given).statistic)


def _firsts(golds: Golds) -> list[str]:
    return [_label(first) for first, *_ in golds]


def _label(text: str) -> str:
    return " ".join(text.lower().split())


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _answer(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def _overlap(right: str, text: str) -> float:
    wanted, given = right.split(), text.split()
    if not wanted or not given:
        return float(wanted == given)
    shared = sum((Counter(wanted) & Counter(given)).values())
    return 2 * shared / (len(wanted) + len(given))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
