"""Build the sdist and the wheel of the last commit, in dist/. make dist runs this script, and then the tests beside it.

The wheel is built from the sdist, as pip builds it on a user's machine, with the versions of constraints.txt.
auditwheel names the oldest glibc that the wheel runs with: that of the machine that builds it, or an older one.
"""

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "build" / "release-tools" / "bin"
# torch's libraries come with torch, whose stable ABI the module uses
OF_TORCH = ("libtorch.so", "libtorch_cpu.so", "libc10.so")


def git(*arguments: str) -> str:
    """Return what git prints in this repository."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def make_sdist(workshop: Path) -> Path:
    """Return the sdist of the last commit, built in an empty folder. The same commit gives the same bytes."""
    source, made = workshop / "source", workshop / "sdist"
    source.mkdir(parents=True)
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(source, filter="data")
    # without modules, so that no compiler and no torch is searched
    command = [sys.executable, "setup.py", "--quiet", "sdist", f"--dist-dir={made}"]
    subprocess.run(command, cwd=source, check=True, env=os.environ | {"MOP_KERNELS_SKIP_BUILD": "1"})
    (sdist,) = made.iterdir()
    _fix_metadata(sdist, int(os.environ.get("SOURCE_DATE_EPOCH") or git("log", "-1", "--format=%ct")))
    return sdist


def _fix_metadata(sdist: Path, time: int) -> None:
    """Write an archive again, in order, with one time for all files and without the user's name and umask."""
    with tarfile.open(sdist) as archive:
        members = sorted(archive.getmembers(), key=lambda member: member.name)
        contents = [archive.extractfile(member).read() if member.isfile() else b"" for member in members]
    with (
        sdist.open("wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=time) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for member, content in zip(members, contents, strict=True):
            entry = tarfile.TarInfo(member.name)
            entry.type, entry.size, entry.mtime = member.type, len(content), time
            entry.mode = 0o755 if member.isdir() else 0o644
            archive.addfile(entry, io.BytesIO(content))


def make_wheel(sdist: Path, workshop: Path) -> Path:
    """Return the wheel of an sdist with the CPU kernels, without a manylinux tag."""
    folder = workshop / "wheel"
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-cache-dir", f"--wheel-dir={folder}"]
    command += [f"--build-constraint={ROOT / 'constraints.txt'}", str(sdist)]
    time = git("log", "-1", "--format=%ct")
    variables = {"MOP_KERNELS_WITH_CUDA": "0", "SOURCE_DATE_EPOCH": time}
    subprocess.run(command, check=True, cwd=workshop, env=os.environ | variables)
    (wheel,) = folder.iterdir()
    return wheel


def main() -> None:
    """Build both files. Changes that are not committed are left out."""
    if git("status", "--porcelain", "--untracked-files=no"):
        print("dist: changes that are not committed are left out")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir()
    with tempfile.TemporaryDirectory() as folder:
        sdist = Path(shutil.copy(make_sdist(Path(folder)), dist))
        wheel = make_wheel(sdist, Path(folder))
        excluded = [f"--exclude={name}" for name in OF_TORCH]
        repair = [str(TOOLS / "auditwheel"), "repair", *excluded, f"--wheel-dir={dist}", str(wheel)]
        path = os.pathsep.join([str(TOOLS), os.environ["PATH"]])  # with patchelf
        subprocess.run(repair, check=True, env=os.environ | {"PATH": path})
    for file in sorted(dist.iterdir()):
        print(f"dist: {file.name}, {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
