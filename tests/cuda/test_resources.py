"""What ptxas said of every CUDA kernel, for each architecture: nothing spills, and each dtype has its kernels.

`pytest -s tests/cuda/test_resources.py` prints the table. Shared memory is asked for at the launch (csrc/cuda/launch.h
bounds it), so ptxas must see none.
"""

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

REPORT = re.compile(
    r"Compiling entry function '(\w+)' for '(sm_\d+\w?)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers(?:[^\n]*? (\d+) bytes smem)?",
    re.DOTALL,
)
DTYPES = ("float", "mop::Bfloat16", "mop::Half")


class Kernel(NamedTuple):
    name: str
    architecture: str
    stack: int
    spills: int
    registers: int
    shared: int


def parse(text: str) -> list[Kernel]:
    return [
        Kernel(name, architecture, int(stack), int(stores) + int(loads), int(registers), int(shared or 0))
        for name, architecture, stack, stores, loads, registers, shared in REPORT.findall(text)
    ]


def readable(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt", "-p"], input="\n".join(names), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def kernels(with_nvcc) -> list[Kernel]:
    reports = sorted(Path(with_nvcc.objects, "mop_kernels._C_cuda").glob("*.ptxas"))
    found = parse("\n".join(report.read_text() for report in reports))
    found = [k._replace(name=name) for k, name in zip(found, readable([k.name for k in found]), strict=True)]
    found.sort(key=lambda k: (k.architecture, k.name))
    print(f"\n{'registers':>9} {'spilled':>7} {'stack':>5} {'static shared':>13}  kernel")
    for k in found:
        print(f"{k.registers:>9} {k.spills:>7} {k.stack:>5} {k.shared:>13}  {k.architecture} {k.name}")
    return found


def test_nothing_spills(kernels):
    assert not [k for k in kernels if k.spills]


def test_a_block_of_the_largest_size_can_start(kernels):
    """256 threads, of the 65536 registers of a multiprocessor; two such blocks where there are at most 128 each."""
    assert all(k.registers * 256 <= 65536 for k in kernels)
    assert not any(k.shared for k in kernels), "shared memory that the launch does not know of"


def test_every_operation_has_kernels_in_every_dtype(kernels):
    assert {k.architecture for k in kernels} == {"sm_80", "sm_90"}
    for architecture in ("sm_80", "sm_90"):
        names = [k.name for k in kernels if k.architecture == architecture]
        for kernel in ("matmul_kernel", "sum_kernel", "mop_ffn_kernel", "mop_ffn_backward_kernel"):
            for dtype in DTYPES:
                assert any(f"{kernel}<" in name and dtype in name for name in names), (architecture, kernel, dtype)


def test_a_spill_would_be_seen():
    """A report as ptxas writes it, of a kernel that spills and one with static shared memory."""
    text = """
ptxas info    : Compiling entry function '_Z1kf' for 'sm_90'
ptxas info    : Function properties for _Z1kf
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 408 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1gf' for 'sm_80'
ptxas info    : Function properties for _Z1gf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 1024 bytes smem, 408 bytes cmem[0]
"""
    assert parse(text) == [Kernel("_Z1kf", "sm_90", 16, 32, 255, 0), Kernel("_Z1gf", "sm_80", 0, 0, 32, 1024)]
