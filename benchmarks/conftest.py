"""One way to time, one table, one JSON a module; numbers exist only with `pytest --benchmark`.

A benchmark first proves its contender right, then calls `timed`. Without the flag it runs once, on a small case.
"""

import json
import re
import resource
import sys
import time
from pathlib import Path

import floors
import pytest

SECONDS = 3.0  # of measurement a benchmark
ROUNDS = (7, 300)
RESULTS = Path(__file__).parent / "results"
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
    found = {"machine": floors.machine(), "command": command(), "before": floors.rates(), "rows": []}
    request.config.stash[MODULES][request.module.__name__.removeprefix("bench_")] = found
    yield found
    found["after"] = floors.rates()


@pytest.fixture
def timed(benchmark, record):
    """timed(function, group, name, ours=..., flops=..., nbytes=...): measure calls of function, or run it once."""

    def run(function, group: str, name: str, *, ours: bool, flops: int, nbytes: int) -> None:
        benchmark.group = group
        if record is None:
            benchmark.pedantic(function)
            return
        start = time.perf_counter()
        function()
        once = time.perf_counter() - start
        rounds = min(max(int(SECONDS / once), ROUNDS[0]), ROUNDS[1])
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        benchmark.pedantic(function, rounds=rounds, warmup_rounds=2)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        stats = benchmark.stats.stats
        record["rows"].append(
            {
                "group": group,
                "name": name,
                "ours": ours,
                "median_ms": 1e3 * stats.median,
                "q1_ms": 1e3 * stats.q1,
                "q3_ms": 1e3 * stats.q3,
                "min_ms": 1e3 * stats.min,
                "rounds": stats.rounds,
                "page_faults_a_call": round(faults / (rounds + 2)),
                "flops": flops,
                "bytes": nbytes,
            }
        )

    return run


def command() -> str:
    return " ".join(["pytest", *(Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:])])


def pytest_terminal_summary(terminalreporter, config):
    for module, found in config.stash[MODULES].items():
        for line in table(module, found):
            terminalreporter.write_line(line)


def pytest_sessionfinish(session):
    for module, found in session.config.stash[MODULES].items():
        if found["rows"] and "after" in found:
            RESULTS.mkdir(exist_ok=True)
            where = f"{found['machine']['cpu']} {found['machine']['threads']} threads"
            name = f"{module}.{re.sub('[^a-z0-9]+', '-', where.lower())}.json"
            (RESULTS / name).write_text(json.dumps(found, indent=1) + "\n")


def table(module: str, found: dict) -> list[str]:
    machine, before, after = found["machine"], found["before"], found.get("after", found["before"])
    lines = [
        "",
        f"{module}: {machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, {found['command']}",
        f"torch.mm 1024^3 {before['mm_gflops']:.0f} GFLOP/s before, {after['mm_gflops']:.0f} after; "
        f"copy {before['copy_gbps']:.1f} GB/s before, {after['copy_gbps']:.1f} after",
    ]
    for group in dict.fromkeys(row["group"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["group"] == group]
        own = min((row["median_ms"] for row in rows if row["ours"]), default=None)
        lines += ["", f"{group:36}{'median ms':>10}{'quartiles':>18}{'min':>9}{'times ours':>12}{'faults':>8}"]
        for row in sorted(rows, key=lambda row: row["median_ms"]):
            ratio = f"{row['median_ms'] / own:.2f}" if own else "-"
            lines.append(
                f"{row['name']:36}{row['median_ms']:10.2f}{row['q1_ms']:9.2f}{row['q3_ms']:9.2f}{row['min_ms']:9.2f}"
                f"{ratio:>12}{row['page_faults_a_call']:8}"
            )
        flops, nbytes = rows[0]["flops"], rows[0]["bytes"]
        arithmetic = flops / max(before["mm_gflops"], after["mm_gflops"]) / 1e6
        movement = nbytes / max(before["copy_gbps"], after["copy_gbps"]) / 1e6
        lines.append(f"{f'floor: {flops / 1e6:.0f} MFLOP at the mm rate':36}{arithmetic:10.2f}")
        lines.append(f"{f'floor: {nbytes / 1e6:.1f} MB at the copy rate':36}{movement:10.2f}")
    return lines
