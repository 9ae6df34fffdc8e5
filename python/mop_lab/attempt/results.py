"""The tables and plots of trained systems: ATTEMPT, its ablations, and its number of source prompts."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mop_t5.evaluation import Table
from mop_t5.plots.charts import plot_points

from mop_lab.suites.score_rows import Repetitions, average_of, scores_table
from mop_lab.suites.suite import Suite, baseline_scores
from mop_lab.suites.suite_config import SuiteConfig


def notes_of(config: SuiteConfig, suite: Suite) -> list[str]:
    """Return the notes of a table: the steps, the learning rates, and the factors on them."""
    steps, rates = suite.how_trained()
    factors = ", ".join(f"{name} x {factor:g}" for name, factor in config.group_rates.items())
    return [f"{steps}. {rates}{'; ' + factors if factors else ''}."]


def results_table(what: str, config: SuiteConfig, suite: Suite) -> Table:
    """Return the scores of a finished suite and of the baselines. Its columns are the tasks and their average."""
    title = f"{what}, {task_scores(config)}"
    table = scores_table(title, ["system"], (([n], s) for n, s in suite.results().items()), notes_of(config, suite))
    baselines = [
        [name, "baseline", *(100 * scores[column].mean for column in table.columns[2:])]
        for name, scores in baseline_scores(config).items()
    ]
    return replace(table, rows=[*table.rows, *baselines])


def task_scores(config: SuiteConfig) -> str:
    """Return the part of a table's title that states how tasks were scored."""
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
