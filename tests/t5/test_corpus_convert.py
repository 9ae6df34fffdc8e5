"""Files of datasets made into corpora from the command line, and such a corpus trained on and evaluated."""

import csv
import json
import math
import shutil
from pathlib import Path

import mop_t5
import pytest
import yaml
from errors import says
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.cli.main import main
from mop_t5.data import Example, read_corpus, read_split, read_tasks
from mop_t5.data.conversion import Converter
from mop_t5.data.task_configs import read_columns, read_task_configs
from mop_t5.evaluation import MetricScores, Scorer, read_scores
from tables_on_disk import ROWS, fails, written
from transformers import T5Config

TASKS = """
all:
  input: "{task}: {a} {b}"
  target: "{label}"
  split: halve
  training: {max_source: 16, max_target: 4, batch_size: 2, log_every: 1, evaluate_every: 2}
  epochs: {target: 1}
tasks:
  same: {labels: {0: "no", 1: "yes"}, metrics: [accuracy]}
  near: {metrics: [pearson]}
"""
EXAMPLES = Path(__file__).parents[2] / "examples" / "tasks"
COLUMNS = "same: {a: [a, left]}"


def test_plain_columns_become_dialogues(tmp_path, capsys):
    rows = [{"business": "taxi" if i % 3 else "food", "text": f"用户：{i}", "note": f"总结{i}"} for i in range(20)]
    source = written(tmp_path / "calls.csv", rows)
    given = ["--input", source, "--scenario", "{business}", "--dialogue", "{text}", "--summary", "{note}"]
    command = [*map(str, ["corpus", "convert", *given, "--split", "8:1:1"]), "--output"]
    for name in ("one", "two"):
        assert main([*command, str(tmp_path / name)]) == 0
    corpus = read_corpus(tmp_path / "one")
    assert {split: len(examples) for split, examples in corpus.items()} == {"train": 16, "valid": 2, "test": 2}
    expected = {
        Example(r["business"], r["text"], r["note"], f"{r['business']}-calls-{i}") for i, r in enumerate(rows, 1)
    }
    assert {example for examples in corpus.values() for example in examples} == expected
    assert read_corpus(tmp_path / "two") == corpus
    assert not (tmp_path / "one" / "tasks.yaml").exists()
    assert main([*command, str(tmp_path / "three"), "--seed", "7"]) == 0
    assert read_corpus(tmp_path / "three") != corpus
    # nothing is replaced unasked, nor what is no corpus
    says(fails(capsys, *command[2:], tmp_path / "two"), str(tmp_path / "two"), "exists", "not empty")
    assert main([*command, str(tmp_path / "two"), "--overwrite", "--seed", "7"]) == 0
    assert read_corpus(tmp_path / "two") == read_corpus(tmp_path / "three")
    (tmp_path / "two" / "mine.txt").touch()
    assert "two holds mine.txt" in fails(capsys, *command[2:], tmp_path / "two", "--overwrite")
    assert read_corpus(tmp_path / "two") == read_corpus(tmp_path / "three")


def test_a_file_without_names_of_columns_and_a_constant_scenario(tmp_path):
    (tmp_path / "train.tsv").write_text("gj04\t1\t\tThey ran.\nbc01\t0\t*\tThem ran.\n")
    flags = ["--header", "[from, label, mark, sentence]", "--scenario", "cola", "--dialogue", "{sentence}"]
    flags += ["--summary", "{label}", "--input", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(["corpus", "convert", *flags]) == 0
    assert read_split(tmp_path / "out", "train") == [
        Example("cola", "They ran.", "1", "cola-train-1"),
        Example("cola", "Them ran.", "0", "cola-train-2"),
    ]


def test_rows_are_held_out_limited_and_repeated_for_every_answer(tmp_path):
    rows = [{"q": f"q{i}", "answers": {"text": [f"a{i}", f"b{i}", f"a{i}"]}} for i in range(1010)]
    written(tmp_path / "raw" / "train.jsonl", rows)
    written(tmp_path / "raw" / "dev.jsonl", rows[:3])
    config = {"input": "{q}", "target": "{answers.text}", "split": "hold_out", "limit": 4, "every_answer": True}
    (tmp_path / "tasks.yaml").write_text(json.dumps({"tasks": {"qa": config}}))
    flags = ["--tasks", str(tmp_path / "tasks.yaml"), "--input", str(tmp_path / "raw"), "--output"]
    assert main(["corpus", "convert", *flags, str(tmp_path / "out")]) == 0
    corpus = read_corpus(tmp_path / "out")
    assert [len(corpus[split]) for split in ("train", "valid", "test")] == [8, 1000, 3]
    first, second = corpus["train"][:2]
    assert (first.dialogue, first.references, second.references) == (second.dialogue, (), ())
    assert (first.summary, second.summary) == (f"a{first.dialogue[1:]}", f"b{first.dialogue[1:]}")
    assert all(len(example.golds) == 2 for example in (*corpus["valid"], *corpus["test"]))
    assert corpus["test"][1] == Example("qa", "q1", "a1", "qa-dev-2", ("b1",))
    trained = {example.dialogue for example in corpus["train"]}
    assert not trained & {example.dialogue for example in corpus["valid"]}


def test_rows_inside_of_each_other_are_those_of_a_flat_file(tmp_path):
    """The original files of SQuAD, MRQA and MultiRC, converted by the example configurations."""
    squad = [
        {"question": q, "answers": [{"text": a, "answer_start": 0} for a in found]}
        for q, found in (("Q1?", "ab"), ("Q2?", "c"))
    ]
    written(tmp_path / "squad" / "dev.json", [{"title": "T", "paragraphs": [{"context": "C", "qas": squad}]}])
    nq = [{"question": one["question"], "answers": [a["text"] for a in one["answers"]]} for one in squad]
    written(tmp_path / "nq" / "dev.jsonl.gz", [{"header": {"dataset": "nq"}}, {"context": "C", "qas": nq}])
    answers = [{"text": "Ann", "idx": 0, "label": 1}, {"text": "Bob", "idx": 1, "label": 0}]
    passage = {"text": "<b>Sent 1: </b>Ann ran.", "questions": [{"question": "Who?", "answers": answers}]}
    written(tmp_path / "multirc" / "val.jsonl", [{"idx": 0, "version": 1.1, "passage": passage}])
    configs, columns = read_task_configs(EXAMPLES), read_columns(EXAMPLES / "columns.yaml")
    pairs = {}
    for task, name in (("squad", "dev.json"), ("nq", "dev.jsonl.gz"), ("multirc", "val.jsonl")):
        rows = Converter(configs[task], task, columns[task]).rows(tmp_path / task / name)
        pairs[task] = [(row.dialogue, *row.golds) for row in rows]
    assert pairs["nq"] == [("nq question: Q1? context: C", "a", "b"), ("nq question: Q2? context: C", "c")]
    assert pairs["squad"] == [(text.replace("nq", "squad"), *golds) for text, *golds in pairs["nq"]]
    assert pairs["multirc"] == [
        ("multirc question: Who? answer: Ann paragraph: Sent 1: Ann ran.", "True"),
        ("multirc question: Who? answer: Bob paragraph: Sent 1: Ann ran.", "False"),
    ]


def test_bad_rows_stop_or_are_left_out_and_said(tmp_path, capsys):
    rows = [*ROWS, ROWS[0] | {"label": -1}, ROWS[1] | {"label": 2}]
    written(tmp_path / "train.jsonl", rows)
    (tmp_path / "tasks.yaml").write_text(TASKS.replace("halve", "given"))
    flags = ["--tasks", tmp_path / "tasks.yaml", "--names", "[same]", "--input", tmp_path, "--output", tmp_path / "out"]
    says(fails(capsys, *flags), "train.jsonl, line 7", "label", "'-1'", "0, 1")
    assert not (tmp_path / "out").exists()
    assert main(["corpus", "convert", *map(str, flags), "--skip_bad_rows"]) == 0
    said = capsys.readouterr().out
    says(said, "Left out 2 rows", f"{tmp_path / 'train.jsonl'}, line 7")
    assert len(read_split(tmp_path / "out", "train")) == 6


def test_ids_differ_between_files_of_similar_names(tmp_path):
    for split in ("train", "dev", "test"):
        written(tmp_path / "raw" / f"talks.{split}.jsonl.gz", ROWS[:2])
    files = {"train": ["talks.train"], "valid": ["talks.dev"], "test": ["talks.test"]}
    config = {"input": "{a}", "target": "{b}", "files": files}
    (tmp_path / "tasks.yaml").write_text(json.dumps({"tasks": {"one": config, "two": config}}))
    flags = ["--tasks", tmp_path / "tasks.yaml", "--input", tmp_path / "raw", "--output", tmp_path / "out"]
    for name in ("one", "two"):
        shutil.copytree(tmp_path / "raw", tmp_path / "raw" / name, ignore=shutil.ignore_patterns("one", "two"))
    assert main(["corpus", "convert", *map(str, flags)]) == 0
    ids = [row.id for rows in read_corpus(tmp_path / "out").values() for row in rows]
    assert ids[:3] == ["one-talks.train-1", "one-talks.train-2", "two-talks.train-1"]
    assert len(set(ids)) == len(ids) == 12


def test_wrong_flags(tmp_path, capsys):
    (tmp_path / "tasks.yaml").write_text(TASKS)
    base = ["--input", tmp_path, "--output", tmp_path / "out"]
    plain = ["--scenario", "a", "--dialogue", "{a}", "--summary", "{b}"]
    assert "missing: dialogue, summary" in fails(capsys, *base, "--scenario", "a")
    says(fails(capsys, *base, *plain, "--names", "[a]"), "names", "columns", "--tasks")
    tasks = [*base, "--tasks", tmp_path / "tasks.yaml"]
    says(fails(capsys, *tasks, *plain), "dialogue, summary", "--tasks")
    says(fails(capsys, *tasks, "--names", "[rte]"), "names", "rte", "same, near")
    says(fails(capsys, *tasks, "--role", "both"), "role", "'source', 'target'", "'both'")
    says(fails(capsys, *tasks, "--role", "source"), "names", "none")
    assert f"no folder at {tmp_path / 'same'}" in fails(capsys, *tasks)
    says(fails(capsys, *tasks, "--names", "[same]"), "train: train", "valid: valid or validation")
    says(fails(capsys, *base, *plain), "no file for train")
    written(tmp_path / "train.csv", ROWS)
    written(tmp_path / "train.jsonl", ROWS)
    assert "train.jsonl and train.csv. Keep one" in fails(capsys, *base, *plain)
    one = ["--input", tmp_path / "train.csv", "--output", tmp_path / "out", *plain]
    says(fails(capsys, *one, "--split", "halve"), "one file", "'halve'", "train", "valid")
    (tmp_path / "train.jsonl").unlink()
    written(tmp_path / "valid.csv", ROWS)
    assert "has 6 training rows; split 'hold_out' takes 1000" in fails(capsys, *base, *plain, "--split", "hold_out")


# a corpus of two tasks with metrics of their own, from its files to the table of its scores


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "tasks.yaml").write_text(TASKS)
    (folder / "columns.yaml").write_text(COLUMNS)
    for task, key in (("same", "left"), ("near", "a")):
        rows = [{key: row["a"], "b": "z", "label": row["label"]} for row in ROWS]
        written(folder / "raw" / task / "train.csv", rows)
        written(folder / "raw" / task / "validation.csv", rows)
    flags = {"tasks": folder / "tasks.yaml", "input": folder / "raw", "output": folder / "corpus"}
    assert main(["corpus", "convert", *(f"--{name}={value}" for name, value in flags.items())]) == 0
    tokenizer = train_tokenizer(["same: near: no yes 0 1 x y z 0123456789"] * 9, 300)
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4)
    mop_t5.build_backbone(config).save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    return folder


def test_train_and_evaluate_score_each_task_by_its_metric(place, capsys):
    assert {name: task.metrics for name, task in read_tasks(place / "corpus").items()} == {
        "same": ("accuracy",),
        "near": ("pearson",),
    }
    flags = yaml.safe_load((place / "corpus" / "train.yaml").read_text())
    assert (flags["steps"], flags["batch_size"], flags["max_source"]) == (6, 2, 16)
    command = ["train", "--config", place / "corpus" / "train.yaml", "--corpus", place / "corpus"]
    command += ["--backbone", place / "backbone", "--method", "prompt_tuning", "--options.prefix_length", "2"]
    command += ["--seeds", "[0, 1]", "--output", place / "run"]
    assert main(list(map(str, command))) == 0
    history = [json.loads(line) for line in (place / "run" / "seed-0" / "loss.jsonl").read_text().splitlines()]
    validations = [point for point in history if "eval_mean" in point]
    assert [point["step"] for point in validations] == [2, 4, 6]
    for point in validations:
        assert point["eval_mean"] == pytest.approx((point["eval_same_mean"] + point["eval_near_mean"]) / 2)
        assert "eval_rouge" not in point
    assert "best validation (tasks.yaml's metrics x 100" in capsys.readouterr().out

    assert main(["evaluate", "--run", str(place / "run")]) == 0
    output = place / "run" / "seed-0" / "evaluation-test"
    scores = read_scores(output)
    assert list(scores) == ["first user turn", "random reference", "nearest reference", "prompt_tuning"]
    rows = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    examples = [Example(*(row[key] for key in ("scenario", "dialogue", "summary", "id"))) for row in rows]
    scorer = Scorer(tasks=read_tasks(place / "corpus"))
    for system, means in scores.items():
        assert means == scorer(examples, [row["predictions"][system] for row in rows])
        assert isinstance(means["same"], MetricScores)
        assert set(means["near"]) == {"pearson"}
        assert set(means["average"]) == {"mean"}
    printed = capsys.readouterr().out
    assert "tasks.yaml's metrics x 100, elsewhere ROUGE F1 x 100 by rouge_score" in printed
    says(printed, "near", "3 of 3", "no number")
    row = next(line.split() for line in printed.splitlines() if line.startswith("  same "))
    assert row[:2] == ["same", "accuracy"]
    assert "scenario" in (place / "run" / "evaluation-test.md").read_text()
    assert json.loads((output / "run.json").read_text())["metrics"]["near"] == {"metrics": ["pearson"]}


def test_tables_say_the_metric_of_each_column(place, capsys):
    command = [
        "table",
        "2",
        "--corpus",
        place / "corpus",
        "--backbone",
        place / "backbone",
        "--output",
        place / "table",
    ]
    command += ["--systems", "[MTL-vanilla, prompt-tuning]", "--options.prefix_length", "2", "--steps", "2"]
    command += ["--seeds", "[0, 1]", "--batch_size", "2", "--max_target", "4", "--log_every", "1"]
    assert main(list(map(str, command))) == 0
    with open(place / "table" / "table-2.csv", encoding="utf-8") as file:
        rows = {(row["system"], row["quantity"]): row for row in csv.DictReader(file)}
    of_runs = [
        read_scores(place / "table" / "runs" / "prompt-tuning" / f"seed-{s}" / "evaluation-test") for s in (0, 1)
    ]
    for column, task, metric in (
        ("same accuracy", "same", "accuracy"),
        ("near pearson", "near", "pearson"),
        ("average mean", "average", "mean"),
    ):
        floor = read_scores(place / "table" / "floors")["random reference"][task][metric]
        assert floor > 0
        assert math.isclose(float(rows["random reference", "baseline"][column]), 100 * floor, abs_tol=1e-5)
        mean = sum(scores["prompt_tuning"][task][metric] for scores in of_runs) / 2
        assert math.isclose(float(rows["prompt-tuning", "mean of 2"][column]), 100 * mean, abs_tol=1e-5)
    # a table of other metrics is not the same table
    tasks = place / "corpus" / "tasks.yaml"
    before = tasks.read_text()
    tasks.write_text(before.replace("pearson", "spearman"))
    capsys.readouterr()
    assert main(list(map(str, command))) == 1
    assert "metrics was" in capsys.readouterr().err
    tasks.unlink()
    assert main(list(map(str, command))) == 1
    assert "metrics was {'same'" in capsys.readouterr().err
    # nor is a misspelt task scored by ROUGE
    tasks.write_text(before.replace("near:", "far:"))
    assert main([*map(str, command), "--output", str(place / "other")]) == 1
    says(capsys.readouterr().err, "task 'far'", "near, same")
    tasks.write_text(before)
