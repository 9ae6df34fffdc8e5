"""Rows of peak memory, each measured by a process of its own: a benchmark's file that runs as a command."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from mop_lab.attempt.memory import ENVIRONMENT, RESET

from benchmarks.support.results import ROOT, Found, Row

ON_LINUX = pytest.mark.skipif(not RESET.exists(), reason="needs Linux's /proc/self/clear_refs")


def of_process(module: str, *arguments: str) -> Any:
    """Return what `python -m benchmarks.MODULE ARGUMENTS` measures, which is the JSON of the last line that it prints.

    Args:
        module: Name of a file of benchmarks/.
        arguments: Arguments of its command.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def keep(record: Found, full_size: bool, row: Row, **name: str) -> None:
    """Check the peak memory of a row, and keep the row under its group, name and kind."""
    assert row["peak_mb"] >= 0.9 * row["needed_mb"] or not full_size, "less than what is held at the end"
    record["rows"].append({**name, **row})
