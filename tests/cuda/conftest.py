"""The package as setup.py builds it, with and without nvcc; what has been compiled before is not compiled again."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("MOP_KERNELS_SKIP_BUILD", "MOP_KERNELS_WITH_CUDA", "TORCH_CUDA_ARCH_LIST", "MOP_KERNELS_EMULATE_CUDA")


class Built(NamedTuple):
    """One run of setup.py: its log, the folder of its objects, and a folder with the package it made."""

    log: str
    status: int
    objects: Path
    folder: Path

    def run(self, script: str) -> str:
        """What a script prints that imports this package and no other, not even where a module is missing in it."""
        script = f"import sys\nsys.meta_path = [f for f in sys.meta_path if 'ditable' not in str(f)]\n{script}"
        kept = {k: v for k, v in os.environ.items() if k not in SETTINGS}
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=kept, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """built(**environment): the package that setup.py makes with these variables."""
    missing = [name for name in ("ninja", "setuptools") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"a build needs {', '.join(missing)}")

    def build(**environment: str) -> Built:
        folder = tmp_path_factory.mktemp("built")
        objects, made = folder / "objects", folder / "package"
        before = ROOT / "build" / "inplace"
        if before.exists():
            shutil.copytree(before, objects)
        shutil.copytree(
            ROOT / "mop_kernels", made / "mop_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
        command = [sys.executable, "setup.py", "build_ext", f"--build-temp={objects}", f"--build-lib={made}"]
        kept = {k: v for k, v in os.environ.items() if k not in SETTINGS}
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env={**kept, **environment}, check=False
        )
        return Built(done.stdout + done.stderr, done.returncode, objects, made)

    return build


@pytest.fixture(scope="session")
def with_nvcc(built) -> Built:
    found = built(MOP_KERNELS_WITH_CUDA="1")
    if "no nvcc was found" in found.log:
        pytest.skip("needs nvcc")
    assert found.status == 0, found.log
    return found
