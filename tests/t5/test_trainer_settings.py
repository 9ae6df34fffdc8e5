"""Settings of transformers' Trainer: passed on, refused by name, recorded, compared on resume."""

import json
from dataclasses import fields
from pathlib import Path

import mop_t5
import pytest
import torch
from errors import raises, says
from mop_t5.cli.commands import Command, all_commands
from mop_t5.cli.flags import parse
from mop_t5.cli.main import main
from mop_t5.data import write_examples
from mop_t5.training import TrainingConfig, arguments, train, trainer_settings
from mop_t5.training.checkpoints import checkpoints
from mop_t5.training.embedding_noise import noisy_embeddings
from small_training import CORPUS, new_model, new_tokenizer, run
from t5_oracle import tiny
from torch.optim.optimizer import register_optimizer_step_post_hook

RUN = {"steps": 3, "log_every": 1, "save_every": 0}
CHANGEABLE = {"optim", "lr_scheduler_type", "save_total_limit", "dataloader_pin_memory", "report_to", "disable_tqdm"}


@pytest.fixture(scope="module")
def tokenizer():
    return new_tokenizer()


def trained(model, tokenizer, folder, **changes):
    """The history of a run and the weights at its end."""
    history = run(model, tokenizer, folder, **RUN | changes).history
    return history, {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def losses(history):
    return [point["loss"] for point in history if "loss" in point]


def test_what_the_package_sets_is_refused_by_the_name_of_its_setting(monkeypatch):
    set_here = {}

    class Arguments:
        n_gpu = 0

        def __init__(self, **keywords):
            set_here.update(keywords)

    monkeypatch.setattr(arguments, "Seq2SeqTrainingArguments", Arguments)
    arguments.trainer_arguments(TrainingConfig(evaluate_every=3), Path(), True, "rouge", False)
    assert len(set_here) > 25
    ours = {field.name for field in fields(TrainingConfig)} | {"output", "resume", "shard", "hub_model_id"}
    for name in set_here.keys() - CHANGEABLE:
        with raises(ValueError, f"trainer.{name}"):
            TrainingConfig(trainer={name: None})
    for name, own in trainer_settings._SET_BY.items():
        assert own in ours
        if name in trainer_settings.trainer_types():
            with raises(ValueError, f"trainer.{name}", own):
                TrainingConfig(trainer={name: 1})
    assert not CHANGEABLE & (trainer_settings._SET_BY.keys() | trainer_settings._FIXED.keys())


@pytest.mark.parametrize(
    ("trainer", "error", "parts"),
    [
        ({"dataloader_num_worker": 2}, ValueError, ("trainer.dataloader_num_worker", "'dataloader_num_workers'")),
        ({"": 2}, ValueError, ("trainer.", "--help")),
        ({"logging_dir": "logs"}, ValueError, ("trainer.logging_dir", "TENSORBOARD_LOGGING_DIR")),
        ({"fp16": True}, ValueError, ("trainer.fp16", "bf16")),
        ({"dataloader_num_workers": "2"}, TypeError, ("trainer.dataloader_num_workers", "int", "'2'")),
        ({"dataloader_num_workers": -1}, ValueError, ("trainer.dataloader_num_workers", "0", "-1")),
        ({"dataloader_num_workers": True}, TypeError, ("trainer.dataloader_num_workers", "True")),
        ({"logging_first_step": 1}, TypeError, ("trainer.logging_first_step", "1")),
        ({"optim": "adam"}, ValueError, ("trainer.optim", "'adafactor'", "'sgd'", "'adam'")),
        ({"optim": ["sgd"]}, ValueError, ("trainer.optim", "['sgd']")),
        ({"optim": "adamw_torch"}, ValueError, ("trainer.optim", "'adamw_torch'", "fused")),
        ({"optim": "galore_adamw"}, ValueError, ("trainer.optim", "'galore_adamw'")),
        ({"optim": "schedule_free_sgd"}, ValueError, ("trainer.optim", "'schedule_free_sgd'")),
        ({"lr_scheduler_type": "cosine"}, ValueError, ("trainer.lr_scheduler_type", "'cosine'", "schedule")),
        ({"lr_scheduler_type": "cos"}, ValueError, ("trainer.lr_scheduler_type", "'polynomial'", "'cos'")),
        ({"log_level": "loud"}, ValueError, ("trainer.log_level", "'debug'", "'loud'")),
        ({"neftune_noise_alpha": -1.0}, ValueError, ("trainer.neftune_noise_alpha", "0", "-1.0")),
        ({"adam_beta1": 1.0}, ValueError, ("trainer.adam_beta1", "below 1", "1.0")),
        ({"adam_epsilon": float("nan")}, ValueError, ("trainer.adam_epsilon", "finite", "nan")),
        ({"save_total_limit": 0}, ValueError, ("trainer.save_total_limit", "1", "0")),
    ],
)
def test_wrong_settings(trainer, error, parts):
    with raises(error, *parts):
        TrainingConfig(trainer=trainer)


@pytest.mark.parametrize(
    ("trainer", "parts"),
    [
        ({"report_to": "tensorbord"}, ("trainer", "tensorbord", "tensorboard")),
        ({"lr_scheduler_kwargs": {"cycles": 2}}, ("trainer", "cycles")),
        ({"optim": "sgd", "optim_args": "momentum=high"}, ("trainer", "high")),
        ({"dataloader_persistent_workers": True}, ("trainer", "persistent_workers")),
        ({"dataloader_prefetch_factor": 2}, ("trainer", "dataloader_prefetch_factor")),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, ("trainer", "reduce_lr_on_plateau")),
        ({"optim": "adamw_bnb_8bit"}, ("trainer.optim", "mop", "'adamw_bnb_8bit'")),
    ],
)
def test_what_transformers_refuses_is_said_before_a_file_is_written(trainer, parts, tokenizer, tmp_path):
    model = new_model(tokenizer)
    with raises(ValueError, *parts):
        run(model, tokenizer, tmp_path / "run", trainer=trainer)
    assert not (tmp_path / "run").exists()


def test_a_missing_tensorboard_is_named_with_its_extra(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(arguments, "is_tensorboard_available", lambda: False)
    with raises(RuntimeError, "trainer.report_to", "mop-kernels[tensorboard]"):
        run(new_model(tokenizer), tokenizer, tmp_path, trainer={"report_to": ["tensorboard"]})


TRAIN = ["train", "--corpus", "c", "--backbone", "b", "--output", "o"]


def settings_of(*flags):
    return parse([*TRAIN, *flags], Command(commands=all_commands()), "mop-t5")[1]["training"].trainer


def test_flags_and_files(tmp_path, capsys):
    config = tmp_path / "train.yaml"
    config.write_text("trainer: {optim: sgd, optim_args: 'momentum=0.9', run_name: a}\nsteps: 7\n")
    flags = ["--config", str(config), "--trainer.run_name=123", "--trainer.report_to", "[tensorboard]"]
    flags += ["--trainer.lr_scheduler_kwargs", "{num_cycles: 2}", "--trainer.logging_first_step", "true"]
    assert settings_of(*flags) == {
        **{"optim": "sgd", "optim_args": "momentum=0.9", "run_name": "123", "report_to": ["tensorboard"]},
        **{"lr_scheduler_kwargs": {"num_cycles": 2}, "logging_first_step": True},
    }
    assert settings_of("--trainer", "{optim: sgd}", "--trainer.adam_epsilon", "1e-6") == {
        "optim": "sgd",
        "adam_epsilon": 1e-6,
    }
    with raises(ValueError, "trainer.learning_rate", "learning_rate"):
        settings_of("--trainer.learning_rate", "1")
    with pytest.raises(SystemExit, match="2"):
        parse(["evaluate", "--run", "r", "--trainer.optim=sgd"], Command(commands=all_commands()), "mop-t5")
    says(capsys.readouterr().err, "--trainer.optim")


def test_tensorboard_has_the_losses_of_the_run_folder(tokenizer, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    corpus, backbone, output = tmp_path / "corpus", tmp_path / "backbone", tmp_path / "run"
    corpus.mkdir()
    write_examples(corpus / "train.jsonl", CORPUS["train"])
    new_model(tokenizer, None).save_pretrained(backbone)
    tokenizer.save_pretrained(backbone)
    common = ["train", "--corpus", corpus, "--backbone", backbone, "--output", output, "--method", "bitfit"]
    common = [*map(str, common), "--batch_size", "2", "--save_every", "2", "--max_target", "8", "--log_every", "2"]
    first = ["--trainer.optim", "sgd", "--trainer.report_to", "tensorboard", "--trainer.logging_first_step", "true"]
    assert main([*common, "--steps", "4", *first]) == 0
    points = [json.loads(line) for line in (output / "loss.jsonl").read_text().splitlines()]
    (events,) = (output / "checkpoints").rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events))
    read.Reload()
    written = {event.step: event.value for event in read.Scalars("train/loss")}
    assert written == pytest.approx({point["step"]: point["loss"] for point in points if "loss" in point})
    assert set(written) == {1, 2, 4}

    # the settings are in run.json; a resumed run may report elsewhere, and takes the same optimizer
    settings = json.loads((output / "run.json").read_text())
    assert settings["trainer"] == {"optim": "sgd", "report_to": "tensorboard", "logging_first_step": True}
    resumed = [*common, "--steps", "6", "--resume", "--dry_run"]
    assert main([*resumed, "--trainer.optim", "sgd", "--trainer.disable_tqdm", "true"]) == 0
    capsys.readouterr()
    assert main([*resumed, "--trainer.optim", "adagrad"]) == 1
    says(capsys.readouterr().err, "trainer.optim", "'sgd'", "'adagrad'")
    assert main(resumed) == 1
    says(capsys.readouterr().err, "trainer.optim", "'sgd'", "None")


def test_workers_give_the_same_batches(tokenizer, tmp_path, monkeypatch):
    made = []

    class Loader(torch.utils.data.DataLoader):
        def __init__(self, *arguments, **keywords):
            made.append(keywords["num_workers"])
            super().__init__(*arguments, **keywords)

    monkeypatch.setattr("mop_t5.training.trainer.DataLoader", Loader)
    plain = trained(new_model(tokenizer), tokenizer, tmp_path / "plain")
    workers = {"dataloader_num_workers": 2, "dataloader_prefetch_factor": 3, "dataloader_persistent_workers": True}
    workers["dataloader_pin_memory"] = False
    loaded = trained(new_model(tokenizer), tokenizer, tmp_path / "workers", trainer=workers, save_every=2)
    resumed = new_model(tokenizer)
    continued = trained(resumed, tokenizer, tmp_path / "workers", trainer=workers, save_every=2, resume=True)
    assert made == [0, 2, 2]
    for history, weights in (loaded, continued):
        assert losses(history) == losses(plain[0])
        assert all(torch.equal(weights[name], weight) for name, weight in plain[1].items())


@pytest.mark.parametrize(
    ("trainer", "kind"),
    [
        ({"optim": "sgd", "optim_args": "momentum=0.9"}, "SGD"),
        ({"optim": "adafactor"}, "Adafactor"),
        ({"adam_beta1": 0.5, "adam_epsilon": 1e-3}, "AdamW"),
    ],
)
def test_other_optimizers_take_the_groups_and_leave_absent_experts_alone(trainer, kind, tokenizer, tmp_path):
    seen = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: seen.append(optimizer))
    model = new_model(tokenizer)
    before = [(parameter.detach().clone(), parameter, dim) for parameter, dim in model.mop.expert_parameters()]
    rows = [row for row in CORPUS["train"] if row.scenario == "taxi"]
    config = TrainingConfig(steps=3, batch_size=2, weight_decay=0.3, max_target=12, max_source=24, trainer=trainer)
    try:
        train(model, tokenizer, rows, config, output=tmp_path, progress=False)
    finally:
        hook.remove()
    assert type(seen[0]).__name__ == kind
    group = seen[0].param_groups[0]
    assert group["name"]
    assert group["weight_decay"] == 0.3
    assert group.get("momentum", 0.9) == 0.9
    assert group.get("betas", (0.5, 0.999)) == (0.5, 0.999)
    taxi = model.mop.scenarios.index("taxi")
    for old, new, dim in before:
        same = [torch.equal(old.select(dim, one), new.select(dim, one)) for one in range(old.shape[dim])]
        assert same == [one != taxi for one in range(old.shape[dim])]


def test_schedules_of_transformers(tokenizer, tmp_path):
    def rates(**changes):
        history = trained(new_model(tokenizer), tokenizer, tmp_path, learning_rate=0.1, **changes)[0]
        return [point["learning_rate"] for point in history if "loss" in point]

    polynomial = {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0, "lr_end": 0.0}}
    assert rates(trainer=polynomial) == pytest.approx([0.1, 0.1 * (2 / 3) ** 2, 0.1 * (1 / 3) ** 2])
    twice = {"lr_scheduler_kwargs": {"num_cycles": 1.0}}
    expected = [0.1, 0.1 * 0.25, 0.1 * 0.25]  # (1 + cos(2 pi step / 3)) / 2
    assert rates(schedule="cosine", trainer=twice) == pytest.approx(expected)


def test_the_newest_checkpoint_stays_beside_the_best(tokenizer, tmp_path):
    changes = {"steps": 3, "evaluate_every": 1, "learning_rate": 1e-9, "trainer": {"save_total_limit": 1}}
    run(new_model(tokenizer), tokenizer, tmp_path, **changes)
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["checkpoint-1", "checkpoint-3"]


@pytest.mark.parametrize("method", [None, "mop", "prompt_tuning"])
def test_neftune_adds_noise_to_both_stacks(method):
    model = tiny(dropout_rate=0.0)
    if method:
        fields = {"d_mid": 8, "terms_down": 4, "terms_up": 4} if method == "mop" else {}
        mop_t5.attach(model, method, scenarios=["a"], **fields)
    ids = torch.arange(2, 8)[None]
    batch = {"input_ids": ids, "labels": ids} | ({"scenario_ids": torch.zeros(1, dtype=torch.long)} if method else {})
    seen = {"encoder": [], "decoder": []}
    for name in seen:
        stack = getattr(model, name)
        stack.block[0].register_forward_pre_hook(lambda module, inputs, name=name: seen[name].append(inputs[0]))
    model.train()
    for alpha in (None, 3.0, None):
        with noisy_embeddings(model, alpha):
            model(**batch)
    model.eval()
    with noisy_embeddings(model, 3.0):
        model(**batch)
    for name, (plain, noisy, after, evaluated) in seen.items():
        assert torch.equal(plain, after), name
        assert torch.equal(plain, evaluated), name
        added = (noisy - plain)[:, -ids.shape[1] :]
        bound = 3.0 / (ids.shape[1] * model.config.d_model) ** 0.5
        assert 0.8 * bound < added.abs().max() <= bound + 1e-6, name
    assert not any(hasattr(module, "neftune_noise_alpha") for module in model.modules())


def test_neftune_reaches_the_training(tokenizer, tmp_path):
    found = [
        losses(
            trained(new_model(tokenizer), tokenizer, tmp_path / str(alpha), trainer={"neftune_noise_alpha": alpha})[0]
        )
        for alpha in (None, 0.0, 5.0)
    ]
    assert found[0] == found[1]
    assert all(abs(a - b) > 1e-4 for a, b in zip(found[0], found[2]))
    with raises(ValueError, "trainer.neftune_noise_alpha", "cache_encoder"):
        TrainingConfig(trainer={"neftune_noise_alpha": 1.0}, cache_encoder="memory")
