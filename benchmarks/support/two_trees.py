"""Time two commits in one run: one process per source tree answers questions in turn, line by line.

A disturbance of the machine then disturbs both commits.
"""

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def tree_of(commit: str, folder: Path, *packages: str) -> Path:
    """Return a folder with the packages, folders of the repository, at that commit, and the binary of this tree."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", commit, *packages], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    for binary in (ROOT / "mop_kernels").glob("_C.*.so"):
        shutil.copy(binary, folder / "mop_kernels")
    return folder


def start(script: str, arguments: Sequence[str], tree: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a script of this tree that answers for `tree`, which its PYTHONPATH names first."""
    pipe = subprocess.PIPE
    command = [sys.executable, script, *arguments]
    return subprocess.Popen(command, cwd=tree, env=environment, text=True, stdin=pipe, stdout=pipe)


def ask(process: subprocess.Popen[str], question: str) -> str:
    """Return the answer of a process to a line."""
    assert process.stdin is not None
    assert process.stdout is not None
    print(question, file=process.stdin, flush=True)
    return process.stdout.readline()
