"""ROUGE-1, ROUGE-2 and ROUGE-L F1 of Chinese texts, by a published package on characters or jieba words.

The two packages disagree on purpose. `rouge_score` clips counts, as the original ROUGE does; `rouge`, which most
Chinese summarisation code uses, counts each distinct n-gram once and splits sentences at ".". Characters and words give
numbers that differ by several points. So a number means something only beside what made it: `str(rouge)` says that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from importlib.metadata import version

from mop_t5.evaluation.scores import Scores
from mop_t5.tokenization import segment

IMPLEMENTATIONS = ("rouge_score", "rouge")
UNITS = ("char", "jieba", "jieba_hmm")
_NUMBER = re.compile(r"\d+")


class Rouge:
    """Scores pairs of texts.

    `implementation`: "rouge_score" or "rouge", the package that counts. `unit`: "char" (every character but white
    space), "jieba" (words, HMM=False) or "jieba_hmm" (words, HMM=True). Texts are lower-cased first. An empty
    hypothesis or reference scores 0.
    """

    def __init__(self, implementation: str = "rouge_score", unit: str = "char"):
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}.")
        if unit not in UNITS:
            raise ValueError(f"unit must be one of {UNITS}, got {unit!r}.")
        self.implementation, self.unit = implementation, unit
        self._score = {"rouge_score": _rouge_score, "rouge": _rouge}[implementation]()

    def __str__(self) -> str:
        unit = {"char": "characters", "jieba": "jieba words (HMM off)", "jieba_hmm": "jieba words (HMM on)"}[self.unit]
        package = self.implementation.replace("_", "-")
        return f"ROUGE F1 x 100 by {self.implementation} {version(package)} on {unit}"

    def __call__(self, references: Sequence[str], hypotheses: Sequence[str]) -> list[Scores]:
        """One `Scores` a pair, in order. Raises ValueError if the two lists differ in length."""
        if len(references) != len(hypotheses):
            raise ValueError(f"got {len(references)} references and {len(hypotheses)} hypotheses; give one for each.")
        return [self._pair(self.units(r), self.units(h)) for r, h in zip(references, hypotheses)]

    def units(self, text: str) -> list[str]:
        """What is counted: the characters or words of the lower-cased text, without white space."""
        text = text.lower()
        parts = text if self.unit == "char" else segment(text, hmm=self.unit == "jieba_hmm")
        return [part for part in parts if part.strip()]

    def _pair(self, reference: list[str], hypothesis: list[str]) -> Scores:
        # `rouge` takes "." for the end of a sentence and raises if there is nothing else.
        if set(hypothesis) <= {"."} or set(reference) <= {"."}:
            return Scores(0.0, 0.0, 0.0)
        return self._score(" ".join(reference), " ".join(hypothesis))


def number_recall(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Share of the numbers in the references (runs of digits) that stand in their hypothesis; NaN if there are none.

    ROUGE hardly notices a wrong amount; whoever reads the summary does.
    """
    pairs = [(set(_NUMBER.findall(r)), set(_NUMBER.findall(h))) for r, h in zip(references, hypotheses, strict=True)]
    wanted = sum(len(reference) for reference, _ in pairs)
    return sum(len(reference & hypothesis) for reference, hypothesis in pairs) / wanted if wanted else float("nan")


class _SplitAtSpaces:
    """The units are joined by spaces already; the package's own tokenizer would drop every Chinese character."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def _rouge_score() -> Callable[[str, str], Scores]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_SplitAtSpaces())

    def score(reference: str, hypothesis: str) -> Scores:
        result = scorer.score(reference, hypothesis)
        return Scores(*(result[name].fmeasure for name in Scores._fields))

    return score


def _rouge() -> Callable[[str, str], Scores]:
    import rouge

    scorer = rouge.Rouge()

    def score(reference: str, hypothesis: str) -> Scores:
        result = scorer.get_scores(hypothesis, reference)[0]
        return Scores(result["rouge-1"]["f"], result["rouge-2"]["f"], result["rouge-l"]["f"])

    return score
