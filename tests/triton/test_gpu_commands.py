"""What `make tune`, the crossover and the tables of `make gpu` do, as far as a machine without a GPU can show it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import crossover, device_tables, tune
from benchmarks.support.work import BOTH, FORWARD, PRECISIONS, WORK, Work, floors_us
from mop_kernels.testing import Shape
from mop_kernels.triton_kernels import launch_config

ROOT = Path(__file__).parents[2]


def soon() -> float:
    return time.monotonic() + 60


# Tuning.

LAYER = Work("lowrank_phm_linear", "small", Shape(64, 4, 4, 4, 16, 16, 1))
HALF = next(p for p in PRECISIONS if p.name == "bfloat16")


def tuned_by(time_of) -> dict:
    """What tuning keeps if `time_of(key, configuration)` is what a launch takes."""

    def timer(work, precision):
        return lambda: sum(time_of(key, config) for key, config in launch_config._forced.items())

    return tune.tune([LAYER], [HALF], timer, soon())


def test_tuning_keeps_what_is_clearly_faster():
    choices = tune.choices_of(LAYER, HALF)
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

    own = [choice.candidates()[0] for choice in tune.choices_of(LAYER, HALF)]
    assert tuned_by(time_of) == {}


def test_tuning_stops_in_time():
    assert tune.tune([LAYER], [HALF], lambda *_: pytest.fail("timed"), time.monotonic() - 1) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="would tune")
def test_tuning_needs_a_gpu():
    done = subprocess.run([sys.executable, "-m", "benchmarks.tune"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.strip() == "Tuning needs a CUDA GPU: it times the kernels there; torch sees none."


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


def test_a_ladder_of_each_operation_is_timed():
    def timer(work, precision):
        asked.append((work.op, precision.name))
        adds = work.multiply_adds()
        eager = crossover.Point(adds, cuda=adds / 1e6, triton=100 + adds / 1e7)
        return {"eager": eager, "graph": crossover.Point(adds, cuda=2.0, triton=1.0)}

    asked = []
    found = crossover.measure(crossover.LADDER, [HALF], timer, soon())
    of_both = {work.op for work in WORK} - {"attempt_mix"}  # CUDA has none
    assert found["eager"].keys() == found["graph"].keys() == of_both == {op for op, _ in asked}
    assert all(bounds == {"bfloat16": 0} for bounds in found["graph"].values()), "Triton wins every rung"
    for op, bounds in found["eager"].items():
        sizes = sorted(work.multiply_adds() for work in crossover.LADDER if work.op == op)
        assert sizes[0] < bounds["bfloat16"] <= sizes[-1], "CUDA wins the first rung"
    assert crossover.measure(crossover.LADDER, [HALF], timer, time.monotonic() - 1) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="would time")
def test_the_crossover_needs_both_backends():
    command = [sys.executable, "-m", "benchmarks.crossover"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Both backends are timed against each other; not here: cuda: " in done.stderr


# Goals and floors.


def test_goals_are_judged_by_the_rows():
    group = device_tables.group_of(WORK[0], "bfloat16", FORWARD)

    def rows(ours_us, other_us):
        names = (device_tables.OURS, ours_us), ("torch.compile, three stages", other_us)
        return [{"group": group, "name": name, "median_ms": us / 1e3} for name, us in names]

    at_most, against, *_ = (goal for goal in device_tables.GOALS if goal.group == group)
    assert at_most.judge(rows(9, 45))["met"] is True
    assert at_most.judge(rows(11, 45))["met"] is False
    assert against.judge(rows(9, 46))["met"] is True
    assert against.judge(rows(9, 44))["met"] is False
    assert against.judge(rows(9, 44)[:1])["met"] is None, "not measured"


def test_every_goal_names_a_group_that_is_timed():
    bench = pytest.importorskip("benchmarks.bench_device")
    works = {f"{work.op}, {work.label}": contenders for work, contenders in bench.CONTENDERS.items()}
    for goal in device_tables.GOALS:
        work = goal.group.rsplit(", ", 1)[0]
        names = {
            contender.name + (", eager" if way == "eager" else "") for contender, ways in works[work] for way in ways
        }
        assert {device_tables.OURS, *goal.against} <= names


def test_floors_of_the_paper_s_bank():
    """By hand: 2 x 115,507,200 operations at 790 TFLOP/s; numbers of two bytes at 4.3 TB/s, 1,900,416 of them read."""
    floors = floors_us(WORK[0], HALF, FORWARD)
    assert floors["arithmetic"] == pytest.approx(0.2924, rel=1e-3)
    assert floors["bytes"] == pytest.approx(2 * (1_900_416 + 2 * 12 * 5 * 40 * 768) / 4300e3, rel=1e-3)
    assert floors_us(WORK[0], HALF, BOTH)["arithmetic"] == pytest.approx(3 * floors["arithmetic"])


def test_the_table_of_a_result_can_be_rendered():
    rows = [
        {
            "group": "phm_linear, small, tf32: forward",
            "name": name,
            "kind": "ours",
            "rounds": 1,
            "flops": 1e6,
            "bytes": 1e6,
        }
        | {"median_ms": ms, "q1_ms": ms, "q3_ms": ms, "min_ms": ms}
        for name, ms in ((device_tables.OURS, 0.01), ("dense F.linear", 0.02))
    ]
    rates = {"copy_gbps": 1000.0, "mm_gflops": {"tf32": 1e5}}
    lines = device_tables.measured({"rates": rates, "rows": rows})
    assert "| dense F.linear | 20.00 | 20.00-20.00 | 2.00 | 5 |" in lines


def test_the_documented_floors_are_the_computed_ones():
    """All columns but the launches, which change with the kernels, and what is expected of them."""
    documented = (ROOT / "docs" / "performance_gpu.md").read_text()
    for line in device_tables.estimates():
        floors = "|".join(line.split("|")[:-3])
        assert floors in documented, "run python -m benchmarks.device_tables and put its table into the document"
