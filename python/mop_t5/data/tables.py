"""Rows of CSV, TSV, JSON and JSON-lines files, each with the place it stands at, gzip by suffix."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mop_t5.data.corpus import BadRow, refuse
from mop_t5.data.json_rows import json_rows
from mop_t5.data.separated_rows import separated_rows

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
_INDEX = re.compile(r"(?P<name>.+)\[(?:(?P<place>-?\d+)|(?P<slice>(?:-?\d+)?:(?:-?\d+)?))\]")


def find_table(folder: str | Path, names: Sequence[str]) -> Path | None:
    """The file of one of these names with one of SUFFIXES, possibly with `.gz` behind; None if there is none. Raises
    ValueError for several, because which is meant cannot be known."""
    paths = [Path(folder) / f"{name}{suffix}{gz}" for name in names for suffix in SUFFIXES for gz in ("", ".gz")]
    found = [path for path in paths if path.is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder} has {' and '.join(path.name for path in found)}. Keep one of them.")
    return found[0] if found else None


def table_stem(path: Path) -> str:
    """Return the name of a file without its known suffixes: "dialogsum.train" for dialogsum.train.jsonl.gz."""
    name = path.name.removesuffix(".gz")
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def read_table(
    path: str | Path, header: Sequence[str] | None = None, bad_row: BadRow = refuse
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a file as dicts, each with its place: "FILE, line N".

    CSV fields may be quoted. They are separated as a first line `sep=;` says, or else by commas, or by semicolons or
    tabs where the first line has no comma. In TSV a quotation mark is a character like others, as in GLUE's files.

    A `.json` or `.jsonl` file has one row per line; or it is one list of rows, an object whose "data" is such a list,
    an object of rows by their ids, or a table as pandas writes it by columns or split. An id becomes the column "id" of
    a row that has none. A row is an object; or a list of texts, which becomes the column "turns". Values of CSV and TSV
    are texts. Values of JSON stay what they are.

    Args:
        path: the file.
        header: names of the columns of a CSV or TSV file without a line of names.
        bad_row: called with the place and the error of a row that cannot be read. The row is left out if it returns.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError, TypeError: `bad_row` raises, or the file has no rows that can be told apart. The message says where.
    """
    path = Path(path)
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}. Give one that ends in {', '.join(SUFFIXES)}.")
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: its name must end in {', '.join(SUFFIXES)}, possibly with .gz behind.")
    if suffix in (".csv", ".tsv"):
        return separated_rows(path, suffix == ".tsv", header, bad_row)
    if header is not None:
        raise ValueError(f"header names the columns of CSV and TSV files; {path} names its own.")
    return json_rows(path, suffix == ".jsonl", bad_row)


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
    None if there is none. `[-1]` and `[:-1]` behind a name are parts of its list, as in Python."""
    value: object = row
    for part in [column] if column in row else column.split("."):
        if isinstance(value, list) and all(isinstance(one, Mapping) and part in one for one in value):
            value = [one[part] for one in value]
        else:
            value = _inner(value, part) if isinstance(value, Mapping) else None
    return value


def _inner(values: Mapping[str, object], part: str) -> object:
    """The value of a name, or a part of the list that it has."""
    index = None if part in values else _INDEX.fullmatch(part)
    if index is None:
        return values.get(part)
    found = values.get(index["name"])
    if not isinstance(found, list):
        return None
    if index["slice"] is not None:
        start, stop = (int(end) if end else None for end in index["slice"].split(":"))
        return found[start:stop]
    place = int(index["place"])
    return found[place] if -len(found) <= place < len(found) else None
