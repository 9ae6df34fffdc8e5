"""One way to time, one table, one JSON a module; numbers exist only with `pytest --benchmark`.

A benchmark first proves its contender right, then calls `timed`. Without the flag it runs once, on a small case.
"""

import os
import resource
import sys
import time
from pathlib import Path

import pytest

from benchmarks.support import machine as floors
from benchmarks.support import tables

SECONDS = float(os.environ.get("MOP_BENCHMARK_SECONDS", "0.7"))  # of measurement a row
ROUNDS = (3, 300)
MODULES = pytest.StashKey[dict]()


def pytest_configure(config):
    config.stash[MODULES] = {}


@pytest.fixture(scope="session")
def full_size(pytestconfig) -> bool:
    return pytestconfig.option.run_benchmarks


@pytest.fixture(scope="module")
def record(request, full_size):
    """The module's JSON: rates of the machine before and after (a disturbed run shows there), and its rows."""
    if not full_size:
        yield None
        return
    found = {"machine": floors.machine(), "command": command(), "seconds_a_row": SECONDS, "before": floors.rates()}
    found["rows"] = []
    request.config.stash[MODULES][request.module.__name__.split(".")[-1].removeprefix("bench_")] = found
    yield found
    found["after"] = floors.rates()


@pytest.fixture
def timed(benchmark, record):
    """timed(function, group, name, kind=..., flops=..., nbytes=...): measure calls of function, or run it once.

    calls: how many make one measured round, for functions of microseconds. effort: share of the time a row gets.
    """

    def run(
        function, group: str, name: str, *, kind: str, flops=None, nbytes=None, calls: int = 1, effort=1.0, **about
    ) -> None:
        benchmark.group = group
        if record is None:
            benchmark.pedantic(function)
            return
        start = time.perf_counter()
        for _ in range(calls):  # the gate has run it before: this is warm
            function()
        once = time.perf_counter() - start
        rounds = min(max(int(effort * SECONDS / once), ROUNDS[0]), ROUNDS[1])
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        benchmark.pedantic(function, rounds=rounds, iterations=calls)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        stats = benchmark.stats.stats
        record["rows"].append(
            {
                "group": group,
                "name": name,
                "kind": kind,
                "median_ms": 1e3 * stats.median,
                "q1_ms": 1e3 * stats.q1,
                "q3_ms": 1e3 * stats.q3,
                "min_ms": 1e3 * stats.min,
                "rounds": stats.rounds,
                "calls_a_round": calls,
                "page_faults_a_call": round(faults / (rounds * calls)),
                "flops": flops,
                "bytes": nbytes,
                **about,
            }
        )

    return run


def command() -> str:
    return " ".join(["pytest", *(Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:])])


def pytest_terminal_summary(terminalreporter, config):
    for module, found in config.stash[MODULES].items():
        for line in tables.as_text(module, found):
            terminalreporter.write_line(line)


def pytest_sessionfinish(session):
    option = session.config.option
    if option.keyword or option.markexpr or any("::" in argument for argument in session.config.args):
        return  # a part of a file must not replace the whole one's numbers
    for module, found in session.config.stash[MODULES].items():
        if found["rows"] and "after" in found:
            floors.keep(module, found)
