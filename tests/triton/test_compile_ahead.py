"""Launches compile ahead of time, fit shared memory and spill two registers at most: a sample of every kind.

launches.json holds them all; `make record-launches` writes it, `make compile-launches ARCH=90` compiles all.
"""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from errors import raises, says

from benchmarks import compile_table
from benchmarks.support import compiler, launches
from benchmarks.support.step_work import LAUNCHED
from benchmarks.support.work import PRECISIONS
from mop_kernels import backends
from mop_kernels.triton_kernels.launch import Launch as Made

pytestmark = pytest.mark.skipif(backends.interpreting(), reason="Triton compiles nothing under TRITON_INTERPRET=1")

ROOT = Path(__file__).parents[2]
STALE = "tests/triton/launches.json is not of these kernels and tests: run make record-launches"


@pytest.fixture(scope="module")
def recorded() -> list[launches.Recorded]:
    return launches.read()


@pytest.fixture(scope="module")
def tasks(recorded):
    return launches.sample(recorded)


# What is compiled.


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


def test_the_sample_compiles_and_fits(tasks, empty_cache):
    rows = compiler.compile_all(tasks, workers=min(os.cpu_count() or 1, 16))
    print("", *compile_table.totals(rows, tasks), sep="\n")
    assert len(rows) == len(tasks)
    assert not compile_table.problems(rows)


def test_the_sample_has_every_kind_of_launch(recorded, tasks):
    assert len(tasks) == len(set(tasks)) >= 100
    of_sample = [r.launch for r, _ in tasks]
    for features in (launches.choices, lambda launch: {(launch.kernel, launch.dtype)}):
        every = {feature for r in recorded for feature in features(r.launch)}
        assert every == {feature for launch in of_sample for feature in features(launch)}
    assert {r.origin.partition(",")[0] for r, _ in tasks if "::" not in r.origin} == {work.op for work in LAUNCHED}
    for arch in launches.ARCHES:
        assert {r.launch.kernel for r in recorded} == {r.launch.kernel for r, chosen in tasks if chosen == arch}


def test_the_sample_takes_what_compiles_fast(recorded):
    first = next(r for r in recorded if "n" in r.launch.arguments)
    others = tuple("16" if kind == "n" else kind for kind in first.launch.arguments)
    second = first._replace(launch=first.launch._replace(arguments=others))
    for seconds in ((1.0, 2.0), (2.0, 1.0)):
        both = [r._replace(seconds=s) for r, s in zip((first, second), seconds, strict=True)]
        assert {r.seconds for r, _ in launches.sample(both)} == {1.0}


def test_what_is_wrong_is_named():
    row = compiler.Compiled("", "k", "fp32", 80, "", "a test", 255, 16, 164 * 1024, 1.0)
    spill, shared = compile_table.problems([row])
    says(spill, "16 bytes", "spilled")
    assert "sm_80" in shared
    assert len(compile_table.problems([row._replace(arch=90)])) == 1
    assert not compile_table.problems([row._replace(arch=90, spill_bytes=8)]), "two registers"
    attention = row._replace(kernel="prefix_attention.k", arch=90, registers=128, spill_bytes=32)
    assert not compile_table.problems([attention]), "a step of occupancy"
    assert compile_table.problems([attention._replace(registers=255)])
    assert compile_table.problems([attention._replace(spill_bytes=40)])
    (failed,) = compile_table.problems([row._replace(error="RuntimeError: why", spill_bytes=0, shared_bytes=0)])
    says(failed, "k", "sm_80, fp32")
    assert "why" in failed


def test_finished_compilations_are_not_done_again(recorded, empty_cache, tmp_path, monkeypatch):
    tasks = [(next(r for r in recorded if r.launch.kernel == "attempt_mix.mix_kernel"), 90)]
    results = tmp_path / "results.jsonl"
    assert compiler.compile_all(tasks, workers=1, seconds=-1, results=results) == [], "no time"
    (row,) = compiler.compile_all(tasks, workers=1, results=results)
    assert row.registers > 0
    assert not row.error
    monkeypatch.setattr(compiler, "compile_one", None)
    assert compiler.compile_all(tasks, workers=1, results=results) == [row]
    with results.open("a") as file:
        file.write('["half a line')  # of a run that was ended
    assert compiler.compile_all(tasks, workers=1, results=results) == [row]


def test_a_compiler_that_ends_its_process_is_reported(recorded, tmp_path, monkeypatch):
    """The next launch gets another process."""
    (tmp_path / "dying.py").write_text("import os\ndef compile_one(recorded, arch):\n    os._exit(1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import dying

    monkeypatch.setattr(compiler, "compile_one", dying.compile_one)
    rows = compiler.compile_all([(r, 90) for r in recorded[:2]], workers=1)
    assert [row.error for row in rows] == ["the compiler ended its process"] * 2


def test_a_launch_that_does_not_compile_is_reported(recorded):
    launch = recorded[0].launch
    row = compiler.compile_one(recorded[0]._replace(launch=launch._replace(arguments=launch.arguments[1:])), 90)
    assert "TypeError" in row.error


def test_the_interpreter_compiles_nothing(tasks, monkeypatch):
    monkeypatch.setattr(backends, "interpreting", lambda: True)
    with raises(RuntimeError, "unset TRITON_INTERPRET"):
        compiler.compile_all(tasks)


# The file of launches.


def test_a_file_is_read_as_it_was_written(recorded, tmp_path):
    launches.write(recorded, tmp_path / "launches.json")
    assert (tmp_path / "launches.json").read_text() == launches.FILE.read_text()
    assert launches.FILE.stat().st_size < 500_000


def test_the_recorded_launches_are_those_of_the_kernels(recorded):
    from triton.backends.nvidia.compiler import CUDAOptions

    for kernel in {r.launch.kernel for r in recorded}:
        some = [r.launch for r in recorded if r.launch.kernel == kernel]
        function = some[0].function
        parameters = inspect.signature(function.fn).parameters
        constexprs = {p.name for p in function.params if p.is_constexpr}
        for launch in some:
            given = set(dict(launch.meta))
            assert constexprs <= given <= constexprs | set(CUDAOptions.__dataclass_fields__), STALE
            assert len(launch.arguments) == len(parameters) - len(constexprs), STALE


def test_the_recorded_launches_are_those_of_the_tests(recorded, tmp_path):
    """Of the paper's shapes, and of a few tests that make many kinds of launches."""
    few = ["test_mop_ffn.py::test_bias_in_one_map_only", "test_mop_ffn.py::test_layouts_together"]
    few += ["test_phm_linear.py::TestPhmLinear::test_layouts_together", "test_attempt_mix.py::test_layouts_of_inputs"]
    output = tmp_path / "launches.json"
    command = [sys.executable, "-O", "-m", "benchmarks.record_launches", "--output", str(output)]
    done = subprocess.run(
        [*command, *(f"tests/kernels/{test}" for test in few)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    anew = launches.read(output)
    tests = {r.origin.partition("::")[0] for r in anew if "::" in r.origin}
    assert tests == {f"tests/kernels/{test.partition('::')[0]}" for test in few}
    known = {r.launch for r in recorded}
    assert not [str(r.launch) for r in anew if r.launch not in known], STALE


def test_assertions_must_be_off():
    """A run of tests that compute nothing would stop at the first."""
    command = [sys.executable, "-m", "benchmarks.record_launches"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "run python with -O" in done.stderr


def test_kinds_are_as_triton_tells_arguments_apart(recorded):
    """Two arguments are of one kind if Triton compiles one kernel for both."""
    from triton._C.libtriton import native_specialize_impl
    from triton.backends.nvidia.compiler import CUDABackend

    tensors = [torch.empty(8, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.int64)]
    numbers = [0, 1, 2, 3, 15, 16, 32, -16, -1, 2**31 - 1, 2**31, -(2**31), 2**31 + 1, 2**33, -(2**33), 2**33 + 1]
    others = [True, False, None, 0.5, 1.5]
    tuples = [(1, 2), (2, 1), (3, 1), (16, None), tuple(tensors), tuple(t[1:] for t in tensors)]
    arguments = [*tensors, *(t[1:] for t in tensors), *numbers, *others, *tuples]
    for specialised, given in ((True, arguments), (False, numbers)):
        told = {}
        for argument in given:
            theirs = native_specialize_impl(CUDABackend, argument, False, specialised, True)
            assert told.setdefault(launches.kind(argument, specialised), theirs) == theirs
        assert len(set(map(repr, told.values()))) == len(told)
    for r in recorded:
        made = Made(r.launch.function, (1,), launches.example(r.launch.arguments), dict(r.launch.meta))
        assert launches.of(made) == r.launch
    with raises(TypeError, "str"):
        launches.kind("relu")
    with raises(TypeError, "fp32, bf16"):
        launches.kind(torch.empty(2, dtype=torch.complex64))


@pytest.mark.parametrize("work", LAUNCHED, ids=lambda work: f"{work.op}, {work.label}")
def test_every_dtype_has_launches(work):
    """Forward and backward, on tensors that only have sizes."""
    for precision in PRECISIONS:
        found = launches.of_works([work], [precision])
        assert launches.DTYPES[precision.dtype] in {k for r in found for k in launches.flat(r.launch.arguments)}


def test_a_launch_is_of_its_kernel():
    from mop_kernels.triton_kernels.attempt_mix import mix_kernel

    example = torch.empty(4), torch.empty(4)[1:], None, torch.empty(2), torch.empty(2), 16, (1, 2**40), 1, 17
    launch = launches.of(Made(mix_kernel, (1,), example, {"num_warps": 4, "BLOCK_B": 8}))
    assert launch.function is mix_kernel
    assert launch.kernel == "attempt_mix.mix_kernel"
    assert launch.arguments[:5] == ("fp32", "fp32-", "None", "fp32", "fp32")
    assert launch.meta == (("BLOCK_B", 8), ("num_warps", 4))
    with pytest.raises(ValueError, match="zip"):
        launches.of(Made(mix_kernel, (1,), example[1:], {}))


def test_an_integer_that_is_not_specialised_is_of_one_kind():
    import triton

    @triton.jit(do_not_specialize=["rows"])
    def kernel(x, rows, width, BLOCK: triton.language.constexpr):
        pass

    def of(rows, width):
        return launches.of(Made(kernel, (1,), (torch.empty(1), rows, width), {"BLOCK": 4}))

    assert len({of(rows, 5) for rows in (1, 16, 17)}) == 1
    assert len({of(5, width) for width in (1, 16, 17)}) == 3
    assert of(2**40, 5) != of(5, 5)
