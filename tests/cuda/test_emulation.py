"""The emulation finds the mistakes it is there for: kernels with one each (mistakes.cpp) do not pass."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(mistake, sanitizer) of the program compiled with the sanitizer, or with none."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    package, folder = Path(torch.__file__).parent, tmp_path_factory.mktemp("emulation")

    @cache
    def program(sanitizer: str) -> Path:
        path = folder / f"mistakes{sanitizer}"
        command = [compiler, "-std=c++20", "-O1", "-DMOP_EMULATE", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
        command += [f"-fsanitize={sanitizer}"] if sanitizer else []
        command += ["-isystem", package / "include", HERE / "mistakes.cpp", "-o", path]
        command += [f"-L{package / 'lib'}", f"-Wl,-rpath,{package / 'lib'}", "-ltorch_cpu", "-lpthread"]
        subprocess.run(command, check=True)
        return path

    def of(mistake: str, sanitizer: str = "") -> subprocess.CompletedProcess:
        command = [program(sanitizer), mistake]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    return of


@pytest.mark.parametrize("sanitizer", ["", "address", "thread"], ids=["plain", "address", "thread"])
@pytest.mark.parametrize("kernel", ["none", "copies", "older copies"])
def test_a_right_kernel_passes(run, kernel, sanitizer):
    done = run(kernel, sanitizer)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.parametrize(
    ("mistake", "sanitizer", "message"),
    [
        ("no barrier", "thread", "data race"),
        ("overrun", "address", "heap-buffer-overflow"),
        ("some leave", "", "some threads left while others wait at a barrier"),
        ("misaligned", "", "load16 of an address that is not aligned"),
        ("no barrier after copies", "thread", "data race"),
        ("copies at the end", "", "a copy was not waited for"),
        ("misaligned copy", "", "copy_async of an address that is not aligned"),
        ("stop", "", "experts must be distinct"),
    ],
)
def test_a_mistake_is_found(run, mistake, sanitizer, message):
    done = run(mistake, sanitizer)
    assert done.returncode != 0
    assert message in done.stderr


def test_quotients_by_reciprocals_are_exact(run):
    assert run("quotients").stdout == "1\n"


@pytest.mark.parametrize("mistake", ["uninitialised", "no wait for copies"])
def test_shared_memory_is_nan_until_it_is_written(run, mistake):
    assert "nan" in run(mistake).stdout
