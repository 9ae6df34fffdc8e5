"""Compile the extension modules. All other settings of the package are in pyproject.toml.

The modules use torch's stable ABI (torch >= 2.10). mop_kernels._C holds the CPU kernels. mop_kernels._C_cuda holds the
CUDA kernels. It is compiled if nvcc is found and torch was built with CUDA, with or without a GPU.

Without a C++ compiler the package installs without modules and prints a notice. The reference backend then computes
everything. An isolated build, by pip or by uv, compiles against the torch of the target environment. If that has no
torch, the build asks for the torch that constraints.txt pins. Environment variables:

    MOP_KERNELS_SKIP_BUILD=1     compile nothing
    MOP_KERNELS_WITH_CUDA=0      compile no CUDA kernels
    MOP_KERNELS_WITH_CUDA=1      compile them for a torch without CUDA, too; stop with an error if that is impossible
    CUDA_HOME                    the toolkit with nvcc; by default nvcc is searched on the PATH and in /usr/local/cuda
    TORCH_CUDA_ARCH_LIST         8.0;9.0+PTX by default; numbers below 8.0 or unknown to nvcc are left out with a notice
    CXX, MAX_JOBS                the C++ compiler, and the number of files that are compiled at once
"""

import functools
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

if int(setuptools.__version__.split(".")[0]) < 77:  # older releases cannot read the license line of pyproject.toml
    raise SystemExit(
        f"mop_kernels needs setuptools >= 77 to be built; found {setuptools.__version__}. Install it with: "
        "pip install --upgrade 'setuptools>=77', or build with isolation (without --no-build-isolation)."
    )

ROOT = Path(__file__).parent.resolve()
_AVX512 = (
    "-mavx2 -mfma -mavx512f -mavx512dq -mavx512bw -mavx512vl -mprefer-vector-width=512 "
    "-Wno-uninitialized -Wno-maybe-uninitialized"  # gcc warns of its own header
)
LEVEL_FLAGS = (
    {"level_avx2.cpp": "-mavx2 -mfma", "level_avx512.cpp": _AVX512} if platform.machine() in ("x86_64", "AMD64") else {}
)
SOURCES = sorted(
    f"csrc/cpu/{path.name}"
    for path in (ROOT / "csrc" / "cpu").glob("*.cpp")
    if not path.name.startswith("level_") or path.name in ("level_plain.cpp", *LEVEL_FLAGS)
)
COMPILER = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))), None)
OLDEST_TORCH = (2, 10)  # whose stable ABI the binary uses
OLDEST_PYTHON = "0x030b0000"  # whose limited API the binary uses
ONE_FOR_ALL_PYTHONS = not sysconfig.get_config_var("Py_GIL_DISABLED")  # a free-threaded Python has no limited API
CUDA_SOURCES = ["csrc/cuda/register_cuda_ops.cpp"] + sorted(
    f"csrc/cuda/{path.name}" for path in (ROOT / "csrc" / "cuda").glob("*.cu")
)


def why_no_module() -> str | None:
    """Return why nothing is compiled. Return None if a C++ compiler is found."""
    if os.environ.get("MOP_KERNELS_SKIP_BUILD") == "1":
        return "MOP_KERNELS_SKIP_BUILD=1"
    return None if COMPILER else "no C++ compiler was found; install g++ or clang++, or set CXX, and install again"


def find_nvcc() -> str | None:
    """Return the path of nvcc, or None."""
    home = os.environ.get("CUDA_HOME")
    if home:
        return shutil.which(f"{home}/bin/nvcc")
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


class Cuda(NamedTuple):
    """The decision on the CUDA kernels: the architectures that they are compiled for, or why they are not compiled."""

    architectures: list[str]
    why_not: str = ""
    notices: tuple[str, ...] = ()

    @property
    def decision(self) -> str:
        """Return the text for the log of this build and for mop_kernels.backends.build_info()."""
        if self.why_not:
            return f"not built: {self.why_not}"
        return f"built by nvcc {version_of(find_nvcc(), 'release (.*)')} for {';'.join(self.architectures)}"

    @property
    def flags(self) -> list[str]:
        """Return nvcc's flags. PTX serves later GPUs."""
        flags = []
        for name in self.architectures:
            number = name.removesuffix("+PTX").replace(".", "")
            kinds = ["sm", "compute"] if name.endswith("+PTX") else ["sm"]
            flags += [f"-gencode=arch=compute_{number},code={kind}_{number}" for kind in kinds]
        return flags


def decide_on_cuda() -> Cuda:
    """Return what nvcc compiles. Exit if MOP_KERNELS_WITH_CUDA=1 requests kernels that cannot be compiled."""
    asked = os.environ.get("MOP_KERNELS_WITH_CUDA", "")
    if asked not in ("", "0", "1"):
        raise SystemExit(f"MOP_KERNELS_WITH_CUDA must be 0 or 1, or not be set; got {asked!r}.")
    found = Cuda([], "MOP_KERNELS_WITH_CUDA=0") if asked == "0" else what_nvcc_can_do()
    torch = find_torch()
    if not (asked or found.why_not) and torch and cuda_of_torch(torch) is None:
        why = f"torch {version_of_torch(torch)} has no CUDA and cannot load them"
        return Cuda([], f"{why}; MOP_KERNELS_WITH_CUDA=1 builds them all the same")
    if asked == "1" and (found.why_not or found.notices):
        raise SystemExit(f"MOP_KERNELS_WITH_CUDA=1, but {'; '.join(filter(None, (found.why_not, *found.notices)))}.")
    return found


def what_nvcc_can_do() -> Cuda:
    """Return the architectures of TORCH_CUDA_ARCH_LIST that nvcc compiles for, or why it compiles nothing."""
    nvcc = find_nvcc()
    if nvcc is None:
        missing = "no nvcc was found in CUDA_HOME, on the PATH or in /usr/local/cuda"
        return Cuda([], f"{missing}; install the CUDA toolkit, or set CUDA_HOME")
    torch = find_torch()
    of_torch = cuda_of_torch(torch) if torch else None
    release = version_of(nvcc, r"release (\d+\.\d+)")
    if of_torch and of_torch.split(".")[0] != release.split(".")[0]:
        cure = f"set CUDA_HOME to a toolkit {of_torch.split('.')[0]}.x"
        return Cuda([], f"nvcc is of CUDA {release}, torch of CUDA {of_torch}, whose driver may not run it; {cure}")
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False).stdout
    known, taken, notices = re.findall(r"sm_(\w+)", listed), [], []
    for name in filter(None, re.split(r"[;,\s]+", ARCHITECTURES)):
        matched = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", name)
        if matched is None:
            notices.append(f"TORCH_CUDA_ARCH_LIST has {name!r}, which is no number like 9.0 or 9.0+PTX")
        elif int(matched.group(1)) < 8:
            notices.append(f"TORCH_CUDA_ARCH_LIST has {name}, and the CUDA kernels need 8.0 or later")
        elif known and "".join(matched.groups()[:2]) not in known:
            notices.append(f"TORCH_CUDA_ARCH_LIST has {name}, which nvcc {release} does not compile for")
        else:
            taken.append(name)
    why = "" if taken else f"TORCH_CUDA_ARCH_LIST={ARCHITECTURES!r} leaves no architecture; unset it for 8.0;9.0+PTX"
    return Cuda(taken, why, tuple(notices))


def as_path(path: Path) -> str:
    """Return a path, escaped for the build lines of ninja."""
    return re.sub(r"([$ :])", r"$\1", str(path))


def as_command(*words: str) -> str:
    """Return the words of a shell command, escaped for the variables of ninja."""
    return shlex.join(words).replace("$", "$$")


def version_of(tool: str, pattern: str = "(.*)") -> str:
    """Return the part of `tool --version` that matches the group of `pattern`."""
    text = subprocess.run([tool, "--version"], capture_output=True, text=True, check=False).stdout
    return re.search(pattern, text).group(1)


@functools.cache
def find_torch() -> Path | None:
    """Return the folder of torch in the target environment, or else in this (isolated) environment.

    Return None if no torch is found that is new enough to compile against.
    """
    script = "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    hidden = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}  # how pip hides an environment from a build
    tries = [(Path(sys.executable), hidden), *((folder / "bin" / "python", hidden) for folder in environments())]
    for python, variables in [*tries, (Path(sys.executable), None)]:
        if python.exists():
            run = subprocess.run([python, "-c", script], capture_output=True, text=True, env=variables)
            found = Path(run.stdout.strip())
            version = version_of_torch(found).split(".") if (found / "version.py").is_file() else (0, 0)
            if tuple(map(int, version[:2])) >= OLDEST_TORCH:
                return found
    return None


def environments() -> list[Path]:
    """Return the environments that may be the target of the installation, the most likely first.

    uv replaces the user's VIRTUAL_ENV by the environment of the build. An activated environment is still on the PATH.
    If none is activated, uv takes UV_PYTHON, CONDA_PREFIX, or the .venv of the folder that it was started in, or of a
    folder above.
    """
    active = Path(os.environ.get("VIRTUAL_ENV", sys.prefix))
    if "UV" not in os.environ:
        return [active]
    on_path = [Path(folder).parent for folder in os.get_exec_path() if Path(folder).name == "bin"]
    activated = [folder for folder in on_path if (folder / "pyvenv.cfg").is_file()]
    started_in = Path(os.environ.get("PWD", ROOT))
    named = [Path(os.environ[name]) for name in ("UV_PYTHON", "CONDA_PREFIX") if os.environ.get(name)]
    named = [folder.parent.parent if folder.is_file() else folder for folder in named]
    return [*activated, *named, *(folder / ".venv" for folder in (started_in, *started_in.parents)), *on_path]


def version_of_torch(folder: Path) -> str:
    """Return the version of the torch in this folder."""
    return re.search(r"__version__ = '([^']+)'", (folder / "version.py").read_text()).group(1)


def cuda_of_torch(folder: Path) -> str | None:
    """Return the release of CUDA that torch was built with. Return None for a torch without CUDA."""
    found = re.search(r"^cuda\b[^=]*= '(\d+\.\d+)'", (folder / "version.py").read_text(), re.MULTILINE)
    return found and found.group(1)


class NinjaBuild(build_ext):
    """Compile a module with ninja, each source by the rule of its suffix and with its own flags, and link it."""

    def run(self) -> None:
        """Choose the folder of the objects, and build all modules."""
        if self.inplace or self.editable_mode:  # keep the objects: the next build compiles only changed sources
            self.build_temp = str(ROOT / "build" / "inplace")
            built = {Path(self.get_ext_filename(extension.name)).name for extension in self.extensions}
            for module in (ROOT / "mop_kernels").glob("_C*.so"):
                if module.name not in built:  # of an earlier build; Python could prefer it
                    module.unlink()
        super().run()

    def build_extension(self, extension: Extension) -> None:
        """Write the build file of ninja for one module, and run ninja."""
        try:
            import ninja
        except ImportError as error:
            raise SystemExit("A build without isolation needs: pip install ninja.") from error

        torch = find_torch()
        if torch is None:
            raise SystemExit("mop_kernels needs torch >= 2.10 to compile against. Install it, then install again.")
        torch_version = version_of_torch(torch)
        compiler = version_of(COMPILER)
        with_cuda = extension.name.endswith("_cuda")
        defines = {
            "TORCH_TARGET_VERSION": "0x020a000000000000",  # torch 2.10: the oldest that this binary serves
            "MOP_TORCH_VERSION": f'"{torch_version}"',
            "MOP_COMPILER": f'"{compiler}"',
            "MOP_LEVELS": '"plain avx2 avx512"' if LEVEL_FLAGS else '"plain"',
        }
        if LEVEL_FLAGS:
            defines["MOP_X86_LEVELS"] = "1"
        common = [f"-D{name}={value}" for name, value in defines.items()] + ["-isystem", str(torch / "include")]
        module = ["-isystem", sysconfig.get_paths()["include"]]  # for the files that include Python.h
        if extension.py_limited_api:
            module.append(f"-DPy_LIMITED_API={OLDEST_PYTHON}")
        own_flags = {
            **LEVEL_FLAGS,
            "register_cpu_ops.cpp": as_command(*module, f'-DMOP_CUDA="{CUDA.decision}"'),
            "register_cuda_ops.cpp": as_command(*module),
        }
        flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror=return-type"]
        libraries = ["-L" + str(torch / "lib"), "-ltorch_cpu"]
        lines = [
            f"cxx = {as_command(COMPILER)}",
            f"flags = {as_command(*flags, *common)}",
            "rule compile\n  command = $cxx $flags $own -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d",
        ]
        link = "$cxx -shared"
        if with_cuda:
            # libtorch loads the library with the CUDA streams in a torch with CUDA, also if this torch has none
            libraries += ["-Xlinker", "--no-as-needed", "-ltorch"]
            host = "-fPIC,-fvisibility=hidden,-Wall,-Werror=return-type"
            nvcc_flags = ["-std=c++17", "-O3", "-DUSE_CUDA", "--expt-relaxed-constexpr", "-Xptxas=-v", *CUDA.flags]
            lines += [
                f"nvcc = {as_command(find_nvcc())} -ccbin $cxx",
                f"nvcc_flags = {as_command(*nvcc_flags, '-Xcompiler=' + host, *common)}",
                # ptxas reports each kernel's registers, spills and shared memory; tests/cuda reads the reports
                "rule compile_cuda\n  command = $nvcc $nvcc_flags -MMD -MF $out.d -c $in -o $out >$out.ptxas 2>&1 || "
                "{ cat $out.ptxas; exit 1; }\n  depfile = $out.d",
            ]
            link = "$nvcc -shared"
        lines += [
            f"libraries = {as_command(*libraries)}",
            f"rule link\n  command = rm -f $out && {link} $in -o $out $libraries",
        ]

        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        folder = Path(self.build_temp).resolve() / extension.name
        folder.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        objects = []
        for source in extension.sources:
            path = Path(source)
            objects.append(f"{path.name}.o")
            rule = "compile_cuda" if path.suffix == ".cu" else "compile"
            lines += [f"build {objects[-1]}: {rule} {as_path(ROOT / path)}", f"  own = {own_flags.get(path.name, '')}"]
        lines += [f"build {as_path(target)}: link {' '.join(objects)}", ""]
        (folder / "build.ninja").write_bytes(os.fsencode("\n".join(lines)))
        print(
            f"mop_kernels: compiling {extension.name} with {compiler} for torch {torch_version} and newer", flush=True
        )
        jobs = [f"-j{os.environ['MAX_JOBS']}"] if os.environ.get("MAX_JOBS") else []
        done = subprocess.run([Path(ninja.BIN_DIR) / "ninja", "-C", str(folder), *jobs])
        if done.returncode != 0:
            cure = " MOP_KERNELS_WITH_CUDA=0 installs without the CUDA kernels." if with_cuda else ""
            raise SystemExit(f"{extension.name} could not be compiled; the compiler's message is above.{cure}")


ARCHITECTURES = os.environ.get("TORCH_CUDA_ARCH_LIST") or "8.0;9.0+PTX"
CUDA = decide_on_cuda()
reason = why_no_module()
if reason is not None:
    print(f"mop_kernels: installing without compiled kernels ({reason}); the reference backend computes everything.")
else:
    print(f"mop_kernels: CUDA kernels: {CUDA.decision}")
    for notice in CUDA.notices:
        print(f"mop_kernels: {notice}: it is left out")
modules = {"mop_kernels._C": SOURCES} | ({} if CUDA.why_not else {"mop_kernels._C_cuda": CUDA_SOURCES})
extensions = [] if reason else [Extension(*item, py_limited_api=ONE_FOR_ALL_PYTHONS) for item in modules.items()]
one_wheel_for_all = bool(extensions) and all(extension.py_limited_api for extension in extensions)
pinned = re.search(r"^torch==\S+", (ROOT / "constraints.txt").read_text(), re.MULTILINE).group(0)
asks_for_torch = reason is None and find_torch() is None
if asks_for_torch:
    print(
        f"mop_kernels: no torch >= 2.10 was found to compile against, so the build installs {pinned} for itself. To "
        "compile against your own, activate its environment first, or pass --no-build-isolation."
    )
setup(
    packages=["mop_kernels", "mop_kernels.acceleration", "mop_kernels.triton_kernels"]
    + [
        str(p.parent.relative_to(ROOT / "python")).replace(os.sep, ".")
        for p in sorted((ROOT / "python").rglob("__init__.py"))
    ],
    package_dir={name: f"python/{name}" for name in ("mop_t5", "mop_lab")},
    package_data={
        "mop_kernels": ["py.typed", "*.json", "crossover/*.json"],
        "mop_kernels.triton_kernels": ["configs/*.json"],
        "mop_t5.cli": ["commands.json"],
        "mop_t5.data": ["synthetic.json", "published/*.yaml"],
        "mop_t5.serving": ["page.html"],
        "mop_lab.commands": ["commands.json"],
        "mop_lab.report": ["page.html", "page.css", "page.js"],
    },
    ext_modules=extensions,
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if one_wheel_for_all else {},
    cmdclass={"build_ext": NinjaBuild},
    setup_requires=[pinned] if asks_for_torch else [],
)
