"""`python -m benchmarks.tables.run`: measure all tables and render the pages. `make tables` installs what it needs."""

import argparse
import os
import subprocess
import sys

from benchmarks.tables import render

ADAPTERS, LIBRARIES = "build/adapters", "build/tables/libraries"
# folder that comes first on PYTHONPATH, script, arguments
RUNS = [
    (LIBRARIES, "prefixes", ["--library", "peft"]),
    (ADAPTERS, "prefixes", ["--library", "adapters"]),
    ("", "prefixes", ["--library", "mop_t5"]),
    (LIBRARIES, "kronecker", []),
    (ADAPTERS, "kronecker", []),
    (ADAPTERS, "t5_versions", []),
    *((f"build/tables/transformers-{release}", "t5_versions", []) for release in ("5.15.0", "5.19.0", "5.24.0")),
    ("", "t5_versions", []),
    ("build/tables/rouge", "rouge", []),
    *((f"build/tables/{name}", "rouge", ["--rows", name]) for name in ("rouge_chinese", "py_rouge", "easy_rouge")),
]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables.run", description=__doc__)
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help="names of scripts (default: all)")
    wanted = parser.parse_args().scripts
    for folder, script, arguments in RUNS:
        if wanted and script not in wanted:
            continue
        print(folder or "the environment", script, *arguments, flush=True)
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
        command = [sys.executable, "-m", f"benchmarks.tables.{script}", *arguments]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    render.main()


if __name__ == "__main__":
    main()
