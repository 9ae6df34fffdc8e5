"""The host functions of backend "cuda" as nvcc compiled them launch what they should, as a stub of the runtime sees."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import stub_runtime
from symbols import readable

CALLS = [
    f"{name}, {direction}"
    for name in dict.fromkeys(name for name, *_ in stub_runtime.works())
    for direction in ("forward", "backward")
]
WITHOUT_ASKING = 48 * 1024
OF_A_BLOCK = 227 * 1024
TYPES = {"float32": "float", "bfloat16": "Bfloat16", "float16": "Half"}


@pytest.fixture(scope="module")
def found(with_nvcc, tmp_path_factory) -> dict:
    """What stub_runtime.py prints, with readable names of kernels."""
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("stub_runtime")
    library = stub_runtime.build(with_nvcc.objects / "mop_kernels._C_cuda", folder)
    root = str(stub_runtime.ROOT)
    environment = os.environ | {"MOP_KERNELS_EMULATE_CUDA": str(library), "PYTHONPATH": root}
    command = [sys.executable, stub_runtime.__file__]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    launches = [launch for call in report["calls"] for launch in call["launches"]]
    names = sorted({*report["kernels"], *(launch["name"] for launch in launches)})
    by_name = dict(zip(names, readable(names), strict=True))
    report["kernels"] = [by_name[name] for name in report["kernels"]]
    for launch in launches:
        launch["name"] = by_name[launch["name"]]
    return report


def of(found: dict, call: str) -> list[dict]:
    return [c for c in found["calls"] if c["call"] == call]


@pytest.mark.parametrize("call", CALLS)
def test_every_launch_is_right(call, found):
    """On the device and the stream of its tensors, with threads and shared memory that a block can have."""
    runs = of(found, call)
    assert [run["dtype"] for run in runs] == ["float32", "bfloat16", "float16"]
    for run in runs:
        assert run["launches"]
        for launch in run["launches"]:
            blocks, *others = launch["grid"]
            assert 0 < blocks < 2**31
            threads, *rest = launch["block"]
            assert others == rest == [1, 1]
            assert threads % 32 == 0
            assert 32 <= threads <= 1024
            shared, allowed = launch["shared"], launch["allowed_shared"]
            assert 0 <= shared <= OF_A_BLOCK
            assert allowed == OF_A_BLOCK or shared <= WITHOUT_ASKING, "threads that launch other sizes may come between"
            assert launch["device"] == run["device"]
            assert launch["stream"] == run["stream"]
            templates = re.findall(r"\b(float|Bfloat16|Half)\b", launch["name"])
            assert set(templates) <= {TYPES[run["dtype"]], "float"}, launch["name"]
        assert run["after"] == {"device": 0, "guards": 0}
        assert run["shapes"] == run["expected"]


def base(name: str) -> str:
    return name.split("<")[0].split("::")[-1]


def test_every_kernel_is_launched(found):
    launched = {base(launch["name"]) for call in found["calls"] for launch in call["launches"]}
    assert launched == {base(name) for name in found["kernels"]}
    assert len(launched) >= 5


def test_every_operation_launches_its_own_dtype(found):
    for call in found["calls"]:
        names = [launch["name"] for launch in call["launches"]]
        assert any(TYPES[call["dtype"]] in name for name in names), call["call"]


def test_large_tiles_ask_for_shared_memory(found):
    """Otherwise the check of what was asked for above would check nothing."""
    assert any(launch["shared"] > WITHOUT_ASKING for call in found["calls"] for launch in call["launches"])


def test_no_rows_no_launch(found):
    assert found["empty"] == {"phm_linear": [], "lowrank_phm_linear": [], "mop_ffn": []}


def test_blocks_grow_with_the_work(found):
    """As many times the blocks as there are groups."""
    blocks = {int(k): sum(launch["grid"][0] for launch in launches) for k, launches in found["groups"].items()}
    assert blocks[2] == 2 * blocks[1] > 0
    assert blocks[6] == 6 * blocks[1]


def test_a_launch_that_fails_is_named(found):
    assert re.search(r"could not launch the CUDA kernel \S+ \(\d+ blocks of \d+ threads, \d+ bytes", found["error"])
    assert "an error of the stub runtime" in found["error"]
    assert found["after"] == {"device": 0, "guards": 0}, "the guard ends with the call that fails"
