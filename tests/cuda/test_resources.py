"""What ptxas said of every CUDA kernel, for each architecture: nothing spills, blocks fit, each dtype has its kernels.

`pytest -s tests/cuda/test_resources.py` prints the table. Shared memory is asked for at the launch (csrc/cuda/launch.h
bounds it), so ptxas must see none.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from symbols import readable

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


def registers_of_a_block(kernel: Kernel, threads: int = 256) -> int:
    """Registers come to a warp in units of 256."""
    return -(-kernel.registers * 32 // 256) * 256 * threads // 32


# mop_ffn's kernels whose scratch is shared memory: enum Way of csrc/cuda/mop_ffn_forward.cuh, kFast of the backward
FAST = re.compile(r"mop_ffn_kernel<.*(Way\)1|Way\)2|Way::fast|Way::tensor)|mop_ffn_backward_kernel<.*true>")
TENSOR = re.compile(r"mop_ffn_kernel<.*(Way\)2|Way::tensor)")


def test_as_many_blocks_as_the_plan_counts_on_are_on_a_multiprocessor_at_once(kernels):
    """kBlocksAtOnce of csrc/cuda/mop_ffn_plan.h; test_plans.py has the shared memory."""
    fast = [k for k in kernels if FAST.search(k.name)]
    assert len(fast) == 2 * (2 * len(DTYPES) + 2), (
        "two directions, and the tensor cores in two dtypes, for sm_80 and 90"
    )
    assert all(2 * registers_of_a_block(k) <= 65536 for k in fast)


def test_no_kernel_has_a_stack(kernels):
    """printf or an array that is not in registers would give it one."""
    assert not [k for k in kernels if k.stack]


@pytest.fixture(scope="module")
def instructions(with_nvcc):
    """instructions(architecture): {kernel of mop_ffn's forward: its instructions, as cuobjdump writes them}."""
    triton = importlib.util.find_spec("triton")
    folders = [Path(found).parent for found in [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"] if found]
    folders += [Path(triton.origin).parent / "backends" / "nvidia" / "bin"] if triton else []
    found = next((f"{folder}/cuobjdump" for folder in folders if (folder / "cuobjdump").exists()), None)
    if found is None:
        pytest.skip("needs cuobjdump")
    compiled = Path(with_nvcc.objects, "mop_kernels._C_cuda", "mop_ffn_cuda.cu.o")

    def of(architecture: str) -> dict[str, list[str]]:
        command = [found, "-sass", "-arch", architecture, compiled]
        environment = {**os.environ, "PATH": f"{Path(found).parent}:{os.environ['PATH']}"}  # where nvdisasm is
        text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        _, *functions = re.split(r"Function : (\S+)", text)
        names = readable(functions[::2])
        return {n: re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", f, re.M) for n, f in zip(names, functions[1::2])}

    return of


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_forward_of_the_bank_loads_while_it_computes(instructions, architecture):
    """LDGSTS is cp.async. What is left of loads to registers are the experts and rules that start at odd addresses."""
    fast = {name: code for name, code in instructions(architecture).items() if FAST.search(name)}
    assert len(fast) == len(DTYPES) + 2
    for code in fast.values():
        assert sum("LDGSTS" in line for line in code) >= 6
        assert sum("LDG." in line for line in code) <= 6
        assert not any("LDL" in line or "STL" in line for line in code)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_half_precisions_take_the_tensor_cores(instructions, architecture):
    """HMMA is mma, and LDSM ldmatrix: two of each for a product of three stages of the down and of an up map."""
    found = {name: code for name, code in instructions(architecture).items() if TENSOR.search(name)}
    assert len(found) == 2
    for name, code in found.items():
        kind = "BF16" if "Bfloat16" in name else "F32"
        assert sum(line.startswith("HMMA") and kind in line for line in code) >= 12
        assert sum(line.startswith("LDSM") for line in code) >= 12


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
