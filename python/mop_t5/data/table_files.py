"""Read the rows of CSV, TSV, JSON, Parquet and Arrow files and of datasets, each with its place.

CSV, TSV and JSON files that end in .gz are unpacked.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from mop_t5.data.arrow_tables import ARROW_SUFFIXES, ArrowTable, is_arrow, table_of_file
from mop_t5.data.dataset_objects import HubSplit, is_hub, is_saved, load_saved, table_of_dataset
from mop_t5.data.json_rows import json_rows
from mop_t5.data.lines import BadRow, refuse
from mop_t5.data.separated_rows import separated_rows
from mop_t5.files import StrPath

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", *ARROW_SUFFIXES)
_ENDINGS = [suffix + packed for suffix in SUFFIXES for packed in ("", ".gz")]
_SHOWN = 20  # largest number of files in a message
_USUAL_FILES = {"train": ("train",), "valid": ("valid", "validation", "dev", "val"), "test": ("test",)}
# value of TaskConfig.split -> splits that are read from files
PROTOCOLS = {
    "given": ("train", "valid", "test"),
    "halve": ("train", "valid"),
    "hold_out": ("train", "valid"),
    "8:1:1": ("train",),
}
_INDEX = re.compile(r"(?P<name>.+)\[(?:(?P<place>-?\d+)|(?P<slice>(?:-?\d+)?:(?:-?\d+)?))\]")


def dataset_files(
    source: StrPath, protocol: str, names: Mapping[str, Sequence[str]]
) -> dict[str, Path] | dict[str, HubSplit]:
    """Return the places of a dataset's splits.

    Args:
        source: Folder with the files of the dataset, or one file, which is the train split. A folder of `save_to_disk`
            counts as a file. Or the name of a dataset on the hub.
        protocol: A key of PROTOCOLS, `TaskConfig.split`.
        names: Split -> possible names of its file without suffix, if they are not the usual names.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: `source` is one file, and the protocol needs several, or a split has several files.
    """
    wanted = PROTOCOLS[protocol]
    needed = ("train",) if protocol == "given" else wanted
    if is_hub(source):
        on_hub = {}
        for split in wanted:
            with nullcontext() if split in needed else suppress(FileNotFoundError):
                on_hub[split] = HubSplit(str(source), split)
        return on_hub
    source = Path(source)
    if source.is_file() or is_saved(source):
        if protocol not in ("given", "8:1:1"):
            raise ValueError(f"{source} is one file, and split {protocol!r} needs {' and '.join(wanted)}.")
        return {"train": source}
    if not source.is_dir():
        raise FileNotFoundError(f"no folder or file at {source}. Give the folder of a dataset, or one of its files.")
    possible = {split: names.get(split, _USUAL_FILES[split]) for split in wanted}
    places = {split: find_place(source, possible[split], _ENDINGS) for split in wanted}
    found = {split: place for split, place in places.items() if place is not None}
    missing = [split for split in needed if split not in found]
    if missing:
        expected = "; ".join(f"{split}: {' or '.join(possible[split])}" for split in missing)
        there = sorted(path.name for path in source.iterdir())
        raise FileNotFoundError(
            f"{source} has no file for {expected}, with one of {', '.join(SUFFIXES)}. It has "
            f"{', '.join(there[:_SHOWN]) or 'nothing'}{', ...' if len(there) > _SHOWN else ''}."
        )
    return found


def find_place(folder: Path, names: Sequence[str], suffixes: Sequence[str]) -> Path | None:
    """Return the file of a folder with one of these names and suffixes, or the folder of `save_to_disk` of such a name.

    Returns:
        The path. None if there is neither.

    Raises:
        ValueError: There are several.
    """
    files = [folder / f"{name}{suffix}" for name in names for suffix in suffixes]
    found = [file for file in files if file.is_file()] + [folder / name for name in names if is_saved(folder / name)]
    if len(found) > 1:
        raise ValueError(f"{folder} has {' and '.join(path.name for path in found)}. Keep one of them.")
    return found[0] if found else None


def dataset_at(place: Path | HubSplit) -> Any:
    """Return the dataset of the library `datasets` at a place. None for a file."""
    if isinstance(place, HubSplit):
        return place.dataset
    return load_saved(place) if is_saved(place) else None


def table_at(place: Path | HubSplit) -> ArrowTable | None:
    """Return the table of a dataset, or of a Parquet or Arrow file. None for any other file."""
    if isinstance(place, HubSplit) or is_saved(place):
        return table_of_dataset(dataset_at(place), str(place))
    return table_of_file(place) if is_arrow(place) else None


def read_table(
    path: StrPath | HubSplit, header: Sequence[str] | None = None, bad_row: BadRow = refuse
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a file as dictionaries, each with its place: "FILE, line N".

    CSV fields may be quoted. The separator is the character that a first line `sep=;` names. Without such a line it is
    the comma, or the semicolon or tab if the first line has no comma. In TSV a quotation mark is a character like any
    other, as in GLUE's files.

    A `.json` or `.jsonl` file has one row per line. Or it is one list of rows, an object whose "data" is such a list,
    an object of rows by their ids, or a table as pandas writes it by columns or split. An id becomes the column "id" of
    a row that has no such column. A row is an object, or a list of texts, which becomes the column "turns". Values of
    CSV and TSV are texts. Values of JSON, Parquet and Arrow stay as they are.

    Args:
        path: The file, a folder of `save_to_disk`, or a split on the hub.
        header: Names of the columns of a CSV or TSV file without a line of names.
        bad_row: Called with the place and the error of a row that cannot be read. If it returns, the row is left out.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: pyarrow is not installed, and the file is Parquet or Arrow.
        TypeError, ValueError: `bad_row` raises, or the rows of the file cannot be told apart. The message has the
            place.
    """
    place = path if isinstance(path, HubSplit) else Path(path)
    if isinstance(place, Path) and not is_saved(place):
        suffix = Path(place.name.removesuffix(".gz")).suffix
        if not place.is_file():
            raise FileNotFoundError(f"no file at {place}. Give one that ends in {', '.join(SUFFIXES)}.")
        if suffix not in SUFFIXES:
            raise ValueError(f"{place}: its name must end in {', '.join(SUFFIXES)}, possibly with .gz behind.")
        if suffix in ARROW_SUFFIXES and not is_arrow(place):
            raise ValueError(f"{place}: a {suffix} file is not read from gzip data. Unpack it with `gunzip`.")
        if suffix in (".csv", ".tsv"):
            return separated_rows(place, suffix == ".tsv", header, bad_row)
    if header is not None:
        raise ValueError(f"header names the columns of CSV and TSV files; {place} names its own.")
    if (table := table_at(place)) is not None:
        return table.rows(bad_row=bad_row)
    assert isinstance(place, Path)
    return json_rows(place, suffix == ".jsonl", bad_row)


def inner_rows(row: Mapping[str, object], path: Sequence[str]) -> Iterator[dict[str, object]]:
    """Yield the objects in nested lists of a row.

    Each object also has the fields of the outer row that it lacks itself. A row without the list is yielded as it is,
    because the file is flat then.

    Args:
        row: The outer row.
        path: Names of the lists, from the outside.
    """
    inner = value_at(row, path[0]) if path else None
    if not isinstance(inner, list) or not all(isinstance(one, Mapping) for one in inner):
        yield dict(row)
        return
    for one in inner:
        yield from inner_rows({**row, **one}, path[1:])


def value_at(row: Mapping[str, object], column: str) -> object:
    """Return the value of a column. None if there is no value.

    Args:
        row: The row.
        column: Name of the column. If the row has no such column, dots lead into an object, and into each object of a
            list. `[-1]` and `[:-1]` behind a name are parts of its list, as in Python.
    """
    value: object = row
    for part in [column] if column in row else column.split("."):
        if isinstance(value, list) and all(isinstance(one, Mapping) and part in one for one in value):
            value = [one[part] for one in value]
        else:
            value = _inner(value, part) if isinstance(value, Mapping) else None
    return value


def _inner(values: Mapping[str, object], part: str) -> object:
    """Return the value of a name, or the named part of its list. None if there is none."""
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
