"""Write one line of output per line of input, in the same order, into a file that can be continued.

A line of output is a JSON object with `id`, `scenario`, `summary` and `key`. It has `"truncated": true` if the end of
the dialogue was cut, and `error` if the summary is null. `key` consists of two checksums, the first of the model and
the settings, the second of the input line. With it a continued run checks that the line belongs to
the same run and input.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mop_t5.backbone.identity import hash_weights
from mop_t5.backbone.weights import offloads, weights_of
from mop_t5.data.lines import decoded, json_value
from mop_t5.evaluation.generation import generate_summaries, scenarios_needed, source_lengths
from mop_t5.evaluation.requests import Request, windows
from mop_t5.files import checksum, failure_in_a_sentence, json_lines
from mop_t5.operations.contents import of_tokenizer

Rows = Iterable[Mapping[str, Any]]
_CURE = "Pass the input and the run with which the output was started, or choose another --output."


@dataclass
class Summariser:
    """A model, with all settings that its summaries depend on.

    Attributes:
        model: The model.
        tokenizer: The tokenizer of the model.
        options: The fields of the method.
        search: num_beams, max_source and max_new_tokens of generate_summaries.
        batch_size: Dialogues per batch.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    options: Mapping[str, Any]
    search: dict[str, Any]
    batch_size: int = 32

    @cached_property
    def key(self) -> str:
        """The first half of `key`: a checksum of the model and the settings, without the batch size."""
        settings = {"options": self.options, **self.search}
        weights = weights_of(self.model) if offloads(self.model) else self.model.state_dict()
        settings |= {"weights": hash_weights(weights), "scenarios": list(scenarios_needed(self.model) or ())}
        settings |= {"tokenizer": of_tokenizer(self.tokenizer)}
        return checksum(json.dumps(settings, sort_keys=True).encode())[:12]

    def answers(self, requests: Sequence[Request], bar: tqdm[Any], *, dry_run: bool = False) -> list[dict[str, Any]]:
        """Return one row of output per request.

        Args:
            requests: The requests.
            bar: The bar to advance.
            dry_run: Generate nothing, and return empty summaries.
        """
        examples = [request.example for request in requests if request.example is not None]
        bar.update(len(requests) - len(examples))
        limit = self.search["max_source"]
        sources = iter(source_lengths(self.model, self.tokenizer, examples, limit))
        texts: Iterator[str] = itertools.repeat("")
        if examples and not dry_run:
            search = {"batch_size": self.batch_size, **self.search}
            texts = iter(generate_summaries(self.model, self.tokenizer, examples, progress=bar, **search))
        return [self._row(r) if r.error else self._row(r, next(texts), next(sources) > limit) for r in requests]

    def _row(self, request: Request, summary: str | None = None, truncated: bool = False) -> dict[str, Any]:
        row: dict[str, Any] = {"id": request.id, "scenario": request.scenario, "summary": summary}
        row |= {"truncated": True} if truncated else {}
        row |= {} if request.error is None else {"error": request.error}
        return row | {"key": f"{self.key}-{request.checksum}"}


@dataclass
class Counts:
    """Numbers of rows of output.

    Attributes:
        lines: All rows.
        failed: Rows without a summary.
        truncated: Rows of dialogues whose end was cut.
    """

    lines: int = 0
    failed: int = 0
    truncated: int = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Count a row."""
        self.lines += 1
        self.failed += "error" in row
        self.truncated += bool(row.get("truncated"))

    def __str__(self) -> str:
        return (
            f"lines: {self.lines:,}; summaries: {self.lines - self.failed:,}; dialogues cut to the run's "
            f"max_source: {self.truncated:,}; errors: {self.failed:,}"
        )


def summarise(
    summariser: Summariser,
    requests: Iterator[Request],
    output: Callable[[Rows], None] | None,
    counts: Counts,
    *,
    window: int,
    total: int | None,
) -> float:
    """Answer requests window by window. Errors of requests are printed on stderr.

    Args:
        summariser: The model and its settings.
        requests: The requests.
        output: Writes rows of output. None for a dry run, which generates nothing.
        counts: The counts of earlier lines. They are updated after each window.
        window: Requests that are answered together.
        total: The number of all lines, with earlier lines. None if it is unknown.

    Returns:
        Summaries per second.
    """
    dry_run, summaries, seconds = output is None, 0, 0.0
    pause = 0.1 if sys.stderr.isatty() else 10.0  # seconds; a log file keeps each update of the bar as a line
    with tqdm(
        total=total, initial=counts.lines, desc="generating", unit="line", mininterval=pause, disable=dry_run
    ) as bar:
        for some in windows(requests, window):
            for request in some:
                if request.error is not None:
                    tqdm.write(request.error, file=sys.stderr)
            started = time.monotonic()
            rows = summariser.answers(some, bar, dry_run=dry_run)
            seconds += time.monotonic() - started
            if output is not None:
                output(rows)
            for row in rows:
                counts.add(row)
                summaries += "error" not in row
    return summaries / seconds if seconds else 0.0


def check_kept(path: Path, requests: Iterator[Request], settings_key: str, counts: Counts) -> int:
    """Take from `requests` the requests that an output has already answered, and count their answers.

    Args:
        path: The output file.
        requests: The requests. On return the iterator stands at the first request without an answer.
        settings_key: `Summariser.key`.
        counts: The counts, which are updated.

    Returns:
        The number of bytes of these answers. Half of a line may follow in the file.

    Raises:
        ValueError: An answer belongs to another request, model or setting.
    """
    size = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                break
            where = f"{path}, line {number}"
            found = json_value(decoded(raw, number, where), where, "each line as it was, or remove the file")
            row: dict[str, Any] = found if isinstance(found, dict) else {}
            request = next(requests, None)
            if request is None:
                raise ValueError(f"{where}: the input is now shorter than the output. {_CURE}")
            made_with, _, made_from = str(row.get("key")).partition("-")
            if made_from != request.checksum:
                raise ValueError(f"{where}: was not made from this line of the input, {request.id!r}. {_CURE}")
            if made_with != settings_key:
                raise ValueError(
                    f"{where}: was made with another run, other weights, another tokenizer or other settings, or by an "
                    f"earlier version. {_CURE}"
                )
            size += len(raw)
            counts.add(row)
    return size


@contextmanager
def opened_output(path: Path | None, position: int = 0) -> Iterator[Callable[[Rows], None]]:
    """Open a file or standard output, and yield a function that writes rows and waits until the disk has them.

    The message of every OSError is a sentence.

    Args:
        path: The file, which is made if it does not exist. None for standard output.
        position: The position in the file, in bytes. The file is cut at this position.
    """
    if path is None:
        yield _to_standard_output
        return
    with failure_in_a_sentence("the summaries", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # without a buffer nothing is left to write when the file is closed after an error
        file = FileIO(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb")
        file.truncate(position)
        file.seek(position)

    def write(rows: Rows) -> None:
        with failure_in_a_sentence("the summaries", path):
            left = memoryview(json_lines(rows))
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())

    with file:
        yield write


def _to_standard_output(rows: Rows) -> None:
    try:
        with failure_in_a_sentence("the summaries", "standard output"):
            sys.stdout.buffer.write(json_lines(rows))
            sys.stdout.buffer.flush()
    except OSError:
        # otherwise Python would try again, and fail again, when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
