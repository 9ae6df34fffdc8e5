"""On a GPU: the paper's bank, single layers and the host's cost of a call, compared with a user's other ways.

Device times are the times of calls replayed from a CUDA graph; `eager` marks calls issued one by one.
docs/performance_gpu.md gives the expected times. The bank by our backends comes first, bfloat16 before float32. The
compiled forms come last, because each takes a while. Without a GPU nothing is timed; under TRITON_INTERPRET=1 small
cases show that everything works.
"""

import os
from itertools import product
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from benchmarks.support import floors, results, timer
from benchmarks.support.contenders import FORMS_ON_GPU, GPU_BACKENDS, LYCORIS, Contender, forms, ours
from benchmarks.support.goals import group_on_gpu
from benchmarks.support.work import BANK, BFLOAT16, BOTH, DIRECTIONS, FLOAT16, FLOAT32, FULL_DOWN, TF32
from mop_kernels import backends, testing

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and not backends.interpreting(), reason="needs a CUDA GPU, or TRITON_INTERPRET=1"
)

CONTENDERS = {
    work: [
        *((contender, tuple(timer.WAYS)) for contender in ours(work.op, GPU_BACKENDS)),
        *((contender, ways[contender.name]) for contender in forms(work.op, *ways)),
    ]
    for work, ways in FORMS_ON_GPU.items()
}
# float16 runs at bfloat16's rates; the interpreter's bfloat16 is wrong, and TF32 no different there
TIMED = (BFLOAT16, FLOAT32, TF32) if torch.cuda.is_available() else (FLOAT16, FLOAT32)
# a compiled form takes a while, so only bfloat16 and IEEE float32 have one, and all of them come last
CASES = sorted(
    (
        (work, precision, contender, direction, ways)
        for work, contenders in CONTENDERS.items()
        for precision, (contender, ways), direction in product(TIMED, contenders, DIRECTIONS)
        if not (contender.compiled and precision.tf32)
    ),
    key=lambda case: case[2].compiled,
)
OF_THE_BANK = [case for case in CASES if case[0] is BANK and case[2].kind == "ours"]


def each(cases: list[tuple]) -> pytest.MarkDecorator:
    """Parametrize a test over cases."""
    names = [(contender.name, work.label, precision.name, way) for work, precision, contender, way, _ in cases]
    return pytest.mark.parametrize("case", cases, ids=map("; ".join, names))


@pytest.fixture(autouse=True)
def on_the_device():
    """Make all tensors on the GPU; on the CPU under the interpreter."""
    with torch.device(testing.device_of("triton")):
        yield


@pytest.fixture(scope="module")
def keep(full_size):
    """Return a function that keeps a row, at once in the file that MOP_DEVICE_RESULTS names.

    A run that is stopped leaves its rows.
    """
    file = os.environ.get("MOP_DEVICE_RESULTS")
    with torch.device(testing.device_of("triton")):
        rates = floors.rates(*((8192, 2**28) if full_size else (64, 2**12)))
    found: results.Found = {"rates": rates, "rows": []}

    def add(row: results.Row) -> None:
        found["rows"].append(row)
        if file is not None:
            results.write(found, Path(file))

    return add


@pytest.fixture
def time_it(case_of, full_size, keep):
    """Return a function that proves a contender on a work and keeps its times."""

    def run(work, precision, contender, direction, ways) -> None:
        reason = backends.why_not(contender.name.removeprefix("mop_kernels ")) if contender.kind == "ours" else None
        if reason is not None:
            pytest.skip(reason)
        if contender.compiled and not full_size:
            pytest.skip("compilation takes a while, and shows nothing at a small size")
        if contender.name == LYCORIS:
            pytest.importorskip("lycoris", exc_type=ImportError)
        with precision.in_force():
            case = case_of(work, precision)
            call, tensors = case.call_of(contender, direction)
            least = case.least_columns(direction)
            # a stand-in may hold tensors of its own, which cannot be copied from here
            inputs = [tensors] if contender.kind == "stand-in" else timer.copies_past_the_cache(tensors, least["bytes"])
            for way in ways:
                with torch.set_grad_enabled(direction == BOTH):
                    times = timer.WAYS[way](call, inputs, {"graph": 50, "eager": 7}[way] if full_size else 1)
                name = contender.name + (", eager" if way == "eager" else "")
                group = group_on_gpu(work, precision.name, direction)
                keep(results.row_of(group, name, contender.kind, times, **least))

    return run


@each(OF_THE_BANK)
def test_the_bank(case, time_it):
    time_it(*case)


@each([case for case in CASES if case not in OF_THE_BANK])
def test_device(case, time_it):
    time_it(*case)


@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "no gradients"])
@pytest.mark.parametrize("name", [*GPU_BACKENDS, "F.linear"])
def test_host_cost(name, gradients, full_size, keep):
    tensors = FULL_DOWN.small().inputs(torch.float32)
    contender = Contender(name, F.linear)
    if name == "F.linear":
        tensors = [tensors[0], torch.randn(16, 16), tensors[3]]
    elif (reason := backends.why_not(name)) is not None:
        pytest.skip(reason)
    else:
        (contender,) = ours("phm_linear", (name,))
    tensors = [t.requires_grad_(gradients) for t in tensors]
    calls, rounds = (200, 20) if full_size else (1, 2)
    times = timer.eager_times(contender.function, [tensors] * calls, rounds, wait_inside=False)
    group = f"host cost of a call (phm_linear 16 -> 16, 8 rows), {'with' if gradients else 'without'} gradients"
    keep(results.row_of(group, contender.name, contender.kind, times))
