"""The command mop-t5, called as a user calls it, in this process."""

import inspect
import json
import re
import statistics
from dataclasses import fields
from typing import NamedTuple

import mop_t5
import pytest
import torch
from command_list import functions
from errors import says, warns
from mop_lab.suites.systems import SYSTEMS
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.cli import commands
from mop_t5.cli.flags import dataclasses_of, function_of
from mop_t5.cli.main import main
from mop_t5.data import synthetic_corpus, write_examples
from mop_t5.methods import get
from mop_t5.training import TrainingConfig
from safetensors.torch import load_file
from transformers import T5Config

SMALL = ["--steps", "4", "--batch_size", "4", "--log_every", "2", "--max_target", "12"]
MOP = ["--method", "mop", "--options.prefix_length", "3", "--options.d_mid=8"]
MOP += ["--options.terms_down=4", "--options", '{"prefix_length": 3, "d_mid": 8, "terms_down": 4, "terms_up": 4}']


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a corpus and a backbone."""
    folder = tmp_path_factory.mktemp("cli")
    corpus = synthetic_corpus(5, general=1, train=60, valid=6, test=6)
    for split in ("train", "valid", "test"):
        write_examples(folder / "corpus" / f"{split}.jsonl.gz", corpus[split])
    tokenizer = train_tokenizer([text for row in corpus["train"] for text in (row.dialogue, row.summary)], 500)
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4)
    mop_t5.build_backbone(config).save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    return folder


@pytest.fixture(scope="module")
def trained(place):
    base = ["train", "--corpus", str(place / "corpus"), "--backbone", str(place / "backbone"), *SMALL]
    assert main([*base, *MOP, "--output", str(place / "mop"), "--evaluate_every", "2"]) == 0
    assert main([*base, "--output", str(place / "full")]) == 0
    return place


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def printed_rows(text):
    """The cells of the rows of a printed table, without the empty ones."""
    return [re.split(r" {2,}", line.strip()) for line in text.splitlines() if line.startswith("  ")]


def fails(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    captured = capsys.readouterr()
    message = captured.err.strip().splitlines()[-1]
    assert message.startswith(f"mop-t5 {arguments[0]}: ")
    assert "Traceback" not in captured.err
    return message


@pytest.mark.parametrize(("words", "where"), [pytest.param(*one, id=" ".join(one[0])) for one in functions()])
def test_help_shows_an_example_and_explains_every_flag(words, where, capsys):
    command = function_of(where)
    with pytest.raises(SystemExit, match="0"):
        main([*words, "--help"])
    text = capsys.readouterr().out
    assert f"\n  mop-t5 {' '.join(words)}" in text
    described = inspect.getdoc(command).split("Args:")[-1]
    dataclasses = dataclasses_of(command)
    for name in set(inspect.signature(command).parameters) - set(dataclasses):
        assert f"\n    {name}: " in described, name
    for dataclass, _ in dataclasses.values():
        described = inspect.getdoc(dataclass).split("Args:")[-1]
        for field in fields(dataclass):
            assert f"\n    {field.name}: " in described, field.name


def test_help_of_the_tables_names_each(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["table", "--help"])
    text = capsys.readouterr().out
    assert all(f"\n  mop-t5 table {number}" in text for number in "1234")


def test_params_prints_the_shares_of_the_paper(capsys):
    assert main(["params", "--backbone", "t5-pegasus-base"]) == 0
    rows = {row[0]: row[1:] for row in printed_rows(capsys.readouterr().out)}
    assert rows["the backbone itself"] == ["275,029,248", "100.0000", "1.0000"]
    assert rows["MOP"] == ["mop", "preset=paper", "6,914,176", "2.5140", "1.0251"]
    assert rows["prefix-tuning"] == ["prefix_tuning", "7,520,640", "2.7345", "1.0273"]
    assert set(SYSTEMS) <= {cells[0] for cells in rows.values()}


def test_params_of_a_folder_and_with_options(place, capsys):
    options = ["--options", '{"prefix_length": 5, "terms_down": 4, "terms_up": 4}']
    assert (
        main(["params", "--backbone", str(place / "backbone"), "--methods", "[mop]", "--scenarios", "2", *options]) == 0
    )
    rows = {row[0]: row[1:] for row in printed_rows(capsys.readouterr().out)}
    model = mop_t5.load_backbone(place / "backbone")
    mop_t5.attach(model, "mop", preset="paper", scenarios=["a", "b"], prefix_length=5, terms_down=4, terms_up=4)
    assert rows["MOP"][2] == f"{mop_t5.count_parameters(model).trained:,}"
    assert all(cells[0] == "mop" for name, cells in rows.items() if name not in ("the backbone itself", "system"))


def test_train_leaves_a_run_folder(trained):
    settings = json.loads((trained / "mop" / "run.json").read_text())
    assert settings["method"] == "mop"
    assert settings["options"].items() >= {"prefix_length": 3, "d_mid": 8, "terms_down": 4, "terms_up": 4}.items()
    assert settings["options"]["rank"] == 1  # a default, filled in
    assert settings["steps"] == 4
    model = mop_t5.load(mop_t5.load_backbone(trained / "backbone"), trained / "mop" / "adapter")
    assert model.scenarios == ("e-commerce", "food", "take-out", "taxi", "ticket")
    history = read_lines(trained / "mop" / "loss.jsonl")
    assert any("eval_rouge" in point for point in history)
    assert (trained / "full" / "backbone" / "config.json").exists()


def test_evaluate_writes_scores_beside_floors(trained, capsys):
    assert main(["evaluate", "--run", str(trained / "mop"), "--unit", "jieba"]) == 0
    text = capsys.readouterr().out
    table = (trained / "mop" / "evaluation-test" / "results.md").read_text()
    for part in (
        "ROUGE F1 x 100 by rouge_score",
        "jieba words (HMM off)",
        "nearest reference",
        "mop",
        "average",
        "taxi",
    ):
        assert part in text
        assert part in table
    rows = read_lines(trained / "mop" / "evaluation-test" / "predictions.jsonl")
    assert [row["id"] for row in rows] == [f"test-{i}" for i in range(1, 7)]
    assert set(rows[0]["predictions"]) == {"first user turn", "random reference", "nearest reference", "mop"}
    again = ["evaluate", "--run", str(trained / "mop")]
    assert "pass --overwrite" in fails(capsys, *again)
    assert main([*again, "--overwrite", "--floors", "false", "--num_beams", "2"]) == 0
    assert "nearest" not in (trained / "mop" / "evaluation-test" / "results.md").read_text()
    for flag in ("--num_beams", "--batch_size"):  # said before the evaluation is removed
        message = fails(capsys, "evaluate", "--run", trained / "mop", "--overwrite", flag, "0")
        says(message, flag[2:], "1", "0")
    assert (trained / "mop" / "evaluation-test" / "scores.json").is_file()


def test_generate_from_a_file_and_from_a_dialogue(trained, tmp_path, capsys):
    new = tmp_path / "new.jsonl"
    lines = [{"scenario": s, "dialogue": f"用户：{i}元", "id": f"n{i}"} for i, s in enumerate(["taxi", "food", "taxi"])]
    new.write_text("".join(json.dumps(line) + "\n" for line in lines))
    target = tmp_path / "out.jsonl"
    command = ["generate", "--run", str(trained / "mop"), "--input", str(new)]
    assert main([*command, "--output", str(target)]) == 0
    rows = read_lines(target)
    assert [(row["id"], row["scenario"]) for row in rows] == [("n0", "taxi"), ("n1", "food"), ("n2", "taxi")]
    assert "exists. Choose another --output" in fails(capsys, *command, "--output", target)
    capsys.readouterr()
    assert main(["generate", "--run", str(trained / "full"), "--dialogue", "用户：退款", "--scenario", "any"]) == 0
    assert json.loads(capsys.readouterr().out)["scenario"] == "any"


def test_a_configuration_file_names_the_same_fields_as_the_flags(trained, tmp_path, capsys):
    config = tmp_path / "train.yaml"
    lines = [f"corpus: {trained / 'corpus'}", f"backbone: {trained / 'backbone'}", "method: prefix_tuning", "steps: 2"]
    config.write_text("\n".join([*lines, "batch_size: 3", "max_target: 8", "options: {prefix_length: 2, d_mid: 4}"]))
    assert main(["train", "--config", str(config), "--output", str(tmp_path / "run"), "--batch_size", "2"]) == 0
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    assert settings["method"] == "prefix_tuning"
    assert settings["steps"] == 2
    assert settings["batch_size"] == 2  # a flag wins
    config.write_text("\n".join([*lines, "bach_size: 3"]))
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--config", str(config), "--output", str(tmp_path / "other")])
    assert "bach_size" in capsys.readouterr().err


def test_resume_goes_on_from_the_checkpoint(trained, tmp_path, capsys):
    base = ["train", "--corpus", str(trained / "corpus"), "--backbone", str(trained / "backbone"), *SMALL[2:], *MOP]
    base += ["--output", str(tmp_path / "run"), "--save_every", "2", "--schedule", "constant"]
    assert main([*base, "--steps", "2"]) == 0
    assert main([*base, "--steps", "4", "--resume"]) == 0
    history = read_lines(tmp_path / "run" / "loss.jsonl")
    assert [point["step"] for point in history if "loss" in point] == [2, 4]
    assert "exclude each other" in fails(capsys, *base, "--resume", "--overwrite")
    other = fails(capsys, *base, "--learning_rate", "1", "--options.rank", "2", "--resume")
    says(other, "configuration", "learning_rate", "0.0005", "1.0", "options")
    assert "has no run.json" in fails(capsys, *base[:-6], "--output", tmp_path / "none", "--resume")


def test_the_stored_configuration_repeats_the_run(trained, tmp_path):
    config = str(trained / "mop" / "run.json")
    assert main(["train", "--config", config, "--output", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "run.json").read_text() == (trained / "mop" / "run.json").read_text()
    first, again = (load_file(run / "adapter" / "model.safetensors") for run in (trained / "mop", tmp_path / "again"))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def cells_of(markdown):
    """Rows of a Markdown table by their first cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines() if line[:1] == "|"]
    return {cells[0]: cells[1:] for cells in rows}


def test_several_seeds_are_trained_reported_resumed_and_evaluated(trained, tmp_path, capsys):
    run = tmp_path / "run"
    base = ["train", "--corpus", str(trained / "corpus"), "--backbone", str(trained / "backbone"), *SMALL, *MOP]
    base += ["--output", str(run), "--evaluate_every", "2", "--seeds", "[1, 0]"]
    assert main(base) == 0
    histories = [read_lines(run / f"seed-{seed}" / "loss.jsonl") for seed in (1, 0)]
    losses = [[point["loss"] for point in history if "loss" in point][-1] for history in histories]
    best = [max(point["eval_rouge"] for point in history if "eval_rouge" in point) for history in histories]
    rows = cells_of((run / "results.md").read_text())
    assert rows[""] == ["last loss", "R-1", "R-2", "R-L", "mean"]
    for column, values in ((0, losses), (4, best)):
        expected = [*values, statistics.mean(values), statistics.stdev(values)]
        shown = [float(rows[name][column]) for name in ("seed 1", "seed 0", "mean", "deviation")]
        assert shown == pytest.approx(expected, abs=6e-4)
    assert losses[0] != losses[1]
    assert "deviation" in capsys.readouterr().out
    # seed 0 is the run that no list of seeds would have made
    same = load_file(run / "seed-0" / "adapter" / "model.safetensors")
    single = load_file(trained / "mop" / "adapter" / "model.safetensors")
    assert all(torch.equal(tensor, same[name]) for name, tensor in single.items())

    (run / "seed-0" / "loss.jsonl").unlink()  # as if it had been interrupted
    assert main([*base, "--resume"]) == 0
    assert cells_of((run / "results.md").read_text()) == rows

    evaluate = ["evaluate", "--run", str(run), "--floors", "false", "--split", "valid"]
    assert main(evaluate) == 0
    spread = cells_of((run / "evaluation-valid.md").read_text())
    assert spread["scenario"] == ["R-1", "R-2", "R-L"]
    averages = [
        cells_of((run / f"seed-{seed}" / "evaluation-valid" / "results.md").read_text())["average"][0].split("/")
        for seed in (1, 0)
    ]
    for shown, values in zip(spread["average"], zip(*averages)):
        expected = statistics.mean(map(float, values)), statistics.stdev(map(float, values))
        assert [float(part) for part in shown.split(" ± ")] == pytest.approx(expected, abs=0.11)
    assert "several runs: seed-1, seed-0" in fails(
        capsys, "generate", "--run", run, "--dialogue", "x", "--scenario", "y"
    )
    says(fails(capsys, *base[:-1], "[3, 3]"), "seeds", "two", "integers")
    for seed, said in ((-1, "seed must be at least 0; got -1"), (2**31, "seed must be at most 2147483647")):
        assert said in fails(capsys, *base[:-1], f"[3, {seed}]")  # before 3 is trained


def test_help_has_a_text_for_every_setting_and_every_field_of_a_method(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    documented = re.findall(r"\n    (\w+): (.*)", inspect.getdoc(TrainingConfig))
    assert {name for name, _ in documented} == {field.name for field in fields(TrainingConfig)}
    for name, meaning in documented:
        assert f"--{name}" in text
        assert " ".join(meaning.split()[:3]) in text
    for method in mop_t5.methods():
        config = get(method).Config
        assert " ".join(config.__doc__.split()) in text
        named = re.findall(r"^ *((?:\w+, )*\w+): ", config.__doc__, flags=re.MULTILINE)
        assert {name for names in named for name in names.split(", ")} >= {field.name for field in fields(config)}


def test_only_train_runs_in_several_processes(trained, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    says(fails(capsys, "evaluate", "--run", trained / "mop"), "train", "processes")
    monkeypatch.setenv("RANK", "1")
    assert main(["evaluate", "--run", str(trained / "mop")]) == 1
    assert capsys.readouterr().err == ""  # one process says it


def test_errors_are_one_line(trained, tmp_path, capsys):
    run = ["train", "--corpus", trained / "corpus", "--backbone", trained / "backbone", "--output", tmp_path / "x"]
    says(fails(capsys, *run, "--method", "mopp"), "method", "'mopp'", "mop")
    assert "unknown field prefix" in fails(capsys, *run, "--method", "mop", "--options.prefix", "3")
    says(fails(capsys, *run, "--steps", "0"), "steps", "1", "0")
    says(fails(capsys, *run, "--options.prefix_length", "3"), "options", "fields")
    message = fails(capsys, *run, "--scenarios", "[metro]")
    says(message, "scenarios", "metro", "e-commerce, food,")
    says(fails(capsys, *run, "--scenarios", "[]"), "scenarios", "none")
    says(fails(capsys, "train", "--corpus", tmp_path / "no", *run[3:]), "corpus folder")
    assert not (tmp_path / "x").exists()
    message = fails(
        capsys,
        *run[:-1],
        trained / "mop",
        "--method",
        "mop",
        "--options.terms_down",
        "4",
        "--options.terms_up",
        "4",
        "--options.d_mid",
        "8",
    )
    says(message, "exists", "not empty")
    assert "has no run.json" in fails(capsys, "evaluate", "--run", tmp_path)
    says(fails(capsys, "evaluate", "--run", trained / "mop", "--split", "dev"), "split", "test")
    assert "give either --input" in fails(capsys, "generate", "--run", trained / "mop")
    assert "--dialogue needs --scenario" in fails(capsys, "generate", "--run", trained / "mop", "--dialogue", "x")
    message = fails(capsys, "generate", "--run", trained / "mop", "--dialogue", "x", "--scenario", "metro")
    says(message, "scenario 'metro'", "e-commerce")
    says(fails(capsys, "params", "--backbone", "t6"), "backbone", "folder", "t5-small")
    says(fails(capsys, "params", "--options.foo", "1"), "options", "foo")
    says(fails(capsys, "params", "--methods", "[mopp]"), "method", "'mopp'", "mop")


@pytest.mark.parametrize("arguments", [["demo", "--shrot"], ["train"], ["params", "--scenarios", "many"], ["fly"], []])
def test_wrong_flags_exit_with_two(arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)


def test_a_traceback_on_request(monkeypatch, tmp_path):
    monkeypatch.setenv("MOP_T5_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["evaluate", "--run", str(tmp_path)])


def test_commands_that_cannot_be_imported_are_left_out(monkeypatch, capsys):
    class Broken(NamedTuple):
        value: str = "absent:COMMANDS"

        def load(self):
            raise ModuleNotFoundError("No module named 'absent'")

    commands.all_commands.cache_clear()
    for points, named in (([Broken()], ("absent",)), ([], ("pip install",))):
        monkeypatch.setattr(commands, "entry_points", lambda group, points=points: points)
        with warns(UserWarning, *named), pytest.raises(SystemExit, match="0"):
            main(["train", "--help"])
        assert "--corpus" in capsys.readouterr().out
        commands.all_commands.cache_clear()
