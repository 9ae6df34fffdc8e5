"""The scores of systems as rows of a table: means and deviations over repetitions, and gains."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean, stdev

from mop_t5.evaluation import AVERAGE, Table, TaskScores, combined

Repetitions = Sequence[Mapping[str, TaskScores]]  # one per seed or draw: task -> scores, the average among them


def over_seeds(repetitions: Repetitions, combine: Callable[[list[float]], float]) -> dict[str, TaskScores]:
    """Return `combine` (such as statistics.mean) of each score over the repetitions."""
    return {name: combined(combine, [one[name] for one in repetitions]) for name in repetitions[0]}


def quantities(count: int, alone: str = "score") -> dict[str, Callable[[list[float]], float]]:
    """Return how the numbers of `count` repetitions are shown: name of a row -> function of the numbers.

    Args:
        count: The number of repetitions.
        alone: The name of the row of a single repetition.
    """
    return {f"mean of {count}": mean, "deviation (n - 1)": stdev} if count > 1 else {alone: mean}


def score_rows(labels: Sequence[object], repetitions: Repetitions, columns: Sequence[str]) -> list[list[object]]:
    """Return a row of means times 100 and, for several repetitions, a row of deviations.

    Args:
        labels: The first cells of each row.
        repetitions: The scores. The score of a task is the mean of its metrics.
        columns: The tasks.
    """
    return [
        [*labels, quantity, *(combine([100 * one[c].mean for one in repetitions]) for c in columns)]
        for quantity, combine in quantities(len(repetitions)).items()
    ]


def scores_table(
    title: str,
    headers: Sequence[str],
    results: Iterable[tuple[Sequence[object], Repetitions]],
    notes: Sequence[str] = (),
) -> Table:
    """Return a table of scores. Its columns are the tasks and their average.

    Args:
        title: The title of the table.
        headers: The headers of the labels.
        results: The labels of each row, and its scores.
        notes: The notes of the table.
    """
    given = list(results)
    columns = list(given[0][1][0])
    rows = [row for labels, repetitions in given for row in score_rows(labels, repetitions, columns)]
    header = [*headers, "quantity"]
    return Table(title, [*header, *columns], rows, dict.fromkeys(columns, ".2f"), notes, labels=len(header))


def average_of(repetitions: Repetitions, column: str = AVERAGE) -> float:
    """Return the mean of one column over the repetitions, times 100."""
    return 100 * mean(one[column].mean for one in repetitions)


def average_relative_gain(repetitions: Repetitions, baseline: Repetitions) -> float | None:
    """Return the mean over the tasks of (score - baseline) / baseline in %. None where a baseline is 0."""
    scores, others = (
        {name: sum(one[name].mean for one in seeds) / len(seeds) for name in seeds[0] if name != AVERAGE}
        for seeds in (repetitions, baseline)
    )
    if not all(others[task] for task in scores):
        return None
    return 100 * (sum((score - others[task]) / others[task] for task, score in scores.items()) / len(scores))
