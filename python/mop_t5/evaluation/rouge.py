"""ROUGE-1, ROUGE-2 and ROUGE-L F1 of Chinese texts, by a published package on characters or jieba words.

The two packages disagree on purpose. `rouge_score` clips counts, as the original ROUGE does; `rouge`, which most
Chinese summarisation code uses, counts each distinct n-gram once and splits sentences at ".". Characters and words give
numbers that differ by several points. So a score is meaningful only with its settings, which `str(rouge)` names.
ROUGE-L is computed here, with the same results as the packages. They fill a table of Python objects: texts of some ten
thousand units need gigabytes and minutes. Here one row of the table is one integer, and each cell is one bit.
"""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from types import SimpleNamespace

from mop_t5.backbone.tokenizer import segment
from mop_t5.checks import check_choice
from mop_t5.evaluation.scores import Scores

IMPLEMENTATIONS = ("rouge_score", "rouge")
UNITS = ("char", "jieba", "jieba_hmm")
FORMS = ("none", "nfkc")


@dataclass(frozen=True)
class Rouge:
    """ROUGE F1 of pairs of texts.

    Texts are normalised and lower-cased first. A hypothesis or reference without units, or of full stops only, scores
    0, because the package rouge takes full stops for the ends of sentences.

    Args:
        implementation: package that counts ROUGE, "rouge_score" or "rouge".
        unit: unit that ROUGE counts: "char" (every character except white space), "jieba" (words, HMM=False) or
            "jieba_hmm" (words, HMM=True).
        normalise: form in which reference and summary are compared: "none" (unchanged) or "nfkc" (Unicode's NFKC,
            in which full-width punctuation and digits equal the others).

    Raises:
        ValueError: A field has another value.
        ImportError: The module `rouge` is that of another package.
    """

    implementation: str = "rouge_score"
    unit: str = "char"
    normalise: str = "none"

    def __post_init__(self):
        check_choice("implementation", self.implementation, IMPLEMENTATIONS)
        check_choice("unit", self.unit, UNITS)
        check_choice("normalise", self.normalise, FORMS)
        # importing rouge_score takes seconds, so only its presence is checked here, before any work
        if find_spec(self.implementation) is None:
            raise ModuleNotFoundError(f"No module named {self.implementation!r}", name=self.implementation)
        if self.implementation == "rouge":
            _check_module_rouge()

    @cached_property
    def _score(self) -> Callable[[str, str], Scores]:
        return {"rouge_score": _rouge_score, "rouge": _rouge}[self.implementation]()

    def __str__(self) -> str:
        unit = {"char": "characters", "jieba": "jieba words (HMM off)", "jieba_hmm": "jieba words (HMM on)"}[self.unit]
        package = self.implementation.replace("_", "-")
        form = "" if self.normalise == "none" else f", texts normalised to {self.normalise.upper()}"
        return f"ROUGE F1 x 100 by {self.implementation} {version(package)} on {unit}{form}"

    def __call__(self, references: Sequence[str], hypotheses: Sequence[str]) -> list[Scores]:
        """Return one `Scores` per pair, in order. Raises ValueError if the two lists differ in length."""
        if len(references) != len(hypotheses):
            raise ValueError(
                f"got {len(references)} references and {len(hypotheses)} hypotheses. Pass one hypothesis per reference."
            )
        return [self._pair(self.units(r), self.units(h)) for r, h in zip(references, hypotheses)]

    def units(self, text: str) -> list[str]:
        """Return the characters or words of the normalised, lower-cased text, without white space."""
        text = normalised(text, self.normalise).lower()
        parts = text if self.unit == "char" else segment(text, hmm=self.unit == "jieba_hmm")
        return [part for part in parts if part.strip()]

    def _pair(self, reference: list[str], hypothesis: list[str]) -> Scores:
        # a unit can be several full stops: jieba with HMM makes one of "..."
        if not all("".join(units).strip(".") for units in (reference, hypothesis)):
            return Scores(0.0, 0.0, 0.0)
        return self._score(" ".join(reference), " ".join(hypothesis))


def normalised(text: str, form: str) -> str:
    """Return a text in one of FORMS: unchanged, or with Unicode's compatibility characters replaced (NFKC)."""
    return text if form == "none" else unicodedata.normalize("NFKC", text)


def _rouge_score() -> Callable[[str, str], Scores]:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.scoring import fmeasure

    # the units are joined by spaces; the package's tokenizer would drop every Chinese character
    scorer = RougeScorer(["rouge1", "rouge2"], tokenizer=SimpleNamespace(tokenize=str.split))

    def score(reference: str, hypothesis: str) -> Scores:
        result = scorer.score(reference, hypothesis)
        wanted, given = reference.split(), hypothesis.split()
        common = _common_length(wanted, given)
        longest = fmeasure(common / len(given), common / len(wanted))
        return Scores(result["rouge1"].fmeasure, result["rouge2"].fmeasure, longest)

    return score


def _check_module_rouge() -> None:
    """Raise ImportError unless the module `rouge` counts as the package rouge does.

    rouge-chinese, py-rouge and easy-rouge install a module of this name over the files of the package, whose version
    stays. rouge-chinese gives other numbers without an error: it does not split at ".".
    """
    import rouge

    try:
        score = rouge.Rouge(metrics=["rouge-1"], stats=["f"]).get_scores("a . b a", "a b a")[0]["rouge-1"]["f"]
    except (AttributeError, TypeError, ValueError, KeyError):
        score = 0.0
    if score < 0.99:
        raise ImportError(
            f"implementation 'rouge' needs the module of the package rouge; got another module in {rouge.__file__}. "
            "rouge-chinese, py-rouge and easy-rouge install such a module. Uninstall them, then run "
            "pip install --force-reinstall --no-deps rouge==1.0.1, or choose implementation 'rouge_score'.",
            name="rouge",
        )


def _rouge() -> Callable[[str, str], Scores]:
    import rouge

    scorer = rouge.Rouge(metrics=["rouge-1", "rouge-2"], stats=["f"])

    def score(reference: str, hypothesis: str) -> Scores:
        result = scorer.get_scores(hypothesis, reference)[0]
        return Scores(result["rouge-1"]["f"], result["rouge-2"]["f"], _over_sentences(reference, hypothesis))

    return score


def _over_sentences(reference: str, hypothesis: str) -> float:
    """Return ROUGE-L as the package rouge computes it.

    The common units are the distinct units in a longest common subsequence of any two sentences. Recall and precision
    divide their number by the number of distinct units of the reference and of the hypothesis.
    """
    wanted, given = _sentences(reference), _sentences(hypothesis)
    units_wanted, units_given = set().union(*wanted), set().union(*given)
    found: set[str] = set()
    for one in wanted:
        left = units_given.intersection(one) - found
        for other in given if left else ():
            if not left.isdisjoint(other):  # otherwise the pair adds no unit
                found |= _common_units(one, other)
    recall, precision = len(found) / len(units_wanted), len(found) / len(units_given)
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _sentences(text: str) -> list[tuple[str, ...]]:
    """Return the distinct sentences. White space between two full stops is a sentence of one empty unit."""
    return list(dict.fromkeys(tuple(" ".join(part.split()).split(" ")) for part in text.split(".") if part))


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two sequences of units."""
    for row in _rows(first, second):
        last = row
    return len(second) - last.bit_count()


def _common_units(first: Sequence[str], second: Sequence[str]) -> set[str]:
    """Return the distinct units of the longest common subsequence that the package rouge finds.

    The package goes backwards from the ends of both sequences. It skips a unit of `second` if the rest has a
    subsequence of the same length without this unit.
    """
    rows, found = list(_rows(first, second)), set()
    i, j = len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            found.add(first[i - 1])
            i, j = i - 1, j - 1
        elif (rows[i] >> (j - 1)) & 1:
            j -= 1
        else:
            i -= 1
    return found


def _rows(first: Sequence[str], second: Sequence[str]) -> Iterator[int]:
    """Yield the rows of the table of lengths (Crochemore, Iliopoulos, Pinzon and Reid 2001).

    Bit j of row i is 0 if the length for first[:i] grows from second[:j] to second[:j + 1], and 1 if it does not.
    """
    places: dict[str, int] = {}
    for j, unit in enumerate(second):
        places[unit] = places.get(unit, 0) | (1 << j)
    row = every = (1 << len(second)) - 1
    yield row
    for unit in first:
        both = row & places.get(unit, 0)
        row = ((row + both) | (row - both)) & every
        yield row
