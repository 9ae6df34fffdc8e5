"""`pytest --benchmark` collects the benchmarks and nothing else; pytest-benchmark's own options keep working."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def collected(*arguments: str) -> set[str]:
    """Files in which the tests lie that such a call would run."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    # pytest-benchmark takes a process that a worker of pytest-xdist starts for a worker
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return {line.split("::")[0] for line in done.stdout.splitlines() if "::" in line}


@pytest.mark.parametrize("options", [[], ["--benchmark-min-rounds=3"]])
def test_the_flag_selects_the_benchmarks(options):
    files = {f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("bench_*.py")}
    assert collected("--benchmark", *options) == files


def test_the_flag_keeps_a_named_file():
    one = "benchmarks/bench_mop_ffn.py"
    assert collected("--benchmark", one) == {one}
    assert collected("--benchmark-only", one) == {one}
