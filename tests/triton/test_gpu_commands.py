"""`make tune`, the crossover and the tables of `make gpu`, as far as a machine without a GPU can show them."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from errors import says

from benchmarks import crossover, device_tables, tune
from benchmarks.support import floors, goals, launches
from benchmarks.support.results import Results, row_of
from benchmarks.support.work import BFLOAT16, BOTH, FORWARD, WORK, Work, size_of_call
from mop_kernels.testing import Shape
from mop_kernels.triton_kernels import launch

ROOT = Path(__file__).parents[2]


def soon() -> float:
    return time.monotonic() + 60


# Tuning.

LAYER = Work("lowrank_phm_linear", "small", Shape(64, 4, 4, 4, 16, 16, 1))


def tuned_by(time_of) -> dict:
    """What tuning keeps if `time_of(key, configuration)` is what a launch takes."""

    def timer(work, precision):
        return lambda: sum(time_of(key, config) for key, config in launch._forced.items())

    return tune.tune([LAYER], [BFLOAT16], timer, soon())


def test_tuning_keeps_what_is_clearly_faster():
    choices = launches.choices_of(LAYER, BFLOAT16)
    assert choices
    chosen = next(c for c in choices if len(c.candidates()) > 1)
    best = chosen.candidates()[-1]
    found = tuned_by(lambda key, config: 1.0 if (key, config) == (chosen.key, best) else 2.0)
    assert found == {chosen.kernel: {chosen.key[1]: best}}
    assert tuned_by(lambda key, config: 1.99 if config == best else 2.0) == {}, "a hundredth is noise"


def test_a_candidate_that_fails_is_none():
    def time_of(key, config):
        if config not in own:
            raise RuntimeError("out of shared memory")
        return 1.0

    own = [choice.candidates()[0] for choice in launches.choices_of(LAYER, BFLOAT16)]
    assert tuned_by(time_of) == {}


def test_tuning_stops_in_time():
    assert tune.tune([LAYER], [BFLOAT16], lambda *_: pytest.fail("timed"), time.monotonic() - 1) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="would tune")
def test_tuning_needs_a_gpu():
    done = subprocess.run([sys.executable, "-m", "benchmarks.tune"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.startswith("Tuning needs a CUDA GPU")


# Up to which size CUDA is faster than Triton.


@pytest.mark.parametrize(
    ("times", "bound"),
    [
        ([(10, 1, 2), (1000, 1, 2), (100_000, 3, 2)], 10_000),  # halfway, in factors
        ([(100_000, 3, 2), (1000, 1, 2), (10, 1, 2)], 10_000),
        ([(10, 3, 2), (1000, 1, 2)], 0),
        ([(10, 1, 2), (1000, 3, 2), (100_000, 1, 2)], 100),
        ([(10, 1, 2), (1000, 1, 2)], 1000),
    ],
    ids=["a crossing", "in any order", "never", "a win beyond a defeat", "throughout"],
)
def test_the_crossover_of_a_ladder(times, bound):
    assert crossover.crossover([crossover.Point(*point) for point in times]) == bound


def size_of(work) -> int:
    with torch.device("meta"):
        return size_of_call(work.op, work.inputs(torch.float32))


def test_a_ladder_of_each_operation_is_timed():
    def timer(work, precision):
        asked.append((work.op, precision.name))
        adds = size_of(work)
        eager = crossover.Point(adds, cuda=adds / 1e6, triton=100 + adds / 1e7)
        return {"eager": eager, "graph": crossover.Point(adds, cuda=2.0, triton=1.0)}

    asked = []
    found = crossover.measure(crossover.LADDER, [BFLOAT16], timer, soon())
    of_both = {work.op for work in WORK} - {"attempt_mix"}  # CUDA has none
    assert found["eager"].keys() == found["graph"].keys() == of_both == {op for op, _ in asked}
    assert all(bounds == {"bfloat16": 0} for bounds in found["graph"].values()), "Triton wins every rung"
    for op, bounds in found["eager"].items():
        sizes = sorted(size_of(work) for work in crossover.LADDER if work.op == op)
        assert sizes[0] < bounds["bfloat16"] <= sizes[-1], "CUDA wins the first rung"
    assert crossover.measure(crossover.LADDER, [BFLOAT16], timer, time.monotonic() - 1) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="would time")
def test_the_crossover_needs_both_backends():
    command = [sys.executable, "-m", "benchmarks.crossover"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    says(done.stderr, "Both backends", "not here: cuda")


# Goals and floors.


OURS = "mop_kernels triton"


def test_goals_are_judged_by_the_rows():
    group = goals.group_on_gpu(WORK[0], "bfloat16", FORWARD)
    at_most, against, *_ = (goal for goal in goals.GPU_GOALS if goal.work == group)

    def met(goal, ours_us, *others_us):
        rows = [row_of(group, OURS, "ours", [ours_us / 1e3])]
        rows += [row_of(group, "torch.compile, three stages", "form", [us / 1e3]) for us in others_us]
        return goal.judge(Results({"device": {"rows": rows}}))["met"]

    assert met(at_most, 9, 45) is True
    assert met(at_most, 11, 45) is False
    assert met(against, 9, 46) is True
    assert met(against, 9, 44) is False
    assert met(against, 9) is None, "not measured"


def test_every_goal_names_a_group_that_is_timed():
    bench = pytest.importorskip("benchmarks.bench_device")
    works = {work.name: contenders for work, contenders in bench.CONTENDERS.items()}
    for goal in goals.GPU_GOALS:
        timed = works[goal.work.rsplit(", ", 1)[0]]
        names = {contender.name + (", eager" if way == "eager" else "") for contender, ways in timed for way in ways}
        assert OURS in names
        assert goal.measure == "device time" or names.issuperset(goal.measure.split(" or "))


def floors_us(direction):
    flops, nbytes = WORK[0].least_work(BFLOAT16.dtype, direction)
    return {limit: 1e3 * ms for limit, ms in floors.floors_ms(flops, nbytes, floors.H200, BFLOAT16.name).items()}


def test_floors_of_the_paper_s_bank():
    """By hand: 2 x 115,507,200 operations at 790 TFLOP/s; numbers of two bytes at 4.3 TB/s, 1,900,416 of them read."""
    found = floors_us(FORWARD)
    assert found["arithmetic"] == pytest.approx(0.2924, rel=1e-3)
    assert found["bytes"] == pytest.approx(2 * (1_900_416 + 2 * 12 * 5 * 40 * 768) / 4300e3, rel=1e-3)
    assert floors_us(BOTH)["arithmetic"] == pytest.approx(3 * found["arithmetic"])


def test_the_table_of_a_result_can_be_rendered():
    work = {"flops": 1e6, "bytes": 1e6}
    rows = [
        row_of("phm_linear, small, tf32: forward", name, kind, [ms], **work)
        for name, kind, ms in ((OURS, "ours", 0.01), ("dense F.linear", "stand-in", 0.02))
    ]
    rates = {"copy_gbps": 1000.0, "mm_gflops": {"tf32": 1e5}}
    lines = device_tables.measured({"rates": rates, "rows": rows})
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert ["dense F.linear", "20.00", "20.00-20.00", "20.00", "2.00", "5"] in table
    assert ["floor: 1.0 MB at the copy rate", "1.00", "", "", "", ""] in table


def test_the_documented_floors_are_the_computed_ones():
    """All columns but the launches, which change with the kernels, and what is expected of them."""
    documented = (ROOT / "docs" / "performance_gpu.md").read_text()
    heads, _, *rows = device_tables.estimates()
    for line in (heads, *rows):
        floors = "|".join(line.split("|")[:-3])
        assert floors in documented, "run python -m benchmarks.device_tables and put its table into the document"
