"""Time two commits in one run: one process per source tree answers questions in turn, line by line.

A disturbance of the machine then disturbs both commits. The processes import this module too, so it imports nothing of
the packages before it is asked for a report.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HERE = "this tree"


def parser_of(name: str, description: str, rounds: int) -> argparse.ArgumentParser:
    """Return the parser of a command that times two commits.

    Args:
        name: The command.
        description: Its docstring.
        rounds: Rounds without --rounds.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description.splitlines()[0])
    parser.add_argument("--against", metavar="COMMIT", help="also time this commit")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--keep", action="store_true", help="write the result to benchmarks/results")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    return parser


@contextmanager
def answering(
    against: str | None, server: Callable[[Path], subprocess.Popen[str]], *packages: str
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Yield the processes of this tree and of a commit beside it, by name.

    Args:
        against: The commit, or None.
        server: Starts the process of a tree.
        packages: As for `tree_of`.
    """
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        trees = {HERE: ROOT}
        if against:
            trees[against] = tree_of(against, Path(folder) / "tree", *packages)
        yield {name: stack.enter_context(server(tree)) for name, tree in trees.items()}


def tree_of(commit: str, folder: Path, *packages: str) -> Path:
    """Return a folder with the packages, folders of the repository, at that commit, and the binary of this tree."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit, *packages], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    for binary in (ROOT / "mop_kernels").glob("_C.*.so"):
        shutil.copy(binary, folder / "mop_kernels")
    return folder


def start(script: str, tree: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a script of this tree that answers for the packages of `tree`. Other packages come from PYTHONPATH."""
    search = [str(tree), str(tree / "python"), os.environ.get("PYTHONPATH", ""), str(ROOT)]
    environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, search))}
    command, pipe = [sys.executable, script, "--serve"], subprocess.PIPE
    return subprocess.Popen(command, cwd=tree, env=environment, text=True, stdin=pipe, stdout=pipe)


def serve(answer: Callable[..., object]) -> None:
    """Answer each line of words between bars by a line of JSON."""
    for line in sys.stdin:
        print(json.dumps(answer(*line.strip().split("|"))), flush=True)


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
