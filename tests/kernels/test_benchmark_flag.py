"""`pytest --benchmark` collects the benchmarks and nothing else; pytest-benchmark's own options keep working.

The flag is asked in a copy of the repository that holds the configuration and files of one line.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = {"benchmarks/bench_a.py", "benchmarks/bench_b.py"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    for name in (*BENCHMARKS, "benchmarks/command.py", "tests/test_c.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("def test(): pass\n")
    return folder


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        (["--benchmark"], BENCHMARKS),
        (["--benchmark", "--benchmark-min-rounds=3"], BENCHMARKS),
        (["--benchmark", "benchmarks/bench_a.py"], {"benchmarks/bench_a.py"}),
        (["--benchmark-only", "benchmarks/bench_a.py"], {"benchmarks/bench_a.py"}),
        ([], BENCHMARKS | {"tests/test_c.py"}),
    ],
    ids=["all", "with another option", "a named file", "the option of pytest-benchmark", "without"],
)
def test_the_files_that_are_collected(repository, arguments, files):
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    # pytest-benchmark takes a process that a worker of pytest-xdist starts for a worker
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line.split("::")[0] for line in done.stdout.splitlines() if "::" in line} == files
