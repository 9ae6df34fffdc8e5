"""Compile launches for a GPU that need not be present, each in a process that the compiler may end.

Triton's own just-in-time path compiles the launches. So arguments are specialised as on a GPU, and a program on that
GPU then finds the kernels in Triton's cache. Triton's cuobjdump reads registers and spills from the machine code. The
process must not have TRITON_INTERPRET=1.
"""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from benchmarks.support.launches import Launch, Recorded, example
from mop_kernels import backends

# bytes of shared memory that one program may use, by compute capability
SHARED_KB = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}
SHARED_BYTES = {arch: 1024 * kilobytes for arch, kilobytes in SHARED_KB.items()}
CONFIGURATION = ("ACTIVATION", "PRECISION", "num_warps", "num_stages", "maxnreg")  # columns of a table beside blocks


class Compiled(NamedTuple):
    """The compilation of one launch for one architecture: registers and bytes, or the error. `seconds` is CPU time."""

    launch: str
    kernel: str
    dtype: str
    arch: int
    config: str
    origin: str
    registers: int = 0
    spill_bytes: int = 0
    shared_bytes: int = 0
    seconds: float = 0.0
    error: str = ""


def driver_for(arch: int) -> SimpleNamespace:
    """Return a driver that only answers Triton's questions before a compilation: the device, stream and target."""
    return SimpleNamespace(
        get_current_device=lambda: arch,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", arch, 32),
    )


def compile_one(recorded: Recorded, arch: int) -> Compiled:
    """Compile a launch in this process, and return its row."""
    launch = recorded.launch
    driver.set_active(driver_for(arch))
    row = described(recorded, arch)
    start = _cpu_seconds()
    try:
        made = launch.function.warmup(*example(launch.arguments), grid=(1,), enable_fp_fusion=True, **dict(launch.meta))
    except Exception as error:
        return row._replace(error=reason(error), seconds=round(_cpu_seconds() - start, 2))
    seconds = round(_cpu_seconds() - start, 2)
    return row._replace(**_resources(made.asm["cubin"]), shared_bytes=made.metadata.shared, seconds=seconds)


def reason(error: BaseException) -> str:
    """Return the first error of a chain, without the source lines that Triton puts before it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error)[-300:].strip()}"


def described(recorded: Recorded, arch: int) -> Compiled:
    """Return the row of a launch that has not been compiled."""
    launch = recorded.launch
    shown = [(n, v) for n, v in launch.meta if n.startswith("BLOCK") or n in CONFIGURATION]
    config = " ".join(f"{n.removeprefix('BLOCK_').removeprefix('num_').lower()}={v}" for n, v in shown)
    return Compiled(str(launch), launch.kernel, launch.dtype, arch, config, recorded.origin)


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of its ended children; ptxas runs in a child."""
    return sum(os.times()[:4])


def _resources(cubin: bytes) -> dict[str, Any]:
    """Return the columns registers and spill_bytes, of a thread."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {"registers": found["REG"], "spill_bytes": found["STACK"] + found["LOCAL"]}


def compile_all(
    tasks: Iterable[tuple[Recorded, int]],
    *,
    workers: int = 2,
    seconds: float = float("inf"),
    results: Path | None = None,
) -> list[Compiled]:
    """Compile launches, and return a row for each that was reached in time.

    Args:
        tasks: Launches, each with a compute capability, 90 for 9.0.
        workers: Number of processes.
        seconds: Start no compilation after this time.
        results: A file of one JSON line per finished compilation. These compilations are not repeated. A line counts
            only for the present source of the kernel and the imported triton.

    Raises:
        RuntimeError: Triton's interpreter is on.
    """
    if backends.interpreting():
        raise RuntimeError("Triton's interpreter is on, which compiles nothing; unset TRITON_INTERPRET.")
    deadline = time.monotonic() + seconds
    known = _read(results) if results is not None and results.exists() else {}
    lock = threading.Lock()
    mine = threading.local()

    def done(task: tuple[Recorded, int]) -> Compiled | None:
        """Compile in the process of this thread, so that the launch which ends a process is known."""
        key = key_of(task[0].launch, task[1])
        if key in known:
            return known[key]._replace(launch=str(task[0].launch), origin=task[0].origin)
        if time.monotonic() > deadline:
            return None
        if not hasattr(mine, "pool"):
            mine.pool = pools.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
        try:
            row = mine.pool.submit(compile_one, *task).result()
        except BrokenProcessPool:
            del mine.pool
            row = described(*task)._replace(error="the compiler ended its process")
        if results is not None:
            with lock, results.open("a") as file:
                file.write(json.dumps([key, *row[1:]]) + "\n")
        return row

    with contextlib.ExitStack() as pools, ThreadPoolExecutor(workers) as threads:
        return [row for row in threads.map(done, tasks) if row is not None]


def key_of(launch: Launch, arch: int) -> str:
    """Return a key of launch, source of the kernel and its callees, architecture and version of triton."""
    made_of = f"{launch}, {launch.function.cache_key}, sm_{arch}, triton {triton.__version__}"
    return hashlib.sha256(made_of.encode()).hexdigest()[:16]


def _read(results: Path) -> dict[str, Compiled]:
    found = {}
    for line in results.read_text().splitlines():
        with contextlib.suppress(ValueError):  # half a line, of a run that was ended while it wrote
            key, *row = json.loads(line)
            found[key] = Compiled("", *row)
    return found
