"""Run the findings one after the other and print a table: `make findings`, or `python findings/run.py NAME ...`."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIMIT = 1800  # seconds per script
# pip prints this line for a conflict, too, and goes on
CONFLICT = "pip's dependency resolver"


def versions() -> dict[str, str]:
    """Return the versions of each script by its name, from the table of README.md."""
    rows = re.findall(
        r"^\| `(\w+)\.sh` \| ([^|]+) \|", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    return dict(rows)


def verdict(status: int, output: str) -> str:
    """Return what the exit status and the output of a script say about its finding."""
    if status == 0:
        return "still so"
    errors = [line for line in output.splitlines() if line.startswith("ERROR: ") and CONFLICT not in line]
    if errors and "Traceback (most recent call last)" not in output:
        return "could not install"
    return "changed"


def run(name: str) -> tuple[str, str]:
    """Run one script and return its verdict and its output."""
    command = ["bash", str(FOLDER / f"{name}.sh")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # the script removes its folder
        output, _ = process.communicate()
        return f"no result in {LIMIT} s", output
    return verdict(process.returncode, output), output


def main(names: list[str]) -> int:
    """Run `names`, or all scripts, and return 1 if a finding has changed or gave no result."""
    known = sorted(path.stem for path in FOLDER.glob("*.sh"))
    names = [name.removesuffix(".sh") for name in names] or known
    if unknown := sorted(set(names) - set(known)):
        print(f"FINDINGS must be names of scripts in findings/; got {unknown}. The scripts: {' '.join(known)}")
        return 2
    rows = []
    for name in names:
        start = time.monotonic()
        seen, output = run(name)
        rows.append((name, versions().get(name, "no row in README.md"), seen, f"{time.monotonic() - start:.0f}"))
        if seen != "still so":
            print(f"--- {name}: {seen}\n{output}", flush=True)
        print(f"{name}: {seen}", file=sys.stderr, flush=True)
    head = ("name", "versions", "result", "seconds")
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return int(any(seen not in ("still so", "could not install") for _, _, seen, _ in rows))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
