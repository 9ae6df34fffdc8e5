"""Rows of CSV, TSV, JSON and JSON-lines files, each with the place it stands at, gzip by suffix."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mop_t5.data.corpus import json_object, lines

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")


def find_table(folder: str | Path, names: Sequence[str]) -> Path | None:
    """The file of one of these names with one of SUFFIXES, possibly with `.gz` behind; None if there is none. Raises
    ValueError for several, because which is meant cannot be known."""
    paths = [Path(folder) / f"{name}{suffix}{gz}" for name in names for suffix in SUFFIXES for gz in ("", ".gz")]
    found = [path for path in paths if path.is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder} has {' and '.join(path.name for path in found)}. Keep one of them.")
    return found[0] if found else None


def read_table(path: str | Path, header: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, object]]]:
    """The rows of a file as dicts, and where each stands: "FILE, line N".

    header: the names of the columns of a CSV or TSV file without a line of names. CSV fields may be quoted; in TSV a
    quotation mark is a character like others, as in GLUE's files. A `.json` file is a list of objects, or an object
    whose "data" is one. Values of CSV and TSV are texts, those of JSON what they are there. Raises FileNotFoundError;
    ValueError or TypeError that says where.
    """
    path = Path(path)
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}. Give one that ends in {', '.join(SUFFIXES)}.")
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: its name must end in {', '.join(SUFFIXES)}, possibly with .gz behind.")
    if suffix in (".csv", ".tsv"):
        return _separated(path, suffix == ".tsv", header)
    if header is not None:
        raise ValueError(f"header names the columns of CSV and TSV files; {path} names its own.")
    return _json_lines(path) if suffix == ".jsonl" else _json_list(path)


def inner_rows(row: Mapping[str, object], path: Sequence[str]) -> Iterator[dict[str, object]]:
    """The objects in a list of a row, each with the fields of the row that it has not itself; those in a list of these
    if the path goes on. A row without such a list is one of those that are looked for: the file is flat."""
    inner = value_at(row, path[0]) if path else None
    if not isinstance(inner, list) or not all(isinstance(one, Mapping) for one in inner):
        yield dict(row)
        return
    for one in inner:
        yield from inner_rows({**row, **one}, path[1:])


def value_at(row: Mapping[str, object], column: str) -> object:
    """The value of a column, or where there is none the value that its dots lead to, in a list that of each object;
    None if there is none."""
    value: object = row
    for part in [column] if column in row else column.split("."):
        if isinstance(value, list) and all(isinstance(one, Mapping) and part in one for one in value):
            value = [one[part] for one in value]
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _separated(path: Path, tabs: bool, header: Sequence[str] | None) -> Iterator[tuple[str, dict[str, object]]]:
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    reader = csv.reader((line for _, line in lines(path)), strict=True, **dialect)
    try:
        for cells in reader:
            where = f"{path}, line {reader.line_num}"
            if header is None:
                header = cells
                twice = sorted({name for name in header if header.count(name) > 1})
                if twice:
                    raise ValueError(f"{where}: the column {', '.join(twice)} stands there more than once. Rename it.")
            elif len(cells) == len(header):
                yield where, dict(zip(header, cells))
            elif cells:
                raise ValueError(f"{where}: {len(cells)} columns, but the header has {len(header)}. Correct the line.")
    except csv.Error as error:
        raise ValueError(
            f"{path}, line {reader.line_num}: cannot be read as {'TSV' if tabs else 'CSV'} ({error}). Look for a "
            "quotation mark that is not closed."
        ) from error


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            row = _object(json_object(line, where), where)
            if number > 1 or set(row) != {"header"}:  # the first line of MRQA's files is no row
                yield where, row


def _json_list(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    what = "a list of objects"
    content = json_object("".join(line for _, line in lines(path)), str(path), what)
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise TypeError(f'{path}: expected {what}, or an object with one as "data"; got {type(content).__name__}.')
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        yield where, _object(row, where)


def _object(row: object, where: str) -> dict[str, object]:
    if not isinstance(row, dict):
        raise TypeError(f"{where}: expected a JSON object, got {type(row).__name__}.")
    return row
