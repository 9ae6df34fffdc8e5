"""What a launch depends on besides its tensors: grids that CUDA can start, and no compilation per step of a training.

The launches are recorded on tensors of the device "meta", which have sizes and no storage.
"""

import pytest
import torch

from benchmarks.support.launches import made_by
from benchmarks.support.work import BFLOAT16, BOTH, FLOAT32, FORWARD, PRECISIONS, WORK, Work
from mop_kernels import backends, testing
from mop_kernels.testing import BANKS, PROMPTS, AttentionShape, Bank, PromptShape, Shape
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
    Work("prefix_attention", "long", AttentionShape(64, 32, 2**17, 2**17, 64, 2**12, 1000, True)),
    Work("prefix_attention", "many examples", AttentionShape(2**20, 16, 1, 1, 16, 1, 1, False)),
    Work("rms_norm", "many rows", (2**30, 16)),
    Work("dropout_add", "many rows", (2**30, 16)),
    Work("relu_dropout", "wide", (2**20, 2**18)),
    Work("gated_gelu_dropout", "wide", (2**20, 2**18)),
]


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda precision: precision.name)
@pytest.mark.parametrize("work", LARGE, ids=lambda work: f"{work.op}, {work.label}")
def test_large_work_stays_within_the_limits_of_a_grid(work, precision):
    """Launch at most 2^31 - 1 programs along x and 65,535 along y and z."""
    launches = made_by(work, precision, BOTH)
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


def differences(first, second) -> set[str]:
    """Return which arguments of equal launches differ in a way that Triton compiles for: not by their size alone."""
    found = set()
    for a, b in zip(first, second, strict=True):
        assert a.kernel is b.kernel
        found |= {f"{a.kernel.fn.__name__} {name}" for name in a.meta if str(a.meta[name]) != str(b.meta[name])}
        for parameter, x, y in zip(a.kernel.params, a.arguments, b.arguments):
            if isinstance(x, int) and not parameter.do_not_specialize and (x == 1, x % 16) != (y == 1, y % 16):
                found.add(f"{a.kernel.fn.__name__} {parameter.name}")
    return found


@pytest.mark.skipif(backends.interpreting(), reason="the interpreter specialises nothing")
@pytest.mark.parametrize("direction", [FORWARD, BOTH])
def test_other_numbers_of_rows_compile_nothing_again(direction):
    """Batches differ in length: 33, 40 and 48 rows are odd, a multiple of 8 and one of 16."""
    (bank,) = (work.shape for work in WORK if work.label == "paper bank")

    def at(rows):
        shape = bank._replace(down=bank.down._replace(rows=rows), up=bank.up._replace(rows=rows))
        return made_by(Work("mop_ffn", "bank", shape), BFLOAT16, direction)

    assert not differences(at(48), at(33)) | differences(at(48), at(40))


@pytest.mark.skipif(backends.interpreting(), reason="the interpreter specialises nothing")
def test_other_batches_and_lengths_compile_nothing_again():
    def at(batch, length):
        shape = PROMPTS["paper"]._replace(batch=batch, length=length)
        return made_by(Work("attempt_mix", "prompts", shape), BFLOAT16, BOTH)

    assert not differences(at(32, 256), at(31, 255)) | differences(at(32, 256), at(16, 1))


@pytest.mark.skipif(backends.interpreting(), reason="the interpreter specialises nothing")
@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16], ids=lambda precision: precision.name)
def test_other_steps_compile_nothing_again(precision):
    """Batches differ in examples and lengths; prefixes in their number and length."""

    def at(batch, queries, keys, prefix, rows):
        shape = AttentionShape(batch, 8, queries, keys, 64, prefix, rows, True)
        sizes = (batch * queries, 512)
        ops = ("rms_norm", "dropout_add", "relu_dropout", "gated_gelu_dropout")
        works = [Work(op, "", sizes) for op in ops]
        return [
            launch
            for work in (Work("prefix_attention", "", shape), *works)
            for launch in made_by(work, precision, BOTH)
        ]

    usual = at(8, 256, 256, 40, 5)
    for other in (at(7, 255, 19, 40, 5), at(2, 1, 1, 40, 2), at(16, 64, 256, 1, 16), at(1, 33, 48, 7, 3)):
        assert not differences(usual, other)


def test_launches_that_read_ids_assert_them():
    """All others pay nothing for it, and none for Triton's checks of overflow."""
    with torch.device("meta"), recording() as launches:
        x, down, ups = testing.as_mop_arguments(testing.mop_inputs(BANKS["small"], torch.float32))
        for experts in (None, torch.empty(2, dtype=torch.int64)):
            arguments = x, list(down), [t for up in ups for t in up], len(ups), "relu", experts
            outputs = IMPLEMENTATIONS["mop_ffn"](*arguments)
            IMPLEMENTATIONS["mop_ffn_backward"](outputs, *arguments, (1 << 13) - 1)
    work = Work("attempt_mix", "paper", PROMPTS["paper"])
    launches += [k for k in made_by(work, FLOAT32, BOTH) if k.kernel.fn.__name__ == "attend_kernel"]
    half = (len(launches) - 2) // 2
    assert len(launches) == 2 * half + 2
    for k, launch in enumerate(launches):
        expected = {} if k < half else {"debug": True, "sanitize_overflow": False}
        assert {name: launch.meta[name] for name in ("debug", "sanitize_overflow") if name in launch.meta} == expected
