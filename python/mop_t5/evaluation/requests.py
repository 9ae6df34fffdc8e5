"""Lines as they come, from a file or a stream, each of them a dialogue to summarise or an error that stops nothing."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from mop_t5.data.corpus import Example, example_of
from mop_t5.data.dataset import scenario_ids_of
from mop_t5.data.lines import decoded, json_value, numbered
from mop_t5.files import checksum

LONGEST = 2**24  # bytes of a line: no input can fill the memory
_PAUSE = 0.1  # seconds; when no line has come for so long, those that are there are answered


class Request(NamedTuple):
    """A line of the input. `example` is None where `error` says why it cannot be summarised."""

    id: str
    scenario: str | None
    example: Example | None
    error: str | None
    checksum: str


def requests_in(file: BinaryIO, name: str, stem: str, scenarios: Sequence[str] | None) -> Iterator[Request]:
    """What the lines of a file ask for; blank lines are left out. name: of the file, for messages. stem: for the
    ids of lines without one. scenarios: those that are known, None where any will do."""
    with file:  # closed where it is read: closing a stream waits for whoever waits for its next line
        for number, raw in filled_lines(file, name):
            yield request_of(raw, f"{name}, line {number}", f"{stem}-{number}", scenarios, number)


def filled_lines(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers; a line longer than LONGEST is cut behind it."""
    return ((number, raw) for number, raw in numbered(_bounded(file), name) if raw.strip())


def request_of(raw: bytes, where: str, default_id: str, scenarios: Sequence[str] | None, number: int = 1) -> Request:
    """What one line asks for. Whatever is wrong with it is the request's `error`, which begins with `where`."""
    row, example, error = {}, None, None
    try:
        if len(raw) > LONGEST:
            raise ValueError(f"{where}: longer than {LONGEST:,} bytes. Cut the dialogue.")
        found = json_value(decoded(raw, number, where), where)
        row = found if isinstance(found, dict) else row
        unread = ("summary", "target", "references")  # whatever they hold
        wanted = {key: value for key, value in row.items() if key not in unread} if row else found
        read = example_of(wanted, where, default_id, need_summary=False)
        if scenarios is not None:
            scenario_ids_of([read], scenarios)
        example = read
    except (ValueError, TypeError) as problem:
        error = str(problem) if str(problem).startswith(where) else f"{where}: {problem}"
    identifier, scenario = row.get("id", default_id), row.get("scenario", row.get("task"))
    return Request(
        _escaped(identifier if isinstance(identifier, str) else default_id),
        _escaped(scenario if isinstance(scenario, str) else None),
        example,
        _escaped(error),
        checksum(raw.strip())[:12],
    )


def _escaped(text: str | None) -> str | None:
    """Without halves of surrogate pairs, which no file takes and which the errors may be about."""
    return text and text.encode("utf-8", "backslashreplace").decode()


def windows(requests: Iterable[Request], size: int) -> Iterator[list[Request]]:
    """Up to `size` requests at a time: as many as are there when the first has come and no other follows at once.

    They are read ahead by a thread. What goes wrong in reading is raised after the requests before it.
    """
    arrived = queue.Queue(maxsize=size)
    threading.Thread(target=_read, args=(requests, arrived), daemon=True).start()
    window, end = [], None
    while end is None:
        try:
            item = arrived.get(timeout=_PAUSE if window else None)
        except queue.Empty:
            pass
        else:
            if isinstance(item, BaseException):
                end = item
            else:
                window.append(item)
                if len(window) < size:
                    continue
        if window:
            yield window
            window = []
    if not isinstance(end, StopIteration):
        raise end


def _read(requests: Iterable[Request], arrived: queue.Queue) -> None:
    try:
        for request in requests:
            arrived.put(request)
    except BaseException as error:
        arrived.put(error)
    else:
        arrived.put(StopIteration())


def _bounded(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file; of one that is longer than LONGEST only so much that this shows."""
    while raw := file.readline(LONGEST + 1):
        rest = raw
        while len(rest) > LONGEST and not rest.endswith(b"\n"):
            rest = file.readline(LONGEST + 1)
        yield raw
