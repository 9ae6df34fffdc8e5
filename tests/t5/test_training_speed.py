"""Settings that change the speed and the memory of a training, and none of its results."""

import json

import pytest
import small_training
import torch
from mop_t5.cli.main import main
from mop_t5.training import trainer as trainer_module
from small_training import CORPUS, new_model, new_tokenizer, run
from torch.optim.optimizer import register_optimizer_step_post_hook

RUN = {"steps": 3, "log_every": 1, "learning_rate": 1e-2, "save_every": 0, "max_source": 128, "max_target": 40}


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer()


def trained(model, tokenizer, folder, **changes):
    """The losses of a run and the weights at its end."""
    losses = [loss for _, loss in run(model, tokenizer, folder, **RUN | changes).losses]
    return losses, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def check_equal(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["mop", None])
def test_recomputed_blocks_and_the_plain_optimizer_train_as_ever(tokenizer, tmp_path, method):
    passes, kinds = [], []

    def watched():
        model = new_model(tokenizer, method)  # with dropout
        for stack in (model.encoder, model.decoder):
            stack.block[0].layer[0].register_forward_hook(lambda module, *_: passes.append(module.training))
        return model

    hook = register_optimizer_step_post_hook(lambda optimizer, *_: kinds.append(optimizer.defaults["fused"]))
    try:
        expected = trained(watched(), tokenizer, tmp_path / "plain")
        assert (len(passes), kinds) == (6, [True] * 3)
        model = watched()
        check_equal(trained(model, tokenizer, tmp_path / "recomputed", gradient_checkpointing=True), expected)
        assert len(passes) == 6 + 12
        assert not any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        kinds.clear()
        check_equal(trained(new_model(tokenizer, method), tokenizer, tmp_path / "plain-adamw", fused=False), expected)
        assert not any(kinds)
        assert len(kinds) == 3
    finally:
        hook.remove()
    assert len(set(expected[0])) == 3


def test_blocks_that_recompute_already_go_on_to(tokenizer, tmp_path):
    model = new_model(tokenizer)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    trained(model, tokenizer, tmp_path, gradient_checkpointing=True, steps=1)
    assert model.encoder.block[0].gradient_checkpointing


def test_a_compiled_run_and_a_plain_one_after_it(tokenizer, tmp_path, monkeypatch):
    """By a backend that runs the graphs and makes no code, which would take a minute. The batches differ in length."""
    monkeypatch.setattr(trainer_module, "_COMPILER", "eager")
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = trained(new_model(tokenizer), tokenizer, tmp_path / "compiled", compile=True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs in (1, 2)  # attention has one form for queries of 64 tokens and more, and one for fewer
    assert not torch._dynamo.utils.counters["graph_break"]
    check_equal(compiled, trained(new_model(tokenizer), tokenizer, tmp_path / "plain"))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_a_run_of_an_earlier_version_resumes(tokenizer, tmp_path):
    """Its run.json has none of the settings that this version adds."""
    from mop_t5.data import write_examples

    corpus, backbone, output = tmp_path / "corpus", tmp_path / "backbone", tmp_path / "run"
    corpus.mkdir()
    write_examples(corpus / "train.jsonl", CORPUS["train"])
    small_training.new_model(tokenizer, None).save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    common = ["train", "--corpus", corpus, "--backbone", backbone, "--output", output, "--method", "bitfit"]
    common = [*map(str, common), "--batch_size", "2", "--save_every", "1", "--max_target", "8"]
    assert main([*common, "--steps", "1", "--schedule", "constant"]) == 0
    settings = json.loads((output / "run.json").read_text())
    new = {"by_length": False, "tokens_per_batch": None, "compile": False, "gradient_checkpointing": False}
    new |= {"fused": True, "trainer": {}}
    assert {name: settings.pop(name) for name in new} == new
    (output / "run.json").write_text(json.dumps(settings))
    assert main([*common, "--steps", "2", "--schedule", "constant", "--resume", "--dry_run"]) == 0
    flags = ["--by_length", "--tokens_per_batch", "400", "--gradient_checkpointing", "--fused", "false", "--compile"]
    assert main([*common, "--steps", "2", "--schedule", "constant", "--resume", "--dry_run", *flags[:1]]) == 1
    other = tmp_path / "settings.yaml"
    other.write_text("by_length: true\ntokens_per_batch: 400\ngradient_checkpointing: true\nfused: false\n")
    common[common.index("--output") + 1] = str(tmp_path / "other")
    assert main([*common, "--steps", "1", "--config", str(other)]) == 0
    made = json.loads((tmp_path / "other" / "run.json").read_text())
    assert [made[name] for name in new] == [True, 400, False, True, False, {}]
    assert main([*common, "--steps", "1", "--dry_run", "--overwrite", *flags]) == 0
