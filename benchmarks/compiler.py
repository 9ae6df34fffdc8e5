"""Compiles launches for a GPU that need not be there, each in a process that the compiler may end.

Triton's own just-in-time path compiles them, so that arguments are specialised as on a GPU and what is in Triton's
cache afterwards serves a program there. Registers and spills are read from the machine code by Triton's cuobjdump.
Needs a process without TRITON_INTERPRET=1.
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
from typing import NamedTuple

from benchmarks.launches import Launch, Recorded
from mop_kernels import backends

# bytes of shared memory that one program may use, by compute capability
SHARED_BYTES = {
    **{75: 64 * 1024, 80: 163 * 1024, 86: 99 * 1024, 87: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024},
    **{100: 227 * 1024, 103: 227 * 1024, 120: 99 * 1024, 121: 99 * 1024},
}
CONFIGURATION = ("ACTIVATION", "PRECISION", "num_warps", "num_stages", "maxnreg")  # what a table shows beside blocks


class Compiled(NamedTuple):
    """One launch as machine code for one architecture; `error` says why there is none. seconds: of CPU time."""

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


class _Absent:
    """What Triton's just-in-time path asks of a driver before it compiles: the device, and what that is."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)


def compile_one(recorded: Recorded, arch: int) -> Compiled:
    """Compile in this process."""
    from triton.runtime import driver

    launch = recorded.launch
    driver.set_active(_Absent(arch))
    row = described(recorded, arch)
    start = _cpu_seconds()
    try:
        made = launch.function.warmup(*launch.example(), grid=(1,), enable_fp_fusion=True, **dict(launch.meta))
    except Exception as error:
        return row._replace(error=reason(error), seconds=round(_cpu_seconds() - start, 2))
    seconds = _cpu_seconds() - start
    registers, spilled = _resources(made.asm["cubin"])
    return row._replace(
        registers=registers, spill_bytes=spilled, shared_bytes=made.metadata.shared, seconds=round(seconds, 2)
    )


def reason(error: BaseException) -> str:
    """Return what went wrong first, without the source lines that Triton puts before it."""
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
    """Of this process and of the children that it has waited for, which is where ptxas runs."""
    return sum(os.times()[:4])


def _resources(cubin: bytes) -> tuple[int, int]:
    """Return (registers, bytes of spilled registers) of a thread."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return found["REG"], found["STACK"] + found["LOCAL"]


def compile_all(
    tasks: Iterable[tuple[Recorded, int]],
    *,
    workers: int = 2,
    seconds: float = float("inf"),
    results: Path | None = None,
) -> list[Compiled]:
    """Compile launches, and return a row for each that was reached in time.

    Args:
        tasks: Each a launch and a compute capability, 90 for 9.0.
        workers: Processes at once.
        seconds: Start no compilation after that many.
        results: A file of one JSON line per compilation, written as each ends; what it holds is not done again. A line
            counts only for the kernel's present source and the imported triton.

    Raises:
        RuntimeError: Triton's interpreter is on.
    """
    if backends.interpreting():
        raise RuntimeError("Triton's interpreter is on, which compiles nothing; unset TRITON_INTERPRET.")
    deadline = time.monotonic() + seconds
    known = _read(results) if results is not None and results.exists() else {}
    lock = threading.Lock()
    mine = threading.local()
    pools: list[ProcessPoolExecutor] = []

    def in_a_process(recorded: Recorded, arch: int) -> Compiled:
        """Use this thread's own process, so that it is known which launch ended one."""
        if not hasattr(mine, "pool"):
            mine.pool = ProcessPoolExecutor(1, get_context("spawn"))
            pools.append(mine.pool)
        try:
            return mine.pool.submit(compile_one, recorded, arch).result()
        except BrokenProcessPool:
            del mine.pool
            return described(recorded, arch)._replace(error="the compiler ended its process")

    def done(task: tuple[Recorded, int]) -> Compiled | None:
        key = key_of(task[0].launch, task[1])
        if key in known:
            return known[key]._replace(launch=str(task[0].launch), origin=task[0].origin)
        if time.monotonic() > deadline:
            return None
        row = in_a_process(*task)
        if results is not None:
            with lock, results.open("a") as file:
                file.write(json.dumps([key, *row[1:]]) + "\n")
        return row

    try:
        with ThreadPoolExecutor(workers) as threads:
            return [row for row in threads.map(done, tasks) if row is not None]
    finally:
        for pool in pools:
            pool.shutdown()


def key_of(launch: Launch, arch: int) -> str:
    """Name a compilation: the launch, the kernel's source and all it calls, the architecture, and triton's version."""
    import triton

    made_of = f"{launch}, {launch.function.cache_key}, sm_{arch}, triton {triton.__version__}"
    return hashlib.sha256(made_of.encode()).hexdigest()[:16]


def _read(results: Path) -> dict[str, Compiled]:
    found = {}
    for line in results.read_text().splitlines():
        with contextlib.suppress(ValueError):  # a line that was being written when the run was ended
            key, *row = json.loads(line)
            found[key] = Compiled("", *row)
    return found
