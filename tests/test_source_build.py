"""How setup.py builds: in a folder of any name, and against the torch of the environment that is installed into."""

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from errors import says

pytest.importorskip("ninja")
setuptools = pytest.importorskip("setuptools")

ROOT = Path(__file__).resolve().parents[1]
# makes its output file and the list of headers; each source has one, whose name a compiler would escape
COMPILER = """#!/bin/sh
[ "$1" = --version ] && { echo "compiler, release 1.0"; exit; }
while [ $# -gt 0 ]; do case "$1" in -o) out=$2; shift;; -MF) headers=$2; shift;; esac; shift; done
: > "$out"
[ -z "$headers" ] || echo "$out:" > "$headers"
"""


@pytest.fixture
def source(tmp_path):
    """source(name): what a build reads, in a folder of that name."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        for package in ("acceleration", "triton_kernels"):
            (folder / "mop_kernels" / package).mkdir(parents=True)
        shutil.copy(ROOT / "mop_kernels" / "__init__.py", folder / "mop_kernels")  # the version
        (folder / "python").mkdir()
        for file in ("setup.py", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
            shutil.copy(ROOT / file, folder)
        shutil.copytree(ROOT / "csrc", folder / "csrc")
        return folder

    return make


def run(command: list, folder: Path, **variables: str) -> subprocess.CompletedProcess:
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "CONDA_PREFIX", "UV", "UV_PYTHON", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME")
    kept = {k: v for k, v in os.environ.items() if k not in hidden and not k.startswith("MOP_KERNELS")}
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**kept, "PWD": str(folder), **variables}, check=False
    )


@pytest.mark.parametrize("name", ["my drive", "a:b$c ${HOME}", 'it\'s "(new)" & #2 路径'])
def test_a_folder_of_any_name(name, source):
    """The folder holds the source, the target, the compilers and the objects."""
    folder = source(name)
    for compiler in (folder / "tools" / "c++", folder / "tools" / "bin" / "nvcc"):
        compiler.parent.mkdir(parents=True, exist_ok=True)
        compiler.write_text(COMPILER)
        compiler.chmod(0o755)
    tools = {"CUDA_HOME": str(folder / "tools"), "PATH": f"{folder / 'tools'}:{os.environ['PATH']}"}
    tools["MOP_KERNELS_WITH_CUDA"] = "1"
    if ":" in name:  # no folder of a PATH; setuptools itself reads CXX as words, so a quote is not for CXX
        tools |= {"CXX": str(folder / "tools" / "c++"), "PATH": os.environ["PATH"]}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    logs = [run(command, folder, **tools) for _ in range(2)]
    assert [log.returncode for log in logs] == [0, 0], logs[0].stdout + logs[0].stderr
    assert len(list((folder / "mop_kernels").glob("*.so"))) == 2
    assert len(list((folder / "build" / "inplace").rglob("*.o"))) > 10
    assert logs[1].stdout.count("no work to do") == 2  # ninja found all outputs under the names that it knows


@pytest.fixture(scope="module")
def build_requirements(tmp_path_factory) -> Path:
    """A folder for PYTHONPATH, as the one that an isolated build has: setuptools, and no torch."""
    folder = tmp_path_factory.mktemp("build-requirements")
    for path in Path(setuptools.__file__).parents[1].glob("setuptools*"):  # the package and its version
        (folder / path.name).symlink_to(path)
    return folder


def environment_with_torch(folder: Path, version: str, cuda: str | None = None) -> Path:
    venv.create(folder, symlinks=True)
    (site_packages,) = folder.glob("lib/*/site-packages")
    (site_packages / "torch").mkdir()
    (site_packages / "torch" / "__init__.py").touch()
    lines = [f"__version__ = {version!r}", "debug = False", f"cuda: Optional[str] = {cuda!r}", ""]
    (site_packages / "torch" / "version.py").write_text("\n".join(lines))
    return folder


ASK = "from setuptools import build_meta; print(build_meta.get_requires_for_build_wheel())"


@pytest.mark.parametrize(
    ("place", "variables", "finds"),
    [
        ("environment", {"VIRTUAL_ENV": "environment"}, True),  # pip, and uv without isolation
        ("environment", {"UV": "uv", "VIRTUAL_ENV": "build", "PATH": "environment"}, True),  # uv, activated
        ("environment", {"UV": "uv", "VIRTUAL_ENV": "build", "CONDA_PREFIX": "environment"}, True),
        ("environment", {"UV": "uv", "VIRTUAL_ENV": "build", "UV_PYTHON": "environment"}, True),
        (".venv", {"UV": "uv", "VIRTUAL_ENV": "build"}, True),  # uv takes it from the folder that it is started in
        ("environment", {"UV": "uv", "VIRTUAL_ENV": "build"}, False),
        ("environment", {"VIRTUAL_ENV": "build", "PATH": "environment"}, False),  # not uv: what is active counts
        ("old", {"VIRTUAL_ENV": "old"}, False),
    ],
)
def test_the_torch_of_the_environment_that_is_installed_into(
    place, variables, finds, source, build_requirements, tmp_path
):
    folder = source("source")
    version = "2.9.1" if place == "old" else "2.12.0+cpu"
    environment_with_torch((folder if place == ".venv" else tmp_path) / place, version)

    values = {name: value if name == "UV" else str(tmp_path / value) for name, value in variables.items()}
    values["PATH"] = os.pathsep.join([f"{values['PATH']}/bin"] if "PATH" in values else []) + ":/usr/bin:/bin"
    values |= {"PYTHONPATH": str(build_requirements), "CXX": "true", "MOP_KERNELS_WITH_CUDA": "0"}
    asked = run([sys._base_executable, "-c", ASK], folder, **values)
    assert asked.returncode == 0, asked.stderr
    pinned = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
    assert asked.stdout.splitlines()[-1] == ("[]" if finds else f"[{pinned!r}]")
    assert ("activate" in asked.stdout) is not finds


def test_an_old_setuptools_gets_a_sentence(source, tmp_path):
    old = tmp_path / "old" / "setuptools"
    (old / "command").mkdir(parents=True)
    (old / "__init__.py").write_text("__version__ = '76.1.0'\nExtension = setup = None\n")
    (old / "command" / "__init__.py").touch()
    (old / "command" / "build_ext.py").write_text("build_ext = object\n")
    said = run([sys.executable, "setup.py", "build"], source("source"), PYTHONPATH=str(old.parent))
    assert said.returncode == 1
    assert said.stderr.startswith("mop_kernels needs setuptools >= 77 to be built; found 76.1.0. Install it with: pip")
    assert "Traceback" not in said.stderr


NVCC = """#!/bin/sh
case "$1" in
  --version) echo "nvcc, release 12.8, V12.8.93" ;;
  --list-gpu-code) echo "sm_75 sm_80 sm_86 sm_90 sm_90a" ;;
esac
"""


@pytest.fixture
def nvcc(build_requirements, tmp_path) -> dict[str, str]:
    """The variables of a build that finds this nvcc."""
    path = tmp_path / "toolkit" / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(NVCC)
    path.chmod(0o755)
    return {"CUDA_HOME": str(tmp_path / "toolkit"), "PYTHONPATH": str(build_requirements), "CXX": "true"}


def test_a_torch_without_cuda_gets_the_cuda_kernels_only_if_asked(source, nvcc, tmp_path):
    values = nvcc | {"VIRTUAL_ENV": str(environment_with_torch(tmp_path / "environment", "2.12.0+cpu"))}
    command, folder = [sys._base_executable, "setup.py", "--version"], source("source")
    plain = run(command, folder, **values)
    (line,) = [line for line in plain.stdout.splitlines() if "CUDA kernels" in line]
    says(line, "not built", "torch 2.12.0+cpu", "MOP_KERNELS_WITH_CUDA=1")
    asked = run(command, folder, **values, MOP_KERNELS_WITH_CUDA="1")
    assert "mop_kernels: CUDA kernels: built by nvcc 12.8, V12.8.93 for 8.0;9.0+PTX" in asked.stdout


def test_a_build_in_place_leaves_no_module_of_an_earlier_build(source):
    folder = source("source")
    compiler = folder / "c++"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    stale = folder / "mop_kernels" / "_C_cuda.abi3.so"
    stale.touch()
    built = run([sys.executable, "setup.py", "build_ext", "--inplace"], folder, CXX=str(compiler), CUDA_HOME="none")
    assert built.returncode == 0, built.stderr
    assert list((folder / "mop_kernels").glob("_C.*.so"))
    assert not stale.exists()


BELOW = "TORCH_CUDA_ARCH_LIST has 7.{}, and the CUDA kernels need 8.0 or later"
NO_NUMBER = "TORCH_CUDA_ARCH_LIST has 'Hopper', which is no number like 9.0 or 9.0+PTX"
UNKNOWN = "TORCH_CUDA_ARCH_LIST has 12.0, which nvcc 12.8 does not compile for"
NONE_LEFT = "TORCH_CUDA_ARCH_LIST='7.0;7.5' leaves no architecture; unset it for 8.0;9.0+PTX"
ANOTHER = "nvcc is of CUDA 12.8, torch of CUDA 13.0, whose driver may not run it; set CUDA_HOME to a toolkit 13.x"


@pytest.mark.parametrize(
    ("listed", "torch_cuda", "compiled_for", "said"),
    [
        ("", "12.8", "8.0;9.0+PTX", []),
        ("7.5;8.0;8.6", "12.4", "8.0;8.6", [BELOW.format(5)]),
        ("7.0 7.5 8.0 9.0a+PTX,", "12.8", "8.0;9.0a+PTX", [BELOW.format(0), BELOW.format(5)]),
        ("8.0;Hopper", "12.8", "8.0", [NO_NUMBER]),
        ("9.0;12.0+PTX", "12.8", "9.0", [UNKNOWN.replace("12.0", "12.0+PTX")]),
        ("7.0;7.5", "12.8", None, [NONE_LEFT, BELOW.format(0), BELOW.format(5)]),
        ("", "13.0", None, [ANOTHER]),
    ],
)
def test_what_nvcc_compiles_for(listed, torch_cuda, compiled_for, said, source, nvcc, tmp_path):
    """What it cannot is left out, and said; it is an error only where the CUDA kernels were asked for."""
    values = nvcc | {"VIRTUAL_ENV": str(environment_with_torch(tmp_path / "environment", "2.12.0", torch_cuda))}
    command, folder = [sys._base_executable, "setup.py", "--version"], source("source")
    found = run(command, folder, **values, TORCH_CUDA_ARCH_LIST=listed)
    assert found.returncode == 0, found.stderr
    decision = f"built by nvcc 12.8, V12.8.93 for {compiled_for}" if compiled_for else "not built: "
    assert f"mop_kernels: CUDA kernels: {decision}" in found.stdout
    assert all(sentence in found.stdout for sentence in said)
    assert found.stdout.count("TORCH_CUDA_ARCH_LIST has ") == sum("LIST has" in sentence for sentence in said)
    asked = run(command, folder, **values, TORCH_CUDA_ARCH_LIST=listed, MOP_KERNELS_WITH_CUDA="1")
    assert (asked.returncode != 0) == bool(said), asked.stderr
    assert not said or asked.stderr.startswith(f"MOP_KERNELS_WITH_CUDA=1, but {said[0]}")


def test_the_headers_of_the_oldest_torch_have_every_macro():
    """The module is compiled against any torch from 2.10 on. `make matrix-torch` does compile it against 2.10."""
    of_2_10 = {"STABLE_TORCH_LIBRARY_FRAGMENT", "STABLE_TORCH_LIBRARY_IMPL", "STD_TORCH_CHECK", "TORCH_BOX"}
    sources = [path.read_text() for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    used = {name for text in sources for name in re.findall(r"\b([A-Z_]*TORCH_[A-Z_]+)\(", text)}
    assert used <= of_2_10, f"not in torch 2.10: {used - of_2_10}"
    assert "TORCH_BOX" in used
