"""Tables of results: one object that a terminal, Markdown and CSV show alike."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import rich.table
from rich import box
from rich.console import Console
from rich.markup import escape

from mop_t5.evaluation.scores import MetricScores, Scores, TaskScores, by_metric
from mop_t5.files import write_beside

ROUGE_NAMES = {"rouge1": "R-1", "rouge2": "R-2", "rougeL": "R-L"}


@dataclass(frozen=True)
class Table:
    """A table, for `show`, `to_markdown` and `to_csv`.

    title: a line above it.
    columns: the header.
    rows: one value a column: a text, a number, `Scores`, `MetricScores`, or None for an empty cell. `Scores` are shown
        as R-1/R-2/R-L, `MetricScores` as their metrics in order, times 100, NaN as "-".
    formats: format specification of the numbers of a column, by its name, such as ",d"; ".1f" is that of `Scores`.
    notes: what has to be known to read it; lines below it.
    labels: how many of the first columns are texts, aligned to the left.
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
                raise ValueError(f"a row must have {len(self.columns)} cells, one a column; got {len(row)}: {row!r}.")

    def cells(self) -> list[list[str]]:
        """The rows as they are shown."""
        return [[_shown(value, self.formats.get(c)) for c, value in zip(self.columns, row)] for row in self.rows]


def _shown(value: object, specification: str | None) -> str:
    if isinstance(value, TaskScores):
        numbers = by_metric(value).values()
        return "/".join("-" if math.isnan(n) else format(100 * n, specification or ".1f") for n in numbers)
    if isinstance(value, (int, float)) and specification:
        return format(value, specification)
    return "" if value is None else str(value)


def metric_names(scores: TaskScores) -> str:
    """What the cell of these scores shows: "R-1/R-2/R-L", or the names of its metrics."""
    return "/".join(ROUGE_NAMES.values() if isinstance(scores, Scores) else scores)


def score_table(
    title: str,
    results: Mapping[str, Mapping[str, TaskScores]],
    more: Mapping[str, Mapping[str, str]] | None = None,
    notes: Sequence[str] = (),
) -> Table:
    """Rows: the scenarios and their average. Columns: the systems, each cell `R-1/R-2/R-L` times 100, or the metrics
    that a column "metric" names where a scenario has others.

    results: system -> scenario -> scores; every system has the same scenarios (see `Scorer`). more: further rows, name
    -> system -> cell; a system without a cell gets an empty one.
    """
    first = next(iter(results.values()))
    named = any(isinstance(scores, MetricScores) for scores in first.values())
    rows = [[s, *([metric_names(first[s])] if named else []), *(m[s] for m in results.values())] for s in first]
    rows += [
        [name, *([None] if named else []), *(cells.get(system) for system in results)]
        for name, cells in (more or {}).items()
    ]
    columns = ["scenario", *(["metric"] if named else []), *results]
    return Table(title, columns, rows, notes=notes, labels=1 + named)


def to_markdown(table: Table) -> str:
    """The table as GitHub Markdown, its title above and its notes as a list below."""
    notes = "".join(f"- {note}\n" for note in table.notes)
    return f"{table.title}\n\n" + "\n".join(_lines(table, box.MARKDOWN)) + "\n" + (f"\n{notes}" if notes else "")


def to_csv(tables: Sequence[Table]) -> str:
    """Tables of the same columns as one CSV: numbers as they are, scores in one column a metric, times 100."""
    first = tables[0]
    if any(list(table.columns) != list(first.columns) for table in tables):
        raise ValueError("tables must have the same columns to stand in one CSV. Write one file for each.")
    rows = [row for table in tables for row in table.rows]
    metrics = [_metrics([row[i] for row in rows]) for i in range(len(first.columns))]
    header: list[str] = []
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    for column, names in zip(first.columns, metrics):
        what = column.removesuffix(f": {'/'.join(names.values())}")  # each number has its own column now
        header += [f"{what} {name}".rstrip() for name in names.values()]
    writer.writerow(header)
    for row in rows:
        writer.writerow(number for value, names in zip(row, metrics) for number in _numbers(value, names))
    return output.getvalue()


def _metrics(column: Sequence[object]) -> dict[str, str]:
    """The metrics of the scores in a column, and what they are called; one without a name where there are no scores."""
    found = [name for value in column if isinstance(value, TaskScores) for name in by_metric(value)]
    return {name: ROUGE_NAMES.get(name, name) for name in found} or {"": ""}


def _numbers(value: object, metrics: Mapping[str, str]) -> list[object]:
    if not isinstance(value, TaskScores):
        return [value] * len(metrics)
    numbers = by_metric(value)
    return [round(100 * numbers[name], 6) if name in numbers else None for name in metrics]


def show(table: Table, console: Console | None = None) -> None:
    """Print a table with its title and notes, as wide as it is: a log file must not cut it."""
    console = console or Console()
    for line in (table.title, *_lines(table, box.SIMPLE_HEAD), *table.notes):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print()


def present(tables: Sequence[Table], name: str, folder: str | Path | None) -> None:
    """Print tables, and where a folder is given write them to NAME.md and NAME.csv in it. What was there is kept, under
    another name (see write_beside)."""
    for table in tables:
        show(table)
    if folder is None:
        return
    write_texts(folder, {f"{name}.md": "\n".join(map(to_markdown, tables)), f"{name}.csv": to_csv(tables)})


def write_texts(folder: str | Path, texts: Mapping[str, str]) -> None:
    """Write files, name -> content, to a folder, and print which. What was there is kept (see write_beside)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = [write_beside(folder / file, text.encode()) for file, text in texts.items()]
    print(f"Written to {folder}: {', '.join(texts)}.")
    for file, earlier in zip(texts, kept):
        if earlier is not None:
            print(f"The earlier {file} is now {earlier.name}.")


def _lines(table: Table, style: box.Box) -> list[str]:
    shown = rich.table.Table(box=style)
    in_markdown = style is box.MARKDOWN  # where a bar ends a cell
    for position, column in enumerate(table.columns):
        name = column.replace("|", r"\|") if in_markdown else column
        shown.add_column(name, justify="left" if position < table.labels else "right", no_wrap=True)
    for cells in table.cells():
        shown.add_row(*(escape(cell.replace("|", r"\|") if in_markdown else cell) for cell in cells))
    output = io.StringIO()
    Console(file=output, width=10_000).print(shown)
    lines = (line.rstrip() for line in output.getvalue().splitlines())
    return [line for line in lines if line]
