"""`pytest --benchmark` collects the benchmarks and nothing else; pytest-benchmark's own options keep working.

The flag is asked in a copy of the repository that holds the configuration and files of one line.
"""

import os
import shutil
from pathlib import Path

import pytest
from forks import forks_of

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


@pytest.fixture(scope="module")
def forks_with_pytest():
    """Forks of a process that has imported pytest and its plugins."""
    start = """
import os, pytest
from importlib.metadata import entry_points
for plugin in entry_points(group="pytest11"):
    plugin.load()
"""
    # pytest-benchmark takes a process that a worker of pytest-xdist starts for a worker
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    with forks_of(start, environment) as forks:
        yield forks


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
def test_the_files_that_are_collected(repository, forks_with_pytest, arguments, files):
    words = ["--collect-only", "-q", *arguments]
    printed = forks_with_pytest.run(f"os.chdir({str(repository)!r}); assert pytest.main({words!r}) == 0")
    assert {line.split("::")[0] for line in printed.splitlines() if "::" in line} == files
