"""The wheel and the sdist, each installed into an environment with the dependencies and nothing of this project."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from errors import says

KERNEL = """
import torch, mop_kernels
x, local = torch.randn(5, 24), torch.randn(4, 6, 10)
rule = torch.randn(4, 4, 4)
exact, found = (mop_kernels.phm_linear(x, rule, local, backend=name) for name in ("reference", "cpu"))
torch.testing.assert_close(found, exact)
print(mop_kernels.__file__, *found.shape)
"""
LOADED_WITHOUT_TORCH = """
import ctypes, importlib.util, sys
library, module = sys.argv[1:]
ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
found = importlib.util.spec_from_file_location("mop_kernels._C", module)
module = importlib.util.module_from_spec(found)
found.loader.exec_module(module)
print(module.build_info()["torch_abi_target"], module.plan_phm_linear(5, 4, 8, 8, 4, 4)["forward"]["W built once"])
"""


@pytest.fixture(scope="module", params=["wheel", "sdist"])
def environment(request, installed):
    """The wheel is installed without any program on the PATH, the sdist with the programs of this machine."""
    folders = [os.environ["PATH"]] if request.param == "sdist" else []
    return installed(request.getfixturevalue(request.param), *folders)


def test_a_kernel_runs(environment):
    said = environment.run("python", "-c", KERNEL)
    assert said.split() == [
        str(next(environment.folder.glob("lib/*/site-packages/mop_kernels/__init__.py"))),
        "5",
        "40",
    ]


def test_the_report_says_what_was_built(environment):
    said = environment.run("python", "-m", "mop_kernels.env_report")
    says(said, "backends ", "reference", "cpu")
    says(said, "compiled module: cuda", "not built")


def test_the_commands_of_both_packages_are_there(environment):
    said = environment.run("mop-t5", "--help")
    assert {"train", "serve", "demo", "report"} <= set(said.replace(",", " ").split())


def test_a_wheel_takes_seconds_and_no_compiler(wheel, installed):
    environment = installed(wheel)
    assert environment.seconds < 20
    assert "compiling" not in environment.log


def test_every_python_of_this_machine_loads_the_module(wheel, tmp_path):
    """torch/lib/libtorch_cpu.so knows no Python, so that it stands for the torch of another Python."""
    with zipfile.ZipFile(wheel) as archive:
        module = archive.extract("mop_kernels/_C.abi3.so", tmp_path)
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    pythons = {name: shutil.which(name) for name in (f"python3.{minor}" for minor in range(10, 15))}
    loaded = []
    for name, python in (pythons | {"this": sys.executable}).items():
        if python and subprocess.run([python, "-c", ""], capture_output=True).returncode == 0:
            command = [python, "-c", LOADED_WITHOUT_TORCH, str(library), module]
            done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
            assert done.returncode == 0, f"{name}: {done.stderr}"
            assert done.stdout.split() == ["2.10", "74752"]
            loaded.append(name)
    print("\nloaded by", *loaded)
