"""Tables of results, for a terminal, Markdown and CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import rich.table
from rich import box
from rich.console import Console
from rich.markup import escape

from mop_t5.evaluation.scores import MetricScores, Scores, TaskScores, by_metric
from mop_t5.files import write_beside

ROUGE_NAMES = {"rouge1": "R-1", "rouge2": "R-2", "rougeL": "R-L"}
_MEAN = "eval_mean"  # the score of a validation in which tasks have metrics of their own; otherwise it is eval_rouge
_COLUMNS = {"loss": "last loss", **{f"eval_{metric}": name for metric, name in ROUGE_NAMES.items()}}
_COLUMNS |= {"eval_rouge": "mean", _MEAN: "mean"}


@dataclass(frozen=True)
class Table:
    """A table, for `show`, `to_markdown` and `to_csv`.

    Attributes:
        title: The line above the table.
        columns: The header.
        rows: One value per column: a text, a number, `Scores`, `MetricScores`, or None for an empty cell. `Scores` are
            shown as R-1/R-2/R-L and `MetricScores` as their metrics in order, both times 100. NaN is shown as "-".
        formats: column -> format specification of its numbers, such as ",d". The default for scores is ".1f".
        notes: Lines below the table.
        labels: The number of first columns that are texts. They are aligned to the left.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    formats: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    labels: int = 1

    def __post_init__(self):
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"a row must have {len(self.columns)} cells, one per column; got {len(row)}: {row!r}.")

    def cells(self) -> list[list[str]]:
        """Return the cells as texts."""
        return [[_shown(value, self.formats.get(c)) for c, value in zip(self.columns, row)] for row in self.rows]


def _shown(value: object, specification: str | None) -> str:
    if isinstance(value, TaskScores):
        numbers = by_metric(value).values()
        return "/".join("-" if math.isnan(n) else format(100 * n, specification or ".1f") for n in numbers)
    if isinstance(value, (int, float)) and specification:
        return format(value, specification)
    return "" if value is None else str(value)


def metric_names(scores: TaskScores) -> str:
    """Return the names of the numbers in a cell of scores, such as "R-1/R-2/R-L"."""
    return "/".join(ROUGE_NAMES.values() if isinstance(scores, Scores) else scores)


def score_table(
    title: str,
    results: Mapping[str, Mapping[str, TaskScores]],
    more: Mapping[str, Mapping[str, str]] | None = None,
    notes: Sequence[str] = (),
) -> Table:
    """Return a table with one row per scenario and their average, and one column per system.

    A cell is R-1/R-2/R-L times 100. If a scenario has other metrics, a column "metric" names them.

    Args:
        title: The title.
        results: system -> scenario -> scores. Every system must have the same scenarios (see `Scorer`).
        more: Further rows: name -> system -> cell. A missing cell is empty.
        notes: Lines below the table.
    """
    first = next(iter(results.values()))
    named = any(isinstance(scores, MetricScores) for scores in first.values())
    rows: list[list[object]] = [[s, metric_names(first[s]), *(m[s] for m in results.values())] for s in first]
    rows += [[name, None, *(cells.get(system) for system in results)] for name, cells in (more or {}).items()]
    columns = ["scenario", "metric", *results]
    if not named:
        columns, rows = [columns[0], *columns[2:]], [[row[0], *row[2:]] for row in rows]
    return Table(title, columns, rows, notes=notes, labels=1 + named)


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
    """Return the score of a point of a history by which checkpoints are chosen. None if it is no validation."""
    return point.get(_MEAN, point.get("eval_rouge"))


def _best_of(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the scores of the best validation, if there was one, and the last training loss."""
    scored = [(score, point) for point in history if (score := validation_score(point)) is not None]
    best: Mapping[str, Any] = max(scored, key=lambda pair: pair[0])[1] if scored else {}
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


def to_markdown(table: Table) -> str:
    """Return the table as GitHub Markdown, with its title above and its notes as a list below."""
    notes = "".join(f"- {note}\n" for note in table.notes)
    return f"{table.title}\n\n" + "\n".join(_lines(table, box.MARKDOWN)) + "\n" + (f"\n{notes}" if notes else "")


def to_csv(tables: Sequence[Table]) -> str:
    """Return tables of the same columns as one CSV. Scores have one column per metric, and are multiplied by 100.

    Raises:
        ValueError: The tables have different columns.
    """
    first = tables[0]
    if any(list(table.columns) != list(first.columns) for table in tables):
        raise ValueError("tables must have the same columns to stand in one CSV. Write one file per table.")
    rows = [row for table in tables for row in table.rows]
    metrics = [_metrics([row[i] for row in rows]) for i in range(len(first.columns))]
    header: list[str] = []
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    for column, names in zip(first.columns, metrics):
        what = column.removesuffix(f": {'/'.join(names.values())}")  # each number has a column of its own
        header += [f"{what} {name}".rstrip() for name in names.values()]
    writer.writerow(header)
    for row in rows:
        writer.writerow(number for value, names in zip(row, metrics) for number in _numbers(value, names))
    return output.getvalue()


def _metrics(column: Sequence[object]) -> dict[str, str]:
    """Return metric -> its name in a table, for the scores in a column. {"": ""} for a column without scores."""
    found = [name for value in column if isinstance(value, TaskScores) for name in by_metric(value)]
    return {name: ROUGE_NAMES.get(name, name) for name in found} or {"": ""}


def _numbers(value: object, metrics: Mapping[str, str]) -> list[object]:
    if not isinstance(value, TaskScores):
        return [value] * len(metrics)
    numbers = by_metric(value)
    return [round(100 * numbers[name], 6) if name in numbers else None for name in metrics]


def show(table: Table, console: Console | None = None) -> None:
    """Print a table with its title and notes. Long lines are not wrapped, so that a log file has them whole."""
    console = console or Console()
    for line in (table.title, *_lines(table, box.SIMPLE_HEAD), *table.notes):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print()


def present(tables: Sequence[Table], name: str, folder: str | Path | None) -> None:
    """Print tables, and write them to NAME.md and NAME.csv if a folder is given.

    Earlier files are kept under other names (see write_beside).
    """
    for table in tables:
        show(table)
    if folder is not None:
        write_texts(folder, {f"{name}.md": "\n".join(map(to_markdown, tables)), f"{name}.csv": to_csv(tables)})


def write_texts(folder: str | Path, texts: Mapping[str, str]) -> None:
    """Write the files `texts`, name -> content, and print their names. Earlier files are kept (see write_beside)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = [write_beside(folder / file, text.encode()) for file, text in texts.items()]
    print(f"Written to {folder}: {', '.join(texts)}.")
    for file, earlier in zip(texts, kept):
        if earlier is not None:
            print(f"The earlier {file} is now {earlier.name}.")


def _lines(table: Table, style: box.Box) -> list[str]:
    shown = rich.table.Table(box=style)
    in_markdown = style is box.MARKDOWN  # there a bar ends a cell, and must be escaped
    for position, column in enumerate(table.columns):
        name = column.replace("|", r"\|") if in_markdown else column
        shown.add_column(name, justify="left" if position < table.labels else "right", no_wrap=True)
    for cells in table.cells():
        shown.add_row(*(escape(cell.replace("|", r"\|") if in_markdown else cell) for cell in cells))
    output = io.StringIO()
    Console(file=output, width=10_000).print(shown)
    lines = (line.rstrip() for line in output.getvalue().splitlines())
    return [line for line in lines if line]
