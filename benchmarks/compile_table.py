"""Every kernel that the work of device_work.py launches, compiled for a GPU that need not be there.

    python -m benchmarks.compile_table [--arch 90 80] [--candidates] [--summary] [--workers 2]

The launches are recorded on tensors of the device "meta"; Triton's own just-in-time path compiles them, so that
arguments are specialised as on a GPU. Registers and spills are read from the machine code by Triton's cuobjdump.
Needs a process without TRITON_INTERPRET=1.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.device_work import BOTH, PRECISIONS, WORK, Precision, Work, run
from mop_kernels.triton_kernels import launch_config
from mop_kernels.triton_kernels.launch import Launch, recording

# bytes of shared memory that one program may use
SHARED_BYTES = {75: 64 * 1024, 80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}
SHOWN = ("DOT", "MAPS", "num_warps", "num_stages", "maxnreg")


# (kernel, dtype, architecture): bytes of spilled registers that are accepted, with the reason
SPILLS: dict[tuple[str, str, int], tuple[int, str]] = {
    ("rows_kernel", "float32", 90): (8, "two registers with Triton 3.6, none with 3.9"),
}


class Compiled(NamedTuple):
    """One kernel as machine code for one architecture, and the work that launches it first."""

    kernel: str
    work: str
    precision: str
    arch: int
    config: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    seconds: float


class Request(NamedTuple):
    work: str
    precision: str
    launch: Launch


def requests(
    works: Iterable[Work] = WORK,
    precisions: Iterable[Precision] = PRECISIONS,
    candidates: bool = False,
    direction: str = BOTH,
) -> list[Request]:
    """The distinct launches; with `candidates`, of every configuration that `make tune` tries."""
    found: dict[tuple, Request] = {}
    for work in works:
        for precision in precisions:
            for launch in launches_of(work, precision, direction, candidates):
                found.setdefault(_identity(launch), Request(f"{work.op}, {work.label}", precision.name, launch))
    return list(found.values())


def launches_of(work: Work, precision: Precision, direction: str, candidates: bool = False) -> list[Launch]:
    with torch.device("meta"), precision.in_force(), recording() as launches:
        tensors = work.inputs(precision.dtype)
        with launch_config.asked() as choices:
            run(work, "triton", tensors, direction)
        for choice in {choice.key: choice for choice in choices}.values() if candidates else ():
            for config in choice.candidates():
                with launch_config.forced(choice, config):
                    run(work, "triton", tensors, direction)
    return launches


def _identity(launch: Launch) -> tuple:
    """Launches that differ in what is named here may be other machine code."""

    def kind(argument):
        if isinstance(argument, torch.Tensor):
            return argument.dtype
        if isinstance(argument, int):
            return argument == 1, argument % 16 == 0, argument.bit_length() > 31
        return tuple(map(kind, argument)) if isinstance(argument, tuple) else argument

    options = tuple(sorted((name, str(value)) for name, value in launch.meta.items()))
    return launch.kernel.fn.__qualname__, tuple(map(kind, launch.arguments)), options


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


def compile_one(request: Request, arch: int) -> Compiled:
    import triton
    from triton.runtime import driver

    if not hasattr(request.launch.kernel, "device_caches"):
        raise RuntimeError("Triton's interpreter is on; unset TRITON_INTERPRET before Python starts.")
    driver.set_active(_Absent(arch))
    launch = request.launch
    start = time.perf_counter()
    compiled = launch.kernel.warmup(*launch.arguments, grid=launch.grid, enable_fp_fusion=True, **launch.meta)
    seconds = time.perf_counter() - start
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    shown = {name: value for name, value in launch.meta.items() if name.startswith("BLOCK") or name in SHOWN}
    return Compiled(
        launch.kernel.fn.__name__,
        request.work,
        request.precision,
        arch,
        " ".join(f"{name.removeprefix('BLOCK_').removeprefix('num_').lower()}={shown[name]}" for name in shown),
        found["REG"],
        found["STACK"] + found["LOCAL"],
        compiled.metadata.shared,
        seconds,
    )


_of_this_process: list[Request] = []


def _start_worker(arguments: tuple) -> None:
    _of_this_process[:] = requests(*arguments)


def _work(index: int, arch: int) -> Compiled:
    return compile_one(_of_this_process[index], arch)


def compile_all(
    arches: Iterable[int] = (90, 80),
    *,
    works: Iterable[Work] = WORK,
    precisions: Iterable[Precision] = PRECISIONS,
    candidates: bool = False,
    workers: int = 2,
) -> list[Compiled]:
    """Each worker records the same launches for itself: kernels do not travel between processes, indices do."""
    arguments = (tuple(works), tuple(precisions), candidates)
    count = len(requests(*arguments))
    tasks = [(index, arch) for index in range(count) for arch in arches]
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (arguments,)) as pool:
        return list(pool.map(_work, *zip(*tasks, strict=True)))


def problems(rows: Iterable[Compiled]) -> list[str]:
    """What would make a kernel slow or fail to start."""
    found = []
    for row in rows:
        allowed, _ = SPILLS.get((row.kernel, row.precision, row.arch), (0, ""))
        if row.spill_bytes > allowed:
            found.append(f"{row.spill_bytes} bytes of registers spilled: {row}")
        if row.shared_bytes > SHARED_BYTES[row.arch]:
            found.append(f"more shared memory than sm_{row.arch} has: {row}")
    return found


def as_markdown(rows: list[Compiled]) -> list[str]:
    lines = [
        "| kernel | first launched by | dtype | sm | configuration | registers | spill B | shared KB | compile s |",
        "|---|---|---|---:|---|---:|---:|---:|---:|",
    ]
    for r in sorted(rows):
        numbers = f"{r.registers} | {r.spill_bytes} | {r.shared_bytes / 1024:.0f} | {r.seconds:.1f}"
        lines.append(f"| {r.kernel} | {r.work} | {r.precision} | {r.arch} | {r.config} | {numbers} |")
    return lines


def as_summary(rows: list[Compiled]) -> list[str]:
    """A line a kernel, dtype and architecture: the worst of all its shapes."""
    lines = [
        "| kernel | dtype | sm | compiled | registers | spill B | shared KB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for kind in sorted({(r.kernel, r.precision, r.arch) for r in rows}):
        some = [r for r in rows if (r.kernel, r.precision, r.arch) == kind]
        registers, spill, shared = (max(r[k] for r in some) for k in map(Compiled._fields.index, WORST))
        numbers = f"{len(some)} | {registers} | {spill} | {shared / 1024:.0f}"
        lines.append(f"| {kind[0]} | {kind[1]} | {kind[2]} | {numbers} |")
    return lines


WORST = ("registers", "spill_bytes", "shared_bytes")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_table", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=[90, 80], choices=sorted(SHARED_BYTES))
    parser.add_argument("--candidates", action="store_true", help="also every configuration that tuning would try")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--summary", action="store_true", help="a line a kernel, not a launch")
    arguments = parser.parse_args()
    start = time.perf_counter()
    rows = compile_all(arguments.arch, workers=arguments.workers, candidates=arguments.candidates)
    print("\n".join((as_summary if arguments.summary else as_markdown)(rows)))
    print("\n".join(problems(rows)), file=sys.stderr)
    print(f"\n{len(rows)} kernels in {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
