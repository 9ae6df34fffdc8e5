"""The rows of the split with what every system says of them, as the page's script reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mop_t5.data import Example, TaskMetrics, read_split
from mop_t5.evaluation import Rouge, Scorer
from mop_t5.evaluation.values import Values

from mop_lab.analysis.cases import marked
from mop_lab.finished_runs import FinishedRun, FinishedSystem

_Key = tuple[str, str, str, str, int]  # scenario, id, dialogue, summary, which of several like it
_Part = str | tuple[str, str]  # of a text: without a mark, or with the mark behind it


def predictions(systems: Sequence[FinishedSystem], values_of: Callable[[FinishedRun], Values | None]) -> dict[str, Any]:
    """What the page holds as JSON.

    systems: label and seeds of each. scenarios: their names. rows: for each scenario, id, dialogue, references, texts
    (each different one once: its parts, its ROUGE times 100 where the row is scored by ROUGE, and the values it omits),
    and said: for each system and seed the place of its text in texts, None where it has none. values_of: what finds the
    values of the texts of a run, None where nothing does.
    """
    cards: dict[_Key, dict[str, Any]] = {}
    places: dict[tuple[_Key, str, tuple[float, ...] | None], int] = {}
    for number, system in enumerate(systems):
        for which, (seed, runs) in enumerate(system.seeds.items()):
            scores, values = _scores(runs), values_of(runs[0])
            seen: Counter = Counter()
            for example, text in system.predictions(seed):
                row = (example.scenario, example.id, example.dialogue, example.summary)
                key = (*row, seen[row])
                seen[row] += 1
                if key not in cards:
                    cards[key] = _card(example, values) | {"said": [[None] * len(s.seeds) for s in systems]}
                texts, score = cards[key]["texts"], scores[example, text]
                place = places.setdefault((key, text, score), len(texts))
                if place == len(texts):
                    texts.append(
                        {"parts": _parts(example, text, values), "rouge": score} | _lost(example, text, values)
                    )
                cards[key]["said"][number][which] = place
    return {
        "systems": [{"label": system.label, "seeds": list(system.seeds)} for system in systems],
        "scenarios": sorted({key[0] for key in cards}),
        "rows": [cards[key] for key in sorted(cards)],
    }


class KnownValues:
    """Finds the values of runs by the training rows of their corpora.

    corpus: in place of those that the runs name. missing: the corpora that could not be read, and why.
    """

    def __init__(self, corpus: str | None = None):
        self._corpus = corpus
        self._found: dict[str, Values | None] = {}
        self.missing: dict[str, str] = {}

    @property
    def marked(self) -> bool:
        """Whether the values of some run have been found."""
        return any(self._found.values())

    def __call__(self, run: FinishedRun) -> Values | None:
        """Raises what read_split raises where the corpus was given; a run's own may have gone since."""
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


def _lost(example: Example, text: str, values: Values | None) -> dict[str, list[str]]:
    omitted = [] if values is None else [value.text for value in values.omitted(example, text)]
    return {"omitted": omitted} if omitted else {}


def _scores(runs: Sequence[FinishedRun]) -> Mapping[tuple[Example, str], tuple[float, ...] | None]:
    """ROUGE of each row and text as its evaluation counted it, times 100; None where its task has other metrics."""
    found = {}
    for run in runs:
        how, rows = run.scoring, run.predictions()
        tasks = {name: TaskMetrics(**task) for name, task in how.get("metrics", {}).items()}
        scorer = Scorer(Rouge(how["implementation"], how["unit"], how["normalise"]), tasks)
        scores = scorer.by_rouge([example for example, _ in rows], [text for _, text in rows])
        found |= {
            row: tuple(round(100 * value, 2) for value in scores[i]) if i in scores else None
            for i, row in enumerate(rows)
        }
    return found
