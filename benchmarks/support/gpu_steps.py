"""The steps of `make gpu`, each with its guaranteed share of nine minutes. The steps with most evidence come first."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks.support.compiler import SHARED_BYTES
from benchmarks.support.results import ROOT

WORKSHOP = ROOT / "build" / "gpu"
TOTAL = 540  # seconds of all steps, without tuning
RESERVE = 10  # seconds of TOTAL: to end a step that ran out of time, and to write the result
TUNING = 480  # seconds more with --tune
START = 15  # seconds that a command, also this one, needs before and after its own work
SECONDS = "{seconds}"  # in a command: stands for the seconds that its own work may take


class Step(NamedTuple):
    """A command and its share of the time; or, without a command, the reason why it is left out.

    Attributes:
        name: Its name in the result.
        command: The words of the command. Empty: the step is left out.
        seconds: The share. Time that earlier steps did not take comes on top.
        environment: Environment variables of the command.
        least: With fewer seconds left the step is left out.
        left_out: The reason why the step is left out.
        beside: A step that runs at the same time, within the same bound.
        tells: True: its output goes into the result even if the step succeeds.
        needs_cuda: True: the step is left out if the CUDA kernels were not built.
    """

    name: str
    command: list[str]
    seconds: float = 0
    environment: dict[str, str] = {}  # noqa: RUF012
    least: float = 15
    left_out: str = ""
    beside: "Step | None" = None
    tells: bool = False
    needs_cuda: bool = False


# The tests that run under compute-sanitizer, which makes a test a hundred times slower: each way of the bank's forward
# pass (on tensor cores, with copies while it computes, for any sizes), and each other operation once.
SANITIZED = [
    "tests/kernels/test_mop_ffn_sizes.py::test_locals_of_whole_eights[cuda-fewer than a tile-torch.bfloat16]",
    "tests/kernels/test_mop_ffn.py::test_named_banks[float32-cuda-one_row]",
    "tests/kernels/test_mop_ffn.py::test_named_banks[float32-cuda-odd]",
    *(
        f"tests/kernels/test_{op}.py::Test{op.title().replace('_', '')}::test_named_shapes[float32-cuda-odd]"
        for op in ("phm_weight", "phm_linear", "lowrank_phm_linear")
    ),
]
PYTHON = [sys.executable, "-m"]
PYTEST = [*PYTHON, "pytest", "-v", "-p", "no:cacheprovider"]
BENCH = "benchmarks/bench_device.py"
MEASURED = ("bank", "peers")  # the steps that write device times


def measured_file(name: str) -> Path:
    """Return the file of a step's device times."""
    return WORKSHOP / f"{name}.json"


def steps(capability: tuple[int, int] | None, tune: bool) -> list[Step]:
    """Return the steps for a GPU of this compute capability. None: the steps of a dry run, without a GPU."""
    if capability is None:
        return _dry_steps(tune)
    arch = 10 * capability[0] + capability[1]
    cores = os.cpu_count() or 1
    parallel = ["-n", str(min(16, cores))] if installed("xdist") else []
    guard = ["--timeout=120"] if installed("pytest_timeout") else []
    one_thread = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    kernels = [*PYTEST, *parallel, *guard, "tests/kernels", "--ignore=tests/kernels/test_cuda.py"]
    cuda = [*PYTEST, *guard, "tests/kernels/test_cuda.py"]
    return [
        Step(
            "build",
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            115,
            # for this GPU only; an nvcc that is older than the GPU leaves the first entry out
            {"TORCH_CUDA_ARCH_LIST": f"{capability[0]}.{capability[1]}" + (";9.0+PTX" if arch > 90 else "")},
            beside=_warm(arch, cores),
            tells=True,
        ),
        Step("check", [*PYTHON, "mop_kernels.check", "--device", "cuda"], 40, tells=True),
        Step("graphs and streams", [*cuda, "-k", "not than_int32"], 50),
        Step("tune", [*PYTHON, "benchmarks.tune", f"--seconds={SECONDS}"], TUNING, least=60)
        if tune
        else Step("tune", [], left_out="not asked for"),
        _bench("bank", "test_the_bank", 60, {}, "--benchmark"),
        _sanitized("racecheck"),
        _sanitized("memcheck"),
        Step("tests", [*kernels, "-k", "(triton or cuda) and not inductor"], 60, one_thread),
        Step("crossover", [*PYTHON, "benchmarks.crossover", f"--seconds={SECONDS}"], 30, least=30, needs_cuda=True),
        _bench("peers", "test_device", 30, {}, "--benchmark"),
        Step("more than 2^31 elements", [*cuda, "-k", "than_int32"], 20),
        Step("sharding", [*PYTEST, "tests/t5/test_backbone_devices.py", "tests/t5/test_sharded_on_gpus.py"], 20)
        if installed("transformers") and installed("accelerate")
        else Step("sharding", [], left_out="transformers or accelerate is not installed"),
    ]


def _dry_steps(tune: bool) -> list[Step]:
    small = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    layers = [f"tests/kernels/test_{op}.py" for op in ("phm_linear", "lowrank_phm_linear")]
    done = {
        "tests": Step("tests", [*PYTEST, *layers, "-k", "triton and odd and without"], 60, small),
        "bank": _bench("bank", "test_the_bank", 60, small, "-k", "float32"),
        "peers": _bench("peers", "test_device", 60, small),
    }
    names = [step.name for step in steps((9, 0), tune)]
    why = {"tune": "a dry run" if tune else "not asked for"}
    return [done.get(name) or Step(name, [], left_out=why.get(name, "a dry run")) for name in names]


def _bench(name: str, test: str, seconds: float, environment: dict[str, str], *options: str) -> Step:
    tests = [f"{BENCH}::{test}"] if name == "bank" else [f"{BENCH}::test_host_cost", f"{BENCH}::{test}"]
    results = {"MOP_DEVICE_RESULTS": str(measured_file(name))}
    return Step(name, [*PYTEST, *options, *tests], seconds, environment | results)


def _warm(arch: int, cores: int) -> Step:
    """Return the step that compiles the recorded launches into Triton's cache, the paper's shapes first."""
    if arch not in SHARED_BYTES:
        return Step("warm", [], left_out=f"benchmarks/support/compiler.py knows no sm_{arch}")
    options = ["--summary", f"--arch={arch}", f"--workers={cores}", f"--seconds={SECONDS}"]
    return Step("warm", [*PYTHON, "benchmarks.compile_table", *options], environment={"OMP_NUM_THREADS": "1"})


def _sanitized(tool: str) -> Step:
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if sanitizer is None:
        return Step(tool, [], left_out="compute-sanitizer was not found")
    command = [sanitizer, "--error-exitcode=86", "--tool", tool, *PYTEST, *SANITIZED]
    return Step(tool, command, 45, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, least=30, needs_cuda=True)


def cuda_is_built() -> bool:
    """Return whether the module of the CUDA kernels lies in the package, where the step "build" writes it."""
    return any((ROOT / "mop_kernels").glob("_C_cuda*.so"))


def installed(module: str) -> bool:
    """Return whether a module can be imported."""
    return importlib.util.find_spec(module) is not None
