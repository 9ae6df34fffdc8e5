"""Lines of dialogues in, as many lines of summaries out, in their order, into a file that can be continued.

A line of the output is a JSON object with `id`, `scenario`, `summary` and `key`; `"truncated": true` where the end of
the dialogue was not read; `error` where the summary is null. `key` is made of two checksums, one of the model and the
settings and one of the input line: by it a continued run knows that a line of the output is its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mop_t5.backbone.identity import hash_weights
from mop_t5.data.lines import decoded, json_value
from mop_t5.evaluation.generation import generate_summaries, over_long, scenarios_needed
from mop_t5.evaluation.requests import Request, windows
from mop_t5.files import checksum, failure_in_a_sentence
from mop_t5.operations.contents import of_tokenizer

_CURE = "Give the input and the run that it was begun with, or choose another --output."


@dataclass
class Summariser:
    """A model with all that decides what it answers.

    options: the fields of its method. lengths: max_source and max_new_tokens of generate_summaries, where they are not
    its defaults.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    options: dict
    lengths: dict[str, int]
    num_beams: int = 1
    batch_size: int = 32

    @cached_property
    def key(self) -> str:
        """The first half of a key: of what the answers depend on. The batch size is not among it."""
        weights = hash_weights(self.model.state_dict())
        settings = {"options": self.options, "num_beams": self.num_beams, **self.lengths}
        settings |= {"weights": weights, "scenarios": list(self.scenarios or ())}
        settings |= {"tokenizer": of_tokenizer(self.tokenizer)}
        return checksum(json.dumps(settings, sort_keys=True).encode())[:12]

    @property
    def scenarios(self) -> Sequence[str] | None:
        return scenarios_needed(self.model)

    def answers(self, requests: Sequence[Request], bar: tqdm, *, dry_run: bool = False) -> list[dict]:
        """The rows of the output, one a request; dry_run: with an empty text for every summary."""
        examples = [request.example for request in requests if request.error is None]
        bar.update(len(requests) - len(examples))
        if not examples:
            return [self._row(request) for request in requests]
        limit = {name: length for name, length in self.lengths.items() if name == "max_source"}
        truncated = iter(over_long(self.model, self.tokenizer, examples, **limit))
        more = {"batch_size": self.batch_size, "num_beams": self.num_beams, "progress": bar, **self.lengths}
        made = [""] * len(examples) if dry_run else generate_summaries(self.model, self.tokenizer, examples, **more)
        texts = iter(made)
        return [self._row(r) if r.error else self._row(r, next(texts), next(truncated)) for r in requests]

    def _row(self, request: Request, summary: str | None = None, truncated: bool = False) -> dict:
        row = {"id": request.id, "scenario": request.scenario, "summary": summary}
        row |= {"truncated": True} if truncated else {}
        row |= {} if request.error is None else {"error": request.error}
        return row | {"key": f"{self.key}-{request.checksum}"}


@dataclass
class Counts:
    """Of rows of the output: all, those without a summary, those of dialogues whose end was not read."""

    lines: int = 0
    failed: int = 0
    truncated: int = 0

    def add(self, row: dict) -> None:
        self.lines += 1
        self.failed += "error" in row
        self.truncated += bool(row.get("truncated"))

    def __str__(self) -> str:
        return (
            f"lines: {self.lines:,}; summaries: {self.lines - self.failed:,}, of which of dialogues cut to the run's "
            f"max_source: {self.truncated:,}; errors: {self.failed:,}"
        )


def summarise(
    summariser: Summariser,
    requests: Iterator[Request],
    output: Output | None,
    counts: Counts,
    *,
    window: int,
    total: int | None,
) -> float:
    """Answer requests into an output, window by window; errors are said on stderr. Returns summaries a second.

    output: None for a dry run, which generates nothing. counts: is kept up to date with what is written; starts at what
    was written before. total: of all lines, those before too, if known.
    """
    dry_run, summaries, seconds = output is None, 0, 0.0
    pause = 0.1 if sys.stderr.isatty() else 10.0  # seconds; a log file keeps every line of the bar
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
                output.write(rows)
            for row in rows:
                counts.add(row)
                summaries += "error" not in row
    return summaries / seconds if seconds else 0.0


def check_kept(path: Path, requests: Iterator[Request], settings_key: str, counts: Counts) -> int:
    """Take from `requests` those that an output has answered. Returns how many bytes of the file these answers are;
    half of a line may follow. They are added to counts. Raises ValueError for an answer to anything else."""
    size = 0
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.endswith(b"\n"):
                break
            where = f"{path}, line {number}"
            row = json_value(decoded(raw, number, where), where, "each line as it was, or remove the file")
            request = next(requests, None)
            if request is None:
                raise ValueError(f"{where}: the input has no such line any more. {_CURE}")
            made_with, _, made_from = str(row.get("key") if isinstance(row, dict) else None).partition("-")
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


class Output:
    """Where rows go: a file from a position on, or standard output. Each `write` is on the disk when it returns.

    Every OSError is a sentence. The file is made if it is not there; what lies behind the position is cut off.
    """

    def __init__(self, path: Path | None, position: int = 0):
        self._path, self._file = path, None
        if path is not None:
            with failure_in_a_sentence("the summaries", path):
                path.parent.mkdir(parents=True, exist_ok=True)
                # unbuffered: nothing is left to write when the file is closed after an error
                self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o666), "wb", buffering=0)
                self._file.truncate(position)
                self._file.seek(position)

    def write(self, rows: Iterable[dict]) -> None:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        if self._file is None:
            _to_standard_output(content)
            return
        with failure_in_a_sentence("the summaries", self._path):
            left = memoryview(content)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()


def _to_standard_output(content: bytes) -> None:
    try:
        with failure_in_a_sentence("the summaries", "standard output"):
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
    except OSError:
        # else Python would try again, and complain again, when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
