"""`make gpu` as far as a machine without a GPU can show it: its steps, their time, and what it leaves on disk."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_run
from benchmarks.support import gpu_steps, results
from benchmarks.support.gpu_steps import Step

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def workshop(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_steps, "WORKSHOP", tmp_path)
    monkeypatch.setattr(gpu_steps, "measured_file", lambda name: tmp_path / f"{name}.json")
    monkeypatch.delenv("OUT", raising=False)


def python(script: str, **kwargs) -> Step:
    return Step("a step", [sys.executable, "-c", script], **{"seconds": 60, **kwargs})


def run(step: Step, seconds: float = 60) -> dict:
    (found,) = gpu_run.run(step, seconds)
    return found


def test_a_step_ends_as_it_ends(capsys):
    assert run(python("pass"))["outcome"] == "ok"
    assert run(python("print('why'); raise SystemExit(3)"))["outcome"] == "failed, status 3"
    assert "why" in capsys.readouterr().out
    assert run(Step("a step", [], left_out="not found"))["why"] == "not found"
    assert run(python("print('| a table |')", tells=True))["output"] == ["| a table |"]


def test_a_step_out_of_time_is_ended_with_its_children():
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    start = time.monotonic()
    assert run(python(script), 2)["outcome"] == "out of time"
    assert time.monotonic() - start < 30


def test_two_steps_at_once():
    both = python("import time; time.sleep(60)", beside=Step("b", [sys.executable, "-c", "pass"]))
    first, second = gpu_run.run(both, 3)
    assert (first["outcome"], second["outcome"]) == ("out of time", "ok")


def test_a_command_knows_how_long_it_may_take():
    step = python("import sys; sys.exit(int(sys.argv[1]))")
    step.command.append(gpu_steps.SECONDS)
    assert run(step, 60)["outcome"] == f"failed, status {60 - gpu_steps.START}"


# Nine minutes, by a clock that only the steps move.


class Clock:
    """The time, and processes that take as long as `durations` says, otherwise as long as they may. ending: the seconds
    until a process that is ended is gone."""

    def __init__(self, ending: float = 0.0, **durations: float):
        self.now, self.durations, self.limits, self.began, self.ending = 0.0, durations, {}, {}, ending
        self.cuda = True

    def end(self, process) -> None:
        self.now += self.ending

    def begin(self, step: Step, seconds: float):
        self.limits[step.name], self.began[step.name] = seconds, self.now
        return Process(self, self.now + self.durations.get(step.name.replace(" ", "_"), float("inf")))


class Process:
    def __init__(self, clock: Clock, ends: float):
        self.clock, self.ends = clock, ends

    def wait(self, seconds: float) -> int:
        if self.ends > self.clock.now + seconds:
            self.clock.now += seconds
            raise subprocess.TimeoutExpired("a step", seconds)
        self.clock.now = max(self.clock.now, self.ends)
        return 0


@pytest.fixture
def run_by(monkeypatch):
    """run_by(clock, seconds): run all steps of a GPU where everything is installed."""

    def run(clock: Clock, seconds: float = gpu_steps.TOTAL, tune: bool = False) -> dict[str, dict]:
        monkeypatch.setattr(gpu_steps, "installed", lambda module: True)
        monkeypatch.setattr(gpu_steps.shutil, "which", lambda tool, path=None: f"/bin/{tool}")
        monkeypatch.setattr(gpu_run, "clock", lambda: clock.now)
        monkeypatch.setattr(gpu_run, "begin", clock.begin)
        monkeypatch.setattr(gpu_run, "end", clock.end)
        monkeypatch.setattr(gpu_steps, "cuda_is_built", lambda: clock.cuda)
        steps = gpu_steps.steps((9, 0), tune)
        kept = []
        found = gpu_run.run_all(steps, seconds - gpu_steps.RESERVE, lambda found: kept.append(len(found)))
        assert kept == sorted(kept)
        assert {*range(2, len(found) + 1)} <= {*kept}, "kept after each step"
        return {step["name"]: step for step in found}

    return run


NAMES = ["build", "warm", "check", "graphs and streams", "tune", "bank", "racecheck", "memcheck", "tests", "crossover"]
NAMES += ["peers", "more than 2^31 elements", "sharding"]


def test_steps_that_take_all_they_may_end_in_nine_minutes(run_by):
    clock = Clock()
    found = run_by(clock)
    assert list(found) == NAMES
    assert {step["outcome"] for name, step in found.items() if name != "tune"} == {"out of time"}
    assert found["tune"]["why"] == "not asked for"
    bounds = sum(seconds for name, seconds in clock.limits.items() if name != "warm")  # beside the build
    assert bounds == pytest.approx(clock.now)
    assert bounds <= gpu_steps.TOTAL - gpu_steps.RESERVE
    for step in gpu_steps.steps((9, 0), False):
        assert step.seconds <= clock.limits.get(step.name, 0), "its share"
        assert step.least <= step.seconds or not step.command
    shares = sum(step.seconds for step in gpu_steps.steps((9, 0), False))
    assert shares + gpu_steps.START + gpu_steps.RESERVE <= gpu_steps.TOTAL, "and the start of the command itself"


def test_processes_that_take_long_to_end_do_not_add_up(run_by):
    clock = Clock(ending=3.0)
    found = run_by(clock)
    assert clock.now <= gpu_steps.TOTAL
    assert found["more than 2^31 elements"]["outcome"] == "left out"


def test_steps_of_a_run_that_tunes_end_in_time(run_by):
    clock = Clock()
    found = run_by(clock, gpu_steps.TOTAL + gpu_steps.TUNING, tune=True)
    assert found["tune"]["outcome"] == "out of time"
    assert clock.now <= gpu_steps.TOTAL + gpu_steps.TUNING - gpu_steps.RESERVE


def test_time_that_is_not_taken_goes_to_the_steps_after(run_by):
    everything, early = Clock(), Clock(build=20, warm=50)
    run_by(everything)
    found = run_by(early)
    assert found["warm"]["outcome"] == "ok"
    assert early.began["check"] == 50, "both have ended"
    assert early.limits["check"] == everything.limits["check"] + everything.limits["build"] - 50
    late = Clock(build=20, warm=50, check=10, graphs_and_streams=20, bank=20, racecheck=20, memcheck=20)
    run_by(late)
    assert late.limits["tests"] > everything.limits["tests"] + 200
    assert late.limits["peers"] == everything.limits["peers"], "tests took what was left"


def test_what_comes_late_is_left_out_with_a_sentence(run_by):
    clock = Clock()
    found = run_by(clock, 200)
    assert clock.now <= 200
    assert clock.limits["build"] == 115, "the first steps have their shares"
    assert "warm" in found
    assert found["peers"]["outcome"] == "left out"
    assert found["peers"]["why"] == "0 s were left, and it needs 15"
    assert all(seconds >= 15 for seconds in clock.limits.values())


def test_without_the_cuda_kernels_their_steps_are_left_out(run_by):
    clock = Clock(build=5, warm=5)
    clock.cuda = False
    found = run_by(clock)
    left_out = {
        name for name, step in found.items() if step.get("why", "").startswith("the CUDA kernels were not built")
    }
    assert left_out == {"racecheck", "memcheck", "crossover"}


def test_a_run_that_is_ended_ends_its_step_and_has_written_what_was_measured(tmp_path):
    """SIGTERM while a step runs: the child is gone, the rows that it had written are in the result."""
    child = tmp_path / "child.py"
    child.write_text(f"""
import json, os, time
from pathlib import Path
rows = [{{"group": str(os.getpid())}}]
Path({str(tmp_path / "bank.json")!r}).write_text(json.dumps({{"rates": {{}}, "rows": rows}}))
time.sleep(60)
""")
    script = f"""
import signal, sys
from pathlib import Path
from benchmarks import gpu_run
from benchmarks.support import gpu_steps
from benchmarks.support.gpu_steps import Step
folder = Path({str(tmp_path)!r})
gpu_steps.WORKSHOP, gpu_run.EVERY = folder, 0.2
result = {{"versions": {{}}}}
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
step = Step("bank", [sys.executable, {str(child)!r}])
gpu_run.run(step, 50, lambda: gpu_run.write(result, folder / "result.json"))
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, start_new_session=True)
    result = tmp_path / "result.json"
    until = time.monotonic() + 50
    while not (result.exists() and json.loads(result.read_text())["benchmarks"]):
        assert time.monotonic() < until
        time.sleep(0.1)
    process.terminate()
    assert process.wait(20) == 3
    (row,) = json.loads(result.read_text())["benchmarks"]["rows"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(row["group"]), 0)


def test_only_this_gpu_s_code_is_built(run_by, monkeypatch):
    (build, *_) = gpu_steps.steps((8, 6), False)
    assert build.environment["TORCH_CUDA_ARCH_LIST"] == "8.6"
    newer = gpu_steps.steps((12, 0), False)[0].environment["TORCH_CUDA_ARCH_LIST"]
    assert newer == "12.0;9.0+PTX", "which an nvcc that does not know the first compiles"
    assert "--arch=86" in build.beside.command
    assert "sm_77" in gpu_steps.steps((7, 7), False)[0].beside.left_out


def test_the_sanitized_tests_exist():
    """By another backend, as CUDA kernels may be missing here."""
    names = [re.sub(r"\bcuda-", "reference-", name) for name in gpu_steps.SANITIZED]
    assert len(names) == len(set(names)) > 4
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *names]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert f"{len(names)} tests collected" in done.stdout


ALONE = """
tests/a.py::test_one[x, y-2] PASSED                                      [ 33%]
tests/a.py::test_two FAILED                                              [ 66%]
tests/a.py::test_three SKIPPED (needs two GPUs)                          [100%]
tests/a.py::test_four
"""
SHARED = """
[gw0] [ 33%] PASSED tests/a.py::test_one[x, y-2]
[gw1] [ 66%] FAILED tests/a.py::test_two
[gw0] [100%] SKIPPED tests/a.py::test_three
FAILED tests/a.py::test_two - assert 1 == 2
"""


@pytest.mark.parametrize("text", [ALONE, SHARED], ids=["alone", "shared"])
def test_counts_of_a_run_that_may_have_been_stopped(text):
    found = gpu_run.test_counts(text)
    assert found == {"counts": {"passed": 1, "failed": 1, "skipped": 1}, "failures": ["tests/a.py::test_two"]}


def main(monkeypatch, tmp_path, steps: list[Step]) -> tuple[int, dict]:
    """Run the command with these steps, and return its exit status and its JSON."""
    monkeypatch.setattr(gpu_run, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_steps, "WORKSHOP", tmp_path / "build")
    monkeypatch.setattr(gpu_steps, "steps", lambda capability, tune: steps)
    monkeypatch.setattr(sys, "argv", ["gpu_run", "--dry-run"])
    status = gpu_run.main()
    return status, json.loads((tmp_path / "build" / "dry_run.json").read_text())


def test_no_step_stops_the_others_and_one_json_is_written(tmp_path, monkeypatch, capsys):
    steps = [python("raise SystemExit(1)"), Step("b", [], left_out="not found"), python("pass")]
    status, found = main(monkeypatch, tmp_path, steps)
    assert status == 1
    assert [step["outcome"] for step in found["steps"]] == ["failed, status 1", "left out", "ok"]
    assert found["versions"]["torch"] == torch.__version__


def test_a_result_of_a_gpu_is_kept_under_its_name(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(gpu_run, "versions", lambda: {"gpu": "NVIDIA H200"})
    monkeypatch.setattr(gpu_run, "ROOT", tmp_path)
    monkeypatch.setattr(gpu_steps, "WORKSHOP", tmp_path / "build")
    monkeypatch.setattr(gpu_run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(gpu_steps, "steps", lambda *arguments: asked.append(arguments) or [python("pass")])
    rates = {"copy_gbps": 4e3, "mm_gflops": {"bfloat16": 8e5}}
    row = {"group": "mop_ffn, paper bank, bfloat16: forward", "name": "mop_kernels triton", "kind": "ours"}
    row |= {"flops": 1e8, "bytes": 1e7}
    row |= {"median_ms": 0.009, "q1_ms": 0.008, "q3_ms": 0.01, "min_ms": 0.008}
    (tmp_path / "bank.json").write_text(json.dumps({"rates": rates, "rows": [row]}))
    monkeypatch.setattr(sys, "argv", ["gpu_run", "--tune"])
    assert gpu_run.main() == 0
    assert asked == [((9, 0), True)]
    (path,) = (tmp_path / "results").iterdir()
    assert path.name.startswith("nvidia-h200.")
    assert json.loads(path.read_text())["goals"][0]["met"] is True
    assert re.search(r"\| \*\*mop_kernels triton\*\* +\| +9.00 \|", capsys.readouterr().out)


def test_results_are_on_disk_as_each_step_ends(tmp_path, monkeypatch):
    """The second step reads what the first has left; OUT has a copy of everything that is small."""
    out = tmp_path / "out"
    monkeypatch.setenv("OUT", str(out))
    row = {"group": "g", "name": "n", "kind": "ours", "median_ms": 1.0}
    first = f"import json; json.dump({{'rates': {{}}, 'rows': [{row}]}}, open({str(tmp_path / 'bank.json')!r}, 'w'))"
    second = f"import json; print(json.load(open({str(out / 'result.json')!r}))['steps'])"
    steps = [python(first)._replace(name="bank"), python(second, tells=True)._replace(name="b")]
    (tmp_path / "peers.json").write_text('{"rates": {}, "ro')  # of a step that was ended while it wrote
    status, found = main(monkeypatch, tmp_path, steps)
    assert status == 0
    assert found["benchmarks"]["rows"] == [row]
    (read,) = found["steps"][1]["output"]
    assert "{'name': 'b', 'outcome': 'not reached'}" in read
    assert "{'name': 'bank', 'outcome': 'ok'" in read
    assert json.loads((out / "result.json").read_text()) == found
    assert "not reached" in (out / "logs.txt").read_text()
    assert len(list(out.iterdir())) <= 8


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OUT", str(tmp_path / "file" / "out"))
    assert main(monkeypatch, tmp_path, [python("pass")])[0] == 0
    assert "nothing could be copied there" in capsys.readouterr().out


def test_without_git_the_commit_is_unknown(tmp_path, monkeypatch):
    assert results.commit() != ""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert results.commit() == "unknown"


def test_a_dry_run_has_the_same_steps():
    """All are made; which run does not depend on what is installed."""
    for tune_too in (False, True):
        dry, full = (gpu_steps.steps(capability, tune_too) for capability in (None, (9, 0)))
        assert [step.name for step in dry] == [step.name for step in full] == [n for n in NAMES if n != "warm"]
        assert [step.name for step in dry if step.command] == ["bank", "tests", "peers"]
        assert sum(step.seconds for step in dry) < gpu_steps.TOTAL


def test_the_documented_shares_are_the_real_ones(run_by):
    run_by(Clock())  # where everything is installed
    documented = (ROOT / "docs" / "gpu.md").read_text()
    shares = {step.name: step.seconds for step in gpu_steps.steps((9, 0), True)}
    assert "| racecheck, memcheck |" in documented
    assert shares.pop("racecheck") == shares.pop("memcheck") == 45
    for name, seconds in shares.items():
        assert re.search(rf"^\| {re.escape(name)} \|.*\| {seconds} \|$", documented, re.MULTILINE), name
