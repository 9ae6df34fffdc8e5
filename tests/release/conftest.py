"""The files that make dist built, and environments into which one of them is installed."""

import os
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path
from typing import NamedTuple

import pytest
from make_dist import ROOT

if not os.environ.get("MOP_RELEASE"):
    collect_ignore_glob = ["test_*.py"]  # make dist builds the files first


class Environment(NamedTuple):
    """A fresh environment with one file installed, and the time and the output of the installation."""

    folder: Path
    seconds: float
    log: str

    def run(self, *command: str) -> str:
        """Return what a command of this environment prints. No compiler and nothing of the repository is in reach."""
        program, *arguments = command
        variables = {"PATH": str(self.folder / "bin"), "HOME": str(self.folder), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [self.folder / "bin" / program, *arguments], cwd=self.folder, capture_output=True, text=True, env=variables
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def sdist() -> Path:
    (found,) = (ROOT / "dist").glob("*.tar.gz")
    return found


@pytest.fixture(scope="session")
def wheel() -> Path:
    (found,) = (ROOT / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """installed(file, *folders): an environment in which pip installed a file, with programs of these folders."""

    def install(file: Path, *folders: str) -> Environment:
        folder = tmp_path_factory.mktemp("environment")
        venv.create(folder, symlinks=True)
        (packages,) = folder.glob("lib/*/site-packages")
        for path in Path(sysconfig.get_paths()["purelib"]).iterdir():  # torch and all dependencies, but not ourselves
            if not any(name in path.name for name in ("mop_kernels", "__editable__", "_virtualenv", "pycache")):
                (packages / path.name).symlink_to(path)
        command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--no-cache-dir"]
        command += ["--no-deps", f"--build-constraint={ROOT / 'constraints.txt'}", "--verbose", str(file)]
        hidden = ("PYTHONPATH", "VIRTUAL_ENV")
        variables = {k: v for k, v in os.environ.items() if k not in hidden and not k.startswith("MOP_")}
        variables |= {"PATH": os.pathsep.join(folders), "MOP_KERNELS_WITH_CUDA": "0"}
        start = time.monotonic()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=variables)
        seconds = time.monotonic() - start
        assert done.returncode == 0, done.stdout + done.stderr
        print(f"\ninstalled {file.name} in {seconds:.1f} s")
        return Environment(folder, seconds, done.stdout)

    return install
