"""Collect the rows of the split with the texts of every system, as the script of the page reads them."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from mop_t5.data import Example, read_split
from mop_t5.evaluation.values import Values

from mop_lab.analysis.cases import marked
from mop_lab.finished_runs import FinishedRun, FinishedSystem

_Row = tuple[str, str | None, str, str, int]  # scenario, id, dialogue, summary, number among equal rows
_Part = str | tuple[str, str]  # part of a text: without a mark, or with the mark behind it


def predictions(systems: Sequence[FinishedSystem], values_of: Callable[[FinishedRun], Values | None]) -> dict[str, Any]:
    """Return the content of the page's JSON.

    Args:
        systems: The systems.
        values_of: Returns the finder of values in the texts of a run, or None without one.

    Returns:
        "systems": label and seeds of each system. "scenarios": their names. "rows": per row its scenario, id, dialogue
        and references, "texts" and "said". "texts" has each different text once: its parts, its ROUGE times 100 (None
        if the task has other metrics) and the values it omits. "said" has, per system and seed, the place of the text
        in "texts", or None without one.
    """
    cards: dict[_Row, dict[str, Any]] = {}
    places: dict[tuple[_Row, str, tuple[float, ...] | None], int] = {}
    for number, system in enumerate(systems):
        for which, runs in enumerate(system.seeds.values()):
            seen: Counter[tuple[str, str | None, str, str]] = Counter()
            for run in runs:
                values = values_of(run)
                for example, text, score in _scored(run):
                    row = (example.scenario, example.id, example.dialogue, example.summary)
                    key = (*row, seen[row])
                    seen[row] += 1
                    if key not in cards:
                        cards[key] = _card(example, values) | {"said": [[None] * len(s.seeds) for s in systems]}
                    texts = cards[key]["texts"]
                    place = places.setdefault((key, text, score), len(texts))
                    if place == len(texts):
                        content = {"parts": _parts(example, text, values), "rouge": score}
                        texts.append(content | _omitted(example, text, values))
                    cards[key]["said"][number][which] = place
    return {
        "systems": [{"label": system.label, "seeds": list(system.seeds)} for system in systems],
        "scenarios": sorted({key[0] for key in cards}),
        "rows": [cards[key] for key in sorted(cards)],
    }


class KnownValues:
    """Finds the values of texts by the training rows of their corpora.

    Attributes:
        missing: corpus -> why it could not be read.
    """

    def __init__(self, corpus: str | None = None):
        """Start without any corpus read.

        Args:
            corpus: The corpus folder, in place of the folders that the runs name.
        """
        self._corpus = corpus
        self._found: dict[str, Values | None] = {}
        self.missing: dict[str, str] = {}

    @property
    def marked(self) -> bool:
        """Return whether the values of some run have been found."""
        return any(self._found.values())

    def __call__(self, run: FinishedRun) -> Values | None:
        """Return the finder of values in the texts of a run. None if the corpus of the run cannot be read.

        Raises:
            FileNotFoundError, ValueError, TypeError: The corpus that was given cannot be read.
        """
        corpus = self._corpus or str(run.settings.get("corpus"))
        if corpus not in self._found:
            try:
                self._found[corpus] = Values(read_split(corpus, "train"))
            except (OSError, ValueError, TypeError) as error:
                if self._corpus:
                    raise
                self._found[corpus] = None
                self.missing[corpus] = str(error)
        return self._found[corpus]


def _scored(run: FinishedRun) -> list[tuple[Example, str, tuple[float, ...] | None]]:
    """Return each row with its text and its ROUGE times 100, as the evaluation counted it. None for other metrics."""
    rows = run.predictions()
    scores = run.scorer.by_rouge([example for example, _ in rows], [text for _, text in rows])
    rounded = {i: tuple(round(100 * value, 2) for value in one) for i, one in scores.items()}
    return [(example, text, rounded.get(i)) for i, (example, text) in enumerate(rows)]


def _card(example: Example, values: Values | None) -> dict[str, Any]:
    return {
        "scenario": example.scenario,
        "id": example.id,
        "dialogue": example.dialogue,
        "references": [_parts(example, text, values) for text in example.golds],
        "texts": [],
    }


def _parts(example: Example, text: str, values: Values | None) -> list[_Part]:
    if values is None:
        return [text]
    return [(part, mark) if mark else part for part, mark in marked(example, text, values)]


def _omitted(example: Example, text: str, values: Values | None) -> dict[str, list[str]]:
    omitted = [] if values is None else [value.text for value in values.omitted(example, text)]
    return {"omitted": omitted} if omitted else {}
