"""Compile the launches of Triton's kernels for absent GPUs. Show launches that fail, spill or need too much memory.

    python -m benchmarks.compile_table [--arch 90 80] [--launches recorded] [--match TEXT] [--summary] [--workers 2]

Launches: "recorded", all of tests/triton/launches.json; "sample", the launches that the tests compile, each for one
architecture; "paper", the launches of support/step_work.py; "candidates", the configurations that `make tune` tries.
With --results a run continues where the last run stopped. To compile with another triton, put it first on PYTHONPATH.
The exit status is 1 if there is a problem.
"""

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import triton

from benchmarks.support import launches, tables
from benchmarks.support.compiler import SHARED_BYTES, Compiled, compile_all
from benchmarks.support.launches import Recorded

# Bytes of spilled registers that are no problem: ptxas spills one or two registers to stay at 64, 168 or 255 registers,
# the steps of occupancy.
ACCEPTED_SPILL = 8
# In the kernels of attention ptxas spills up to eight registers for a step of occupancy: one of them, compiled for 255
# registers, took 235 and spilled none.
ACCEPTED_IN_ATTENTION = 32
NUMBERS = ("registers", "spill B", "shared KB")


def problems(rows: Iterable[Compiled]) -> list[str]:
    """Return the reasons why kernels would not start or would be slow, one line per problem."""
    found = []
    for row in rows:
        where = f"{row.kernel} for sm_{row.arch}, {row.dtype}, {row.config}, first launched by {row.origin}"
        if row.error:
            found.append(f"does not compile: {where}: {row.error}")
        in_attention = row.kernel.startswith("prefix_attention") and row.registers < 255
        if row.spill_bytes > (ACCEPTED_IN_ATTENTION if in_attention else ACCEPTED_SPILL):
            found.append(f"{row.spill_bytes} bytes of registers spilled: {where}")
        if row.shared_bytes > SHARED_BYTES[row.arch]:
            found.append(f"{row.shared_bytes} bytes of shared memory, more than sm_{row.arch} has: {where}")
    return found


def totals(rows: list[Compiled], tasks: list[tuple[Recorded, int]]) -> list[str]:
    """Return one line per architecture with the counts of its launches.

    Args:
        rows: The finished compilations.
        tasks: All launches to be compiled, each with an architecture.
    """
    lines = []
    for arch in sorted({row.arch for row in rows}):
        some = [row for row in rows if row.arch == arch]
        asked = sum(wanted == arch for _, wanted in tasks)
        failed = sum(bool(row.error) for row in some)
        spilled = [row.spill_bytes for row in some if row.spill_bytes]
        shared = max(row.shared_bytes for row in some)
        lines.append(
            f"triton {triton.__version__}, sm_{arch}: {asked} launches, {len(some) - failed} compiled, {failed} "
            f"failed, {asked - len(some)} not reached; {len(spilled)} spill, at most {max(spilled, default=0)} bytes; "
            f"at most {shared} bytes of shared memory of {SHARED_BYTES[arch]}; "
            f"{sum(row.seconds for row in some):.0f} s of CPU time"
        )
    return lines


def as_markdown(rows: list[Compiled]) -> list[str]:
    """Return a table with one line per launch."""
    heads = ["kernel", "dtype", "sm", "configuration", "first launched by", *NUMBERS, "compile s"]
    lines = [[*r[1:6], *numbers(r), f"{r.seconds:.1f}"] for r in sorted(rows)]
    return tables.markdown([heads, *lines], text=(0, 1, 3, 4))


def as_summary(rows: list[Compiled]) -> list[str]:
    """Return a table with one line per kernel, dtype and architecture: the largest numbers of its launches."""
    table: list[list[object]] = [["kernel", "dtype", "sm", "compiled", *NUMBERS]]
    for kind in sorted({r[1:4] for r in rows}):
        some = [numbers(r) for r in rows if r[1:4] == kind]
        table.append([*kind, len(some), *map(max, zip(*some))])
    return tables.markdown(table, text=(0, 1))


def numbers(row: Compiled) -> tuple[int, int, int]:
    """Return the columns NUMBERS of a launch."""
    return row.registers, row.spill_bytes, round(row.shared_bytes / 1024)


SETS = ("recorded", "sample", "paper", "candidates")


def tasks_of(name: str, arches: list[int]) -> list[tuple[Recorded, int]]:
    """Return the launches of a set, each with an architecture."""
    if name == "sample":
        return [(recorded, arch) for recorded, arch in launches.sample(launches.read()) if arch in arches]
    found = launches.read() if name == "recorded" else launches.of_works(candidates=name == "candidates")
    found.sort(key=lambda recorded: "::" in recorded.origin)  # the paper's shapes first, then those of tests
    return [(recorded, arch) for arch in arches for recorded in found]


def keep_seconds(rows: list[Compiled]) -> None:
    """Write the seconds of compilations into the file of recorded launches. The sample of the tests depends on them."""
    seconds = {row.launch: round(row.seconds, 1) for row in rows if not row.error}
    launches.write([r._replace(seconds=seconds.get(str(r.launch), r.seconds)) for r in launches.read()])


def main() -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_table", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=[90, 80], choices=sorted(SHARED_BYTES))
    parser.add_argument("--launches", choices=SETS, default="recorded", help="which launches (%(default)s)")
    parser.add_argument("--match", default="", help="only launches whose kernel, dtype or origin contains this text")
    parser.add_argument("--results", type=Path, help="a file of finished compilations, which are not repeated")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="start no compilation after this many seconds"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes at once (%(default)s)")
    parser.add_argument("--summary", action="store_true", help="one line per kernel and dtype, not per launch")
    parser.add_argument(
        "--keep-seconds", action="store_true", help="write the seconds of each compilation into the file of launches"
    )
    arguments = parser.parse_args()
    tasks = [
        (recorded, arch)
        for recorded, arch in tasks_of(arguments.launches, arguments.arch)
        if arguments.match in f"{recorded.launch.kernel} {recorded.launch.dtype} {recorded.origin}"
    ]
    if arguments.keep_seconds:
        os.environ["TRITON_ALWAYS_COMPILE"] = "1"  # for the compiling processes: a cached kernel takes no time
    if arguments.results is not None:
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
    rows = compile_all(tasks, workers=arguments.workers, seconds=arguments.seconds, results=arguments.results)
    if arguments.keep_seconds:
        keep_seconds(rows)
    found = problems(rows)
    print("\n".join((as_summary if arguments.summary else as_markdown)(rows)))
    print("", *found, *totals(rows, tasks), sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
