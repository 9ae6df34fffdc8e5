"""Tables of results: rich in a terminal, Markdown in a file, from one object."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from mop_t5.evaluation.rouge import Scores


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table whose first column is left-aligned and whose other columns are right-aligned."""
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right", no_wrap=position == 0)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    return table


def score_table(
    title: str, results: Mapping[str, Mapping[str, Scores]], more: Mapping[str, Mapping[str, str]] | None = None
) -> Table:
    """Rows: the scenarios and their average. Columns: the systems, each cell `R-1/R-2/R-L` times 100.

    results: system -> scenario -> `Scores`; every system has the same scenarios (see `by_scenario`). more: further
    rows, name -> system -> cell; a system without a cell gets an empty one.
    """
    scenarios = list(next(iter(results.values())))
    rows = [[scenario, *(format_scores(means[scenario]) for means in results.values())] for scenario in scenarios]
    rows += [[name, *(cells.get(system, "") for system in results)] for name, cells in (more or {}).items()]
    return make_table(title, ["scenario", *results], rows)


def format_scores(scores: Scores) -> str:
    return "/".join(f"{100 * value:.1f}" for value in scores)


def to_markdown(table: Table) -> str:
    """The table as GitHub Markdown, its title as a line of its own above."""
    plain = Table(box=box.MARKDOWN)
    for column in table.columns:
        plain.add_column(column.header, justify=column.justify, no_wrap=True)
    for cells in zip(*(column.cells for column in table.columns)):
        plain.add_row(*cells)
    output = io.StringIO()
    Console(file=output, width=1000).print(plain)
    lines = (line.rstrip() for line in output.getvalue().splitlines())
    return f"{table.title}\n\n" + "\n".join(line for line in lines if line) + "\n"


def show(table: Table) -> None:
    """Print a table, wider than most terminals that are not one: a log file must not cut it."""
    console = Console()
    Console(width=max(console.width, 140)).print(table)
