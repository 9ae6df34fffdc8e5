"""Tables of several seeds: of their trainings, and of their evaluations."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from mop_t5.evaluation.scores import MetricScores, TaskScores, by_metric
from mop_t5.evaluation.tables import ROUGE_NAMES, Table, metric_names

_MEAN = "eval_mean"  # the score of a validation in which tasks have metrics of their own; otherwise it is eval_rouge
_COLUMNS = {"loss": "last loss", **{f"eval_{metric}": name for metric, name in ROUGE_NAMES.items()}}
_COLUMNS |= {"eval_rouge": "mean", _MEAN: "mean"}


def history_table(histories: Mapping[int, Sequence[Mapping[str, Any]]]) -> Table:
    """Return a table with one row per seed, and the mean and the deviation over the seeds.

    Args:
        histories: seed -> `TrainingResult.history`.

    Returns:
        The columns are the last training loss and, for a run that was validated, the scores of the best validation. The
        deviation is the deviation of the sample, n - 1.
    """
    reached = {seed: _best_of(history) for seed, history in histories.items()}
    columns = [name for name in _COLUMNS if all(name in values for values in reached.values())]
    rows = [[f"seed {seed}", *(f"{values[name]:.3f}" for name in columns)] for seed, values in reached.items()]
    for name, combine in (("mean", mean), ("deviation", stdev)):
        rows.append([name, *(f"{combine([values[column] for values in reached.values()]):.3f}" for column in columns)])
    metrics = "tasks.yaml's metrics" if _MEAN in columns else "ROUGE F1"
    title = f"{len(reached)} seeds: training, best validation ({metrics} x 100, averaged over scenarios)"
    return Table(title, ["", *(_COLUMNS[name] for name in columns)], rows)


def _best_of(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the scores of the best validation, if there was one, and the last training loss."""
    best = max(history, key=lambda point: point.get(_MEAN, point.get("eval_rouge", -math.inf)))
    return {**best, "loss": next(point["loss"] for point in reversed(history) if "loss" in point)}


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
