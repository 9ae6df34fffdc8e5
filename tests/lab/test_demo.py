"""The demo in its short form: everything it promises is written; what it writes is usable."""

import json
import re

import pytest
from mop_t5.cli.main import main
from mop_t5.data import read_corpus, read_examples, synthetic_corpus, write_examples
from mop_t5.operations.run_folder import load_run, read_history


def test_short_demo(tmp_path, capsys):
    output = tmp_path / "demo"
    small = ["--batch_size", "8", "--layers", "1", "--max_target", "32"]
    assert main(["demo", "--short", *small, "--output", str(output)]) == 0
    text = capsys.readouterr().out
    for part in ("too few steps for any number to mean something", f"Written to {output}", "The corpus is synthetic"):
        assert part in text
    for column in (
        "first user turn",
        "random reference",
        "nearest reference",
        "frozen backbone",
        "mop",
        "prefix_tuning",
    ):
        assert column in text
    for row in (
        "taxi",
        "ticket",
        "e-commerce",
        "take-out",
        "food",
        "average",
        "trained parameters",
        "seconds per step",
    ):
        assert f"\n  {row} " in text
    assert "| average " in (output / "results.md").read_text()
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")

    general = read_examples(output / "corpus" / "general.jsonl")
    tuning, _, test = read_corpus(output / "corpus").values()
    assert not {row.dialogue for row in general} & {row.dialogue for row in tuning + test}
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [row.id for row in test]
    assert len(rows[0]["predictions"]) == 6

    plain, _, _ = load_run(output / "backbone")
    for method in ("mop", "prefix_tuning"):
        model, _, settings = load_run(output / method)
        assert settings["method"] == model.mop.name == method
        assert settings["steps"] == 10
        # the backbone under each method is the one that was frozen
        for name, parameter in plain.named_parameters():
            assert parameter.equal(model.get_parameter(name))
    assert main(["demo", "--short", "--output", str(output)]) == 1
    assert main(["generate", "--run", str(output / "mop"), "--scenario", "taxi", "--dialogue", "用户：退款"]) == 0


def test_a_corpus_of_ones_own(tmp_path, capsys):
    corpus = synthetic_corpus(7, general=1, train=60, valid=5, test=8)
    for split in ("train", "valid", "test"):
        write_examples(tmp_path / "corpus" / f"{split}.jsonl", corpus[split])
    command = ["demo", "--short", "--corpus", str(tmp_path / "corpus"), "--methods", "[prefix_tuning]"]
    command += ["--copying_steps", "3", "--copies", "1", "--batch_size", "4", "--layers", "1", "--max_target", "16"]
    assert main([*command, "--output", str(tmp_path / "out"), "--unit", "jieba"]) == 0
    text = capsys.readouterr().out
    turns = int(re.search(r"it repeats (\d+) turns", text)[1])
    assert turns > 100
    assert len(read_history(tmp_path / "out" / "copying")) > 1
    assert f"The corpus is {tmp_path / 'corpus'}" in text
    assert "jieba words" in text
    halves = [read_examples(tmp_path / "out" / "corpus" / f"{name}.jsonl") for name in ("general", "train")]
    assert sorted(row.id for half in halves for row in half) == sorted(row.id for row in corpus["train"])
    assert read_corpus(tmp_path / "out" / "corpus")["valid"] == corpus["valid"]
    assert not (tmp_path / "out" / "mop").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "nowhere"], "nowhere"),
        (["--unit", "word"], "unit must be one of"),
        (["--methods", "[mopp]"], "unknown method 'mopp'"),
        (["--d_model", "100"], "d_model must be a multiple of 16"),
    ],
)
def test_errors_come_before_the_work(tmp_path, capsys, arguments, message):
    assert main(["demo", "--output", str(tmp_path / "out"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
