"""The library of source prompts: add, list, read, remove, from Python and from the command line."""

import json
import os
from pathlib import Path

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.cli.main import main
from mop_t5.storage import prompt_library
from t5_oracle import tiny

LENGTH = 4


def saved(folder, seed=0, method="prompt_tuning", backbone=None, **fields):
    """Folder of a saved method with random values."""
    torch.manual_seed(seed)
    fields = fields or {"prefix_length": LENGTH}
    model = mop_t5.attach(tiny() if backbone is None else backbone, method, **fields)
    mop_t5.save(model, folder)
    return model


@pytest.fixture
def library(tmp_path):
    """A library of two prompts, and the models that they were copied from."""
    models = {name: saved(tmp_path / name, seed) for seed, name in enumerate(("mnli", "sst2"))}
    for name in models:
        prompt_library.add(tmp_path / "library", name, tmp_path / name)
    return tmp_path / "library", models


def test_prompts_come_out_as_they_went_in(library):
    folder, models = library
    assert prompt_library.names(folder) == ("mnli", "sst2")
    for name, model in models.items():
        found = prompt_library.read(folder, name)
        assert found.name == name
        assert found.prompt.dtype == torch.float64
        assert torch.equal(found.prompt, model.mop.prompt)
        assert torch.equal(mop_t5.load(tiny(), folder / name).mop.prompt, found.prompt), "a prompt is an adapter"
    chosen = prompt_library.read_for(tiny(), folder, ["sst2", "mnli", "sst2"], LENGTH)
    assert torch.equal(chosen, torch.stack([models[name].mop.prompt for name in ("sst2", "mnli", "sst2")]))
    with raises(ValueError, "3 rows", "sst2", "4"):
        prompt_library.read_for(tiny(), folder, ["sst2"], 3)


def test_one_prompt_of_several(tmp_path):
    scenarios = ["taxi", "打车", "food"]
    model = saved(tmp_path / "own", prefix_length=LENGTH, per_scenario=True, scenarios=scenarios)
    added = prompt_library.add(tmp_path / "library", "打车", tmp_path / "own", scenario="打车")
    assert torch.equal(added.prompt, model.mop.prompt[1])
    assert added.scenarios == ("打车",)
    with raises(ValueError, "scenario", "taxi", "None"):
        prompt_library.add(tmp_path / "library", "food", tmp_path / "own")
    with raises(ValueError, "taxi", "'hotel'"):
        prompt_library.add(tmp_path / "library", "hotel", tmp_path / "own", scenario="hotel")
    saved(tmp_path / "shared", prefix_length=LENGTH, scenarios=scenarios)
    assert prompt_library.add(tmp_path / "library", "all", tmp_path / "shared").scenarios == tuple(scenarios)
    with raises(ValueError, "scenario 'taxi'", "one prompt"):
        prompt_library.add(tmp_path / "library", "taxi", tmp_path / "shared", scenario="taxi")
    assert prompt_library.names(tmp_path / "library") == ("all", "打车")


def test_remove_and_overwrite(library, tmp_path):
    folder, models = library
    with raises(FileExistsError, "mnli", "overwrite=True"):
        prompt_library.add(folder, "mnli", tmp_path / "sst2")
    assert torch.equal(prompt_library.read(folder, "mnli").prompt, models["mnli"].mop.prompt)
    prompt_library.add(folder, "mnli", tmp_path / "sst2", overwrite=True)
    assert torch.equal(prompt_library.read(folder, "mnli").prompt, models["sst2"].mop.prompt)
    prompt_library.remove(folder, "mnli")
    assert prompt_library.names(folder) == ("sst2",)
    assert sorted(os.listdir(folder)) == ["sst2"]
    with raises(ValueError, "prompt 'mnli'", "sst2"):
        prompt_library.remove(folder, "mnli")
    (folder / "sst2" / "model.safetensors").write_bytes(b"damaged")
    prompt_library.remove(folder, "sst2")
    with raises(ValueError, "prompt 'sst2'", "none", "empty"):
        prompt_library.read(folder, "sst2")


def test_a_library_has_one_backbone(library, tmp_path):
    folder, _ = library
    for name, backbone in (("weights", tiny(seed=1)), ("shape", tiny(d_ff=48))):
        saved(tmp_path / name, backbone=backbone)
        with raises(ValueError, "another backbone", "library'"):
            prompt_library.add(folder, name, tmp_path / name)
    with raises(ValueError, "mnli'", "another backbone", "same shape", "other weights"):
        prompt_library.read_for(tiny(seed=1), folder, ["mnli"], LENGTH)
    with raises(ValueError, "mnli'", "another backbone", "d_ff", "32", "48"):
        prompt_library.read_for(tiny(d_ff=48), folder, ["mnli"], LENGTH)
    # alone in its library, another backbone's prompt may take the place of the last one
    prompt_library.remove(folder, "sst2")
    prompt_library.add(folder, "mnli", tmp_path / "weights", overwrite=True)
    assert len(prompt_library.read_for(tiny(seed=1), folder, ["mnli"], LENGTH)) == 1


def test_what_is_no_prompt(tmp_path):
    saved(tmp_path / "mlp", method="prefix_tuning", prefix_length=2, d_mid=3)
    with raises(ValueError, "mlp'", "'prefix_tuning'", "'prompt_tuning'"):
        prompt_library.add(tmp_path / "library", "mlp", tmp_path / "mlp")
    model = saved(tmp_path / "nan")
    with torch.no_grad():
        model.mop.prompt[1, 2] = torch.nan
    mop_t5.save(model, tmp_path / "nan")
    with raises(ValueError, "not finite", "mop.prompt"):
        prompt_library.add(tmp_path / "library", "nan", tmp_path / "nan")
    with raises(FileNotFoundError, "nowhere'", "mop_config.json"):
        prompt_library.add(tmp_path / "library", "x", tmp_path / "nowhere")
    assert not (tmp_path / "library").exists()
    with raises(NotADirectoryError, "library'", "folder"):
        prompt_library.names(tmp_path / "library")


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../a", "a\\b", "a ", "a.", "a\n", "\ud800"])
def test_names_that_are_no_folder(name, tmp_path):
    with raises(ValueError, "name", "letters, digits"):
        prompt_library.add(tmp_path, name, tmp_path)


def test_a_name_is_a_string(tmp_path):
    with raises(TypeError, "name", "3"):
        prompt_library.read(tmp_path, 3)


@pytest.mark.parametrize("file", ["mop_config.json", "model.safetensors"])
def test_a_prompt_that_was_changed(library, file):
    folder, _ = library
    path = folder / "mnli" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with raises(ValueError, "damaged"):
        prompt_library.read(folder, "mnli")


def test_a_full_disk_leaves_the_library_as_it_was(library, tmp_path, monkeypatch):
    folder, models = library

    def full(path, content):
        with open(path, "wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for name, overwrite in (("new", False), ("mnli", True)):
        with raises(OSError, f"prompt '{name}'", "No space left", "Nothing", "lost"):
            prompt_library.add(folder, name, tmp_path / "sst2", overwrite=overwrite)
    assert sorted(os.listdir(folder)) == ["mnli", "sst2"]
    assert torch.equal(prompt_library.read(folder, "mnli").prompt, models["mnli"].mop.prompt)


def test_from_the_command_line(tmp_path, capsys):
    saved(tmp_path / "own", prefix_length=LENGTH, per_scenario=True, scenarios=["taxi", "food"])
    library = ["--library", str(tmp_path / "library")]
    add = ["prompts", "add", *library, "--adapter", str(tmp_path / "own")]
    assert main([*add, "--name", "a taxi", "--scenario", "taxi"]) == 0
    assert main([*add, "--name", "food", "--scenario", "food"]) == 0
    assert "food, 4 rows" in capsys.readouterr().out
    assert main(["prompts", "list", *library, "--output", str(tmp_path / "tables")]) == 0
    assert "a taxi" in capsys.readouterr().out
    rows = (tmp_path / "tables" / "prompts.csv").read_text().splitlines()
    assert rows[1:] == ["a taxi,taxi,,4,24", "food,food,,4,24"]
    like = ["--like", str(tmp_path / "own"), "--scenario", "food", "--output", str(tmp_path / "tables")]
    assert main(["prompts", "list", *library, *like]) == 0
    header, taxi, food = (line.split(",") for line in (tmp_path / "tables" / "prompts.csv").read_text().splitlines())
    assert header[5:] == ["avgpool_cosine", "pairwise_cosine", "sum_token_cosine", "flat_cosine"]
    own = dict(zip(header[5:], map(float, food[5:])))
    assert 0 < own.pop("pairwise_cosine") < 0.9  # rows of one prompt differ
    assert [round(value, 6) for value in own.values()] == [1, LENGTH, 1]
    assert all(float(value) < 0.9 for value in taxi[5:])
    capsys.readouterr()
    assert main(["prompts", "remove", *library, "--name", "food"]) == 0
    assert main(["prompts", "remove", *library, "--name", "food"]) == 1
    assert "mop-t5 prompts remove: " in capsys.readouterr().err
    assert prompt_library.names(tmp_path / "library") == ("a taxi",)
    description = json.loads((tmp_path / "library" / "a taxi" / "mop_config.json").read_text())
    assert description["config"] == {"scenarios": ["taxi"], "prefix_length": 4, "per_scenario": False}
