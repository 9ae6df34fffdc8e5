"""Compiles the CUDA ops for the host, each CUDA thread a host thread (csrc/cuda/device.h); prints the library's path.

    MOP_KERNELS_EMULATE_CUDA=$(python tests/cuda/emulation.py) python -m pytest tests/kernels -k cuda

or `make emulate-cuda`. --sanitize address or thread: with that sanitizer, whose library must then be loaded first, as
`make emulate-cuda SANITIZE=address` does.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import ninja
import torch

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "csrc" / "cuda"
FLAGS = "-std=c++20 -O2 -g1 -fPIC -fvisibility=hidden -Wall -Wextra -Werror=return-type"


def build(sanitize: str | None = None, folder: Path = ROOT / "build") -> Path:
    """The library; compiled again only where a source has changed."""
    folder = folder / f"emulated_cuda{'_' + sanitize if sanitize else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    package = Path(torch.__file__).parent
    library = folder / "emulated_cuda.so"
    lines = [
        f"flags = {FLAGS} {f'-fsanitize={sanitize}' if sanitize else ''}",
        f"defines = -DMOP_EMULATE -DTORCH_TARGET_VERSION=0x020a000000000000 -isystem {package / 'include'}",
        "rule compile\n  command = c++ $flags $defines -x c++ -MMD -MF $out.d -c $in -o $out\n  depfile = $out.d",
        f"rule link\n  command = c++ $flags -shared $in -o $out -L{package / 'lib'} -ltorch_cpu -lpthread",
    ]
    objects = []
    for source in sorted([*CUDA.glob("*.cu"), *CUDA.glob("*.cpp")]):
        objects.append(f"{source.name}.o")
        lines.append(f"build {objects[-1]}: compile {source}")
    lines += [f"build {library.name}: link {' '.join(objects)}", ""]
    (folder / "build.ninja").write_text("\n".join(lines))
    command = [Path(ninja.BIN_DIR) / "ninja", "-C", str(folder), "--quiet"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return library


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitize", choices=("address", "thread"))
    print(build(parser.parse_args().sanitize))
