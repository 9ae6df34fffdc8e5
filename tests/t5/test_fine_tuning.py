"""Fine-tuning of all weights as a method: trained as a plain backbone is, saved, undone bit for bit; templates."""

import json

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.data import Example, synthetic_corpus
from mop_t5.evaluation import Scorer, Scores, generate_summaries
from mop_t5.methods.fine_tuning import FineTuningConfig
from mop_t5.training import TrainingConfig, train
from mop_t5.training import trainer as trainer_module
from safetensors.torch import load_file
from t5_oracle import batch, tiny
from transformers import MT5Config, T5Config

import mop_kernels

CORPUS = synthetic_corpus(2, general=120, train=60, valid=10, test=10)
SCENARIOS = ["e-commerce", "food", "take-out", "taxi", "ticket"]
HEADS = {"tied": T5Config, "untied": MT5Config}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([text for row in CORPUS["general"] for text in (row.dialogue, row.summary)], 600)


def backbone(tokenizer, head="tied", dropout=0.0):
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 4, "dropout_rate": dropout}
    config = HEADS[head](vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, **sizes)
    return mop_t5.build_backbone(config, tie_word_embeddings=head == "tied")


def attached(tokenizer, head="tied", dropout=0.0, **fields):
    return mop_t5.attach(backbone(tokenizer, head, dropout), "fine_tuning", scenarios=SCENARIOS, **fields)


def run(model, tokenizer, folder, resume=False, scorer=None, **changes):
    fields = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0, "log_every": 2, "max_target": 24}
    config = TrainingConfig(**fields | changes)
    valid = CORPUS["valid"] if config.evaluate_every else None
    files = {"output": folder, "resume": resume}
    return train(model, tokenizer, CORPUS["train"], config, **files, valid=valid, scorer=scorer, progress=False)


def values(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("head", HEADS)
def test_everything_is_trained_saved_and_restored(head, tokenizer, tmp_path):
    model = backbone(tokenizer, head)
    model.shared.weight.requires_grad_(True)
    before, asked = values(model), {name: p.requires_grad for name, p in model.named_parameters()}
    mop_t5.attach(model, "fine_tuning", scenarios=SCENARIOS)
    counted = mop_t5.count_parameters(model)
    assert counted.trained == counted.total == counted.backbone == sum(t.numel() for t in before.values())
    run(model, tokenizer, tmp_path / "run", weight_decay=0.1)
    after = values(model)
    assert all(not torch.equal(after[name], before[name]) for name in before)

    mop_t5.save(model, tmp_path / "saved")
    assert load_file(tmp_path / "saved" / "model.safetensors").keys() == before.keys()
    loaded = mop_t5.load(backbone(tokenizer, head), tmp_path / "saved")
    assert same(values(loaded), after)
    for one in (model, loaded):
        assert (one.lm_head.weight is one.shared.weight) == (head == "tied")
        mop_t5.detach(one)
        assert same(values(one), before)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == asked
    with raises(ValueError, "another backbone"):
        mop_t5.load(mop_t5.build_backbone(model.config, seed=1), tmp_path / "saved")


@pytest.mark.parametrize(("name", "weights"), [("t5-base", 222_903_552), ("t5-pegasus-base", 275_029_248)])
def test_parameter_counts(name, weights):
    counted = mop_t5.count_parameters(mop_t5.attach(mop_t5.build_backbone(name, device="meta"), "fine_tuning"))
    assert counted == (weights, weights, weights, 1.0)


def test_nothing_is_added_to_the_model():
    inputs = batch()
    with torch.no_grad():
        assert torch.equal(mop_t5.attach(tiny(), "fine_tuning")(**inputs).logits, tiny()(**inputs).logits)


@pytest.mark.parametrize(
    "changes",
    [
        {"weight_decay": 0.3},
        {"label_smoothing": 0.1},
        {"accumulation": 2, "batching": "mixed"},
        {"bf16": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("head", HEADS)
def test_training_equals_that_of_a_plain_backbone(head, changes, tokenizer, tmp_path):
    """With dropout, so that random numbers must be drawn in the same order, too; without kernels, which draw others.

    The attached model smooths its labels itself, in another order of sums than Trainer.
    """
    plain, model = backbone(tokenizer, head, 0.1).requires_grad_(True), attached(tokenizer, head, 0.1)
    plain.decoder.config.use_cache = False  # attached models train without; a cache changes the last bit
    before = values(plain)
    expected = run(plain, tokenizer, tmp_path / "plain", **changes)
    with mop_kernels.use_backend("reference"):
        got = run(model, tokenizer, tmp_path / "method", **changes)
    losses = [point["loss"] for point in got.history if "loss" in point]
    if "label_smoothing" in changes:
        assert losses == pytest.approx([loss for _, loss in expected.losses], rel=1e-5)
    else:
        assert losses == [loss for _, loss in expected.losses]
        assert same(values(model), values(plain))
    assert not same(values(model), before)


def test_optimizer_groups(tokenizer, tmp_path):
    """Decay where a plain backbone has it: on all but norms and biases."""
    model = attached(tokenizer)
    config = TrainingConfig(weight_decay=0.3, group_rates={"backbone": 0.5})
    rows = [Example(SCENARIOS[0], "a", "b", "1")]
    trainer = trainer_module._Trainer(model, tokenizer, rows, config, tmp_path, [], Scorer(), False)
    groups = trainer.create_optimizer().param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert decays == {id(p): 0.0 if "norm" in n or "bias" in n else 0.3 for n, p in model.named_parameters()}
    assert {group["lr"] for group in groups} == {0.5 * TrainingConfig().learning_rate}


@pytest.mark.parametrize("head", HEADS)
def test_a_resumed_run_ends_where_a_straight_one_ends(head, tokenizer, tmp_path):
    changes = {"schedule": "constant", "save_every": 4}
    straight, first, second = (attached(tokenizer, head, 0.1, templates="default") for _ in range(3))
    run(straight, tokenizer, tmp_path / "straight", **changes)
    run(first, tokenizer, tmp_path / "cut", steps=4, **changes)
    run(second, tokenizer, tmp_path / "cut", resume=True, **changes)
    assert same(values(second), values(straight))
    assert not same(values(first), values(straight))
    mop_t5.detach(second)
    assert same(values(second), values(backbone(tokenizer, head))), "detach gives what was there before the run"
    with raises(ValueError, "templates", "'default'", "None"):
        run(attached(tokenizer, head), tokenizer, tmp_path / "cut", resume=True, steps=8, **changes)


@pytest.mark.parametrize("head", HEADS)
def test_the_best_checkpoint_is_loaded_at_the_end(head, tokenizer, tmp_path):
    means = iter([0.1, 0.9, 0.5, 0.4])
    scorer = Scorer(lambda references, texts: [Scores(*[mean] * 3) for mean in [next(means)] * len(texts)])
    model = attached(tokenizer, head)
    result = run(model, tokenizer, tmp_path, steps=20, evaluate_every=2, patience=2, scorer=scorer)
    assert max(step for step, _ in result.losses) == 8, "two validations without a better one stop the run"
    folder = tmp_path / "checkpoints"
    best = values(mop_t5.load(backbone(tokenizer, head), folder / "checkpoint-4"))
    last = values(mop_t5.load(backbone(tokenizer, head), folder / "checkpoint-8"))
    assert same(values(model), best)
    assert not same(best, last)
    assert (model.lm_head.weight is model.shared.weight) == (head == "tied")


TEXTS = {"e-commerce": "甲：", "food": "乙：", "take-out": "丙：", "taxi": "丁：", "ticket": "戊："}


@pytest.mark.parametrize(
    ("templates", "scenario", "expected"),
    [
        (None, "taxi", "对话"),
        ("default", "taxi", "这段对话来自打车业务。对话"),
        ("default", "Ticket", "这段对话来自票务业务。对话"),
        ("default", "E-Commerce", "这段对话来自电商业务。对话"),
        ("default", "Take-out", "这段对话来自外卖业务。对话"),
        ("default", "Food", "这段对话来自餐饮业务。对话"),
        ("default", "酒店", "这段对话来自酒店业务。对话"),
        ("From {scenario} {1}: ", "taxi", "From taxi {1}: 对话"),
        (TEXTS, "ticket", "戊：对话"),
    ],
)
def test_templates(templates, scenario, expected):
    method = mop_t5.attach(tiny(), "fine_tuning", scenarios=SCENARIOS, templates=templates).mop
    assert method.source_text("对话", scenario) == expected
    changed = TEXTS | {"hotel": "己："}
    with raises(ValueError, "templates", "scenario 'hotel'", "e-commerce, food"):
        mop_t5.attach(tiny(), "fine_tuning", scenarios=SCENARIOS, templates=TEXTS).mop.source_text("对话", "hotel")
    assert FineTuningConfig(scenarios=SCENARIOS, templates=changed).templates == changed


def test_templates_are_read_in_training_validation_and_generation_and_saved(tokenizer, tmp_path):
    model = attached(tokenizer, templates=TEXTS)
    read = []
    handle = model.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: read.extend(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    wanted = {text + row.dialogue for split in ("train", "valid") for row in CORPUS[split]
              for scenario, text in TEXTS.items() if scenario == row.scenario}  # fmt: skip

    def texts():
        found = {tokenizer.decode(ids, skip_special_tokens=True) for ids in read}
        read.clear()
        return found

    run(model, tokenizer, tmp_path / "run", steps=3, evaluate_every=3)
    found = texts()
    assert found <= wanted
    assert {TEXTS[row.scenario] + row.dialogue for row in CORPUS["valid"]} <= found
    assert len(found) > len(CORPUS["valid"])

    mop_t5.save(model, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "mop_config.json").read_text())["config"]["templates"] == TEXTS
    handle.remove()
    loaded = mop_t5.load(backbone(tokenizer), tmp_path / "saved")
    loaded.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: read.extend(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    rows = [*CORPUS["test"][:3], Example("taxi", "一", "", "short")]
    summaries = generate_summaries(loaded, tokenizer, rows, max_new_tokens=4)
    assert texts() == {TEXTS[row.scenario] + row.dialogue for row in rows}
    assert summaries == generate_summaries(model, tokenizer, rows, max_new_tokens=4)


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (TypeError, ("templates", "3"), {"templates": 3}),
        (ValueError, ("templates", "'default'", "'{scenario}'", "'Chat'"), {"templates": "Chat"}),
        (TypeError, ("templates", "{'taxi': 3}"), {"templates": {"taxi": 3}}),
        (
            ValueError,
            ("templates", "none", "food, take-out"),
            {"templates": {"e-commerce": "a", "taxi": "b", "ticket": "c"}},
        ),
    ],
)  # fmt: skip
def test_config_errors(error, message, given):
    with raises(error, *message):
        FineTuningConfig(scenarios=SCENARIOS, **given)


def test_scenarios_share_everything():
    model = mop_t5.attach(tiny(), "fine_tuning", scenarios=SCENARIOS, templates=TEXTS)
    with raises(ValueError, "scenarios", "share", "parameters"):
        mop_t5.add_scenario(model, "hotel")
