"""Read Parquet and Arrow files in batches of rows. Any other table of the same form can be read as these files are.

A corpus in a table has the columns of a corpus in JSON lines. Reading is as strict: a column that does not hold texts,
and a null, is an error. Only `id` and `references` may be null, because a row of a table has every column.
"""

import importlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mop_t5.data.examples import KEYS, Example, example_of, quoted
from mop_t5.data.labels import Labels, labels_of, named
from mop_t5.data.lines import BadRow, refuse
from mop_t5.files import in_a_line, parse_json

if TYPE_CHECKING:
    import pyarrow as pa

ARROW_SUFFIXES = (".parquet", ".arrow")
_BATCH = 1000  # rows
_BUFFER = 2**20  # bytes of a column that are read at once
_FILE_START = b"ARROW1"
_STREAM_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_OPTIONAL = ("id", "references")


class ArrowTable(NamedTuple):
    """A table that is read in batches of rows.

    Attributes:
        name: Name of the table, for messages.
        types: Column -> type.
        labels: Names of the numbers in columns of labels.
        batches: Yields batches of some columns, or of all columns for None.
    """

    name: str
    types: "Mapping[str, pa.DataType]"
    labels: Labels
    batches: "Callable[[Sequence[str] | None], Iterator[pa.RecordBatch | pa.Table]]"

    def rows(
        self, columns: Sequence[str] | None = None, bad_row: BadRow = refuse
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the rows, each with its place: "NAME, row N".

        Args:
            columns: The columns to read. None for all columns.
            bad_row: Called with the place and the error of a row whose label has no name.

        Raises:
            ValueError: A batch cannot be read, or `bad_row` raises.
        """
        number = 0
        for batch in self.batches(columns):
            try:
                values = [_values_of(column) for column in batch.columns]
            except UnicodeDecodeError as error:
                rows = f"rows {number + 1} to {number + batch.num_rows}"
                raise ValueError(f"{self.name}, {rows}: a text is not UTF-8. Write the table again.") from error
            names = list(batch.schema.names)
            for row in zip(*values):
                number += 1
                where = f"{self.name}, row {number}"
                try:
                    fields = named(dict(zip(names, row)), self.labels, where)
                except ValueError as error:
                    bad_row(where, error)
                else:
                    yield where, fields


def _values_of(column: Any) -> list[Any]:
    """Return the values of a column. A float32 becomes the shortest number that it stands for: 3.8, not 3.79999995."""
    values: list[Any] = column.to_pylist()
    pyarrow = package("pyarrow")
    if column.type not in (pyarrow.float32(), pyarrow.float16()):
        return values
    kind = column.type.to_pandas_dtype()
    return [None if value is None else float(str(kind(value))) for value in values]


def package(name: str) -> Any:
    """Return a package of the extra `datasets`.

    Raises:
        ImportError: The package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"Parquet, Arrow and hub corpora, and --stream, need the package {name.split('.')[0]}. Install it: pip "
            "install 'mop-kernels[datasets]'"
        ) from error


def is_arrow(path: Path) -> bool:
    """Return whether the name of a file says that it is Parquet or Arrow."""
    return path.name.endswith(ARROW_SUFFIXES)


def table_of_file(path: Path) -> ArrowTable:
    """Return the table in a Parquet file, or in an Arrow file in the file format or the stream format.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: The file cannot be read, breaks off, or has two columns of one name.
    """
    with unreadable(path), _opened(path) as file:
        schema = file.schema_arrow if path.suffix == ".parquet" else file.schema
        types = dict(zip(schema.names, schema.types))
    repeated = sorted(name for name, count in Counter(schema.names).items() if count > 1)
    if repeated:
        raise ValueError(f"{path}: several columns are called {quoted(repeated)}. Rename all but one.")
    return ArrowTable(str(path), types, _labels(schema), partial(_batches, path))


def row_count(path: Path) -> int:
    """Return the number of rows of a Parquet or Arrow file. Raise the errors of `table_of_file`."""
    return sum(batch.num_rows for batch in table_of_file(path).batches([]))


def examples_of_table(
    table: ArrowTable, stem: str, need_summary: bool = True, names: Mapping[str, str] | None = None
) -> Iterator[Example]:
    """Yield the examples in a table.

    Args:
        table: The table.
        stem: Start of the id of a row without an id. The number of the row follows.
        need_summary: True if each row must have a summary. False for generation.
        names: "scenario", "dialogue" or "summary" -> name of its column, if it is not the usual name.

    Raises:
        TypeError: A column does not hold texts, or a field is null.
        ValueError: A column is missing, a field is empty, or the table is damaged.
    """
    names = names or {}
    columns = corpus_columns(table, need_summary, names)
    for number, (where, row) in enumerate(table.rows(columns), start=1):
        yield example_of(fields_of(row, names), where, f"{stem}-{number}", need_summary)


def fields_of(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a row of a table as a row of JSON: the fields of an example, without those that are null and may be.

    Args:
        row: The row.
        names: See `examples_of_table`. The row must have these columns.
    """
    usual = {*_OPTIONAL, *(column for key in KEYS if key not in names for column in (key, KEYS[key]))}
    fields = {column: value for column, value in row.items() if column in usual - set(names.values())}
    fields |= {key: row[column] for key, column in names.items()}
    return {key: value for key, value in fields.items() if value is not None or key not in _OPTIONAL}


def corpus_columns(table: ArrowTable, need_summary: bool, names: Mapping[str, str]) -> list[str]:
    """Return the columns of a table that a corpus reads.

    Raises:
        TypeError: A column does not hold texts.
        ValueError: A column is missing, or both names of a field are columns.
    """
    chosen = []
    for key, other in KEYS.items():
        taken = set(names.values())
        possible = [names[key]] if key in names else [one for one in (key, other) if one not in taken]
        found = [column for column in possible if column in table.types]
        if len(found) > 1:
            raise ValueError(f"{table.name}: has both columns {quoted(found)}, which mean the same. Keep one of them.")
        if not found and (key != "summary" or need_summary or key in names):
            raise ValueError(
                f"{table.name}: no column {' or '.join(f'`{name}`' for name in possible)}. Its columns: "
                f"{quoted(table.types) or 'none'}. Rename a column, or use `mop-t5 corpus convert`."
            )
        chosen += found
    optional = [column for column in _OPTIONAL if column in table.types and column not in chosen]
    for column in chosen + optional:
        _check_texts(table, column, of_lists=column == "references" and column in optional)
    return chosen + optional


def _check_texts(table: ArrowTable, column: str, of_lists: bool) -> None:
    types = package("pyarrow").types
    value = kind = table.types[column]
    if of_lists and (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)):
        value, of_lists = kind.value_type, False
    if types.is_dictionary(value):
        value = value.value_type
    a_text = types.is_string(value) or types.is_large_string(value) or types.is_string_view(value)
    # a column of nulls alone has a type of its own; the first null is an error, where the row must have a text
    a_text = a_text or (types.is_integer(value) and isinstance(table.labels.get(column), list))
    if (of_lists and not types.is_null(value)) or not (a_text or types.is_null(value)):
        wanted = "lists of texts" if column == "references" else "texts"
        cure = "Write its turns as one text per row" if column in ("dialogue", "input") else "Write it so"
        raise TypeError(f"{table.name}: column `{column}` must hold {wanted}; it holds {kind}. {cure}.")


def _labels(schema: "pa.Schema") -> Labels:
    """Return the names of numbers that the library `datasets` has written into a schema."""
    try:
        return labels_of(parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"])
    except (KeyError, IndexError, ValueError, TypeError, AttributeError):  # another program wrote the file
        return {}


@contextmanager
def unreadable(
    path: object, cure: str = "Copy it again, or write it again.", others: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Raise a ValueError with one sentence if the block cannot read a table.

    Args:
        path: The file or the dataset, for the message.
        cure: End of the message: what to do.
        others: Further kinds of errors of a library that reads the table.

    Raises:
        OSError: The disk cannot be read.
        ValueError: The content is damaged.
    """
    kinds = (package("pyarrow").lib.ArrowException, UnicodeDecodeError, OSError)
    try:
        yield
    except kinds + others as error:
        of_table = isinstance(error, kinds) and not getattr(error, "errno", None)
        if not of_table and not isinstance(error, others):
            raise
        reason = in_a_line(error if of_table else f"{type(error).__name__} {error}")
        raise ValueError(f"{path} cannot be read ({reason}). {cure}") from error


def _batches(path: Path, columns: Sequence[str] | None) -> "Iterator[pa.RecordBatch]":
    """Yield the rows of a Parquet or Arrow file. See `ArrowTable`."""
    with unreadable(path), _opened(path) as file:
        if path.suffix == ".parquet":
            batches = file.iter_batches(_BATCH, columns=columns)
        else:  # a file in the stream format is an iterator of its batches
            count = getattr(file, "num_record_batches", None)
            batches = file if count is None else map(file.get_batch, range(count))
        for batch in batches:
            chosen = batch if columns is None else batch.select(list(columns))
            chosen.validate(full=True)
            for start in range(0, chosen.num_rows, _BATCH):
                yield chosen.slice(start, _BATCH)


def _opened(path: Path) -> Any:
    """Open a Parquet or Arrow file, and return its reader."""
    if path.suffix == ".parquet":
        # by default pyarrow keeps every column chunk that it has read until the end: with pre_buffer of the whole file
        return package("pyarrow.parquet").ParquetFile(
            path, page_checksum_verification=True, pre_buffer=False, buffer_size=_BUFFER
        )
    pyarrow = package("pyarrow")
    with open(path, "rb") as file:
        is_file = file.read(len(_FILE_START)) == _FILE_START
    if not is_file:
        check_stream_end(path)
    return (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(pyarrow.memory_map(str(path)))


def check_stream_end(path: Path) -> None:
    """Check that a file in Arrow's stream format ends with the mark of its end. pyarrow reads it without the mark, too.

    Raises:
        ValueError: The mark is missing, so that rows may be missing.
    """
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - len(_STREAM_END)))
        if file.read() != _STREAM_END:
            raise ValueError(f"{path} cannot be read (it breaks off: it has no end mark). Copy or write it again.")
