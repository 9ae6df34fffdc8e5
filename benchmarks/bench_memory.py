"""Peak memory of every way to compute the paper's bank, each in its own process (support/memory_probe.py says how).

Needed is the memory that a caller holds anyway: inputs and outputs; with backward also the gradients of both.
"""

import json
import os
import subprocess
import sys

import pytest
from mop_lab.attempt.memory import ENVIRONMENT, RESET

from benchmarks.bench_mop_ffn import CONTENDERS
from benchmarks.support.results import ROOT


@pytest.mark.skipif(not RESET.exists(), reason="needs Linux's /proc/self/clear_refs")
@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda c: c.name)
def test_peak_memory(contender, full_size, record):
    if not full_size and contender.kind != "ours":
        pytest.skip("one process is enough to see that the probe works")
    probe = [sys.executable, "-m", "benchmarks.support.memory_probe"]
    command = [*probe, contender.name, "paper" if full_size else "small"]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for direction, row in json.loads(done.stdout).items():
        assert row["peak_mb"] >= 0.9 * row["needed_mb"] or not full_size, "less than what is held at the end"
        if record is not None:
            name = {"group": f"peak memory, paper bank: {direction}", "name": contender.name, "kind": contender.kind}
            record["rows"].append({**name, **row})
