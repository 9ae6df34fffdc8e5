"""Two processes on gloo against one process with the joint batches."""

import json

import data_parallel_worker as worker
import mop_t5
import pytest
import torch
from errors import raises, says
from mop_t5.data import write_examples

ALONE = {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    for split in ("train", "valid"):
        write_examples(folder / "corpus" / f"{split}.jsonl", worker.CORPUS[split])
    mop_t5.detach(worker.new_model()).save_pretrained(folder / "backbone")
    worker.TOKENIZER.save_pretrained(folder / "backbone")
    return folder


@pytest.fixture(scope="module")
def ranks(folder, forks_with_t5):
    """What each of two processes has seen."""
    code = f"""
from pathlib import Path
import data_parallel_worker
from two_processes import in_two_processes
in_two_processes(lambda: data_parallel_worker.run(Path({str(folder)!r})))
"""
    forks_with_t5.run(code, **ALONE)
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same in this process."""
    folder = tmp_path_factory.mktemp("one")
    worker.run(folder)
    return torch.load(folder / "rank-0.pt")


def losses(result):
    return {point["step"]: point["loss"] for point in result["history"] if "loss" in point}


def rouges(result):
    return {point["step"]: point["eval_rouge"] for point in result["history"] if "eval_rouge" in point}


@pytest.mark.parametrize("name", ["homogeneous", "mixed"])
def test_two_processes_train_as_one_with_the_joint_batches(ranks, alone, name):
    one = alone[name]
    for rank in ranks:
        assert losses(rank[name]) == pytest.approx(losses(one), rel=1e-6)
        assert rouges(rank[name]) == pytest.approx(rouges(one))
        for parameter, weight in rank[name]["weights"].items():
            torch.testing.assert_close(weight, one["weights"][parameter], rtol=1e-4, atol=1e-5)
    assert len(losses(one)) == {"homogeneous": 6, "mixed": 10}[name]
    assert len(set(losses(one).values())) == len(losses(one))


@pytest.mark.parametrize("name", ["homogeneous", "mixed", "resumed"])
def test_the_processes_end_with_the_same_bits(ranks, name):
    assert all(torch.equal(weight, ranks[1][name]["weights"][n]) for n, weight in ranks[0][name]["weights"].items())


def test_validation_is_shared_by_the_processes(ranks, alone):
    assert sorted(rouges(alone["mixed"])) == [3, 6, 9, 10]
    assert any(rouges(alone["mixed"]).values())


def test_two_processes_resume(ranks, alone):
    assert losses(ranks[0]["resumed"]) == pytest.approx(losses(alone["longer"]), rel=1e-6)
    assert len(losses(ranks[0]["resumed"])) == 12


def test_another_number_of_processes_does_not_resume_with_other_steps(ranks, folder):
    with raises(ValueError, "2 batches per step", "1", "1 process(es)", "accumulation", "2"):
        worker.trained(folder, "mixed", 14, 2, resume=True)


def test_experts_that_a_process_lacks_neither_hang_nor_part_it_from_the_others(ranks, alone):
    for step, expected in enumerate(alone["ddp"]):
        for name, weight in ranks[0]["ddp"][step].items():
            assert torch.equal(weight, ranks[1]["ddp"][step][name])
            torch.testing.assert_close(weight, expected[name], rtol=1e-6, atol=1e-8)


def test_experts_that_all_processes_lack_stay_where_they_are(ranks):
    """No decay (0.5 here) and no momentum, though "food" has both from step 1."""
    model = worker.new_model()
    experts = {id(p): dim for p, dim in model.mop.expert_parameters()}
    names = {name: experts[id(p)] for name, p in model.mop.named_parameters() if id(p) in experts}
    steps = [{name: step[name].movedim(dim, 0) for name, dim in names.items()} for step in ranks[0]["ddp"]]
    present = [{"food", "taxi"}, {"taxi", "e-commerce"}, {"ticket", "taxi"}, {"take-out"}]
    assert names
    for before, after, scenarios in zip(steps, steps[1:], present[1:]):
        for name in names:
            for i, scenario in enumerate(worker.SCENARIOS):
                assert torch.equal(before[name][i], after[name][i]) == (scenario not in scenarios)


def test_a_nan_on_one_process_stops_both_at_the_same_step(ranks):
    for rank in ranks:
        says(rank["nan"]["error"], "step 3", "gradient", "not finite")
        assert rank["nan"]["kept"]


def test_the_command_writes_and_prints_once(ranks, folder):
    assert ranks[0]["command"]["codes"] == ranks[1]["command"]["codes"] == [0, 1, 1]
    printed = ranks[0]["command"]["printed"]
    assert printed.count("Trained ") == 1
    assert printed.count("exists and is not empty") == 1
    assert printed.count("unknown method 'mopp'") == 1
    assert ranks[1]["command"]["printed"] == ""
    history = (folder / "command" / "loss.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in history if "loss" in json.loads(line)] == [1, 2]


def test_several_seeds_on_machines_without_a_shared_folder(ranks, folder):
    assert ranks[0]["nodes"]["codes"] == ranks[1]["nodes"]["codes"] == [0, 0]
    assert "with each of 2 seeds" in ranks[0]["nodes"]["printed"]
    assert ranks[1]["nodes"]["printed"] == ""
    assert (folder / "node-0" / "results.md").is_file()
    assert not (folder / "node-1" / "results.md").exists()


def test_torchrun_of_the_command(folder, forks_with_t5):
    """torchrun's agent starts the command. Its processes are forks, which import nothing anew."""
    where = ["--corpus", str(folder / "corpus"), "--backbone", str(folder / "backbone"), "--output", "run"]
    small = ["--steps", "2", "--batch_size", "2", "--max_target", "8", "--method", "prefix_tuning"]
    code = f"""
import os
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from mop_t5.cli.main import main
os.chdir({str(folder)!r})
standalone = {{"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}}
config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=2, start_method="fork", **standalone)
codes = elastic_launch(config, main)({["train", *where, *small]!r})
assert codes == {{0: 0, 1: 0}}, codes
"""
    said = forks_with_t5.run(code, **ALONE)
    assert said.count("Trained ") == 1
    assert (folder / "run" / "adapter" / "model.safetensors").is_file()
