"""Score the texts of a split, task by task, by the metrics that the corpus names."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from mop_t5.checks import errors_at
from mop_t5.data import TASKS, Example, TaskMetrics, scenarios_of
from mop_t5.evaluation.metrics import FUNCTIONS, Golds, strays
from mop_t5.evaluation.rouge import Rouge, normalised
from mop_t5.evaluation.scores import Scores, TaskScores, by_metric, from_metrics, mean_scores, with_average

_SAMPLE = 200  # references that are encoded and decoded to find lost characters
_NAMED = 6  # lost characters that the warning names


class Scorer:
    """Scores of texts by the metrics of their tasks.

    Args:
        rouge: ROUGE, for tasks without metrics of their own, and for "rouge1", "rouge2" and "rougeL". Its `normalise`
            also applies to the other metrics.
        tasks: task -> metrics, as returned by `read_tasks`.
    """

    def __init__(self, rouge: Rouge | None = None, tasks: Mapping[str, TaskMetrics] | None = None):
        self.rouge, self.tasks = rouge or Rouge(), dict(tasks or {})
        self.form: str = getattr(self.rouge, "normalise", "none")  # rouge may be any function of two lists

    def __str__(self) -> str:
        return f"{TASKS}'s metrics x 100, elsewhere {self.rouge}" if self.tasks else f"{self.rouge}: R-1/R-2/R-L"

    def __call__(self, examples: Sequence[Example], texts: Sequence[str]) -> dict[str, TaskScores]:
        """Return the scores of each task, and their average.

        Args:
            examples: The rows.
            texts: One text per row.

        Returns:
            task -> scores, in order of the names, with "average" at the end. The average is the mean of each metric
            over tasks, or the mean of the means if the metrics differ.
        """
        if len(examples) != len(texts):
            raise ValueError(f"got {len(examples)} examples and {len(texts)} texts. Pass one text per example.")
        scores: dict[str, TaskScores] = {}
        by_rouge = self.by_rouge(examples, texts)
        for task, rows in _rows_by_task(examples).items():
            rouge = by_metric(mean_scores([by_rouge[i] for i in rows])) if rows[0] in by_rouge else {}
            golds, given = self._golds(examples, rows), [normalised(texts[i], self.form) for i in rows]
            metrics = self.tasks[task].metrics if task in self.tasks else Scores._fields
            numbers = {m: rouge[m] if m in rouge else self._one(m, task, golds, given) for m in metrics}
            scores[task] = from_metrics(numbers)
        return with_average(scores)

    def remarks(self, examples: Sequence[Example], texts: Mapping[str, Sequence[str]]) -> list[str]:
        """Return one sentence per task and system with texts that are not a label or not a number.

        Args:
            examples: The rows.
            texts: system -> one text per row.
        """
        notes = []
        for task, rows in _rows_by_task(examples).items():
            golds = self._golds(examples, rows)
            for system, given in texts.items() if task in self.tasks else ():
                plain = [normalised(given[i], self.form) for i in rows]
                kind, count = strays(self.tasks[task].metrics, golds, plain) or ("", 0)
                if count:
                    notes.append(f"{task}: {count} of {len(rows)} texts of {system} are no {kind} and count as wrong.")
        return notes

    def _one(self, metric: str, task: str, golds: Golds, texts: Sequence[str]) -> float:
        positive = self.tasks[task].positive
        more = {} if positive is None or metric != "f1" else {"positive": normalised(positive, self.form)}
        with errors_at(f"task {task!r}"):
            return FUNCTIONS[metric](golds, texts, **more)

    def by_rouge(self, examples: Sequence[Example], texts: Sequence[str]) -> dict[int, Scores]:
        """Return row -> the best of each ROUGE score over all right answers, for rows of tasks that need ROUGE."""
        others = {t for t, task in self.tasks.items() if not set(task.metrics) & set(Scores._fields)}
        rows = [i for i, example in enumerate(examples) if example.scenario not in others]
        pairs = [(i, gold) for i in rows for gold in examples[i].golds]
        scores = self.rouge([gold for _, gold in pairs], [texts[i] for i, _ in pairs]) if pairs else []
        best: dict[int, Scores] = {}
        for (i, _), one in zip(pairs, scores):
            best[i] = Scores(*map(max, best[i], one)) if i in best else one
        return best

    def _golds(self, examples: Sequence[Example], rows: Sequence[int]) -> list[list[str]]:
        return [[normalised(gold, self.form) for gold in examples[i].golds] for i in rows]


def _rows_by_task(examples: Sequence[Example]) -> dict[str, list[int]]:
    """Return task -> the positions of its rows, in order of the names."""
    return {task: [i for i, e in enumerate(examples) if e.scenario == task] for task in scenarios_of(examples)}


def warn_of_lost_characters(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], scorer: Scorer, split: str
) -> list[str]:
    """Warn where references hold characters that a model with this tokenizer cannot write.

    The tokenizers of mT5 and umT5 write "," where a reference has the full-width comma of Chinese, so that even a
    perfect model scores below 100. In the form "nfkc" reference and summary have the same characters.

    Up to 200 references, evenly spread over the split, are encoded and decoded in the same way as summaries. Case and
    white space do not count.

    Args:
        tokenizer: The tokenizer of the model.
        examples: The rows whose references are scored.
        scorer: The scorer of the references, with its Unicode form.
        split: The name of the split, for the message.

    Returns:
        The warning, as notes for a table. Empty if no character is lost.
    """
    sample = examples[:: -(-len(examples) // _SAMPLE)]
    references = [example.summary for example in sample]
    tokens = tokenizer(text_target=references)["input_ids"]
    written = [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    lost = _lost(references, written, scorer.form)
    if not lost:
        return []
    names = " ".join(character for character, _ in sum(lost, Counter()).most_common(_NAMED))
    perfect, cure = "", "Choose a backbone whose vocabulary has them."
    if scores := list(scorer.by_rouge(sample, written).values()):  # empty if no task is scored by ROUGE
        numbers = "/".join(f"{100 * value:.1f}" for value in mean_scores(scores))
        perfect = f" So a perfect model would score {numbers} (R-1/R-2/R-L) on these rows."
    if scorer.form == "none" and len(_lost(references, written, "nfkc")) < len(lost):
        cure = "Pass --normalise nfkc to compare reference and summary in Unicode's form NFKC."
    note = (
        f"{len(lost)} of {len(sample)} references of the {split} split come back changed from the tokenizer; the lost "
        f"characters include {names}.{perfect} {cure}"
    )
    warnings.warn(note, stacklevel=2)
    return [note]


def _lost(references: Sequence[str], written: Sequence[str], form: str) -> list[Counter[str]]:
    """Return the lost characters of each reference that is not written as it is."""
    plain = [["".join(normalised(text, form).lower().split()) for text in texts] for texts in (references, written)]
    return [Counter(r) - Counter(w) for r, w in zip(*plain, strict=True) if r != w]
