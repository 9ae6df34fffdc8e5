"""Read the rows of CSV and TSV files."""

import csv
import threading
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from mop_t5.data.lines import LONGEST_LINE, BadRow, decoded, raw_lines

_FIELD_LIMIT = threading.Lock()


def separated_rows(
    path: Path, tabs: bool, header: Sequence[str] | None, bad_row: BadRow
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a CSV or TSV file, each with its place; see `read_table`.

    Args:
        path: The file.
        tabs: True if the file is TSV.
        header: Names of the columns. None if the first line has them.
        bad_row: Called with the place and the error of a row that cannot be read.

    Raises:
        ValueError: `bad_row` raises, the names of the columns are wrong, or the end of a row is unknown.
    """
    if header is not None:
        _check_header(header, "header")
    has_warned = False
    delimiter, table = ("\t", raw_lines(path)) if tabs else _separator(raw_lines(path), header is None)
    lines = _Lines(table, path)
    reader = csv.reader(lines, strict=True, delimiter=delimiter, quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL)
    while True:
        cells, error = None, None
        lines.row, lines.error = [], None
        try:
            cells = _next_row(reader)
        except csv.Error as problem:
            error = _malformed(problem, lines, tabs)
        where, error = lines.where, lines.error or error
        if error is not None:
            if header is None:  # no row can be read without the names of the columns
                raise error
            bad_row(where, error)
        elif cells is None:
            return
        elif not cells:  # a blank line
            continue
        elif header is None:
            _check_header(cells, where)
            header = cells
        elif len(cells) == len(header):
            if tabs and not has_warned and any(map(_is_quoted, cells)):
                has_warned = True
                warnings.warn(
                    f"{where}: a field is quoted as in CSV. In a .tsv file quotation marks belong to the text. If "
                    "these do not, as in files of pandas, let the name of the file end in .csv.",
                    stacklevel=2,
                )
            yield where, dict(zip(header, cells))
        else:
            columns = f"{len(cells)} columns, but the header has {len(header)}"
            bad_row(where, ValueError(f"{where}: {columns}. Correct the line."))


def _separator(table: Iterator[tuple[int, bytes]], names: bool) -> tuple[str, Iterator[tuple[int, bytes]]]:
    """Return the separator of a CSV file, and the lines of the table.

    A first line `sep=;`, as Excel writes and reads it, names the separator. Otherwise the separator is the comma. If a
    first line of names has no comma, the separator is the semicolon or the tab in it, because Excel writes semicolons
    in many countries.

    Args:
        table: The lines of the file with their numbers.
        names: True if the first line has the names of the columns.
    """
    first = next((line for line in table if line[1].strip()), None)
    if first is None:
        return ",", table
    text = first[1].decode("utf-8-sig", "replace").rstrip("\r\n")
    if len(text) == 5 and text.startswith("sep="):
        return text[-1], table
    found = next((one for one in ",;\t" if one in text), ",") if names else ","
    return found, chain([first], table)


class _Lines:
    """Lines of a file, as text for the csv module.

    Attributes:
        where: Place of the last line that was read.
        row: The lines of the current row.
        error: Error of the first line of the row that is not UTF-8.
        ended: True if the csv module has asked for a line behind the end of the file.
    """

    def __init__(self, table: Iterator[tuple[int, bytes]], path: Path):
        self._table, self._path = table, path
        self.where, self.ended = str(path), False
        self.row: list[str] = []
        self.error: ValueError | None = None

    def __iter__(self) -> Iterator[str]:
        for number, raw in self._table:
            self.where = f"{self._path}, line {number}"
            try:
                line = decoded(raw, number, self.where)
            except ValueError as error:
                line, self.error = raw.decode("utf-8", "replace"), self.error or error
            self.row.append(line)
            yield line
        self.ended = True


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """Return the next row. None behind the last row.

    The csv module's limit for the length of a field holds for the whole process. It is raised for one row at a time, by
    one thread at a time, and always restored.
    """
    with _FIELD_LIMIT:
        limit = csv.field_size_limit(LONGEST_LINE)  # 131,072 by default
        try:
            return next(reader, None)
        finally:
            csv.field_size_limit(limit)


def _malformed(problem: csv.Error, lines: _Lines, tabs: bool) -> ValueError:
    """Return the error of a row that the csv module refuses.

    Raises:
        ValueError: The end of the row is unknown, because a quotation mark in it is not closed.
    """
    quotes = 0 if tabs else "".join(lines.row).count('"')
    cure = "Look for a quotation mark that is not closed" if quotes else "Correct the line"
    if "new-line character" in str(problem):
        cure = "Correct the line, or save the file with the line ends of Unix or Windows"
    error = ValueError(f"{lines.where}: cannot be read as {'TSV' if tabs else 'CSV'} ({problem}). {cure}.")
    if lines.ended or quotes % 2 == 1:
        raise error from problem
    return error


def _is_quoted(cell: str) -> bool:
    """Return whether a field begins and ends with a quotation mark, and has only doubled marks inside."""
    inner = cell[1:-1]
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '""' in inner and '"' not in inner.replace('""', "")


def _check_header(header: Sequence[str], where: str) -> None:
    twice = sorted({name for name in header if name and header.count(name) > 1})  # no task uses an unnamed column
    if twice:
        raise ValueError(f"{where}: the column {', '.join(twice)} occurs more than once in the header. Rename it.")
