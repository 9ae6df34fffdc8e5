"""Checkpoints: whole or not there, checked before they are gone on from, and a killed run ends as an unbroken one."""

import errno
import json
import os
import signal
import subprocess

import mop_t5
import pytest
import torch
from errors import raises
from killed import report_of
from mop_t5.operations.run_folder import load_run, save_run
from mop_t5.training import TrainingResult
from mop_t5.training.checkpoints import checkpoint_to_resume, checkpoints
from small_training import CORPUS, SCENARIOS, new_model, new_tokenizer, run


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer()


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run(new_model(tokenizer), tokenizer, folder)
    return folder / "checkpoints"


@pytest.fixture
def copied(trained, tmp_path):
    subprocess.run(["cp", "-r", trained, tmp_path / "checkpoints"], check=True)
    return tmp_path / "checkpoints"


def test_what_a_checkpoint_holds(trained):
    assert [path.name for path in checkpoints(trained)] == ["checkpoint-2", "checkpoint-4"]
    newest = trained / "checkpoint-4"
    files = set(os.listdir(newest))
    assert {"model.safetensors", "mop_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"} <= files
    assert "config.json" not in files
    assert set(json.loads((newest / "files.json").read_text())["files"]) == files - {"files.json"}
    assert sorted(os.listdir(trained)) == ["checkpoint-2", "checkpoint-4"]


def test_old_checkpoints_go_and_the_best_stays(tokenizer, tmp_path):
    run(new_model(tokenizer), tokenizer, tmp_path / "a", steps=5, save_every=1)
    assert names(tmp_path / "a") == ["checkpoint-4", "checkpoint-5"]
    # almost no learning: the first validation is the best
    changes = {"steps": 4, "save_every": 0, "evaluate_every": 1, "learning_rate": 1e-12}
    run(new_model(tokenizer), tokenizer, tmp_path / "b", **changes)
    assert names(tmp_path / "b") == ["checkpoint-1", "checkpoint-4"]
    state = json.loads((tmp_path / "b" / "checkpoints" / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "b" / "checkpoints" / "checkpoint-1")


@pytest.mark.parametrize("name", ["model.safetensors", "mop_config.json", "optimizer.pt", "scheduler.pt",
                                  "rng_state.pth", "trainer_state.json", "files.json"])  # fmt: skip
@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_not_gone_on_from(name, how, copied, tokenizer):
    path = copied / "checkpoint-4" / name
    content = path.read_bytes()
    middle = len(content) // 2
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(
            content[:middle] + (bytes([content[middle] ^ 4]) + content[middle + 1 :] if how == "flipped" else b"")
        )
    if (name, how) == ("files.json", "missing"):  # then it was never whole
        assert checkpoint_to_resume(copied, new_model(tokenizer)) == str(copied / "checkpoint-2")
        return
    with raises(ValueError, "checkpoint-4", "damaged", "Delete"):
        checkpoint_to_resume(copied, new_model(tokenizer))


def test_a_checkpoint_of_another_model_is_refused(trained, tokenizer, tmp_path):
    with raises(ValueError, "another backbone", "same shape", "other weights"):
        run(new_model(tokenizer, seed=1), tokenizer, trained.parent, resume=True, steps=6)
    with raises(ValueError, "prefix_length", "3", "4"):
        run(new_model(tokenizer, prefix_length=4), tokenizer, trained.parent, resume=True, steps=6)
    with raises(ValueError, "scenarios", "['e-commerce', 'food'"):
        run(new_model(tokenizer, scenarios=SCENARIOS[::-1]), tokenizer, trained.parent, resume=True, steps=6)
    with raises(FileNotFoundError, "no complete checkpoint", "save_every", "resume"):
        run(new_model(tokenizer), tokenizer, tmp_path, resume=True)


@pytest.mark.parametrize(("split", "evaluate_every"), [("train", 0), ("valid", 2)])
def test_a_checkpoint_of_other_rows_is_refused(tokenizer, tmp_path, monkeypatch, split, evaluate_every):
    run(new_model(tokenizer), tokenizer, tmp_path, steps=2, evaluate_every=evaluate_every)
    rows = CORPUS[split]
    monkeypatch.setitem(CORPUS, split, rows[1:])
    with raises(ValueError, "checkpoint-2", f"{split} split", f"{len(rows)} rows then, {len(rows) - 1} now"):
        run(new_model(tokenizer), tokenizer, tmp_path, resume=True, evaluate_every=evaluate_every)
    (tmp_path / "checkpoints" / "checkpoint-2" / "contents.json").unlink()  # as earlier versions wrote them
    files = tmp_path / "checkpoints" / "checkpoint-2" / "files.json"
    sums = json.loads(files.read_text())["files"]
    files.write_text(json.dumps({"files": {name: sums[name] for name in sums if name != "contents.json"}}))
    run(new_model(tokenizer), tokenizer, tmp_path, resume=True, evaluate_every=evaluate_every)


@pytest.mark.parametrize("method", ["mop", None])
def test_a_full_disk_keeps_the_checkpoints_before(method, tokenizer, tmp_path, monkeypatch):
    """A disk that is full from the third checkpoint on; the checkpoints before it resume."""
    model, real, calls = new_model(tokenizer, method), torch.save, []

    def on_a_full_disk(content, file, *arguments, **keywords):
        calls.append(file)
        if "checkpoint-6" in str(file) and "optimizer" in str(file):
            with open("/dev/full", "wb", buffering=0) as full:  # every write to it is ENOSPC
                return real(content, full, *arguments, **keywords)
        return real(content, file, *arguments, **keywords)

    monkeypatch.setattr(torch, "save", on_a_full_disk)
    with raises(OSError, "checkpoint-6", "Nothing", "lost"):
        run(model, tokenizer, tmp_path, steps=8)
    monkeypatch.undo()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    resumed = new_model(tokenizer, method)
    run(resumed, tokenizer, tmp_path, steps=8, resume=True)
    straight = new_model(tokenizer, method)
    run(straight, tokenizer, tmp_path / "straight", steps=8)
    assert all(torch.equal(p, q) for p, q in zip(resumed.parameters(), straight.parameters()))


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 400 KiB. A checkpoint takes about 110, or 280 where all weights are trained."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    yield tmp_path
    subprocess.run(["umount", "-l", tmp_path], check=True)


@pytest.mark.parametrize("method", ["mop", None])
def test_a_disk_that_is_full(method, tokenizer, small_disk):
    with open(small_disk / "ballast", "wb") as file:
        file.write(bytes(150_000 if method == "mop" else 1))
    with raises(OSError, "checkpoint-", str(small_disk), "Nothing", "lost") as caught:
        run(new_model(tokenizer, method), tokenizer, small_disk, steps=8, save_every=1)
    assert caught.value.errno in (errno.ENOSPC, errno.EIO)
    assert names(small_disk) in (["checkpoint-1"], ["checkpoint-1", "checkpoint-2"])
    assert checkpoint_to_resume(small_disk / "checkpoints", new_model(tokenizer, method))


def test_a_whole_backbone_is_replaced_whole(tokenizer, small_disk):
    """What save_run writes at the end, where all weights were trained."""
    model, result = new_model(tokenizer, None), TrainingResult([], 1.0)
    save_run(small_disk, model, tokenizer, result.history, {})
    before = {path.name: path.read_bytes() for path in (small_disk / "backbone").iterdir()}
    larger = mop_t5.build_backbone("t5-small", num_layers=1, d_model=64, d_ff=16, vocab_size=1000)
    with raises(OSError, "backbone", "backbone'", "No space left"):
        save_run(small_disk, larger, tokenizer, result.history, {})
    assert {path.name: path.read_bytes() for path in (small_disk / "backbone").iterdir()} == before
    with torch.no_grad():
        next(model.parameters()).zero_()
    save_run(small_disk, model, tokenizer, result.history, {})
    assert next(load_run(small_disk)[0].parameters()).abs().sum() == 0
    assert not [path for path in small_disk.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("content", [b'{"backbone": "x"', b"", b"[]", b"\xff"])
def test_damaged_settings(content, tmp_path):
    (tmp_path / "run.json").write_bytes(content)
    with raises(ValueError, "run.json", "damaged"):
        load_run(tmp_path)


def test_a_new_run_does_not_mix_its_checkpoints_with_old_ones(trained, tokenizer):
    with raises(FileExistsError, "checkpoints", "Resume", "output"):
        run(new_model(tokenizer), tokenizer, trained.parent)


def test_a_killed_run_ends_as_an_unbroken_one(tmp_path, forks_with_t5):
    """Kill processes in a step, at every stage of writing a checkpoint, and by a timer. Resume each in a process of its
    own. It must log the losses of an unbroken run, bit for bit."""
    report = report_of(forks_with_t5, "training", tmp_path)
    straight = report.pop("straight")
    assert [point["step"] for point in straight["history"] if "loss" in point] == list(range(1, 10))
    assert len(report) >= 9
    for moment, outcome in report.items():
        assert outcome["signal"] == (signal.SIGKILL if not moment.startswith("timer") else outcome["signal"]), moment
        assert outcome["history"] == straight["history"], moment
        assert outcome["weights"] == straight["weights"], moment
        assert outcome["resumed_from"] in (None, "checkpoint-3", "checkpoint-6", "checkpoint-9")
    # what was written before the kill was used
    assert report["in step 5"]["resumed_from"] == "checkpoint-3"
    assert report["before the checkpoint of step 6 takes its name"]["resumed_from"] == "checkpoint-3"
    assert report["after the checkpoint of step 6 took its name"]["resumed_from"] == "checkpoint-6"
