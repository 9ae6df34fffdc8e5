"""Time two commits in one run: one process per source tree answers questions in turn, line by line.

A disturbance of the machine then disturbs both commits. The processes import this module too, so it imports nothing of
the packages before it is asked for a report.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = "this tree"


def tree_of(commit: str, folder: Path, *packages: str) -> Path:
    """Return a folder with the packages, folders of the repository, at that commit, and the binary of this tree."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit, *packages], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    for binary in (ROOT / "mop_kernels").glob("_C.*.so"):
        shutil.copy(binary, folder / "mop_kernels")
    return folder


def start(script: str, tree: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start a script of this tree that answers for the packages of `tree`. Other packages come from PYTHONPATH."""
    search = [str(tree), str(tree / "python"), os.environ.get("PYTHONPATH", ""), str(ROOT)]
    environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, search))}
    command, pipe = [sys.executable, script, *arguments], subprocess.PIPE
    return subprocess.Popen(command, cwd=tree, env=environment, text=True, stdin=pipe, stdout=pipe)


def ask(process: subprocess.Popen[str], question: str) -> Any:
    """Return the answer of a process to a line, which it writes as a line of JSON."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(question, file=process.stdin, flush=True)
    return json.loads(process.stdout.readline())


def ask_in_turn(questions: Sequence[tuple[subprocess.Popen[str], str]], rounds: int) -> list[list[Any]]:
    """Ask all questions in every round, and return the answers to each question."""
    answers = [[ask(process, question) for process, question in questions] for _ in range(rounds)]
    return [list(some) for some in zip(*answers)]


def report(name: str, rows: list[dict[str, Any]], *notes: str, keep: bool, unit: str = "ms", **more: Any) -> None:
    """Print the tables and the notes of a command's run.

    Args:
        name: The command.
        rows: The rows of the result.
        notes: Printed below the tables.
        keep: True: the result is written to benchmarks/results.
        unit: Unit of the times in the tables, "ms" or "us".
        more: Further fields of the result.
    """
    from benchmarks.support import results, tables

    found = results.started(f"python -m benchmarks.{name}", rows=rows, **more)
    print(*tables.as_markdown(name, found, unit), *notes, sep="\n")
    if keep:
        print(f"written to {results.keep(name, found).relative_to(ROOT)}")
