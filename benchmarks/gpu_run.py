"""`make gpu`: everything that needs a GPU, in one command of nine minutes, with one JSON of what came out.

    python -m benchmarks.gpu_run [--tune] [--minutes 9] [--dry-run]

Builds into the Python that runs it; installs and downloads nothing. gpu_steps.py has the steps, most evidence first.
Each is sure of its share of the time, whatever the others take; what earlier ones leave comes on top. A step that fails
or runs out of time stops no other; the exit status says whether one did. The JSON is
benchmarks/results/gpu/<GPU>.<date>.json: versions, each step's outcome, the failed tests, the device times and which
goals they meet. It is written anew after every step, and copied to the folder that OUT names, with the ends of the
steps' outputs and what was measured for this GPU: four files at most. build/gpu/ holds all output.

Without a GPU it is a dry run: the same steps, tiny, by Triton's interpreter, and the JSON stays in build/gpu/.
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
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.support.gpu_steps import (
    MEASURED,
    RESERVE,
    ROOT,
    SECONDS,
    START,
    TOTAL,
    TUNING,
    WORKSHOP,
    Step,
    cuda_is_built,
    measured_file,
    steps,
)

RESULTS = ROOT / "benchmarks" / "results" / "gpu"
VERDICTS = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"
END_OF_LOG = 20_000  # characters of a step's output that are copied
EVERY = 5.0  # seconds, after which the result is written anew while a step runs
clock = time.monotonic


def run_all(steps: list[Step], deadline: float, keep: Callable[[list[dict]], None]) -> list[dict]:
    """Run the steps in order, and call keep(outcomes) in and after each; none runs past the deadline of `clock`.

    A step may take its share and what earlier ones left of theirs, but nothing of a later one's share.
    """
    found: list[dict] = []
    for place, step in enumerate(steps):
        left = deadline - clock()
        later = sum(other.seconds for other in steps[place + 1 :])
        seconds = min(left, max(step.seconds, left - later))
        if step.command and seconds < step.least:
            why = f"{max(0, left):.0f} s were left, and it needs {step.least:.0f}"
            step = step._replace(command=[], left_out=why, beside=None)
        if step.needs_cuda and not cuda_is_built():
            step = step._replace(command=[], left_out="the CUDA kernels were not built: see build", beside=None)
        found += run(step, seconds, meanwhile=functools.partial(keep, found))
        keep(found)
    return found


def run(step: Step, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> list[dict]:
    """Run a step, and the one beside it, for so many seconds at most, and return their outcomes.

    Call `meanwhile` every few seconds, and end the processes where this one is ended.
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
    """Wait for a process, and end it at the bound of `clock`; then there is no status."""
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
    search = [str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search)), **step.environment}
    command = [word.replace(SECONDS, f"{max(1, seconds - START):.0f}") for word in step.command]
    print(f"{step.name}: at most {seconds:.0f} s", flush=True)
    with log_of(step).open("w") as output:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )


def end(process: subprocess.Popen) -> None:
    """End a process and its children; not waiting for one that the driver holds."""
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        print("it does not end", flush=True)


def log_of(step: Step) -> Path:
    return WORKSHOP / f"{re.sub('[^a-z0-9]+', '_', step.name)}.log"


def outcome(step: Step, status: int | None, seconds: float) -> dict:
    """Return outcome, seconds, and for tests their counts and the names of the failed ones. status None: no time."""
    found = {"name": step.name, "outcome": {0: "ok", None: "out of time"}.get(status, f"failed, status {status}")}
    found["seconds"] = round(seconds, 1)
    text = log_of(step).read_text(errors="replace") if log_of(step).exists() else ""
    found |= test_counts(text) if "pytest" in step.command else {}
    if step.tells or found["outcome"] != "ok":
        shown = text if step.tells else "\n".join(text.splitlines()[-40:])
        found["output"] = shown[-END_OF_LOG:].replace(str(ROOT), ".").splitlines()
    print(f"{step.name}: {found['outcome']} after {found['seconds']} s {found.get('counts', '')}", flush=True)
    if found["outcome"] != "ok" or step.tells:
        print("\n".join(text.splitlines()[-40 if step.tells else -15 :]), flush=True)
    return found


def test_counts(text: str) -> dict:
    """From pytest's verbose output, which is there even of a run that was stopped; alone or by several processes."""
    alone = re.findall(rf"^(\S+::.*?) ({VERDICTS})\b", text, re.MULTILINE)
    shared = re.findall(rf"^\[gw\d+\] \[ *\d+%\] ({VERDICTS}) (\S+::.*?) *$", text, re.MULTILINE)
    verdicts = [*alone, *((name, verdict) for verdict, name in shared)]
    return {
        "counts": dict(Counter(verdict.lower() for _, verdict in verdicts)),
        "failures": [name for name, verdict in verdicts if verdict in ("FAILED", "ERROR")],
    }


def versions() -> dict:
    """Return the versions that count, without names of machines or paths."""
    import torch
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
    return found | {"commit": commit()}


def commit() -> str:
    """Return git's description of the sources; "unknown" where there is no git or no repository."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return described.stdout.strip() or "unknown"


def measured() -> dict | None:
    """Return the device times of the steps that have written some, as one: rates and rows; None without any."""
    found = None
    for name in MEASURED:
        try:
            part = json.loads(measured_file(name).read_text())
        except (OSError, ValueError):  # not reached yet
            continue
        found = part if found is None else found | {"rows": found["rows"] + part["rows"]}
    return found


def write(result: dict, path: Path) -> None:
    """Write the JSON so that a reader finds the old or the new one, never half, and copy it to OUT."""
    from benchmarks import device_tables

    result["benchmarks"] = measured()
    rows = result["benchmarks"]["rows"] if result["benchmarks"] else []
    result["goals"] = [goal.judge(rows) for goal in device_tables.GOALS]
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(result, indent=1) + "\n")
    beside.replace(path)
    if os.environ.get("OUT"):
        try:
            copy(path, Path(os.environ["OUT"]), result["versions"].get("gpu", ""))
        except OSError as error:
            print(f"OUT={os.environ['OUT']}: nothing could be copied there: {error}", flush=True)


def copy(path: Path, folder: Path, gpu: str) -> None:
    """Copy the JSON, the ends of all logs, and what has been measured for this GPU."""
    from mop_kernels import backends
    from mop_kernels.triton_kernels import launch_config

    folder.mkdir(parents=True, exist_ok=True)
    ends = [
        f"=== {log.name}\n{log.read_text(errors='replace')[-END_OF_LOG:]}" for log in sorted(WORKSHOP.glob("*.log"))
    ]
    (folder / "logs.txt").write_text("\n".join(ends))
    crossovers = backends.CROSSOVERS / f"{gpu.replace(' ', '_')}.json"
    files = {"result.json": path, "crossover.json": crossovers, "configurations.json": launch_config.path_of(gpu)}
    for name, source in files.items():
        if source.exists():
            shutil.copyfile(source, folder / name)


def main() -> int:
    start = clock()
    import torch

    from benchmarks import device_tables

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_run", description=__doc__.splitlines()[0])
    parser.add_argument("--tune", action="store_true", help="tune as well, and keep the result")
    parser.add_argument("--minutes", type=float, default=TOTAL / 60, help="for all steps but tuning (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="tiny, by Triton's interpreter")
    arguments = parser.parse_args()
    dry = arguments.dry_run or not torch.cuda.is_available()
    if not torch.cuda.is_available():
        print("no GPU: dry run")
    shutil.rmtree(WORKSHOP, ignore_errors=True)
    WORKSHOP.mkdir(parents=True)
    deadline = start + 60 * arguments.minutes - RESERVE + (TUNING if arguments.tune else 0)
    result = {"versions": versions(), "dry_run": dry, "steps": []}
    path = WORKSHOP / "dry_run.json"
    if not dry:
        gpu = re.sub("[^a-z0-9]+", "-", result["versions"]["gpu"].lower())
        path = RESULTS / f"{gpu}.{datetime.now(timezone.utc):%Y-%m-%d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
    todo = steps(None if dry else torch.cuda.get_device_capability(), arguments.tune)

    def keep(found: list[dict]) -> None:
        reached = {step["name"] for step in found}
        waiting = [{"name": step.name, "outcome": "not reached"} for step in todo if step.name not in reached]
        result["steps"] = [*found, *waiting]
        write(result, path)

    keep([])
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    found = run_all(todo, deadline, keep)
    if result["benchmarks"]:
        tables = [] if dry else [*device_tables.measured(result["benchmarks"]), ""]
        print("\n".join([*tables, *device_tables.goals(result["benchmarks"]["rows"])]))
    print(f"written to {path.relative_to(ROOT)}")
    return int(any(step["outcome"] not in ("ok", "left out") for step in found))


if __name__ == "__main__":
    sys.exit(main())
