"""The table of a training with several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from mop_t5.evaluation import Table

_MEAN = "eval_mean"  # of tasks with metrics of their own
_COLUMNS = {
    "loss": "last loss",
    "eval_rouge1": "R-1",
    "eval_rouge2": "R-2",
    "eval_rougeL": "R-L",
    "eval_rouge": "mean",
    _MEAN: "mean",
}


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


def validation_score(point: Mapping[str, Any]) -> float | None:
    """Return the score of a point of a loss history by which checkpoints are chosen. None if it is no validation."""
    return point.get(_MEAN, point.get("eval_rouge"))


def _best_of(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the last loss, and the scores of the best validation."""
    loss = next(point["loss"] for point in reversed(history) if "loss" in point)
    scores = [(score, point) for point in history if (score := validation_score(point)) is not None]
    best: Mapping[str, Any] = max(scores, key=lambda scored: scored[0])[1] if scores else {}
    return {**best, "loss": loss}
