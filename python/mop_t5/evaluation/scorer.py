"""The scores of a split, task by task, by the metrics that its corpus names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mop_t5.data import TASKS, Example, TaskMetrics
from mop_t5.evaluation.metrics import FUNCTIONS, strays
from mop_t5.evaluation.rouge import Rouge, normalised
from mop_t5.evaluation.scores import Scores, TaskScores, from_metrics, mean_scores, with_average


class Scorer:
    """Scores texts by the metrics of their tasks.

    Args:
        rouge: For the tasks without metrics of their own, and for "rouge1", "rouge2" and "rougeL". Its `normalise` is
            the form in which the other metrics compare, too.
        tasks: Task -> metrics, as `read_tasks` gives them.
    """

    def __init__(self, rouge: Rouge | None = None, tasks: Mapping[str, TaskMetrics] | None = None):
        self.rouge, self.tasks = rouge or Rouge(), dict(tasks or {})
        self.form: str = getattr(self.rouge, "normalise", "none")  # any function of two lists can count

    def __str__(self) -> str:
        return f"{TASKS}'s metrics x 100, elsewhere {self.rouge}" if self.tasks else f"{self.rouge}: R-1/R-2/R-L"

    def __call__(self, examples: Sequence[Example], texts: Sequence[str]) -> dict[str, TaskScores]:
        """Task -> what the texts of its rows score, in order of the names, and last "average": the mean over tasks,
        metric by metric or, where the metrics differ, of their means. texts: one for each example."""
        if len(examples) != len(texts):
            raise ValueError(f"got {len(examples)} examples and {len(texts)} texts; give one for each.")
        scores: dict[str, TaskScores] = {}
        by_rouge = self.by_rouge(examples, texts)
        for task, rows in self._rows(examples).items():
            rouge = mean_scores([by_rouge[i] for i in rows]) if rows[0] in by_rouge else None
            if task not in self.tasks:
                scores[task] = rouge
                continue
            golds, given = self._golds(examples, rows), [normalised(texts[i], self.form) for i in rows]
            scores[task] = from_metrics({m: self._one(m, task, golds, given, rouge) for m in self.tasks[task].metrics})
        return with_average(scores)

    def remarks(self, examples: Sequence[Example], texts: Mapping[str, Sequence[str]]) -> list[str]:
        """A sentence for each task and system that has texts which are no label or no number. texts: by system."""
        notes = []
        for task, rows in self._rows(examples).items():
            golds = self._golds(examples, rows)
            for system, given in texts.items() if task in self.tasks else ():
                plain = [normalised(given[i], self.form) for i in rows]
                kind, count = strays(self.tasks[task].metrics, golds, plain) or ("", 0)
                if count:
                    notes.append(f"{task}: {count} of {len(rows)} texts of {system} are no {kind} and count as wrong.")
        return notes

    def _one(self, metric: str, task: str, golds, texts: Sequence[str], rouge: Scores | None) -> float:
        if metric in Scores._fields:
            return getattr(rouge, metric)
        more = {"positive": normalised(self.tasks[task].positive, self.form)} if metric == "f1" else {}
        try:
            return FUNCTIONS[metric](golds, texts, **more)
        except ValueError as error:
            raise ValueError(f"task {task!r}: {error}") from error

    def by_rouge(self, examples: Sequence[Example], texts: Sequence[str]) -> dict[int, Scores]:
        """By row, where its task wants ROUGE: the best of each of the three over all right answers."""
        wanting = {t for t, task in self.tasks.items() if not set(task.metrics) & set(Scores._fields)}
        rows = [i for i, example in enumerate(examples) if example.scenario not in wanting]
        pairs = [(i, gold) for i in rows for gold in examples[i].golds]
        scores = self.rouge([gold for _, gold in pairs], [texts[i] for i, _ in pairs]) if pairs else []
        best: dict[int, Scores] = {}
        for (i, _), one in zip(pairs, scores):
            best[i] = Scores(*map(max, best[i], one)) if i in best else one
        return best

    def _golds(self, examples: Sequence[Example], rows: Sequence[int]) -> list[list[str]]:
        return [[normalised(gold, self.form) for gold in examples[i].golds] for i in rows]

    @staticmethod
    def _rows(examples: Sequence[Example]) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for i, example in enumerate(examples):
            rows.setdefault(example.scenario, []).append(i)
        return {task: rows[task] for task in sorted(rows)}
