"""Runs on the model hub: `mop-t5 train --hub_model_id`, `mop-t5 push`, and the model card of a run."""

import json
import re
import shutil

import mop_t5
import pytest
import yaml
from errors import raises, says, warns
from hub_server import Refused
from huggingface_hub import ModelCard
from mop_t5.cli.main import main
from mop_t5.operations.run_card import HubTarget, write_run_card
from mop_t5.storage import adapter_folder

NAME = "me/adapter"
SMALL = ["--steps", "4", "--batch_size", "4", "--log_every", "2", "--max_target", "8", "--max_source", "24"]
METHOD = ["--method", "prompt_tuning", "--options.prefix_length", "3"]


def train(place, output, *more):
    base = ["train", "--corpus", place / "corpus", "--backbone", place / "backbone", "--output", output, *SMALL]
    return main([str(word) for word in [*base, *more]])


def fails(capsys, *words):
    assert main([str(word) for word in words]) == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def run(place):
    """A validated and evaluated run that was never uploaded."""
    assert train(place, place / "run", *METHOD, "--evaluate_every", "2", "--licence", "mit") == 0
    assert main(["evaluate", "--run", str(place / "run")]) == 0
    return place / "run"


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run, tmp_path / "a run")


def test_train_uploads_its_adapter(hub, place, tmp_path, capsys):
    output = tmp_path / "run"
    assert train(place, output, *METHOD, "--hub_model_id", NAME, "--hub_private", "--licence", "mit") == 0
    repository = hub.repositories[NAME]
    says(capsys.readouterr().out, "Uploaded", repository.branches["main"])
    assert repository.private
    for file in ("model.safetensors", "mop_config.json", "README.md"):
        assert repository.files()[file] == (output / "adapter" / file).read_bytes()
    card = ModelCard.load(output / "adapter" / "README.md")
    assert card.data.license == "mit"
    settings = json.loads((output / "run.json").read_text())
    assert settings["licence"] == "mit"
    assert not [name for name in settings if name.startswith("hub")]  # who repeats the run does not upload it again
    loaded = mop_t5.load(mop_t5.load_backbone(place / "backbone"), NAME)
    assert loaded.scenarios == ("food", "taxi", "ticket")
    # another upload of the same run changes nothing
    assert main(["push", "--run", str(output), "--hub_model_id", NAME]) == 0
    assert len(repository.messages) == 2


def test_what_the_card_of_a_run_says(run, place):
    text = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    history = [json.loads(line) for line in (run / "loss.jsonl").read_text().splitlines()]
    losses = [point for point in history if "loss" in point]
    rows = {cells[0].strip("` "): cells[1:] for cells in table_rows(text)}
    train, valid = (
        [row for row in corpus_of(place, split) if row["scenario"] == "taxi"] for split in ("train", "valid")
    )
    lengths = [sum(len("".join(row[part].split())) for row in train) for part in ("dialogue", "summary")]
    assert rows["taxi"] == [str(len(train)), str(len(valid)), *(f"{length / len(train):.1f}" for length in lengths)]
    assert rows["steps"] == ["4"]
    assert rows["loss at step 4"] == [f"{losses[-1]['loss']:.4f}"]
    best = max(point["eval_rouge"] for point in history if "eval_rouge" in point)
    (validation,) = rows["best validation, eval_rouge"]
    assert validation.startswith(f"{best:.2f} at step ")
    assert {"python", "torch", "transformers"} <= rows.keys()
    assert str(place) not in text  # folders of this machine


def corpus_of(place, split):
    return [json.loads(line) for line in (place / "corpus" / f"{split}.jsonl").read_text().splitlines()]


def table_rows(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]


def test_the_configuration_in_the_card_trains_the_run_again(run, place, tmp_path):
    text = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    written = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]
    settings = json.loads((run / "run.json").read_text())
    kept = {name: value for name, value in settings.items() if value not in (None, {}, [])}
    assert yaml.safe_load(written) == {
        name: {"corpus": "corpus", "backbone": "backbone"}.get(name, value) for name, value in kept.items()
    }
    (tmp_path / "train.yaml").write_text(written, encoding="utf-8")
    again = ["--corpus", place / "corpus", "--backbone", place / "backbone", "--output", tmp_path / "again"]
    assert main([str(word) for word in ["train", "--config", tmp_path / "train.yaml", *again]]) == 0
    first, again = (adapter_folder.read(folder / "adapter")[0]["sha256"] for folder in (run, tmp_path / "again"))
    assert first == again


def test_push_has_the_scores(hub, copy, capsys):
    assert (
        main(["push", "--run", str(copy), "--hub_model_id", NAME, "--hub_revision", "v1", "--commit_message", "M"]) == 0
    )
    repository = hub.repositories[NAME]
    assert repository.messages[-1] == "M"
    assert "mop_config.json" not in repository.files("main")
    card = repository.files("v1")["README.md"].decode()
    assert (copy / "evaluation-test" / "results.md").read_text().strip() in card
    assert ModelCard(card).data.license == "mit"  # of the run
    # an evaluation of other weights is not theirs
    contents = json.loads((copy / "evaluation-test" / "contents.json").read_text())
    contents["training"]["sha256"] = "0" * 64
    (copy / "evaluation-test" / "contents.json").write_text(json.dumps(contents))
    assert main(["push", "--run", str(copy), "--hub_model_id", NAME, "--licence", "apache-2.0"]) == 0
    card = repository.files()["README.md"].decode()
    assert "Scores" not in card
    assert ModelCard(card).data.license == "apache-2.0"


def test_push_keeps_a_card_of_ones_own(hub, copy):
    (copy / "adapter" / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    assert main(["push", "--run", str(copy), "--hub_model_id", NAME]) == 0
    assert hub.repositories[NAME].files()["README.md"] == (copy / "adapter" / "README.md").read_bytes()
    assert b"# Mine" in hub.repositories[NAME].files()["README.md"]
    with warns(UserWarning, "'apache-2.0'", "README.md", "by hand"):
        assert main(["push", "--run", str(copy), "--hub_model_id", NAME, "--licence", "apache-2.0"]) == 0
    assert b"license: mit" in hub.repositories[NAME].files()["README.md"]


def test_the_card_of_exported_prefixes_says_nothing_of_a_training(copy):
    (copy / "loss.jsonl").unlink()
    assert write_run_card(copy)
    text = (copy / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "## Training data" in text
    assert not {"## Training", "## Scores on the test split"} & set(text.splitlines())


def test_a_run_of_an_earlier_version(hub, copy):
    """Without a card, without card.json, and without a licence."""
    settings = json.loads((copy / "run.json").read_text())
    del settings["licence"]
    (copy / "run.json").write_text(json.dumps(settings))
    (copy / "card.json").unlink()
    (copy / "adapter" / "README.md").unlink()
    assert main(["push", "--run", str(copy), "--hub_model_id", NAME]) == 0
    card = hub.repositories[NAME].files()["README.md"].decode()
    assert "## Training" in card
    assert "## Versions" not in card
    assert ModelCard(card).data.license is None


def test_an_upload_that_fails_loses_nothing_and_says_how_to_repeat_it(hub, place, tmp_path, capsys, monkeypatch):
    """The hub breaks down between the check and the upload."""
    output = tmp_path / "a run"
    answer = hub.answer

    def without_commits(method, path, *rest):
        if "/preupload/" in path:
            raise Refused(403)
        return answer(method, path, *rest)

    monkeypatch.setattr(hub, "answer", without_commits)
    assert train(place, output, *METHOD, "--hub_model_id", NAME, "--hub_revision", "v1") == 1
    captured = capsys.readouterr()
    says(captured.out, "Written to", str(output))
    message = captured.err.strip().splitlines()[-1]
    command = f"mop-t5 push --run '{output}' --hub_model_id {NAME} --hub_revision v1"
    says(message, "run", "complete", str(output), "403", command)
    monkeypatch.setattr(hub, "answer", answer)
    assert main(["push", "--run", str(output), *command.split("' ")[1].split()]) == 0
    assert adapter_folder.read(output / "adapter")
    weights = hub.repositories[NAME].files("v1")["model.safetensors"]
    assert weights == (output / "adapter" / "model.safetensors").read_bytes()


def test_ctrl_c_during_the_upload(hub, place, tmp_path, capsys, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("mop_t5.storage.hub.upload", stop)
    assert train(place, tmp_path / "run", *METHOD, "--hub_model_id", NAME) == 130
    says(capsys.readouterr().err, "run", "complete", "mop-t5 push --run", NAME)
    assert adapter_folder.read(tmp_path / "run" / "adapter")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--hub_model_id", "me"], ("hub_model_id", "owner/name", "'me'")),
        (["--hub_model_id", "nobody/adapter"], ("nobody/adapter", "'me'", "'nobody'")),
        (["--hub_model_id", "me/whole"], ("me/whole", "whole model")),
        (["--hub_model_id", "me/public", "--hub_private"], ("me/public", "public", "private")),
        (["--hub_model_id", NAME, "--licence", "Apache 2"], ("licence", "'Apache 2'")),
        (["--hub_private"], ("hub_private", "hub_model_id")),
        (["--hub_revision", "v1"], ("hub_revision", "hub_model_id")),
        (["--hub_model_id", NAME, "--seeds", "[0, 1]"], ("hub_model_id", "seeds")),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry_run"]], ids=["", "dry"])
def test_a_target_is_checked_before_training(hub, place, tmp_path, capsys, more, words, dry):
    hub.make("me/whole", {"config.json": b"{}"})
    hub.make("me/public")
    assert train(place, tmp_path / "run", *METHOD, *more, *dry) == 1
    says(capsys.readouterr().err, *words)
    assert list(tmp_path.iterdir()) == [] or not (tmp_path / "run").exists()
    assert set(hub.repositories) == {"me/whole", "me/public"}


def test_a_token_is_checked_before_training(hub, place, tmp_path, capsys, monkeypatch):
    for token, words in (("wrong", ("401",)), ("reader", ("token", "read")), ("", ("no token",))):
        monkeypatch.setenv("HF_TOKEN", token)
        assert train(place, tmp_path / "run", *METHOD, "--hub_model_id", NAME) == 1
        says(capsys.readouterr().err, *words)
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert train(place, tmp_path / "run", *METHOD, "--hub_model_id", NAME, "--dry_run") == 0
    assert hub.repositories == {}
    assert train(place, tmp_path / "run", "--hub_model_id", NAME) == 1  # no method, no adapter
    says(capsys.readouterr().err, "hub_model_id", "method")


def test_what_cannot_be_pushed(hub, copy, tmp_path, capsys):
    push = ["push", "--hub_model_id", NAME, "--run"]
    says(fails(capsys, *push, tmp_path / "none"), "none", "run.json")
    says(fails(capsys, *push[:1], "--run", copy), "hub_model_id", "owner/name")
    says(fails(capsys, "push", "--run", copy, "--hub_model_id", "me"), "hub_model_id", "'me'")
    shutil.copytree(copy, tmp_path / "seeds")
    settings = json.loads((copy / "run.json").read_text())
    (tmp_path / "seeds" / "run.json").write_text(json.dumps(settings | {"seeds": [0, 1]}))
    says(fails(capsys, *push, tmp_path / "seeds"), "seed-0, seed-1")
    weights = copy / "adapter" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    says(fails(capsys, *push, copy), "damaged")
    weights.write_bytes(whole)
    (copy / "card.json").write_text('{"corpus": {"train": 1, "valid": {}}}')
    says(fails(capsys, *push, copy), "card.json", "damaged")
    shutil.rmtree(copy / "adapter")
    says(fails(capsys, *push, copy), "no trained weights")
    (copy / "backbone").mkdir()
    says(fails(capsys, *push, copy), "all weights", "backbone")
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"hub_model_id": 5}, TypeError, ("hub_model_id", "5")),
        ({"hub_model_id": NAME, "hub_private": "yes"}, TypeError, ("hub_private", "'yes'")),
        ({"licence": ["mit"]}, TypeError, ("licence", "mit")),
        ({"hub_model_id": "a//b"}, ValueError, ("hub_model_id", "'a//b'")),
    ],
)
def test_wrong_fields(fields, error, words):
    with raises(error, *words):
        HubTarget(**fields)
