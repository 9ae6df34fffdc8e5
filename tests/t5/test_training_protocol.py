"""The training protocol: each piece of it against torch's own, in a loop of our own or by what it must leave behind."""

import json
import math

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.data import Collator, EncodedExamples, TemperatureBatchSampler, scenario_ids_of, synthetic_corpus
from mop_t5.evaluation import Scorer, Scores
from mop_t5.training import CHECKPOINTS, TrainingConfig, hold_absent_experts, train
from torch.nn.functional import cross_entropy
from transformers import T5Config

CORPUS = synthetic_corpus(2, general=120, train=60, valid=5, test=1)
SCENARIOS = ["e-commerce", "food", "take-out", "taxi", "ticket"]
TOKENIZER = train_tokenizer([text for row in CORPUS["general"] for text in (row.dialogue, row.summary)], 600)


def new_model(method="mop"):
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
    config = T5Config(vocab_size=len(TOKENIZER), pad_token_id=0, eos_token_id=1, **sizes)
    model = mop_t5.build_backbone(config, seed=0, dtype=torch.float64)
    torch.manual_seed(0)
    if method is None:
        return model.requires_grad_(True)
    terms = {"terms_down": 4, "terms_up": 4} if method == "mop" else {}
    return mop_t5.attach(model, method, scenarios=SCENARIOS, prefix_length=3, d_mid=8, **terms)


def run(model, folder, resume=False, rouge=None, **changes):
    fields = {"steps": 4, "batch_size": 2, "warmup_steps": 0, "log_every": 1, "max_target": 8} | changes
    valid = CORPUS["valid"] if fields.get("evaluate_every") else None
    config = TrainingConfig(**fields)
    return train(
        model,
        TOKENIZER,
        CORPUS["train"],
        config,
        output=folder,
        valid=valid,
        scorer=Scorer(rouge) if rouge else None,
        resume=resume,
        progress=False,
    )


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def by_hand(model, steps, batch_size, accumulation, batching, smoothing, own_loss=lambda: 0, tokens=None):
    """The same steps in a plain loop: each on one joint batch, AdamW, linear decay, norm 1. Returns the losses."""
    attached = mop_t5.is_attached(model)
    rows = EncodedExamples(CORPUS["train"], TOKENIZER, SCENARIOS if attached else None)
    ids = scenario_ids_of(CORPUS["train"], SCENARIOS)
    fields = {"batching": batching, "num_batches": steps * accumulation}
    fields |= {"tokens_per_batch": tokens, "lengths": rows.lengths} if tokens else {"batch_size": batch_size}
    stream = iter(TemperatureBatchSampler(ids, **fields))
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    spared = [p for n, p in named if "bias" in n or "norm" in n]
    decayed = [p for n, p in named if not any(p is q for q in spared)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.98))
    if attached:
        hold_absent_experts(optimizer, model.mop.expert_parameters())
    losses = []
    for step in range(steps):
        joint = [rows[i] for _ in range(accumulation) for i in next(stream)]
        batch = Collator(0, 5 if attached else None)(joint)
        loss = cross_entropy(model(**batch).logits.flatten(0, 1), batch["labels"].flatten(), label_smoothing=smoothing)
        loss = loss + own_loss()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / steps)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("method", "batching", "accumulation", "smoothing", "tokens"),
    [
        ("mop", "homogeneous", 3, 0.0, None),
        ("mop", "mixed", 2, 0.1, None),
        ("mop", "homogeneous", 2, 0.0, 400),
        ("prefix_tuning", "mixed", 1, 0.0, None),
        (None, "mixed", 2, 0, None),
    ],
)
def test_training_is_adamw_on_joint_batches(tmp_path, method, batching, accumulation, smoothing, tokens):
    model, other = new_model(method), new_model(method)
    before = weights(model)
    # 14 micro-batches of 3 rows: more than an epoch of 20 batches when accumulated twice or three times
    result = run(
        model,
        tmp_path,
        steps=14,
        batch_size=3,
        accumulation=accumulation,
        batching=batching,
        label_smoothing=smoothing,
        learning_rate=2e-3,
        weight_decay=0.1,
        beta2=0.98,
        max_target=128,  # nothing is cut: micro-batches have unequal numbers of tokens
        tokens_per_batch=tokens,
    )
    losses = by_hand(other, 14, 3, accumulation, batching, smoothing, tokens=tokens)
    # Trainer adds up losses in float32, T5 normalises in float32
    assert [loss for _, loss in result.losses] == pytest.approx(losses, rel=1e-5)
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight, weights(other)[name], rtol=1e-3, atol=1e-4)
        assert not torch.equal(weight, before[name])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_method_is_added_once_a_step(tmp_path, monkeypatch, smoothing):
    def with_own_loss():
        model = new_model("prefix_tuning")
        additions, weight = model.mop.additions, model.mop.generators["cross"].down.weight

        def own_loss():
            return 3 * weight.square().sum()

        def with_loss(scenario_ids=None):
            made = additions(scenario_ids)
            made.loss = own_loss()
            return made

        monkeypatch.setattr(model.mop, "additions", with_loss)
        return model, own_loss

    (model, _), (other, own_loss) = with_own_loss(), with_own_loss()
    fields = {"learning_rate": 2e-3, "weight_decay": 0.1, "beta2": 0.98, "max_target": 128, "batching": "mixed"}
    result = run(model, tmp_path, steps=6, batch_size=3, accumulation=2, label_smoothing=smoothing, **fields)
    losses = by_hand(other, 6, 3, 2, "mixed", smoothing, own_loss)
    assert [loss for _, loss in result.losses] == pytest.approx(losses, rel=1e-5)
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight, weights(other)[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_and_warm_up(tmp_path, schedule):
    changes = {"steps": 8, "warmup_steps": 3, "learning_rate": 0.1, "schedule": schedule}
    history = run(new_model("prefix_tuning"), tmp_path, **changes).history
    rates = [point["learning_rate"] for point in history if "learning_rate" in point]
    after = {
        "linear": lambda x: 1 - x,
        "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
        "constant": lambda x: 1,
    }[schedule]
    expected = [0.1 * (step / 3 if step < 3 else after((step - 3) / 5)) for step in range(8)]
    assert rates == pytest.approx(expected, rel=1e-6, abs=1e-9)


def scores(*means):
    """A rouge for `train` that gives its validations these mean scores, one after the other."""
    left = list(means)

    def rouge(references, texts):
        mean = left.pop(0)
        return [Scores(mean, mean, mean) for _ in texts]

    return rouge


def record(model):
    """The weights before each step, by its number, while the model trains."""
    seen = {}

    def keep(module, args, output):
        if module.training:
            seen[len(seen) + 1] = weights(module)

    model.register_forward_hook(keep)
    return seen


def test_the_best_checkpoint_is_kept_and_others_are_written_between(tmp_path):
    model = new_model()
    before = record(model)
    run(model, tmp_path, steps=10, evaluate_every=3, save_every=5, rouge=scores(0.2, 0.7, 0.3, 0.1))
    folders = sorted(int(folder.name.split("-")[1]) for folder in (tmp_path / CHECKPOINTS).iterdir())
    assert folders == [6, 10]  # the best, and the newest to resume from
    assert all(torch.equal(weight, before[7][name]) for name, weight in weights(model).items())
    assert any(not torch.equal(weight, before[10][name]) for name, weight in weights(model).items())


def test_patience_is_counted_on_when_a_run_is_resumed(tmp_path):
    changes = {"evaluate_every": 2, "patience": 2, "schedule": "constant"}
    run(new_model(), tmp_path, steps=4, rouge=scores(0.5, 0.4), **changes)
    result = run(new_model(), tmp_path, steps=20, resume=True, rouge=scores(0.3, 0.2, 0.1), **changes)
    assert [point["step"] for point in result.history if "eval_rouge" in point] == [2, 4, 6]


def test_nan_stops_the_run_and_the_last_checkpoint_is_good(tmp_path):
    model = new_model()
    before = record(model)

    def poison(module, args, output):
        if len(before) == 6:  # the forward of step 6
            output.loss = output.loss * float("nan")

    model.register_forward_hook(poison)
    with raises(FloatingPointError, "step 6", "gradient", "checkpoint-4", "learning_rate"):
        run(model, tmp_path, steps=8, save_every=2)
    assert all(torch.equal(weight, before[6][name]) for name, weight in weights(model).items())
    kept = mop_t5.load(mop_t5.detach(model), tmp_path / CHECKPOINTS / "checkpoint-4")
    assert all(torch.equal(weight, before[5][name]) for name, weight in weights(kept).items())
    state = json.loads((tmp_path / CHECKPOINTS / "checkpoint-4" / "trainer_state.json").read_text())
    assert [point["step"] for point in state["log_history"]] == [1, 2, 3, 4]


def test_an_infinite_gradient_stops_the_run_too(tmp_path):
    model = new_model()
    next(model.mop.parameters()).register_hook(lambda gradient: gradient / 0)
    with raises(FloatingPointError, "step 1", "none", "save_every", "0"):
        run(model, tmp_path, max_grad_norm=0.0)


def test_the_history_counts_epochs_in_rows(tmp_path):
    history = run(new_model(), tmp_path, steps=3, batch_size=4, accumulation=5).history
    assert [point["epoch"] for point in history if "loss" in point] == pytest.approx([1 / 3, 2 / 3, 1])


def test_a_run_by_tokens_resumes_in_its_second_epoch_and_counts_epochs_in_rows(tmp_path):
    changes = {"schedule": "constant", "save_every": 7, "max_target": 128, "accumulation": 2, "tokens_per_batch": 1200}
    straight, first, second = new_model(), new_model(), new_model()
    history = run(straight, tmp_path / "straight", steps=8, **changes).history
    run(first, tmp_path / "cut", steps=7, **changes)
    resumed = run(second, tmp_path / "cut", resume=True, steps=8, **changes).history
    assert all(torch.equal(weight, weights(straight)[name]) for name, weight in weights(second).items())
    assert any(not torch.equal(weight, weights(straight)[name]) for name, weight in weights(first).items())
    rows, ids = EncodedExamples(CORPUS["train"], TOKENIZER, SCENARIOS), scenario_ids_of(CORPUS["train"], SCENARIOS)
    batches = list(TemperatureBatchSampler(ids, lengths=rows.lengths, num_batches=16, tokens_per_batch=1200))
    expected = [sum(map(len, batches[: 2 * step])) / 60 for step in range(1, 9)]
    for points in (history, resumed):
        assert [point["epoch"] for point in points if "loss" in point] == pytest.approx(expected)
    assert expected[5] > 1


def test_a_validation_by_length_scores_each_text_with_its_row(tmp_path):
    pairs = []

    def rouge(references, texts):
        pairs.append(dict(zip(references, texts, strict=True)))
        return [Scores(len(r) / 100, len(t) / 100, 0.5) for r, t in zip(references, texts)]

    histories = [
        run(
            new_model(),
            tmp_path / str(sort),
            steps=1,
            evaluate_every=1,
            learning_rate=1e-9,
            by_length=sort,
            rouge=rouge,
        )
        for sort in (False, True)
    ]
    assert pairs[0] == pairs[1]
    assert list(pairs[0]) != list(pairs[1])  # another order
    found, expected = ([point["eval_rouge"] for point in h.history if "eval_rouge" in point] for h in histories)
    assert found == pytest.approx(expected)
