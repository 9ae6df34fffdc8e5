"""Two processes on gloo that share the backbone's weights, against one process that has them all."""

import json
import shutil

import mop_t5
import pytest
import sharded_worker as worker
import torch
from data_parallel_worker import CORPUS, TOKENIZER
from errors import raises, says
from mop_t5.data import write_examples
from mop_t5.evaluation import Scorer
from mop_t5.training import TrainingConfig, train
from mop_t5.training.checkpoints import checkpoint_to_resume

ALONE = {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
CODE = """
from pathlib import Path
import sharded_worker
from two_processes import in_two_processes
in_two_processes(lambda: sharded_worker.{}, patience={})
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory, forks_with_t5):
    """The folders of one process and of two, after both have trained all models."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for split in ("train", "valid"):
        write_examples(two / "corpus" / f"{split}.jsonl", CORPUS[split])
    worker.new_model("backbone").save_pretrained(two / "backbone")
    TOKENIZER.save_pretrained(two / "backbone")
    worker.run(one, one)
    forks_with_t5.run(CODE.format(f"run(Path({str(two)!r}), Path({str(one)!r}))", 0), **ALONE)
    return one, two


@pytest.fixture(scope="module")
def alone(folders):
    return torch.load(folders[0] / "rank-0.pt")


@pytest.fixture(scope="module")
def ranks(folders):
    return [torch.load(folders[1] / f"rank-{rank}.pt") for rank in range(2)]


def values(result, name):
    return {point["step"]: point[name] for point in result["history"] if name in point}


def same(found, expected, rtol=1e-6):
    for name in ("loss", "grad_norm", "eval_rouge"):
        assert values(found, name) == pytest.approx(values(expected, name), rel=rtol)
    assert len(set(values(expected, "loss").values())) == len(values(expected, "loss")) > 1
    if found["weights"]:  # of the first process
        assert found["weights"].keys() == expected["weights"].keys()
    for name, weight in found["weights"].items():
        torch.testing.assert_close(weight, expected["weights"][name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", worker.MODELS)
def test_two_processes_train_as_one(ranks, alone, name):
    for rank in ranks:
        same(rank[name], alone[name])
        torch.testing.assert_close(rank[name]["logits"], alone[name]["logits"], rtol=1e-3, atol=1e-3)
        assert torch.equal(rank[name]["ids"][0], alone[name]["ids"][0])
    assert ranks[0][name]["weights"]
    assert not ranks[1][name]["weights"]
    assert torch.equal(ranks[0][name]["logits"], ranks[1][name]["logits"])


@pytest.mark.parametrize("name", worker.MODELS)
def test_each_process_has_half_of_the_backbone(ranks, name):
    trained = sum(p.numel() for p in worker.new_model(name).parameters() if p.requires_grad)
    whole = 0 if name == "fine_tuning" else trained
    for rank in ranks:
        shared = rank[name]["values"] - whole
        assert shared > 0
        assert rank[name]["own values"] - whole == pytest.approx(shared / 2, rel=0.02)


@pytest.mark.parametrize("name", worker.SETTINGS)
def test_other_settings_are_right_together_with_sharding(ranks, alone, name):
    for rank in ranks:
        same(rank[name], alone[name], rtol=2e-2 if name == "bf16" else 1e-6)


@pytest.mark.parametrize("name", worker.RESUMED)
def test_a_run_of_one_process_resumes_on_two(ranks, alone, name):
    for rank in ranks:
        same(rank[f"{name}, resumed"], alone[f"{name}, resumed"])
    assert list(values(alone[f"{name}, resumed"], "loss")) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", worker.RESUMED)
def test_a_run_of_two_processes_resumes_on_one(folders, alone, name, tmp_path):
    shutil.copytree(folders[1] / name, tmp_path / name)
    with raises(ValueError, "4 batches per step", "2", "accumulation", "4"):
        worker.resumed(tmp_path, name, 1, accumulation=2)
    same(worker.resumed(tmp_path, name, 1), alone[f"{name}, resumed"])


def test_one_process_saves_a_method_while_the_others_go_on(folders, ranks):
    names = [name for name in worker.MODELS if name != "fine_tuning"]
    for name in names:
        plain = mop_t5.detach(worker.new_model(name))
        model = mop_t5.load(plain, folders[1] / f"saved {name}")
        for parameter, weight in ranks[0][name]["weights"].items():
            assert torch.equal(model.get_parameter(parameter), weight)
    assert names


def test_sharded_weights_are_not_saved_as_they_are(folders, ranks):
    says(ranks[0]["fine_tuning"]["unsaved"], "ValueError", "sharded", "gathered_weights", "state_dict")
    assert not (folders[1] / "nowhere").exists()


def test_weights_that_zero_3_has_freed_are_not_saved(tmp_path):
    for prefix in ("mop.", "encoder.block.0.layer.0.SelfAttention."):
        model = worker.new_model("adapter")
        name, parameter = next(pair for pair in model.named_parameters() if pair[0].startswith(prefix))
        parameter.ds_numel, parameter.data = parameter.numel(), torch.empty(0, dtype=parameter.dtype)
        with raises(ValueError, name, "sharded"):
            mop_t5.save(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_sharded_model_is_not_changed(ranks):
    for name in worker.MODELS:
        for said in ranks[0][name]["refused"]:
            says(said, "TypeError", "sharded", "FSDP2")


def test_a_nan_on_one_process_stops_both(ranks):
    for rank in ranks:
        says(rank["nan"], "FloatingPointError", "step 3", "not finite", "checkpoint-2")


def test_an_optimizer_that_needs_whole_weights_is_refused_where_they_are_sharded(ranks, folders):
    for found in ranks:
        for name in ("fine_tuning", "backbone"):
            assert all(part in found["adafactor", name] for part in ("trainer.optim", "'fsdp'", "'adafactor'", "sgd"))
    assert not (folders[1] / "refused").exists()


def test_the_command_writes_the_whole_backbone_once(folders, ranks):
    assert ranks[0]["command"]["codes"] == ranks[1]["command"]["codes"] == [0, 0]
    assert ranks[0]["command"]["printed"].count("Trained ") == 2
    assert ranks[1]["command"]["printed"] == ""
    assert json.loads((folders[1] / "command" / "run.json").read_text())["shard"] == "fsdp"
    model = mop_t5.load_backbone(folders[1] / "command" / "backbone")
    before = dict(mop_t5.load_backbone(folders[1] / "backbone").named_parameters())
    assert model.config.architectures == ["T5ForConditionalGeneration"]
    for name, parameter in model.named_parameters():
        assert 0 < (parameter - before[name]).abs().max() < 0.01 or "relative" in name


def test_a_killed_process_ends_the_other_with_a_sentence(folders, forks_with_t5):
    with pytest.raises(AssertionError, match="a process ended"):
        forks_with_t5.run(CODE.format(f"killed(Path({str(folders[1])!r}))", 60), **ALONE)
    code, said = (folders[1] / "killed.txt").read_text().split("\n", 1)
    assert code == "1"
    says(said, "mop-t5 train", "another process", "checkpoint-2", "resume")
    model = mop_t5.load_backbone(folders[1] / "backbone")
    mop_t5.load(model, folders[1] / "killed" / "checkpoints" / "checkpoint-2")
    assert checkpoint_to_resume(folders[1] / "killed" / "checkpoints", model).endswith("checkpoint-2")


def test_a_single_process_has_nobody_to_share_with(tmp_path):
    model = worker.new_model("mop")
    config = TrainingConfig(steps=1, shard="fsdp")
    with raises(RuntimeError, "shard", "fsdp", "torchrun", "no"):
        train(model, TOKENIZER, CORPUS["train"], config, output=tmp_path, scorer=Scorer(), progress=False)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("other", [{"compile": True}, {"cache_encoder": "memory"}], ids=lambda other: next(iter(other)))
def test_settings_that_do_not_go_with_sharding(other):
    with raises(ValueError, next(iter(other)), "shard", "fsdp"):
        TrainingConfig(shard="fsdp", **other)
