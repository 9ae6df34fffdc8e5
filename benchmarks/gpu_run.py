"""`make gpu`: everything that needs a GPU, in one command, with one JSON of what came out.

    python -m benchmarks.gpu_run [--tune] [--minutes 9] [--dry-run]

Builds into the Python that runs it; installs and downloads nothing. Steps: build, tune (where asked for), the tests of
the kernels on the device in all dtypes, by Triton and by CUDA, the device's benchmarks, the sizes up to which CUDA is
faster than Triton, the tests of mop_t5, one pass of small tests under each of compute-sanitizer's memcheck and
racecheck. A step that fails or runs out of time stops no other; the exit status says whether one did. The JSON,
benchmarks/results/gpu/<GPU>.<date>.json, holds versions, each step's outcome, the failed tests, the device times and
which goals they meet; the steps' output stays in build/gpu/.

Without a GPU it is a dry run: the same steps, tiny, by Triton's interpreter, and the JSON stays in build/gpu/.
"""

import argparse
import importlib.util
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
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WORKSHOP = ROOT / "build" / "gpu"
RESULTS = ROOT / "benchmarks" / "results" / "gpu"
NEEDED_BY_T5 = (
    *("transformers", "accelerate", "safetensors", "jieba", "rouge_score", "rouge", "rich", "jsonargparse"),
    *("sklearn", "scipy", "yaml"),
)
TUNING = 480  # seconds
VERDICTS = "PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS"


class Step(NamedTuple):
    """A command and the seconds it may take; or, without a command, why it is left out."""

    name: str
    command: list[str]
    seconds: float = 0
    environment: dict[str, str] = {}  # noqa: RUF012
    left_out: str = ""


def steps(dry: bool, tune: bool) -> list[Step]:
    python = [sys.executable, "-m"]
    pytest = [*python, "pytest", "-v", "-p", "no:cacheprovider"]
    parallel = ["-n", str(min(8, os.cpu_count() or 1))] if installed("xdist") else []
    guard = ["--timeout=120"] if installed("pytest_timeout") else []
    bench = {"MOP_DEVICE_RESULTS": str(WORKSHOP / "benchmarks.json")}
    if dry:
        small = {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        return [
            Step("build", [], left_out="a dry run"),
            Step("tune", [], left_out="a dry run" if tune else "not asked for"),
            Step("tests", [*pytest, "tests/kernels/test_values.py", "-k", "triton and odd and without"], 60, small),
            Step("benchmarks", [*pytest, "benchmarks/bench_device.py"], 90, small | bench),
            *(
                Step(name, [], left_out="a dry run")
                for name in ("crossover", "tests of mop_t5", "memcheck", "racecheck")
            ),
        ]
    missing = [name for name in NEEDED_BY_T5 if not installed(name)]
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    few = [*pytest, "tests/kernels/test_mop_ffn.py", "tests/kernels/test_values.py", "-k"]
    small = "float32 and (odd or small) and named"
    no_cache = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    sanitize = [sanitizer, "--error-exitcode=86", "--tool"]
    return [
        Step("build", [sys.executable, "setup.py", "build_ext", "--inplace"], 180),
        Step("tune", [*python, "benchmarks.tune", f"--seconds={TUNING - 60}"], TUNING)
        if tune
        else Step("tune", [], left_out="not asked for"),
        Step(
            "tests",
            [*pytest, *parallel, *guard, "tests/kernels", "tests/triton"],
            300,
            {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "2"},
        ),
        Step("benchmarks", [*pytest, "--benchmark", "benchmarks/bench_device.py"], 180, bench),
        Step("crossover", [*python, "benchmarks.crossover", "--seconds=60"], 90)
        if find_nvcc()
        else Step("crossover", [], left_out="no nvcc was found: no CUDA kernels"),
        Step("tests of mop_t5", [], left_out=f"not installed: {', '.join(missing)}")
        if missing
        else Step("tests of mop_t5", [*pytest, *parallel, "tests/t5"], 120),
        *(
            [
                Step("memcheck", [*sanitize, "memcheck", *few, f"(triton or cuda) and {small}"], 90, no_cache),
                Step("racecheck", [*sanitize, "racecheck", *few, f"cuda and {small}"], 60, no_cache),
            ]
            if sanitizer
            else [Step(name, [], left_out="compute-sanitizer was not found") for name in ("memcheck", "racecheck")]
        ),
    ]


def find_nvcc() -> str | None:
    """Where setup.py finds it."""
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin"] if home else [os.environ.get("PATH", ""), "/usr/local/cuda/bin"]
    return next(filter(None, (shutil.which("nvcc", path=place) for place in places)), None)


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def run(step: Step, deadline: float) -> dict:
    """Outcome, seconds, and for tests their counts and the names of those that failed."""
    if not step.command:
        print(f"{step.name}: left out ({step.left_out})", flush=True)
        return {"name": step.name, "outcome": "left out", "why": step.left_out}
    log = WORKSHOP / f"{step.name.replace(' ', '_')}.log"
    seconds = max(1.0, min(step.seconds, deadline - time.monotonic()))
    search = [str(ROOT), str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search)), **step.environment}
    print(f"{step.name}: at most {seconds:.0f} s", flush=True)
    start = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            status = None
    found = {"name": step.name, "outcome": {0: "ok", None: "out of time"}.get(status, f"failed, status {status}")}
    found["seconds"] = round(time.monotonic() - start, 1)
    text = log.read_text(errors="replace")
    found |= test_counts(text) if "pytest" in step.command else {}
    print(f"{step.name}: {found['outcome']} after {found['seconds']} s {found.get('counts', '')}", flush=True)
    if found["outcome"] != "ok":
        print("\n".join(text.splitlines()[-15:]), flush=True)
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
    """Of what counts, without names of machines or paths."""
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
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    described = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return found | {"commit": described.stdout.strip() or "unknown"}


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_run", description=__doc__.splitlines()[0])
    parser.add_argument("--tune", action="store_true", help="tune first, and keep the result")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all steps but tuning (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="tiny, by Triton's interpreter")
    arguments = parser.parse_args()
    dry = arguments.dry_run or not torch.cuda.is_available()
    if not torch.cuda.is_available():
        print("no GPU: dry run")
    WORKSHOP.mkdir(parents=True, exist_ok=True)
    measured = WORKSHOP / "benchmarks.json"
    measured.unlink(missing_ok=True)
    deadline = time.monotonic() + 60 * arguments.minutes + (TUNING if arguments.tune else 0)
    found = {"versions": versions(), "dry_run": dry, "steps": []}
    found["steps"] = [run(step, deadline) for step in steps(dry, arguments.tune)]
    if measured.exists():
        from benchmarks import device_tables

        found["benchmarks"] = json.loads(measured.read_text())
        found["goals"] = [goal.judge(found["benchmarks"]["rows"]) for goal in device_tables.GOALS]
        tables = [] if dry else [*device_tables.measured(found["benchmarks"]), ""]
        print("\n".join([*tables, *device_tables.goals(found["benchmarks"]["rows"])]))
    path = WORKSHOP / "dry_run.json"
    if not dry:
        gpu = re.sub("[^a-z0-9]+", "-", found["versions"]["gpu"].lower())
        path = RESULTS / f"{gpu}.{datetime.now(timezone.utc):%Y-%m-%d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written to {path.relative_to(ROOT)}")
    return int(any(step["outcome"] not in ("ok", "left out") for step in found["steps"]))


if __name__ == "__main__":
    sys.exit(main())
