"""What is compiled: mop_kernels._C, the CPU kernels on torch's stable ABI (torch >= 2.10). All else: pyproject.toml.

Where no C++ compiler is found the package installs without the module and says so; the reference backend then computes
everything. MOP_KERNELS_SKIP_BUILD=1 asks for that. An isolated build compiles against the torch of the environment
that is installed into; only where there is none it asks for the one that constraints.txt pins.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
LEVEL_FLAGS = {"level_avx2.cpp": "-mavx2 -mfma"} if platform.machine() in ("x86_64", "AMD64") else {}
SOURCES = ["csrc/register_ops.cpp"] + sorted(
    f"csrc/cpu/{path.name}"
    for path in (ROOT / "csrc" / "cpu").glob("*.cpp")
    if not path.name.startswith("level_") or path.name in ("level_plain.cpp", *LEVEL_FLAGS)
)
COMPILER = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None)


def why_no_module() -> str | None:
    if os.environ.get("MOP_KERNELS_SKIP_BUILD") == "1":
        return "MOP_KERNELS_SKIP_BUILD=1"
    return None if COMPILER else "no C++ compiler was found; install g++ or clang++, or set CXX, and install again"


def find_torch() -> Path | None:
    """The folder of torch: in the environment that is installed into, otherwise in this (perhaps isolated) one."""
    script = "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    hidden = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # how pip hides an environment from a build
    active = Path(os.environ.get("VIRTUAL_ENV", sys.prefix)) / "bin" / "python"
    for python, environment in ((sys.executable, hidden), (active, hidden), (sys.executable, None)):
        if Path(python).exists():
            run = subprocess.run([python, "-c", script], capture_output=True, text=True, env=environment)
            if run.stdout.strip():
                return Path(run.stdout.strip())
    return None


class NinjaBuild(build_ext):
    """Compiles with ninja, each level of vector instructions with its own flags, and links one module."""

    def build_extension(self, extension: Extension) -> None:
        try:
            import ninja
            import pybind11
        except ImportError as error:
            raise RuntimeError("A build without isolation needs: pip install ninja pybind11 wheel.") from error

        torch = find_torch()
        if torch is None:
            raise RuntimeError("mop_kernels needs torch to compile against: pip install torch, then install again.")
        torch_version = re.search(r"__version__ = '([^']+)'", (torch / "version.py").read_text()).group(1)
        compiler = subprocess.run([COMPILER, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
        defines = {
            "TORCH_TARGET_VERSION": "0x020a000000000000",  # torch 2.10: the oldest that this binary serves
            "MOP_TORCH_VERSION": f'"{torch_version}"',
            "MOP_COMPILER": f'"{compiler}"',
            "MOP_LEVELS": '"plain avx2"' if LEVEL_FLAGS else '"plain"',
        }
        if LEVEL_FLAGS:
            defines["MOP_WITH_AVX2"] = "1"
        includes = [torch / "include", pybind11.get_include(), sysconfig.get_paths()["include"]]
        flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror=return-type"]
        flags += [f"-D{name}={value}" for name, value in defines.items()]
        flags += [part for path in includes for part in ("-isystem", str(path))]

        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        folder = Path(self.build_temp).resolve() / "ninja"
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f"cxx = {COMPILER}",
            f"flags = {shlex.join(flags)}".replace("$", "$$"),
            f"libraries = -L{torch / 'lib'} -ltorch_cpu",
            "rule compile\n  command = $cxx $flags $level -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d",
            "rule link\n  command = rm -f $out && $cxx -shared $in -o $out $libraries",
        ]
        objects = []
        for source in extension.sources:
            name = Path(source).name
            objects.append(str(folder / f"{name}.o"))
            lines += [f"build {objects[-1]}: compile {ROOT / source}", f"  level = {LEVEL_FLAGS.get(name, '')}"]
        lines += [f"build {target}: link {' '.join(objects)}", ""]
        (folder / "build.ninja").write_text("\n".join(lines))
        print(f"mop_kernels: compiling the CPU kernels with {compiler} for torch {torch_version} and newer", flush=True)
        subprocess.run([Path(ninja.BIN_DIR) / "ninja", "-C", str(folder)], check=True)


reason = why_no_module()
if reason is not None:
    print(f"mop_kernels: installing without compiled kernels ({reason}); the reference backend computes everything.")
pinned = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(0)
setup(
    packages=["mop_kernels", "mop_kernels.triton_kernels"]
    + [
        str(p.parent.relative_to(ROOT / "python")).replace(os.sep, ".")
        for p in sorted((ROOT / "python").rglob("__init__.py"))
    ],
    package_dir={"mop_t5": "python/mop_t5"},
    package_data={"mop_kernels.triton_kernels": ["configs/*.json"]},
    ext_modules=[] if reason else [Extension("mop_kernels._C", SOURCES)],
    cmdclass={"build_ext": NinjaBuild},
    setup_requires=[] if reason or find_torch() else [pinned],
)
