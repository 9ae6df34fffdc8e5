"""Measure the cells of a table and write them to a JSON file with versions, date and command."""

import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

RESULTS = Path(__file__).with_name("results")
_MESSAGE = 250  # characters of a message that are kept
CLOSE = 1e-3  # the largest difference of two ways that compute the same

Cell = bool | int | float | str | list | dict | None


def measured(measure: Callable[..., Cell], *arguments: Any, **options: Any) -> Cell:
    """Return what `measure` returns for these arguments, or {"raises": its error} if it fails.

    Each measurement runs by itself, so a failure costs one cell. Warnings of the libraries are not shown.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return measure(*arguments, **options)
        except Exception as error:
            return {"raises": shortened(f"{type(error).__name__}: {error}")}


def shortened(text: str) -> str:
    """Return a message without paths of this machine, and without its end if it is long."""
    text = re.sub(r"\S*/tmp\S*", "PATH", " ".join(text.split()))
    return text if len(text) <= _MESSAGE else f"{text[:_MESSAGE]}..."


def difference(first: Tensor, second: Tensor) -> float:
    """Return the largest absolute difference of two tensors, in two digits."""
    if first.shape != second.shape:
        raise ValueError(f"shapes {tuple(first.shape)} and {tuple(second.shape)} differ")
    largest = (first.double() - second.double()).abs().max().item()
    if not math.isfinite(largest):
        raise ValueError(f"the largest difference is {largest}")
    return float(f"{largest:.1e}")


def write(name: str, packages: Sequence[str], columns: Mapping[str, Any]) -> None:
    """Write results/NAME.json.

    Args:
        name: Name of the file.
        packages: Distributions whose versions are written.
        columns: Measured cells by column and row.
    """
    folders = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path.startswith("build/")]
    before = [f"PYTHONPATH={folders[0]}"] if folders else []
    found = {
        "command": " ".join([*before, "python -m", f"benchmarks.tables.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {package: version(package) for package in packages},
        "columns": columns,
    }
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
