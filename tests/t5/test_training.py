"""Training by Seq2SeqTrainer: what is trained, by which rows, resumed, validated."""

import json

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.data import synthetic_corpus
from mop_t5.evaluation import Scorer, Scores
from mop_t5.operations.run_folder import load_run, prepare_output, save_run, write_settings
from mop_t5.training import CHECKPOINTS, TrainingConfig, train
from transformers import T5Config

CORPUS = synthetic_corpus(2, general=120, train=120, valid=10, test=10)
SCENARIOS = ["e-commerce", "food", "take-out", "taxi", "ticket"]
MOP = {"scenarios": SCENARIOS, "prefix_length": 3, "d_mid": 8, "terms_down": 4, "terms_up": 4}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([text for row in CORPUS["general"] for text in (row.dialogue, row.summary)], 600)


@pytest.fixture
def model(tokenizer):
    return new_model(tokenizer)


def new_model(tokenizer, method=None, **fields):
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=16,
        d_kv=4,
        d_ff=16,
        num_layers=1,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    model = mop_t5.build_backbone(config, seed=0)
    if method:
        torch.manual_seed(0)
        mop_t5.attach(
            model, method, **(MOP if method == "mop" else {"scenarios": SCENARIOS, "prefix_length": 3}) | fields
        )
    return model


def settings(**changes):
    fields = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0, "log_every": 2, "max_target": 24}
    return TrainingConfig(**fields | changes)


def run(model, tokenizer, folder, resume=False, valid=None, scorer=None, **changes):
    return train(
        model,
        tokenizer,
        CORPUS["train"],
        settings(**changes),
        output=folder,
        resume=resume,
        valid=valid,
        scorer=scorer,
        progress=False,
    )


def values(module):
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("batching", ["homogeneous", "mixed"])
@pytest.mark.parametrize("method", ["mop", "prefix_tuning"])
def test_a_method_is_trained_and_the_backbone_is_not(tokenizer, tmp_path, method, batching):
    model = new_model(tokenizer, method)
    before = values(model)
    result = run(model, tokenizer, tmp_path, batching=batching, steps=12)
    changed = {name for name, tensor in values(model).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("mop.") for name in changed)
    assert not model.training
    assert [step for step, _ in result.losses] == [2, 4, 6, 8, 10, 12]
    assert result.seconds_per_step > 0
    assert not (tmp_path / CHECKPOINTS).exists()


def test_a_plain_backbone_learns_in_all_weights(model, tokenizer, tmp_path):
    model.requires_grad_(True)
    before = values(model)
    result = run(model, tokenizer, tmp_path, steps=40, temperature=1.0, batching="mixed")
    assert result.losses[-1][1] < result.losses[0][1] - 1
    assert all(not torch.equal(tensor, before[name]) for name, tensor in values(model).items() if "norm" not in name)


def test_equal_seeds_give_equal_weights_and_others_do_not(tokenizer, tmp_path):
    results = []
    for seed in (0, 0, 1):
        model = new_model(tokenizer, "mop")
        run(model, tokenizer, tmp_path, seed=seed)
        results.append(values(model.mop))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert any(not torch.equal(results[0][name], results[2][name]) for name in results[0])


def test_experts_of_scenarios_that_never_came_up_are_as_they_were(tokenizer, tmp_path):
    model = new_model(tokenizer, "mop")
    before = [parameter.detach().clone() for parameter, _ in model.mop.expert_parameters()]
    taxi = SCENARIOS.index("taxi")
    rows = [row for row in CORPUS["train"] if row.scenario == "taxi"]
    train(model, tokenizer, rows, settings(weight_decay=0.5), output=tmp_path, progress=False)
    assert before
    for old, (new, dim) in zip(before, model.mop.expert_parameters()):
        for scenario in range(5):
            same = torch.equal(old.select(dim, scenario), new.select(dim, scenario))
            assert same == (scenario != taxi)


@pytest.mark.parametrize("batching", ["homogeneous", "mixed"])
@pytest.mark.parametrize("resume_at", [4, 36])  # within the first epoch of 30 steps, and within the second
def test_a_resumed_run_ends_where_a_straight_one_ends(tokenizer, tmp_path, batching, resume_at):
    steps = resume_at + 2
    straight = new_model(tokenizer, "mop")
    run(straight, tokenizer, tmp_path / "straight", steps=steps, batching=batching, schedule="constant")
    first = new_model(tokenizer, "mop")
    arguments = {"batching": batching, "schedule": "constant", "save_every": resume_at}
    run(first, tokenizer, tmp_path / "cut", steps=resume_at, **arguments)
    second = new_model(tokenizer, "mop")
    run(second, tokenizer, tmp_path / "cut", resume=True, steps=steps, **arguments)
    expected = values(straight.mop)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in values(second.mop).items())
    assert any(not torch.equal(tensor, expected[name]) for name, tensor in values(first.mop).items())


def test_group_rates_reach_the_optimizer(tokenizer, tmp_path):
    still = {"shared": 0.0, "generators": 0.0}
    model = new_model(tokenizer, "mop")
    before = values(model.mop)
    run(model, tokenizer, tmp_path, group_rates=still, batching="mixed")
    experts = {id(parameter) for parameter in model.mop.parameter_groups()["experts"]}
    for name, parameter in model.mop.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in experts)
    with raises(ValueError, "group_rates", "gate"):
        run(new_model(tokenizer, "mop"), tokenizer, tmp_path, group_rates={"gate": 1.0})


def test_validation_keeps_the_best_checkpoint(tokenizer, tmp_path):
    means = iter([0.5, 0.9, 0.1])
    scorer = Scorer(lambda references, texts: [Scores(*[mean] * 3) for mean in [next(means)] * len(texts)])
    model = new_model(tokenizer, "mop")
    result = run(model, tokenizer, tmp_path, steps=6, evaluate_every=2, valid=CORPUS["valid"], scorer=scorer)
    assert [point["eval_rouge"] for point in result.history if "eval_rouge" in point] == pytest.approx([50, 90, 10])
    best = new_model(tokenizer)
    mop_t5.load(best, tmp_path / CHECKPOINTS / "checkpoint-4")
    assert all(torch.equal(tensor, values(best.mop)[name]) for name, tensor in values(model.mop).items())


def test_a_validation_changes_no_later_step(tokenizer, tmp_path):
    def losses(**changes):
        model, folder = new_model(tokenizer, "mop"), tmp_path / str(len(changes))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        result = run(model, tokenizer, folder, steps=4, log_every=1, **changes)
        return [point["loss"] for point in result.history if "loss" in point]

    assert losses(evaluate_every=1, valid=CORPUS["valid"]) == losses()


def test_patience_stops_early(tokenizer, tmp_path):
    # a rate of almost nothing: validation never improves
    changes = {"steps": 20, "evaluate_every": 2, "patience": 2, "learning_rate": 1e-12}
    result = run(new_model(tokenizer, "mop"), tokenizer, tmp_path, valid=CORPUS["valid"], **changes)
    assert max(step for step, _ in result.losses) == 6


def test_nothing_to_train_and_missing_validation(model, tokenizer, tmp_path):
    with raises(ValueError, "no parameter", "gradient", "model.requires_grad_(True)"):
        run(model, tokenizer, tmp_path)
    with raises(ValueError, "valid", "examples"):
        run(new_model(tokenizer, "mop"), tokenizer, tmp_path, evaluate_every=2)
    narrow = new_model(tokenizer, "mop", scenarios=["taxi"])
    with raises(ValueError, "scenario", "known", "taxi"):
        run(narrow, tokenizer, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, ("steps", "1", "0")),
        ({"learning_rate": 0.0}, ("learning_rate", "0", "0.0")),
        ({"temperature": -1.0}, ("temperature", "0", "-1.0")),
        ({"batching": "sorted"}, ("batching", "'homogeneous', 'mixed'", "'sorted'")),
        ({"schedule": "step"}, ("schedule", "'linear', 'cosine', 'constant'", "'step'")),
        ({"label_smoothing": 1.0}, ("label_smoothing", "0", "1", "1.0")),
        ({"patience": 2}, ("patience", "0", "evaluate_every", "2")),
        ({"tokens_per_batch": 0}, ("tokens_per_batch", "1", "0")),
        (
            {"gradient_checkpointing": True, "cache_cross": True, "cache_encoder": "memory"},
            ("gradient_checkpointing", "false", "cache_cross"),
        ),
    ],
)
def test_wrong_settings(changes, message):
    with raises(ValueError, *message):
        TrainingConfig(**changes)


@pytest.mark.parametrize("method", [None, "mop"])
def test_a_run_folder_gives_the_model_back(tokenizer, tmp_path, method):
    backbone = tmp_path / "backbone"
    new_model(tokenizer).save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    model = new_model(tokenizer, method)
    if method is None:
        model.requires_grad_(True)
    folder = prepare_output(tmp_path / "run")
    result = run(model, tokenizer, folder)
    save_run(folder, model, tokenizer, result.history, {"backbone": str(backbone), "method": method})
    loaded, loaded_tokenizer, saved = load_run(folder)
    assert saved["method"] == method
    assert loaded_tokenizer("退款")["input_ids"] == tokenizer("退款")["input_ids"]
    ids = torch.tensor([tokenizer("司机绕路")["input_ids"]])
    extra = {"scenario_ids": torch.tensor([2])} if method else {}
    with torch.no_grad():
        logits = [m(input_ids=ids, decoder_input_ids=ids, **extra).logits for m in (model, loaded)]
    assert torch.equal(*logits)
    history = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    assert history == result.history


def test_output_folders_are_not_overwritten_unasked(tmp_path):
    folder = tmp_path / "out"
    assert prepare_output(folder) == folder
    assert prepare_output(folder) == folder  # still empty
    (folder / "note.txt").write_text("mine")
    with raises(FileExistsError, "not empty", "--overwrite"):
        prepare_output(folder)
    with raises(FileExistsError, "run.json", "earlier output"):
        prepare_output(folder, overwrite=True)
    assert (folder / "note.txt").exists()
    write_settings(folder, {})
    prepare_output(folder, keep=True)
    assert (folder / "note.txt").exists()
    prepare_output(folder, overwrite=True)
    assert list(folder.iterdir()) == []
    (tmp_path / "file").write_text("x")
    with raises(FileExistsError, "file", "is a file"):
        prepare_output(tmp_path / "file")
    with raises(FileNotFoundError, "run.json", "`mop-t5 train --output`"):
        load_run(folder)
    write_settings(folder, {"backbone": "x"})
    with raises(FileNotFoundError, "trained weights", "`mop-t5 train --resume`"):
        load_run(folder)
