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

from mop_t5.evaluation.rouge import Scores

_METRICS = ("R-1", "R-2", "R-L")


@dataclass(frozen=True)
class Table:
    """A table, for `show`, `to_markdown` and `to_csv`.

    title: a line above it.
    columns: the header.
    rows: one value a column: a text, a number, `Scores`, or None for an empty cell. `Scores` are shown as R-1/R-2/R-L,
        times 100, NaN as "-".
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
    if isinstance(value, Scores):
        shown = (format(100 * number, specification or ".1f") for number in value)
        return "/".join("-" if math.isnan(number) else text for number, text in zip(value, shown))
    if isinstance(value, (int, float)) and specification:
        return format(value, specification)
    return "" if value is None else str(value)


def score_table(
    title: str, results: Mapping[str, Mapping[str, Scores]], more: Mapping[str, Mapping[str, str]] | None = None
) -> Table:
    """Rows: the scenarios and their average. Columns: the systems, each cell `R-1/R-2/R-L` times 100.

    results: system -> scenario -> `Scores`; every system has the same scenarios (see `by_scenario`). more: further
    rows, name -> system -> cell; a system without a cell gets an empty one.
    """
    scenarios = list(next(iter(results.values())))
    rows = [[scenario, *(means[scenario] for means in results.values())] for scenario in scenarios]
    rows += [[name, *(cells.get(system) for system in results)] for name, cells in (more or {}).items()]
    return Table(title, ["scenario", *results], rows)


def to_markdown(table: Table) -> str:
    """The table as GitHub Markdown, its title above and its notes as a list below."""
    notes = "".join(f"- {note}\n" for note in table.notes)
    return f"{table.title}\n\n" + "\n".join(_lines(table, box.MARKDOWN)) + "\n" + (f"\n{notes}" if notes else "")


def to_csv(tables: Sequence[Table]) -> str:
    """Tables of the same columns as one CSV: numbers as they are, `Scores` in three columns, times 100."""
    first = tables[0]
    if any(list(table.columns) != list(first.columns) for table in tables):
        raise ValueError("tables must have the same columns to stand in one CSV. Write one file for each.")
    rows = [row for table in tables for row in table.rows]
    triple = [any(isinstance(row[i], Scores) for row in rows) for i in range(len(first.columns))]
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(name for i, c in enumerate(first.columns) for name in _names(c, triple[i]))
    for row in rows:
        writer.writerow(number for i, value in enumerate(row) for number in _numbers(value, triple[i]))
    return output.getvalue()


def _names(column: str, triple: bool) -> list[str]:
    return [f"{column} {metric}" for metric in _METRICS] if triple else [column]


def _numbers(value: object, triple: bool) -> list[object]:
    if not triple:
        return [value]
    return [round(100 * number, 6) for number in value] if isinstance(value, Scores) else [value] * len(_METRICS)


def show(table: Table, console: Console | None = None) -> None:
    """Print a table with its title and notes, as wide as it is: a log file must not cut it."""
    console = console or Console()
    for line in (table.title, *_lines(table, box.SIMPLE_HEAD), *table.notes):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print()


def present(tables: Sequence[Table], name: str, folder: str | Path | None) -> None:
    """Print tables, and where a folder is given write them to NAME.md and NAME.csv in it."""
    for table in tables:
        show(table)
    if folder is None:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text("\n".join(map(to_markdown, tables)), encoding="utf-8")
    (folder / f"{name}.csv").write_text(to_csv(tables), encoding="utf-8")
    print(f"Written to {folder}: {name}.md, {name}.csv.")


def _lines(table: Table, style: box.Box) -> list[str]:
    shown = rich.table.Table(box=style)
    for position, column in enumerate(table.columns):
        shown.add_column(column, justify="left" if position < table.labels else "right", no_wrap=True)
    for cells in table.cells():
        shown.add_row(*map(escape, cells))
    output = io.StringIO()
    Console(file=output, width=10_000).print(shown)
    lines = (line.rstrip() for line in output.getvalue().splitlines())
    return [line for line in lines if line]
