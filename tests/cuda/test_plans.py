"""How mop_ffn's work is cut into blocks on GPUs that are not here: the paper's bank, 60 pairs of 40 rows."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

HERE = Path(__file__).parent


class Gpu(NamedTuple):
    """Multiprocessors, and KB of shared memory of each and of a block."""

    multiprocessors: int
    shared: int
    block_shared: int


GPUS = {
    "H200": Gpu(132, 228, 227),
    "H100 PCIe": Gpu(114, 228, 227),
    "A100": Gpu(108, 164, 163),
    "RTX 4090": Gpu(128, 100, 99),
    "A10": Gpu(72, 100, 99),
}


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """plans(gpu, bytes_of_an_element, pairs, rows): what plans.cpp prints."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    package, path = Path(torch.__file__).parent, tmp_path_factory.mktemp("plans") / "plans"
    command = [compiler, "-std=c++20", "-DMOP_EMULATE", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command += ["-isystem", package / "include", HERE / "plans.cpp", "-o", path]
    command += [f"-L{package / 'lib'}", f"-Wl,-rpath,{package / 'lib'}", "-ltorch_cpu"]
    subprocess.run(command, check=True)

    def of(gpu: Gpu, *numbers: int) -> dict[str, dict[str, int]]:
        done = subprocess.run([path, *map(str, (*gpu, *numbers))], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    return of


@pytest.mark.parametrize("element", [4, 2])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", GPUS)
def test_blocks_that_are_to_be_on_a_multiprocessor_at_once_fit_on_it(plans, name, direction, element):
    gpu = GPUS[name]
    plan = plans(gpu, element, 60, 40)[direction]
    assert plan["bytes"] <= gpu.block_shared * 1024
    assert plan["at_once"] * (plan["bytes"] + 1024) <= gpu.shared * 1024
    assert plan["blocks"] == 60 * -(-40 // plan["rows"])


@pytest.mark.parametrize("element", [4, 2])
@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", ["H200", "H100 PCIe", "A100"])
def test_no_last_wave_of_few_blocks(plans, name, direction, element):
    """120 blocks of 20 rows, one for a multiprocessor, were two waves on 108 or 114 multiprocessors."""
    gpu = GPUS[name]
    plan = plans(gpu, element, 60, 40)[direction]
    waves = plan["blocks"] / (plan["at_once"] * gpu.multiprocessors)
    assert plan["at_once"] == 2
    assert 0.65 < waves / -(-waves // 1) <= 1


@pytest.mark.parametrize("rows", [1, 7, 40, 4096, 10**6])
def test_every_number_of_rows_has_a_plan(plans, rows):
    for pairs in (1, 60, 12 * 64):
        for plan in plans(GPUS["A10"], 4, pairs, rows).values():
            assert 0 < plan["rows"] <= min(rows, 32)
            assert plan["bytes"] <= 99 * 1024
