"""The tables and plots of trained systems: ATTEMPT, its ablations, and its number of source prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mop_t5.evaluation import Table
from mop_t5.plots.points import plot_points

from mop_lab.suites.score_rows import Repetitions, average_of, score_rows
from mop_lab.suites.suite import Suite, baseline_scores
from mop_lab.suites.suite_config import SuiteConfig


def notes_of(config: SuiteConfig, suite: Suite) -> list[str]:
    """Return the notes of a table: the steps, the learning rates, and the factors on them."""
    steps, rates = suite.how_trained()
    factors = ", ".join(f"{name} x {factor:g}" for name, factor in config.group_rates.items())
    return [f"{steps}. {rates}{'; ' + factors if factors else ''}."]


def results_table(what: str, config: SuiteConfig, suite: Suite) -> Table:
    """Return the scores of a finished suite and of the baselines. Its columns are the tasks and their average."""
    results = suite.results()
    columns = list(next(iter(results.values()))[0])
    rows = [row for label, repetitions in results.items() for row in score_rows([label], repetitions, columns)]
    for name, scores in baseline_scores(config).items():
        ((_, _, *cells),) = score_rows([name], [scores], columns)
        rows.append([name, "floor", *cells])
    title = f"{what}, {task_scores(config)}"
    formats = dict.fromkeys(columns, ".2f")
    return Table(title, ["system", "quantity", *columns], rows, formats, notes_of(config, suite), labels=2)


def task_scores(config: SuiteConfig) -> str:
    """Return the part of a table's title that says how tasks were scored."""
    return f"{config.scorer()}, mean of a task's metrics x 100 on {config.split}, {config.num_beams} beam(s)"


def plot_modularity(path: Path, results: Mapping[str, Repetitions], split: str) -> list[Path]:
    """Plot the score of each task against the number of source prompts. Return the files."""
    columns = list(next(iter(results.values()))[0])
    return plot_points(
        path,
        {c: [(n, average_of(one, c)) for n, one in enumerate(results.values(), 1)] for c in columns},
        f"source prompts added one by one, {split}",
        x_label="source prompts",
        y_label="score x 100",
        x_ticks=[(n, name) for n, name in enumerate(results, 1)],
    )
