"""The scores of systems as rows: means over repetitions, and their deviations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from mop_t5.evaluation import TaskScores

Repetitions = Sequence[Mapping[str, TaskScores]]  # one a seed or draw: task -> scores, the average among them


def score_rows(labels: Sequence[object], repetitions: Repetitions, columns: Sequence[str]) -> list[list[object]]:
    """A row of means, times 100, and where there are several repetitions one of deviations. labels: the first cells;
    columns: the tasks. The score of a task is the mean of its metrics."""
    points = {c: [100 * one[c].mean for one in repetitions] for c in columns}
    if len(repetitions) == 1:
        return [[*labels, "score", *(points[c][0] for c in columns)]]
    return [
        [*labels, f"mean of {len(repetitions)}", *(mean(points[c]) for c in columns)],
        [*labels, "deviation (n - 1)", *(stdev(points[c]) for c in columns)],
    ]


def average_of(repetitions: Repetitions, column: str) -> float:
    """The mean of one column over repetitions, times 100."""
    return 100 * mean(one[column].mean for one in repetitions)
