"""Read the rows of JSON files: one value per line, or one document of all rows."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mop_t5.data.lines import LONGEST_LINE, BadRow, decoded, json_value, lines, raw_lines

TURNS = "turns"  # the column of a row that is a list of texts
_WHAT = "a list of objects, or one object per line"


def json_rows(path: Path, by_line: bool, bad_row: BadRow) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a JSON file, each with its place; see `read_table`.

    Args:
        path: The file.
        by_line: True if the name of the file means that each line is a row. It decides only if the content does not.
        bad_row: Called with the place and the error of a row that cannot be read.

    Raises:
        TypeError, ValueError: `bad_row` raises, or the rows of the file cannot be told apart.
    """
    document = _document(path, by_line)
    for where, row in _of_lines(path, bad_row) if document is None else _of_document(document, path, by_line):
        if _is_turns(row):
            yield where, {TURNS: row}
        elif isinstance(row, dict):
            yield where, row
        else:
            kinds = ", ".join(sorted({type(one).__name__ for one in row})) if isinstance(row, list) else ""
            got = f"{type(row).__name__} of {kinds}" if kinds else type(row).__name__
            bad_row(where, TypeError(f"{where}: expected a JSON object, got {got}."))


def _document(path: Path, by_line: bool) -> object:
    """Return the content of a file that is one JSON document. None if each line is a document."""
    first, second = (*islice(_filled(path), 2), None, None)[:2]
    if first is None:
        return None
    try:
        content = _value(*first, path)
        one_row = by_line and isinstance(content, dict) and not isinstance(content.get("data"), list)
        return content if second is None and not one_row else None
    except ValueError:  # the document goes on, or this line is damaged
        try:
            return json_value(_whole(path), str(path), _WHAT)
        except ValueError:
            if by_line or (first[1].lstrip().startswith(b"{") and second is not None and _is_object(*second, path)):
                return None
            raise


def _whole(path: Path) -> str:
    size, parts = 0, []
    for _, line in lines(path):
        size += len(line)
        if size > LONGEST_LINE:
            raise ValueError(f"{path}: longer than {LONGEST_LINE:,} characters. Write one object per line.")
        parts.append(line)
    return "".join(parts)


def _of_lines(path: Path, bad_row: BadRow) -> Iterator[tuple[str, object]]:
    for number, raw in _filled(path):
        try:
            row = _value(number, raw, path)
        except ValueError as error:
            bad_row(f"{path}, line {number}", error)
            continue
        if number > 1 or not isinstance(row, dict) or set(row) != {"header"}:  # the first line of MRQA's files
            yield f"{path}, line {number}", row


def _of_document(content: object, path: Path, by_line: bool) -> Iterator[tuple[str, object]]:
    content = _of_pandas(content)
    rows = content.get("data") if isinstance(content, dict) else content
    if isinstance(rows, list) and (not by_line or all(isinstance(row, dict) or _is_turns(row) for row in rows)):
        for number, row in enumerate(rows, start=1):
            yield f"{path}, row {number}", row
    elif isinstance(content, dict) and content and all(isinstance(row, dict) for row in content.values()):
        for key, row in content.items():
            yield f"{path}, row {key!r}", {"id": key, **row}
    elif by_line or (isinstance(content, dict) and any(not isinstance(v, (dict, list)) for v in content.values())):
        yield f"{path}, line 1", content
    else:
        keys = f"an object with {', '.join(map(repr, content)) or 'nothing'}" if isinstance(content, dict) else ""
        raise TypeError(
            f'{path}: expected a list of objects, or an object with one as "data"; got '
            f"{keys or type(content).__name__}. Write {_WHAT}."
        )


def _of_pandas(content: object) -> object:
    """Return the rows of a table that pandas wrote by columns (its default) or split. Return other content as it is."""
    if not isinstance(content, dict) or not content:
        return content
    names, values = content.get("columns"), content.get("data")
    if isinstance(names, list) and isinstance(values, list) and all(isinstance(name, str) for name in names):
        fitting = all(isinstance(row, list) and len(row) == len(names) for row in values)
        return [dict(zip(names, row)) for row in values] if fitting else content
    columns = list(content.values())
    by_column = all(isinstance(column, dict) and column and column.keys() == columns[0].keys() for column in columns)
    if by_column and all(place.isdecimal() for place in columns[0]):
        return [{name: column[place] for name, column in content.items()} for place in columns[0]]
    return content


def _is_turns(row: object) -> bool:
    """Return whether a row is a list of texts, which is a dialogue without other fields."""
    return isinstance(row, list) and row != [] and all(isinstance(turn, str) for turn in row)


def _filled(path: Path) -> Iterator[tuple[int, bytes]]:
    return ((number, raw) for number, raw in raw_lines(path) if raw.strip())


def _value(number: int, raw: bytes, path: Path) -> object:
    where = f"{path}, line {number}"
    return json_value(decoded(raw, number, where), where)


def _is_object(number: int, raw: bytes, path: Path) -> bool:
    try:
        return isinstance(_value(number, raw, path), dict)
    except ValueError:
        return False
