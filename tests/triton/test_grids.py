"""What a launch depends on besides its tensors: grids that CUDA can start, and no compilation per step of a training.

The launches are recorded on tensors of the device "meta", which have sizes and no storage.
"""

import pytest
import torch

from benchmarks.compile_table import launches_of
from benchmarks.device_work import BOTH, PRECISIONS, Work
from mop_kernels.testing import PROMPTS, Bank, PromptShape, Shape
from mop_kernels.triton_kernels import IMPLEMENTATIONS, attempt_mix, attempt_mix_backward
from mop_kernels.triton_kernels.launch import recording

FIRST = 55.5  # a temperature
LARGE = [
    Work("attempt_mix", "long examples", PromptShape(4, 16384, 4096, 16384, 2, 3, 8)),
    Work("attempt_mix", "many examples", PromptShape(2**20, 3, 64, 2, 2, 2, 4)),
    Work("attempt_mix", "many prompts", PromptShape(2, 3, 64, 2, 2**17, 2**17, 4)),
    Work("mop_ffn", "many rows", Bank(2, 3, Shape(2**20, 16, 16, 16, 64, 8, 1), Shape(2**20, 8, 8, 8, 16, 512, 1))),
    Work("mop_ffn", "many pairs", Bank(96, 1024, Shape(40, 16, 16, 16, 48, 8, 1), Shape(40, 8, 8, 8, 16, 96, 1))),
    Work("phm_linear", "many rows", Shape(2**22, 4, 4, 4, 256, 256, 1)),
    Work("phm_linear", "few rows, large", Shape(40, 16, 16, 16, 4096, 4096, 1)),
    Work("phm_weight", "large", Shape(1, 4, 4, 4, 2**14, 2**14, 1)),
    Work("lowrank_phm_linear", "many rows", Shape(2**22, 4, 4, 4, 256, 256, 4)),
    Work("lowrank_phm_linear", "large", Shape(40, 16, 16, 16, 4096, 4096, 2)),
]


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda precision: precision.name)
@pytest.mark.parametrize("work", LARGE, ids=lambda work: f"{work.op}, {work.label}")
def test_large_work_stays_within_the_limits_of_a_grid(work, precision):
    """Launch at most 2^31 - 1 programs along x and 65,535 along y and z."""
    launches = launches_of(work, precision, BOTH)
    assert launches
    for launch in launches:
        x, *others = launch.grid
        assert 0 < x < 2**31, launch.kernel
        assert all(0 < size <= 65535 for size in others), launch.kernel


def test_large_work_covers_every_operation():
    assert {work.op for work in LARGE} == {name for name in IMPLEMENTATIONS if not name.endswith("_backward")}


def specialisation(launch) -> tuple:
    """Return what Triton compiles a launch for: the values of constexprs and options, the types of all else."""
    return (
        launch.kernel.fn.__name__,
        tuple(type(a) if isinstance(a, float) else getattr(a, "dtype", a) for a in launch.arguments),
        sorted((name, str(value)) for name, value in launch.meta.items()),
    )


def test_annealing_the_temperature_compiles_nothing_again():
    work = Work("attempt_mix", "paper", PROMPTS["paper"])

    def at(temperature):
        with torch.device("meta"), recording() as launches:
            *arguments, _ = work.forward_arguments(work.inputs(torch.float32))
            outputs = attempt_mix.forward(*arguments, temperature)
            *arguments, _, mask = work.backward_arguments(work.inputs(torch.float32), outputs)
            attempt_mix_backward.backward(*arguments, temperature, mask)
        return launches

    first, second = at(FIRST), at(1.0)
    assert list(map(specialisation, first)) == list(map(specialisation, second))
    depend = {launch.kernel.fn.__name__ for launch in first if any(a is FIRST for a in launch.arguments)}
    assert depend == {"attend_kernel", "attend_backward_kernel"}
