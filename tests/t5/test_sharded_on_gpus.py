"""The GPUs of this machine share a backbone, by torchrun and NCCL, against one GPU that has it whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sharded_worker as worker
import torch

GPUS = max((count for count in (1, 2, 4, 8) if count <= torch.cuda.device_count()), default=0)
pytestmark = pytest.mark.skipif(not GPUS, reason="needs a GPU")


def test_all_gpus_train_as_one(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(GPUS)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, Path(worker.__file__), tmp_path], env=environment, check=True, timeout=300)
    shared = torch.load(tmp_path / str(GPUS) / "found.pt")
    for name in worker.RESUMED:
        alone, _ = worker.trained(tmp_path / "alone", name, 1, shard="no", **worker.DEVICES)
        for value in ("loss", "grad_norm", "eval_rouge"):
            expected = [point[value] for point in alone["history"] if value in point]
            assert [p[value] for p in shared[name]["history"] if value in p] == pytest.approx(expected, rel=1e-6)
            assert expected
        for parameter, weight in alone["weights"].items():
            torch.testing.assert_close(shared[name]["weights"][parameter].cpu(), weight.cpu(), rtol=1e-4, atol=1e-4)
