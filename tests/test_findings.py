"""The scripts of findings/ and their table. Nothing is installed here: `make findings` runs the scripts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "findings").glob("*.sh"))
RUN = ROOT / "findings/run.py"


def test_each_script_has_a_row():
    """The table of findings/README.md has each script once, with the versions that the script installs."""
    table = (ROOT / "findings/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+\.sh)` \| ([^|]+) \|", table, re.MULTILINE)
    assert sorted(name for name, _ in rows) == [script.name for script in SCRIPTS]
    for name, versions in rows:
        text = (ROOT / "findings" / name).read_text(encoding="utf-8")
        for version in re.findall(r"\d+(?:\.\d+)+", versions):
            assert re.search(rf"(?<![\d.]){re.escape(version)}(?![\d.]*\d)", text), f"{name} does not install {version}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_a_finding(script):
    """A script parses, stops at the first error, removes its folder, pins its packages and leaves this project out."""
    text = script.read_text(encoding="utf-8")
    subprocess.run(["bash", "-n", script], check=True)
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "set -euo pipefail" in text
    assert "trap 'rm -rf \"$folder\"' EXIT" in text
    assert re.search(r"pip install .*==", text)
    assert not re.search(r"\bmop_(kernels|t5|lab)\b|mop-kernels", text)


def test_the_runner_tells_the_results_apart(tmp_path):
    """A failure does not stop the scripts after it, and a changed behaviour makes the whole run fail."""
    bodies = {
        "a_changed": "echo 'AssertionError: changed'; exit 1",
        "b_missing": "echo 'ERROR: No matching distribution found for torch==0'; exit 1",
        "c_conflict": 'echo "ERROR: pip\'s dependency resolver says no"; exit 1',
        "d_same": "echo seen",
    }
    for name, body in bodies.items():
        (tmp_path / f"{name}.sh").write_text(body)
    (tmp_path / "README.md").write_text("| `d_same.sh` | jieba 0.42.1 | what it shows |\n")
    (tmp_path / "run.py").write_text(RUN.read_text(encoding="utf-8"))

    def run(*names):
        process = subprocess.run([sys.executable, tmp_path / "run.py", *names], capture_output=True, text=True)
        lines = [re.split(r"\s{2,}", line) for line in process.stdout.splitlines()]
        return process.returncode, {line[0]: tuple(line[1:3]) for line in lines if line[0] in bodies}

    status, rows = run()
    assert status == 1
    assert {name: result for name, (_, result) in rows.items()} == {
        "a_changed": "changed",
        "b_missing": "could not install",
        "c_conflict": "changed",
        "d_same": "still so",
    }
    assert rows["d_same"][0] == "jieba 0.42.1"
    assert run("b_missing", "d_same.sh")[0] == 0
    assert run("nothing") == (2, {})
