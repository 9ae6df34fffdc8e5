"""`make gpu`: everything that needs a GPU, in one command of nine minutes, with one JSON of the results.

    python -m benchmarks.gpu_run [--tune] [--minutes 9] [--dry-run]

The command builds the package for the Python that runs it. It installs and downloads nothing. support/gpu_steps.py
lists the steps; the steps with most evidence come first. Each step has a guaranteed share of the time, and gets the
time that earlier steps left on top. A step that fails or runs out of time does not stop the other steps; then the exit
status is 1. The JSON is benchmarks/results/gpu/<GPU>.<date>.json: versions, the outcome of each step, the failed tests,
the device times and the goals that they meet. It is written anew after every step, and copied to the folder that OUT
names, with the ends of the steps' outputs and the measurements for this GPU: four files at most. build/gpu/ holds all
output.

Without a GPU the command makes a dry run: small steps of the same names run by Triton's interpreter, and the JSON stays
in build/gpu/.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks import device_tables
from benchmarks.support import goals, gpu_steps, results
from benchmarks.support.gpu_steps import Step
from benchmarks.support.results import ROOT
from mop_kernels import backends
from mop_kernels.triton_kernels.launch import path_of

RESULTS = results.RESULTS / "gpu"
Outcome = dict[str, Any]
VERDICTS = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"
END_OF_LOG = 20_000  # characters of a step's output that are copied
EVERY = 5.0  # seconds, after which the result is written anew while a step runs
clock = time.monotonic


def run_all(steps: list[Step], deadline: float, keep: Callable[[list[Outcome]], None]) -> list[Outcome]:
    """Run the steps in order, and call keep(outcomes) during and after each.

    No step runs past the deadline of `clock`. A step may take its share and the time that earlier steps left, but
    nothing of the share of a later step.
    """
    found: list[Outcome] = []
    for place, step in enumerate(steps):
        left = deadline - clock()
        later = sum(other.seconds for other in steps[place + 1 :])
        seconds = min(left, max(step.seconds, left - later))
        if step.command and seconds < step.least:
            why = f"{max(0, left):.0f} s were left, and it needs {step.least:.0f}"
            step = step._replace(command=[], left_out=why, beside=None)
        if step.needs_cuda and not gpu_steps.cuda_is_built():
            step = step._replace(command=[], left_out="the CUDA kernels were not built: see build", beside=None)
        found += run(step, seconds, meanwhile=functools.partial(keep, found))
        keep(found)
    return found


def run(step: Step, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> list[Outcome]:
    """Run a step and the step beside it, and return their outcomes.

    If this process is ended, it ends the processes of the steps first.

    Args:
        step: The step.
        seconds: The time that both may take.
        meanwhile: Called every few seconds.
    """
    some = [step] if step.beside is None else [step, step.beside]
    start = clock()
    processes = [begin(one, seconds) if one.command else None for one in some]
    outcomes = []
    try:
        for one, process in zip(some, processes, strict=True):
            if process is None:
                print(f"{one.name}: left out ({one.left_out})", flush=True)
                outcomes.append({"name": one.name, "outcome": "left out", "why": one.left_out})
                continue
            status = status_of(process, start + seconds, meanwhile)
            outcomes.append(outcome(one, status, clock() - start))
    except BaseException:  # Ctrl-C, SIGTERM
        for process in filter(None, processes):
            end(process)
        raise
    return outcomes


def status_of(process: subprocess.Popen, bound: float, meanwhile: Callable[[], None]) -> int | None:
    """Wait for a process and return its status. At the bound of `clock` it is ended, and None is returned."""
    while True:
        left = bound - clock()
        try:
            return process.wait(max(0.0, min(left, EVERY)))
        except subprocess.TimeoutExpired:
            if left <= EVERY:
                end(process)
                return None
            meanwhile()


def begin(step: Step, seconds: float) -> subprocess.Popen:
    """Start the process of a step. Its command learns these seconds, less the time to start and to end."""
    search = [str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search)), **step.environment}
    command = [word.replace(gpu_steps.SECONDS, f"{max(1, seconds - gpu_steps.START):.0f}") for word in step.command]
    print(f"{step.name}: at most {seconds:.0f} s", flush=True)
    with log_of(step).open("w") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def end(process: subprocess.Popen) -> None:
    """End a process and its children. Do not wait for a process that the driver holds."""
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        print("it does not end", flush=True)


def log_of(step: Step) -> Path:
    """Return the file of the step's output."""
    return gpu_steps.WORKSHOP / f"{re.sub('[^a-z0-9]+', '_', step.name)}.log"


def outcome(step: Step, status: int | None, seconds: float) -> Outcome:
    """Return the outcome and the seconds of a step, and for tests their counts and the names of the failed ones.

    Args:
        step: The step.
        status: Exit status. None: the step ran out of time.
        seconds: The time that the step took.
    """
    ended = "out of time" if status is None else "ok" if status == 0 else f"failed, status {status}"
    found: Outcome = {"name": step.name, "outcome": ended, "seconds": round(seconds, 1)}
    text = log_of(step).read_text(errors="replace") if log_of(step).exists() else ""
    found |= test_counts(text) if "pytest" in step.command else {}
    print(f"{step.name}: {ended} after {found['seconds']} s {found.get('counts', '')}", flush=True)
    if step.tells or ended != "ok":
        lines = text.splitlines()
        shown = text if step.tells else "\n".join(lines[-40:])
        found["output"] = shown[-END_OF_LOG:].replace(str(ROOT), ".").splitlines()
        print("\n".join(lines[-40 if step.tells else -15 :]), flush=True)
    return found


def test_counts(text: str) -> Outcome:
    """Return the counts and the failures from pytest's verbose output, of one process or of several.

    A run that was stopped has this output too.
    """
    alone = re.findall(rf"^(\S+::.*?) ({VERDICTS})\b", text, re.MULTILINE)
    shared = re.findall(rf"^\[gw\d+\] \[ *\d+%\] ({VERDICTS}) (\S+::.*?) *$", text, re.MULTILINE)
    verdicts = [*alone, *((name, verdict) for verdict, name in shared)]
    return {
        "counts": dict(Counter(verdict.lower() for _, verdict in verdicts)),
        "failures": [name for name, verdict in verdicts if verdict in ("FAILED", "ERROR")],
    }


def versions() -> dict[str, Any]:
    """Return the versions of the software and the GPU's properties, without names of machines or paths."""
    import triton

    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties()
        found |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "gpus": torch.cuda.device_count(),
        }
    return found | {"commit": results.commit()}


def measured() -> results.Found | None:
    """Return the rates and the rows that the steps have written. None if no step has written any."""
    found: results.Found | None = None
    for name in gpu_steps.MEASURED:
        with contextlib.suppress(OSError, ValueError):  # not reached yet
            part = json.loads(gpu_steps.measured_file(name).read_text())
            found = part if found is None else found | {"rows": found["rows"] + part["rows"]}
    return found


def write(result: dict[str, Any], path: Path) -> None:
    """Write the JSON with the device times and the goals, and copy it to OUT."""
    result["benchmarks"] = measured()
    found = results.Results({"device": result["benchmarks"]} if result["benchmarks"] else {})
    result["goals"] = [goal.judge(found) for goal in goals.GPU_GOALS]
    results.write(result, path)
    if os.environ.get("OUT"):
        try:
            copy(path, Path(os.environ["OUT"]), result["versions"].get("gpu", ""))
        except OSError as error:
            print(f"OUT={os.environ['OUT']}: nothing could be copied there: {error}", flush=True)


def copy(path: Path, folder: Path, gpu: str) -> None:
    """Copy the JSON, the ends of all logs, and the measurements for this GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = sorted(gpu_steps.WORKSHOP.glob("*.log"))
    ends = [f"=== {log.name}\n{log.read_text(errors='replace')[-END_OF_LOG:]}" for log in logs]
    (folder / "logs.txt").write_text("\n".join(ends))
    crossovers = backends.CROSSOVERS / f"{gpu.replace(' ', '_')}.json"
    files = {"result.json": path, "crossover.json": crossovers, "configurations.json": path_of(gpu)}
    for name, source in files.items():
        if source.exists():
            shutil.copyfile(source, folder / name)


def main() -> int:
    """Run the command, and return its exit status."""
    start = clock()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_run", description=__doc__.splitlines()[0])
    parser.add_argument("--tune", action="store_true", help="also tune, and keep the result")
    parser.add_argument(
        "--minutes", type=float, default=gpu_steps.TOTAL / 60, help="for all steps but tuning (%(default)s)"
    )
    parser.add_argument("--dry-run", action="store_true", help="run small steps by Triton's interpreter")
    arguments = parser.parse_args()
    dry = arguments.dry_run or not torch.cuda.is_available()
    if not torch.cuda.is_available():
        print("no GPU: dry run")
    shutil.rmtree(gpu_steps.WORKSHOP, ignore_errors=True)
    gpu_steps.WORKSHOP.mkdir(parents=True)
    deadline = start + 60 * arguments.minutes - gpu_steps.RESERVE + (gpu_steps.TUNING if arguments.tune else 0)
    result: dict[str, Any] = {"versions": versions(), "dry_run": dry, "steps": []}
    path = gpu_steps.WORKSHOP / "dry_run.json"
    if not dry:
        gpu = re.sub("[^a-z0-9]+", "-", result["versions"]["gpu"].lower())
        path = RESULTS / f"{gpu}.{datetime.now(UTC):%Y-%m-%d}.json"
    todo = gpu_steps.steps(None if dry else torch.cuda.get_device_capability(), arguments.tune)

    def keep(found: list[Outcome]) -> None:
        reached = {step["name"] for step in found}
        waiting = [{"name": step.name, "outcome": "not reached"} for step in todo if step.name not in reached]
        result["steps"] = [*found, *waiting]
        write(result, path)

    keep([])
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    found = run_all(todo, deadline, keep)
    if result["benchmarks"]:
        judged = goals.as_markdown(goals.GPU_GOALS, results.Results({"device": result["benchmarks"]}))
        print("\n".join(judged if dry else device_tables.measured(result["benchmarks"])))
    print(f"written to {path.relative_to(ROOT)}")
    return int(any(step["outcome"] not in ("ok", "left out") for step in found))


if __name__ == "__main__":
    sys.exit(main())
