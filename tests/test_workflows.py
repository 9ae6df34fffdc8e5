"""The workflows call targets that exist, name every action by a commit, and may write nothing by default."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.search(r"^\.PHONY:((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1).split())


def jobs_of(path: Path) -> dict[str, dict]:
    return yaml.safe_load(path.read_text())["jobs"]


def steps_of(path: Path) -> list[dict]:
    return [step for job in jobs_of(path).values() for step in job.get("steps", ())]


def test_there_are_workflows():
    assert {path.stem for path in WORKFLOWS} == {"tests", "wheels", "docs", "publish", "nightly"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_commands_exist(path):
    runs = " ".join(step.get("run", "") for step in steps_of(path))
    called = re.findall(r"\bmake (\S+)", runs.replace('"$TARGET"', ""))
    for job in jobs_of(path).values():
        called += job.get("strategy", {}).get("matrix", {}).get("target", [])
    assert set(called) <= TARGETS
    files = [word for word in runs.split() if word.startswith((".ci/", "tests/"))]
    assert all((ROOT / name).is_file() for name in files)
    assert called or files or path.stem == "publish"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_named_by_a_commit(path):
    used = [step["uses"] for step in steps_of(path) if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name) for name in used)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_token_may_read_and_nothing_else(path):
    assert yaml.safe_load(path.read_text())["permissions"] == {"contents": "read"}
    granted = {name: job["permissions"] for name, job in jobs_of(path).items() if "permissions" in job}
    identity = {"id-token": "write"}
    may = {"publish": {"publish": identity}, "docs": {"deploy": identity | {"pages": "write"}}}
    assert granted == may.get(path.stem, {})
