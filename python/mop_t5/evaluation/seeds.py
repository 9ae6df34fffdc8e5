"""The table of an evaluation over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from mop_t5.evaluation.scores import MetricScores, TaskScores, by_metric
from mop_t5.evaluation.tables import ROUGE_NAMES, Table, metric_names


def spread_table(title: str, scores: Sequence[Mapping[str, TaskScores]]) -> Table:
    """Return a table of the mean and the deviation over seeds, with one row per scenario.

    Args:
        title: The title of the table.
        scores: For each seed, scenario -> scores.

    Returns:
        Each cell is the mean of a metric times 100, and its deviation (of the sample, n - 1).
    """
    rows = []
    for scenario, first in scores[0].items():
        numbers = [by_metric(of_seed[scenario]) for of_seed in scores]
        columns = [[100 * one[metric] for one in numbers] for metric in numbers[0]]
        rows.append([scenario, metric_names(first), [f"{mean(c):.1f} ± {stdev(c):.1f}" for c in columns]])
    if any(isinstance(first, MetricScores) for first in scores[0].values()):
        return Table(title, ["scenario", "metric", "score"], [[s, m, " / ".join(c)] for s, m, c in rows], labels=2)
    return Table(title, ["scenario", *ROUGE_NAMES.values()], [[s, *c] for s, _, c in rows])
