"""Read requests from a file or a stream. An error in a line does not stop the reading."""

import json
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

from mop_t5.data.arrow_tables import corpus_columns, fields_of, table_of_file
from mop_t5.data.examples import Example, example_of
from mop_t5.data.labels import named
from mop_t5.data.lines import decoded, json_value, numbered
from mop_t5.data.rows import scenario_ids_of
from mop_t5.files import checksum

_UNREAD = ("summary", "target", "references")  # fields of a request that may hold anything
LONGEST = 2**24  # bytes per line, so that no input can fill the memory
_PAUSE = 0.1  # seconds without a new line, after which the waiting lines are answered


class Request(NamedTuple):
    """A line of the input. If the line cannot be summarised, `example` is None and `error` gives the reason."""

    id: str
    scenario: str | None
    example: Example | None
    error: str | None
    checksum: str


def requests_in(file: BufferedIOBase, name: str, stem: str, scenarios: Sequence[str] | None) -> Iterator[Request]:
    """Yield the request of each line of a file, except for blank lines.

    Args:
        file: The file. It is closed at the end.
        name: The name of the file, for messages.
        stem: The first part of the id of a line without an id.
        scenarios: The known scenarios. None allows any scenario.
    """
    with file:  # closed by the thread that reads: closing waits for a thread that waits for the next line
        for number, raw in filled_lines(file, name):
            yield request_of(raw, f"{name}, line {number}", f"{stem}-{number}", scenarios, number)


def requests_in_table(path: Path, scenarios: Sequence[str] | None) -> Iterator[Request]:
    """Yield the request of each row of a Parquet or Arrow file.

    Args:
        path: The file.
        scenarios: The known scenarios. None allows any scenario.

    Raises:
        TypeError, ValueError: A column is missing or does not hold texts, or the file cannot be read.
    """
    table = table_of_file(path)
    table = table._replace(types={name: kind for name, kind in table.types.items() if name not in _UNREAD})
    columns = corpus_columns(table, need_summary=False, names={})
    for number, (where, row) in enumerate(table._replace(labels={}).rows(columns), start=1):
        error = None
        try:
            row = named(row, table.labels, where)
        except ValueError as problem:  # the label stays a number, so the row has no example
            error = str(problem)
        raw = json.dumps(fields_of(row, {}), ensure_ascii=False).encode()
        request = request_of(raw, where, f"{path.stem}-{number}", scenarios, number)
        yield request if error is None else request._replace(error=error)


def filled_lines(file: BufferedIOBase, name: str) -> Iterator[tuple[int, bytes]]:
    """Return the numbers and the bytes of the lines that are not blank. A line longer than LONGEST is cut."""
    return ((number, raw) for number, raw in numbered(file, name, LONGEST) if raw.strip())


def request_of(raw: bytes, where: str, default_id: str, scenarios: Sequence[str] | None, number: int = 1) -> Request:
    """Return the request of one line. An error in the line becomes the request's `error`, which begins with `where`."""
    row: dict[str, Any] = {}
    example, error = None, None
    try:
        if len(raw) > LONGEST:
            raise ValueError(f"{where}: longer than {LONGEST:,} bytes. Cut the dialogue.")
        found = json_value(decoded(raw, number, where), where)
        row = found if isinstance(found, dict) else row
        wanted = {key: value for key, value in row.items() if key not in _UNREAD} if row else found
        read = example_of(wanted, where, default_id, need_summary=False)
        if scenarios is not None:
            scenario_ids_of([read], scenarios)
        example = read
    except (ValueError, TypeError) as problem:
        error = str(problem) if str(problem).startswith(where) else f"{where}: {problem}"
    identifier, scenario = row.get("id", default_id), row.get("scenario", row.get("task"))
    return Request(
        _escaped(identifier if isinstance(identifier, str) else default_id),
        _escaped(scenario) if isinstance(scenario, str) else None,
        example,
        None if error is None else _escaped(error),
        checksum(raw.strip())[:12],
    )


def _escaped(text: str) -> str:
    """Escape halves of surrogate pairs, which no file can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def windows(requests: Iterator[Request], size: int) -> Iterator[list[Request]]:
    """Yield lists of up to `size` requests. A list is shorter if no further request arrives at once.

    A thread reads the requests ahead. An error in reading is raised after the requests before it.
    """
    arrived: queue.Queue[Any] = queue.Queue(maxsize=size)  # requests, then the error that ended the reading
    threading.Thread(target=_read, args=(requests, arrived), daemon=True).start()
    end = None
    while end is None:
        window = [arrived.get()]
        with suppress(queue.Empty):
            while len(window) < size and not isinstance(window[-1], BaseException):
                window.append(arrived.get(timeout=_PAUSE))
        if isinstance(window[-1], BaseException):
            end = window.pop()
        if window:
            yield window
    if not isinstance(end, StopIteration):
        raise end


def _read(requests: Iterator[Request], arrived: queue.Queue[Any]) -> None:
    try:
        while True:
            arrived.put(next(requests))
    except BaseException as error:  # StopIteration after the last request
        arrived.put(error)
