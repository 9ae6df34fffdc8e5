"""Several seeds: their folders, and the mean and the deviation of what they reached.

The deviation is the sample's, with n - 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from mop_t5.evaluation import MetricScores, Table, TaskScores, by_metric, metric_names

_MEAN = "eval_mean"  # where tasks have metrics of their own
_COLUMNS = {
    "loss": "last loss",
    "eval_rouge1": "R-1",
    "eval_rouge2": "R-2",
    "eval_rougeL": "R-L",
    "eval_rouge": "mean",
    _MEAN: "mean",
}


def seed_folders(folder: str | Path, seeds: Sequence[int]) -> dict[int, Path]:
    """The run folder of each seed."""
    return {seed: Path(folder) / f"seed-{seed}" for seed in seeds}


def history_table(histories: Mapping[int, Sequence[dict]]) -> Table:
    """A row a seed with its last training loss and, where it was validated, the scores of its best validation; then the
    mean and the deviation. histories: seed -> `TrainingResult.history`."""
    reached = {seed: _reached(history) for seed, history in histories.items()}
    columns = [name for name in _COLUMNS if all(name in values for values in reached.values())]
    rows = [[f"seed {seed}", *(f"{values[name]:.3f}" for name in columns)] for seed, values in reached.items()]
    for what, combine in (("mean", mean), ("deviation", stdev)):
        rows.append([what, *(f"{combine([values[name] for values in reached.values()]):.3f}" for name in columns)])
    what = "tasks.yaml's metrics" if _MEAN in columns else "ROUGE F1"
    title = f"{len(reached)} seeds: training, best validation ({what} x 100, averaged over scenarios)"
    return Table(title, ["", *(_COLUMNS[name] for name in columns)], rows)


def spread_table(title: str, scores: Mapping[int, Mapping[str, TaskScores]]) -> Table:
    """A row a scenario: the mean of each metric times 100 over seeds, and its deviation. scores: seed -> scenario ->
    scores."""
    seeds = list(scores.values())
    rows = []
    for scenario, first in seeds[0].items():
        numbers = [by_metric(means[scenario]) for means in seeds]
        columns = [[100 * one[metric] for one in numbers] for metric in numbers[0]]
        rows.append([scenario, metric_names(first), [f"{mean(c):.1f} ± {stdev(c):.1f}" for c in columns]])
    if any(isinstance(first, MetricScores) for first in seeds[0].values()):
        return Table(title, ["scenario", "metric", "score"], [[s, m, " / ".join(c)] for s, m, c in rows], labels=2)
    return Table(title, ["scenario", "R-1", "R-2", "R-L"], [[s, *c] for s, _, c in rows])


def _reached(history: Sequence[dict]) -> dict[str, float]:
    last = next(point for point in reversed(history) if "loss" in point)
    validations = [(point.get(_MEAN, point.get("eval_rouge")), point) for point in history]
    best = max((v for v in validations if v[0] is not None), key=lambda v: v[0], default=(None, {}))[1]
    return best | {"loss": last["loss"]}
