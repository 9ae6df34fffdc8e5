"""The fixtures that all benchmarks share: the timer, one table and one JSON per module, and the frozen T5-base.

Numbers exist only with `pytest --benchmark`. A benchmark first proves its contender right, then calls `timed`. Without
the flag each benchmark runs once, on a small case.
"""

import os
import resource
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch

from benchmarks.support import floors, results, tables
from benchmarks.support.cases import Case
from benchmarks.support.t5 import SCENARIOS, SMALL_MOP, TINY, Batch
from benchmarks.support.timer import Call

SECONDS = float(os.environ.get("MOP_BENCHMARK_SECONDS", "0.7"))  # of measurement per row
ROUNDS = (3, 300)
MODULES = pytest.StashKey[dict[str, results.Found]]()


@pytest.fixture(scope="session")
def full_size(pytestconfig: pytest.Config) -> bool:
    """Return whether the benchmarks run at full size."""
    return pytestconfig.option.run_benchmarks


@pytest.fixture(scope="module")
def record(request: pytest.FixtureRequest, full_size: bool) -> Iterator[results.Found]:
    """Yield the module's JSON: its rows, and the rates of the machine before and after, which show a disturbed run."""
    if not full_size:
        yield {"rows": []}
        return
    found = results.started("pytest", seconds_a_row=SECONDS, before=floors.rates_of_cpu(), rows=[])
    request.config.stash.setdefault(MODULES, {})[request.module.__name__.split(".")[-1].removeprefix("bench_")] = found
    yield found
    found["after"] = floors.rates_of_cpu()


@pytest.fixture
def timed(benchmark: Any, record: results.Found, full_size: bool) -> Callable[..., None]:
    """Return a function that measures the calls of a function, or calls it once without --benchmark."""

    def run(
        function: Call, group: str, name: str, *, kind: str, calls: int = 1, effort: float = 1.0, **about: Any
    ) -> None:
        """Measure one row.

        Args:
            function: The timed function.
            group: The table of the row.
            name: The name of the row.
            kind: As in Contender.
            calls: Calls per measured round, for functions of microseconds.
            effort: Share of the usual time of a row.
            about: More columns of the row. Without "flops" and "bytes", the least work of a call, the row has no floor.
        """
        benchmark.group = group
        if not full_size:
            benchmark.pedantic(function)
            return
        start = time.perf_counter()
        for _ in range(calls):  # the gate has run it before: this is warm
            function()
        once = time.perf_counter() - start
        rounds = min(max(int(effort * SECONDS / once), ROUNDS[0]), ROUNDS[1])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        benchmark.pedantic(function, rounds=rounds, iterations=calls)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        times_ms = [1e3 * seconds for seconds in benchmark.stats.stats.data]
        counted = {"calls_a_round": calls, "page_faults_a_call": round(faults / (rounds * calls))}
        about = {**counted, "flops": None, "bytes": None, **about}
        record["rows"].append(results.row_of(group, name, kind, times_ms, **about))

    return run


@pytest.fixture(scope="module")
def case_of(full_size: bool) -> Callable[..., Case]:
    """Return a function that makes the case of a work. It takes the other arguments of Case.

    Only the last case is kept, because the tests of a case follow each other.
    """
    return lru_cache(maxsize=1)(lambda work, *more, **options: Case(work, full_size, *more, **options))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the tables. Write the results of whole files: a part must not replace the numbers of the whole file."""
    is_part = config.option.keyword or config.option.markexpr or any("::" in argument for argument in config.args)
    for module, found in config.stash.get(MODULES, {}).items():
        machine = f"{tables.machine_line(found)}, `{found['command']}`"
        for line in ["", machine, *tables.as_markdown(module, found)]:
            terminalreporter.write_line(line)
        if found["rows"] and "after" in found and not is_part:
            results.keep(module, found)


# The T5-base of bench_training_step, bench_decode, bench_methods and bench_task_moe.


@pytest.fixture(scope="module")
def backbone(request: pytest.FixtureRequest, full_size: bool) -> Any:
    """Return a frozen T5-base with random weights. A smoke run takes the sizes TINY, also those of the module."""
    import mop_t5

    return mop_t5.build_backbone("t5-base", **({} if full_size else getattr(request.module, "TINY", TINY)))


@pytest.fixture
def attach(backbone: Any) -> Iterator[Callable[..., Any]]:
    """Yield a function that attaches a method with these fields for SCENARIOS. The method is detached at the end."""
    import mop_t5

    def run(method: str, **fields: Any) -> Any:
        torch.manual_seed(0)
        return mop_t5.attach(backbone, method, scenarios=SCENARIOS, **fields)

    yield run
    mop_t5.detach(backbone).eval()


@pytest.fixture(scope="session")
def mop_fields(full_size: bool) -> dict[str, int]:
    """Return the fields of the method "mop"."""
    return {} if full_size else SMALL_MOP


@pytest.fixture(scope="module")
def batch(backbone: Any, full_size: bool) -> Batch:
    """Return the arguments of a training step, and the scenario ids: the scenarios take turns."""
    g = torch.Generator().manual_seed(0)
    size, source, target = (8, 64, 32) if full_size else (5, 6, 4)

    def tokens(length: int) -> torch.Tensor:
        return torch.randint(2, backbone.config.vocab_size, (size, length), generator=g)

    return {"input_ids": tokens(source), "labels": tokens(target)}, torch.arange(size) % len(SCENARIOS)


@pytest.fixture
def search(backbone: Any, full_size: bool) -> dict[str, Any]:
    """Return the arguments of a beam search of 8 dialogues."""
    g = torch.Generator().manual_seed(0)
    source, beams, tokens = (64, 4, 8) if full_size else (6, 2, 3)
    ids = torch.randint(2, backbone.config.vocab_size, (8, source), generator=g)
    return {"input_ids": ids, "num_beams": beams, "max_new_tokens": tokens, "min_new_tokens": tokens}
