"""examples/: each runs as it is, learns, and does what it says."""

import re
import runpy
from pathlib import Path

import mop_t5
import pytest
import torch
from mop_t5.data import Collator
from mop_t5.training import hold_absent_experts

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def accelerated(tmp_path_factory):
    """The variables that examples/tune_with_accelerate.py ends with, run in one process, and the folder it ran in."""
    folder = tmp_path_factory.mktemp("accelerate")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return runpy.run_path(str(EXAMPLES / "tune_with_accelerate.py")), folder


def test_there_is_one_example_of_each_loop():
    names = {"tune_with_mop.py", "tune_with_seq2seq_trainer.py", "tune_with_accelerate.py"}
    assert {path.name for path in EXAMPLES.glob("tune_*.py")} == names


def test_the_plain_loop(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "tune_with_mop.py"))
    text = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"mean loss ([\d.]+)", text)]
    assert losses[-1] < losses[0] - 0.5
    assert text.count("taxi: ") == 1


def test_seq2seq_trainer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = runpy.run_path(str(EXAMPLES / "tune_with_seq2seq_trainer.py"))
    assert len(found["losses"]) == 4
    assert found["losses"][-1] < found["losses"][0] - 0.05
    history = found["trainer"].state.log_history
    assert [point["step"] for point in history if "eval_rougeL" in point] == [6, 12]
    assert found["model"].scenarios == tuple(found["scenarios"])


def test_accelerate_makes_the_steps_of_joint_batches(accelerated):
    found, folder = accelerated
    torch.manual_seed(0)
    model = mop_t5.build_backbone(found["backbone"])
    fields = {"prefix_length": 10, "d_mid": 32, "terms_down": 8, "terms_up": 8}
    mop_t5.attach(model, "mop", scenarios=found["scenarios"], **fields).train()
    optimizer = torch.optim.AdamW(model.mop.parameters(), lr=5e-3)
    hold_absent_experts(optimizer, model.mop.expert_parameters())
    stream = iter(found["sampler"])
    for step in range(found["STEPS"]):
        joint = [found["rows"][i] for _ in range(found["BATCHES"]) for i in next(stream)]
        loss = model(**Collator(found["tokenizer"].pad_token_id, len(found["scenarios"]))(joint)).loss
        assert loss.item() == pytest.approx(found["losses"][step], rel=1e-4)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.mop.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    saved = mop_t5.load(mop_t5.detach(model), folder / "runs" / "tune_with_accelerate")
    assert saved.scenarios == tuple(found["scenarios"])


def test_accelerate_in_two_processes_prints_the_same_losses(accelerated, tmp_path, forks_with_t5):
    code = f"""
import os, runpy
from two_processes import in_two_processes
os.chdir({str(tmp_path)!r})
in_two_processes(lambda: runpy.run_path({str(EXAMPLES / "tune_with_accelerate.py")!r}, run_name="__main__"))
"""
    printed = forks_with_t5.run(code, CUDA_VISIBLE_DEVICES="")
    losses = [float(loss) for loss in re.findall(r"step \d+: loss ([\d.]+)", printed)]
    assert losses == pytest.approx(accelerated[0]["losses"], abs=2e-3)
    assert len(losses) == accelerated[0]["STEPS"]
