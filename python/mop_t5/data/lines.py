"""Read text files line by line, and JSON text. Every error names the file, and the line if there is one."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from io import BufferedIOBase
from pathlib import Path

from mop_t5.files import StrPath, parse_json

_OTHER_FILES = {  # first bytes of a file -> its kind, and what to do
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), "UTF-16. Convert the file with `iconv -f UTF-16 -t UTF-8`"),
    b"\x1f\x8b": "gzip data. Rename the file, with .gz behind",
    b"PK": "a ZIP archive or a workbook of Excel. Unpack it, or save the table as CSV",
    b"PAR1": "Parquet. Let its name end in .parquet",
    b"ARROW1": "Arrow. Let its name end in .arrow",
}
LONGEST_LINE = 2**30  # bytes of a line and of a JSON document: some kilobytes of gzip data can unpack to as many
BadRow = Callable[[str, Exception], None]  # called with the place and the error of a row that cannot be read


def refuse(where: str, error: Exception) -> None:
    """Raise the error of a row that cannot be read. This is the BadRow of a reader that leaves nothing out."""
    raise error


def stem_of(name: str, suffixes: Sequence[str] = (".jsonl",)) -> str:
    """Return the name of a file without one of the suffixes and `.gz`: "dialogsum.train" for dialogsum.train.jsonl.gz.

    The ids of rows without an id begin with this name.
    """
    name = name.removesuffix(".gz")
    return next((name.removesuffix(suffix) for suffix in suffixes if name.endswith(suffix)), name)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a UTF-8 file with their numbers. See `raw_lines`.

    Raises:
        ValueError: A line is not UTF-8 or too long, or the gzip data are damaged.
    """
    for number, raw in raw_lines(path):
        yield number, decoded(raw, number, f"{path}, line {number}")


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file as bytes with their numbers, from 1. A file that ends in `.gz` is unpacked.

    Raises:
        ValueError: A line is too long, or the gzip data are damaged.
    """
    with open_binary(path) as file:
        for number, raw in numbered(file, path, LONGEST_LINE):
            if len(raw) > LONGEST_LINE:
                raise ValueError(f"{path}, line {number}: longer than {LONGEST_LINE:,} bytes. Divide the line.")
            yield number, raw


def open_binary(path: Path) -> BufferedIOBase:
    """Open a file of bytes, and return it. A file that ends in `.gz` is unpacked."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")


def numbered(file: BufferedIOBase, name: StrPath, longest: int) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of an open file with their numbers, from 1.

    Args:
        file: The open file.
        name: Name of the file, for messages.
        longest: Largest number of bytes to read of a line. A longer line has `longest` + 1 bytes.

    Raises:
        ValueError: The gzip data are damaged or break off.
    """
    number = 0
    try:
        while raw := file.readline(longest + 1):
            number += 1
            yield number, raw
            while len(raw) > longest and not raw.endswith(b"\n"):  # the rest of the line
                raw = file.readline(longest + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{name}: broken or truncated gzip data after line {number} ({error}). Copy or compress the file again."
        ) from error


def decoded(raw: bytes, number: int, where: str) -> str:
    """Return the text of a line.

    Args:
        raw: The bytes of the line.
        number: Number of the line. Line 1 may begin with a byte order mark.
        where: Place of the line, for messages.

    Raises:
        ValueError: The line is not UTF-8.
    """
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        problem = f" (byte {error.start} of the line). Convert the file, for example with `iconv -f GB18030 -t UTF-8`."
        kinds = (kind for start, kind in _OTHER_FILES.items() if number == 1 and raw.startswith(start))
        problem = next((f", but {kind}." for kind in kinds), problem)
        raise ValueError(f"{where}: not UTF-8{problem}") from error


def json_value(text: str, where: str, expected: str = "one JSON object per line") -> object:
    """Return the value of a JSON text.

    Args:
        text: The text.
        where: Place of the text, for messages.
        expected: What to write there, for messages.

    Raises:
        ValueError: The text is not JSON, or an object has a key twice.
    """
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        problem = f"{error.msg}, {line}column {error.colno}"
        raise ValueError(f"{where}: not valid JSON ({problem}). Write {expected}.") from error
    except ValueError as error:  # a repeated key, thousands of digits, thousands of brackets
        raise ValueError(f"{where}: cannot be read as JSON ({error}). Write {expected}.") from error
