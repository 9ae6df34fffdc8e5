"""What this machine can do: the two rates beside which every time stands, and its description (no names, no paths)."""

import json
import platform
import re
import statistics
import subprocess
import time
from pathlib import Path

import torch

import mop_kernels
from mop_kernels import backends

RESULTS = Path(__file__).parents[1] / "results"


def rates() -> dict[str, float]:
    """GFLOP/s of torch.mm 1024^3 in float32 and GB/s of a copy of 64 MB (read and written both counted), medians."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    source = torch.randn(16 * 2**20)
    target = torch.empty_like(source)
    return {
        "mm_gflops": 2 * 1024**3 / _median(lambda: torch.mm(a, b), 15) / 1e9,
        "copy_gbps": 2 * source.nbytes / _median(lambda: target.copy_(source), 15) / 1e9,
    }


def _median(function, rounds: int) -> float:
    times = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


def machine() -> dict:
    return {
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "mop_kernels": mop_kernels.__version__,
        "compiled": backends.build_info(),
        "commit": _commit(),
    }


def keep(module: str, found: dict) -> Path:
    """Write the result of a benchmark's module: one file per machine, which found["machine"] names."""
    where = f"{found['machine']['cpu']} {found['machine']['threads']} threads"
    path = RESULTS / f"{module}.{re.sub('[^a-z0-9]+', '-', where.lower())}.json"
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    return path


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _commit() -> str:
    """The commit, with a + where tracked files differ from it."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
