"""Run the same tests once per folder of packages, and print a table: `make matrix` and `make canary`.

Each folder stands before the installed packages. A folder whose tests fail does not hide the other folders.
"""

import argparse
import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("transformers", "tokenizers", "huggingface_hub", "accelerate", "torch")
COUNTS = ("passed", "failed", "errors", "skipped")


def versions(folder: Path) -> list[str]:
    """Return the versions that are imported if `folder` stands first."""
    found: dict[str, str] = {}
    for package in distributions(path=[str(folder), *sys.path]):
        found.setdefault(package.name.lower().replace("-", "_"), package.version)
    return [found.get(name, "-") for name in PACKAGES]


def run(folder: Path, tests: list[str]) -> tuple[list[str], list[str]]:
    """Run `tests` with the packages of `folder`.

    Returns:
        The counts, and the names of the tests that failed. The counts are empty where pytest wrote no results.
    """
    if not (folder / ".installed").exists():
        return [], ["not installed"]
    results = folder / "results.xml"
    results.unlink(missing_ok=True)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={results}", *tests]
    code = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, check=False).returncode
    if not results.exists():
        return [], [f"pytest ended with {code} and without results"]
    suite = next(ElementTree.parse(results).iter("testsuite"))
    total, failed, errors, skipped = (int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped"))
    cases = [
        case for case in suite.iter("testcase") if case.find("failure") is not None or case.find("error") is not None
    ]
    names = [f"{case.get('classname', '')}::{case.get('name')}" for case in cases]
    if code and not names:
        names = [f"pytest ended with {code}"]
    return [str(count) for count in (total - failed - errors - skipped, failed, errors, skipped)], names


def main() -> int:
    """Run all folders. Return 1 if the tests of a folder failed or did not run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "folders", nargs="+", type=Path, help="folders of `pip install --target`, with a file .installed"
    )
    parser.add_argument("--tests", nargs="+", default=["tests/t5"], help="what pytest runs")
    arguments = parser.parse_args()
    table, broken = [], []
    for folder in map(Path.resolve, arguments.folders):
        counts, names = run(folder, arguments.tests)
        table.append([*versions(folder), *(counts or ["-"] * len(COUNTS))])
        broken += [f"{folder.name}: {name}" for name in names]
    print(*broken, sep="\n")
    for row in ([*PACKAGES, *COUNTS], ["---"] * (len(PACKAGES) + len(COUNTS)), *table):
        print(f"| {' | '.join(row)} |")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
