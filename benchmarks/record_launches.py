"""`make record-launches`: record every distinct launch of Triton's kernels by tests/kernels and the paper's shapes.

    python -O -m benchmarks.record_launches [--output FILE] [pytest arguments]

No kernel runs and no GPU is needed: all cases of the tests of backend "triton" call the launchers on CPU tensors, and
each launch is recorded instead of made. No number is computed, so assertions must be off (-O). Tests that need a number
stop early and are counted. The seconds that compile_table.py has measured are kept.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from benchmarks.support import launches
from benchmarks.support.results import ROOT
from benchmarks.support.work import BFLOAT16, TF32, Work
from mop_kernels import backends
from mop_kernels.testing import Bank, Shape
from mop_kernels.triton_kernels.launch import recording

# Launches that test_cuda.py makes only on a GPU: more than 2^31 elements, strides of more than 32 bits, TF32.
LARGE_BANK = Bank(1, 131, Shape(4096, 4, 4, 4, 4, 4, 1), Shape(4096, 4, 4, 4, 4, 1024, 1), maps=1)
OF_TEST_CUDA = {
    BFLOAT16: [
        Work("phm_linear", "2^31 outputs", Shape(2**31 // 4096 + 5, 4, 4, 4, 4, 1024, 1)),
        Work("lowrank_phm_linear", "2^31 outputs", Shape(2**31 // 4096 + 5, 4, 4, 4, 4, 1024, 1)),
        Work("phm_weight", "2^31 elements", Shape(1, 2, 64, 64, 1024, 520, 1)),
        Work("mop_ffn", "2^31 outputs", LARGE_BANK),
    ],
    TF32: [Work("lowrank_phm_linear", "64 rows of test_cuda.py", Shape(64, 4, 4, 4, 64, 64, 1))],
}


class Recorder:
    """A pytest plugin whose `found` maps each launch to the test that made it first."""

    __name__ = "launch_recorder"  # tests/kernels/conftest.py looks for this name: then all cases are quick

    def __init__(self):
        self.found: dict[launches.Launch, str] = {}
        self.made = 0
        self.stopped: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Record the launches of one test."""
        with recording() as made:
            result = yield
        self.made += len(made)
        for launch in made:
            self.found.setdefault(launches.of(launch), item.nodeid)
        return result

    def pytest_exception_interact(self, call: pytest.CallInfo) -> None:
        """Count a test that stopped early, by its error."""
        if call.excinfo is not None:
            first_line = str(call.excinfo.value).partition("\n")[0]
            self.stopped[f"{call.excinfo.typename}: {first_line[:80]}"] += 1


def of_tests(arguments: list[str]) -> dict[launches.Launch, str]:
    """Record a run of the tests of backend "triton", all cases, as if CPU tensors were on a GPU."""
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        others = backends.why_not, backends.runs_on_cpu
        patch.setattr(backends, "why_not", lambda name, *on: None if name == "triton" else others[0](name, *on))
        patch.setattr(backends, "runs_on_cpu", lambda name: name == "triton" or others[1](name))
        patch.setattr(torch.testing, "assert_close", lambda *compared, **bounds: None)
        quiet = ["-q", "--tb=no", "--disable-warnings"]
        options = [*quiet, "--assert=plain", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "triton"]
        pytest.main([*options, *(arguments or [str(ROOT / "tests" / "kernels")])], plugins=[recorder])
    print(f"{recorder.made} launches, {len(recorder.found)} distinct; tests that stopped early:")
    for reason, count in recorder.stopped.most_common():
        print(f"  {count} x {reason}")
    return recorder.found


def main() -> None:
    """Run the command."""
    name = "python -O -m benchmarks.record_launches"
    parser = argparse.ArgumentParser(prog=name, description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=launches.FILE, help="the file to write (%(default)s)")
    parser.add_argument("tests", nargs="*", help="pytest arguments instead of all of tests/kernels")
    arguments = parser.parse_args()
    if __debug__:
        sys.exit("Assertions are on, and recorded launches compute nothing: run python with -O.")
    measured = {r.launch: r.seconds for r in launches.read(arguments.output)} if arguments.output.exists() else {}
    large = [r for precision, works in OF_TEST_CUDA.items() for r in launches.of_works(works, [precision])]
    found = of_tests(arguments.tests) | {r.launch: r.origin for r in (*large, *launches.of_works())}
    launches.write((launches.Recorded(k, origin, measured.get(k)) for k, origin in found.items()), arguments.output)
    print(f"{len(found)} launches written to {arguments.output}")


if __name__ == "__main__":
    main()
