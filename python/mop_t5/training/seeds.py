"""Several seeds: their folders, and the mean and the deviation of what they reached.

The deviation is the sample's, with n - 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

from mop_t5.evaluation import Scores, Table

_COLUMNS = {"loss": "last loss", "eval_rouge1": "R-1", "eval_rouge2": "R-2", "eval_rougeL": "R-L", "eval_rouge": "mean"}


def seed_folders(folder: str | Path, seeds: Sequence[int]) -> dict[int, Path]:
    """The run folder of each seed."""
    return {seed: Path(folder) / f"seed-{seed}" for seed in seeds}


def history_table(histories: Mapping[int, Sequence[dict]]) -> Table:
    """A row a seed with its last training loss and, where it was validated, the ROUGE of its best validation; then the
    mean and the deviation. histories: seed -> `TrainingResult.history`."""
    reached = {seed: _reached(history) for seed, history in histories.items()}
    columns = [name for name in _COLUMNS if all(name in values for values in reached.values())]
    rows = [[f"seed {seed}", *(f"{values[name]:.3f}" for name in columns)] for seed, values in reached.items()]
    for what, combine in (("mean", mean), ("deviation", stdev)):
        rows.append([what, *(f"{combine([values[name] for values in reached.values()]):.3f}" for name in columns)])
    title = f"{len(reached)} seeds: training, best validation (ROUGE F1 x 100, averaged over scenarios)"
    return Table(title, ["", *(_COLUMNS[name] for name in columns)], rows)


def spread_table(title: str, scores: Mapping[int, Mapping[str, Scores]]) -> Table:
    """A row a scenario: the mean of each ROUGE times 100 over seeds, and its deviation. scores: seed -> scenario ->
    `Scores`."""
    seeds = list(scores.values())
    rows = []
    for scenario in seeds[0]:
        columns = [[100 * value for value in column] for column in zip(*(means[scenario] for means in seeds))]
        rows.append([scenario, *(f"{mean(column):.1f} ± {stdev(column):.1f}" for column in columns)])
    return Table(title, ["scenario", "R-1", "R-2", "R-L"], rows)


def _reached(history: Sequence[dict]) -> dict[str, float]:
    last = next(point for point in reversed(history) if "loss" in point)
    best = max((point for point in history if "eval_rouge" in point), key=lambda p: p["eval_rouge"], default={})
    return best | {"loss": last["loss"]}
