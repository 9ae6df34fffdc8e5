"""The JSON of a run: its rows, the description of the machine, and functions that write and read the files."""

import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import mop_kernels
from benchmarks.support import timer
from mop_kernels import backends, env_report

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
Row = dict[str, Any]
Found = dict[str, Any]


def row_of(group: str, name: str, kind: str, times_ms: Sequence[float], **about: Any) -> Row:
    """Return a row: its group and name, the median and the quartiles of its rounds, and further columns."""
    return {"group": group, "name": name, "kind": kind, **timer.summary(times_ms), **about}


def machine() -> dict[str, Any]:
    """Return a description of this machine without names and paths."""
    return {
        "cpu": env_report.cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mop_kernels": mop_kernels.__version__,
        "compiled": backends.build_info(),
        "commit": commit(),
    }


def started(program: str, **more: Any) -> Found:
    """Return the JSON of a run: the machine, the command without absolute paths, and more fields."""
    words = (Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:])
    return {"machine": machine(), "command": " ".join([program, *words]), **more}


def commit() -> str:
    """Return the commit, with a + if tracked files differ from it. "unknown" without git or a repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return described.stdout.strip() or "unknown"


def write(found: Mapping[str, Any], path: Path, sort_keys: bool = False) -> None:
    """Write a result so that a reader finds the old or the new file, never half of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(found, indent=1, sort_keys=sort_keys) + "\n")
    beside.replace(path)


def keep(module: str, found: Found) -> Path:
    """Write the result of a benchmark's module: one file per machine, which found["machine"] names."""
    where = f"{found['machine']['cpu']} {found['machine']['threads']} threads"
    path = RESULTS / f"{module}.{re.sub('[^a-z0-9]+', '-', where.lower())}.json"
    write(found, path)
    return path


def groups(found: Found) -> dict[str, list[Row]]:
    """Return the rows of each table, fastest (or smallest) first."""
    sorted_rows = sorted(found["rows"], key=lambda row: row.get("median_ms", row.get("peak_mb")))
    names = dict.fromkeys(row["group"] for row in found["rows"])
    return {name: [row for row in sorted_rows if row["group"] == name] for name in names}


def own_median(rows: Sequence[Row]) -> float | None:
    """Return the best median of our compiled backends. None if they were not timed."""
    return min((row["median_ms"] for row in rows if row["kind"] == "ours" and "median_ms" in row), default=None)


class Results:
    """The JSON of several modules, by the modules' names.

    Methods find a number by the name of its group. They raise KeyError if the number was not measured.
    """

    def __init__(self, modules: dict[str, Found]):
        self.modules = modules

    def groups(self) -> dict[str, tuple[Found, list[Row]]]:
        """Return for each group the JSON of its module, and its rows."""
        return {group: (found, rows) for found in self.modules.values() for group, rows in groups(found).items()}

    def row(self, group: str, name: str) -> Row:
        """Return one row."""
        return {row["name"]: row for row in self.groups()[group][1]}[name]

    def median(self, group: str, name: str) -> float:
        """Return the median of one row in milliseconds."""
        return self.row(group, name)["median_ms"]

    def ours(self, group: str) -> float:
        """Return our best median in milliseconds."""
        own = own_median(self.groups()[group][1])
        if own is None:
            raise KeyError(group)
        return own

    def times_ours(self, group: str, *names: str) -> float:
        """Return the best of the named rows over our median. Names that were not measured do not count."""
        rows = [row["median_ms"] for row in self.groups()[group][1] if row["name"] in names]
        if not rows:
            raise KeyError(names)
        return min(rows) / self.ours(group)


def load(folder: Path, machine: str | None) -> Results:
    """Read the modules of one machine.

    Args:
        folder: Holds the files MODULE.MACHINE.json.
        machine: The part of the file names between the dots. None: the only machine of the folder.

    Raises:
        SystemExit: The folder has no such machine, or several and `machine` is None.
    """
    files = sorted(folder.glob("*.json"))
    machines = sorted({path.name.split(".")[1] for path in files})
    if machine is None and len(machines) == 1:
        machine = machines[0]
    if machine not in machines:
        raise SystemExit(f"--machine must be one of {', '.join(machines) or '(no results yet: pytest --benchmark)'}")
    chosen = [path for path in files if path.name.split(".")[1] == machine]
    return Results({path.name.split(".")[0]: json.loads(path.read_text()) for path in chosen})
