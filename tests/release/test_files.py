"""What lies in the sdist and in the wheel: every file of the packages, nothing else, and the same bytes each time."""

import re
import subprocess
import tarfile
import zipfile

import pytest
from make_dist import TOOLS, git, make_sdist

BUILT_FROM = {"setup.py", "pyproject.toml", "MANIFEST.in", "constraints.txt"}
PAGES = {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
MEGABYTE = 1_000_000


def tracked(*folders: str) -> set[str]:
    return set(git("ls-files", *folders).splitlines())


def tool(name: str, *arguments: object) -> str:
    done = subprocess.run([TOOLS / name, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_sdist_holds_what_a_build_reads(sdist):
    with tarfile.open(sdist) as archive:
        files = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
    metadata = {name for name in files if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    assert files - metadata == tracked("csrc", "mop_kernels", "python") | BUILT_FROM | PAGES
    assert sdist.stat().st_size < MEGABYTE


def test_the_same_commit_gives_the_same_sdist(sdist, tmp_path):
    assert make_sdist(tmp_path).read_bytes() == sdist.read_bytes()


def test_the_wheel_holds_the_packages_and_one_module(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
    (metadata,) = {name.split("/")[0] for name in files if ".dist-info/" in name}
    about = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE")
    packages = {name.removeprefix("python/") for name in tracked("mop_kernels", "python")}
    assert files == packages | {"mop_kernels/_C.abi3.so"} | {f"{metadata}/{name}" for name in about}
    assert wheel.stat().st_size < 2 * MEGABYTE


def test_one_wheel_serves_every_python_and_many_linuxes(wheel):
    """auditwheel found the tag of the platform, and abi3audit finds no symbol of a later Python."""
    assert re.search(r"-cp311-abi3-manylinux_2_\d+_(x86_64|aarch64)\.whl$", wheel.name)
    said = tool("auditwheel", "show", wheel)
    assert "libstdc++.so.6" in said, "the one C++ library of torch and of the module"
    tool("abi3audit", "--strict", wheel)


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_an_index_takes_it(kind, request):
    tool("twine", "check", "--strict", request.getfixturevalue(kind))


def test_nothing_of_a_wheel_is_out_of_place(wheel):
    tool("check-wheel-contents", "--ignore=W009", wheel)  # W009: the three packages are meant
