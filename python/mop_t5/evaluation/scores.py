"""The scores of a system on a task, and the files of an evaluation.

scores.json has the mean scores by system and scenario. predictions.jsonl has the rows of the split, with the text that
each system wrote for the row.

`Scores` are the three ROUGE scores. `MetricScores` are the scores of a task with metrics of its own. Both have `mean`.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mop_t5.checks import check_number, check_type
from mop_t5.data import Example
from mop_t5.data.examples import example_of
from mop_t5.files import damage_in_a_sentence, json_lines, read_json, split_json_lines, write_json

SCORES = "scores.json"
PREDICTIONS = "predictions.jsonl"
AVERAGE = "average"
_CURE = "Evaluate again with --overwrite."


class Scores(NamedTuple):
    """ROUGE F1, between 0 and 1."""

    rouge1: float
    rouge2: float
    rougeL: float

    @property
    def mean(self) -> float:
        """The mean of the three scores."""
        return sum(self) / 3


class MetricScores(dict[str, float]):
    """metric -> score, between 0 and 1, or between -1 and 1 for correlations."""

    @property
    def mean(self) -> float:
        """The mean of the metrics."""
        return sum(self.values()) / len(self)


TaskScores = Scores | MetricScores


def by_metric(scores: TaskScores) -> dict[str, float]:
    """Return metric -> number."""
    return scores._asdict() if isinstance(scores, Scores) else dict(scores)


def from_metrics(numbers: Mapping[str, float]) -> TaskScores:
    """Return the scores of these numbers, the inverse of `by_metric`."""
    return Scores(**numbers) if set(numbers) == set(Scores._fields) else MetricScores(numbers)


def combined(combine: Callable[[list[float]], float], scores: Sequence[TaskScores]) -> TaskScores:
    """Apply `combine`, such as statistics.mean, to each metric, or to "mean" alone if the metrics differ."""
    numbers = [by_metric(one) for one in scores]
    if any(one.keys() != numbers[0].keys() for one in numbers):
        numbers = [{"mean": one.mean} for one in scores]
    return from_metrics({name: combine([one[name] for one in numbers]) for name in numbers[0]})


def mean_scores(scores: Sequence[TaskScores]) -> TaskScores:
    """Return the mean of each metric, or of the means if the metrics differ. Raise ValueError if `scores` is empty."""
    if not scores:
        raise ValueError("there are no scores to average.")
    return combined(lambda column: sum(column) / len(column), scores)


def with_average(scores: Mapping[str, TaskScores]) -> dict[str, TaskScores]:
    """Return the scores in order of the scenarios, with a new "average", their mean, at the end."""
    scenarios = {name: scores[name] for name in sorted(scores) if name != AVERAGE}
    return scenarios | {AVERAGE: mean_scores(list(scenarios.values()))}


def write_scores(folder: str | Path, means: Mapping[str, Mapping[str, TaskScores]]) -> None:
    """Write scores.json. A reader finds either no file or the complete file. means: system -> scenario -> scores."""
    content = {system: {name: by_metric(s) for name, s in scenarios.items()} for system, scenarios in means.items()}
    write_json(Path(folder) / SCORES, content)


def read_scores(folder: str | Path) -> dict[str, dict[str, TaskScores]]:
    """Return the content of scores.json: system -> scenario -> scores. Raise ValueError if the file is damaged."""
    path = Path(folder) / SCORES
    content = read_json(path, _CURE)
    with damage_in_a_sentence(path, _CURE):
        return {
            system: {name: from_metrics({m: _number(n) for m, n in scores.items()}) for name, scores in means.items()}
            for system, means in content.items()
        }


def _number(value: float) -> float:
    check_number("a score", value)
    return value


def write_predictions(folder: str | Path, examples: Sequence[Example], texts: Mapping[str, Sequence[str]]) -> None:
    """Write predictions.jsonl.

    Args:
        folder: The folder of the file.
        examples: The rows.
        texts: system -> one text per row.
    """
    rows = (
        example.row() | {"predictions": {system: given[number] for system, given in texts.items()}}
        for number, example in enumerate(examples)
    )
    (Path(folder) / PREDICTIONS).write_bytes(json_lines(rows))


def read_predictions(folder: str | Path) -> list[tuple[Example, dict[str, str]]]:
    """Return the rows of predictions.jsonl, each with system -> text.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is damaged.
    """
    path = Path(folder) / PREDICTIONS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. {_CURE}")
    with damage_in_a_sentence(path, _CURE):
        rows = split_json_lines(path.read_text(encoding="utf-8"))
        for row in rows:
            check_type("predictions", row["predictions"], dict[str, str])
        return [(example_of(row, "it", "", True), row["predictions"]) for row in rows]
