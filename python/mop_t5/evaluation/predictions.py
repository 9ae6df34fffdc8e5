"""predictions.jsonl: the rows of a split, with the text that each system wrote for the row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from mop_t5.data import Example
from mop_t5.data.corpus import example_of
from mop_t5.files import json_lines

PREDICTIONS = "predictions.jsonl"


def write_predictions(folder: str | Path, examples: Sequence[Example], texts: Mapping[str, Sequence[str]]) -> None:
    """Write predictions.jsonl.

    Args:
        folder: The folder of the file.
        examples: The rows.
        texts: system -> one text per row.
    """
    rows = (
        example.row() | {"predictions": {system: given[number] for system, given in texts.items()}}
        for number, example in enumerate(examples)
    )
    (Path(folder) / PREDICTIONS).write_bytes(json_lines(rows))


def read_predictions(folder: str | Path) -> list[tuple[Example, dict[str, str]]]:
    """Return the rows of predictions.jsonl, each with system -> text.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is damaged.
    """
    path = Path(folder) / PREDICTIONS
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing. Evaluate again with --overwrite.")
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(example_of(row, "it", "", True), row["predictions"]) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Evaluate again with --overwrite.") from error
