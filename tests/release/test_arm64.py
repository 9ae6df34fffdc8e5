"""The kernels of the level "plain", compiled for arm64 and run by an emulator, against this processor."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from make_dist import ROOT

CROSS, EMULATOR = "aarch64-linux-gnu", "qemu-aarch64"


def results(compiler: str, folder: Path, *emulator: str) -> dict[str, np.ndarray]:
    program = folder / f"{compiler}.out"
    sources = [ROOT / "csrc/cpu/level_plain.cpp", ROOT / "tests/release/plain_level.cpp"]
    flags = ["-std=c++17", "-O3", "-Wall", "-Wextra", "-Werror", "-static"]
    subprocess.run([compiler, *flags, *sources, "-o", program], check=True)
    said = subprocess.run([*emulator, program], check=True, capture_output=True, text=True).stdout
    lines = (line.split() for line in said.splitlines())
    return {name: np.array(values, float) for name, *values in lines}


@pytest.mark.skipif(
    not (shutil.which(f"{CROSS}-g++") and shutil.which(EMULATOR)), reason="needs g++-aarch64-linux-gnu and qemu-user"
)
def test_arm64_computes_the_same_with_neon(tmp_path):
    here, there = results("c++", tmp_path), results(f"{CROSS}-g++", tmp_path, EMULATOR)
    assert here.keys() == there.keys()
    assert len(here) == 18
    for name, exact in here.items():
        bound = 1e-5 if name.endswith("4") else 1e-13  # float32 and float64; arm64 contracts products and sums
        np.testing.assert_allclose(there[name], exact, rtol=bound, atol=bound * np.abs(exact).max(), err_msg=name)
    code = subprocess.run([f"{CROSS}-objdump", "-d", tmp_path / f"{CROSS}-g++.out"], capture_output=True, text=True)
    assert re.search(r"\bfmla\s+v\d+\.4s", code.stdout)
