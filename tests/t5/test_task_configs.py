"""The example configurations: a row of each dataset, as it is published, gives the text and target that it should."""

import json
from pathlib import Path

import pytest
from errors import raises
from mop_t5.cli.corpus import training_flags
from mop_t5.data.conversion import Converter
from mop_t5.data.task_configs import TaskConfig, read_columns, read_task_configs

FOLDER = Path(__file__).parents[2] / "examples" / "tasks"
CONFIGS = read_task_configs(FOLDER)
COLUMNS = read_columns(FOLDER / "columns.yaml")
ANSWERS = {"text": ["1066", "in 1066"], "answer_start": [3, 0]}
QA = {"question": "When?", "context": "It was in 1066.", "answers": ["1066", "in 1066", "1066"], "key": "k"}
QA_TEXT = "question: When? context: It was in 1066."
WSC = {
    "text": "Mark told Pete many lies about himself, which Pete included in his book. He should have been truthful.",
    "label": 0,
    "idx": 1,
}
WSC_SPANS = {"span1_index": 0, "span2_index": 13, "span1_text": "Mark", "span2_text": "He"}
WSC_TEXT = (
    "wsc text: * Mark * told Pete many lies about himself, which Pete included in his book. # He # should have been "
    "truthful."
)
RECORD = {
    "passage": "Bob won.\n@highlight\nHe is from Rome\n@highlight\nAnn lost",
    "query": "@placeholder came second",
    "entities": ["Bob", "Rome", "Ann"],
    "answers": ["Ann", "Ann Lee"],
    "idx": {"passage": 0, "query": 0},
}
MULTIRC = {
    "paragraph": "<b>Sent 1: </b>Ann ran.<br><b>Sent 2: </b>Bob sat.<br>",
    "question": "Who ran?",
    "answer": "Ann",
    "idx": {"paragraph": 0, "question": 0, "answer": 0},
    "label": 1,
}
# task, a row in its usual columns, the text, the target, other right answers
ROWS = [
    ("mnli", {"premise": "A.", "hypothesis": "B.", "label": 1}, "mnli premise: A. hypothesis: B.", "neutral"),
    (
        "mnli",
        {"index": "0", "sentence1": "A.", "sentence2": "B.", "label1": "neutral", "gold_label": "contradiction"},
        "mnli premise: A. hypothesis: B.",
        "contradiction",
    ),
    ("qnli", {"question": "Q?", "sentence": "S.", "label": 0}, "qnli question: Q? sentence: S.", "entailment"),
    (
        "qqp",
        {"id": "1", "question1": "A?", "question2": "B?", "is_duplicate": "1"},
        "qqp question1: A? question2: B?",
        "duplicate",
    ),
    ("sst2", {"sentence": "a joy ", "label": 1}, "sst2 sentence: a joy", "positive"),
    ("stsb", {"sentence1": "A.", "sentence2": "B.", "label": 3.7}, "stsb sentence1: A. sentence2: B.", "3.6"),
    ("stsb", {"sentence1": "A.", "sentence2": "B.", "score": "2.500"}, "stsb sentence1: A. sentence2: B.", "2.4"),
    (
        "mrpc",
        {"Quality": "1", "#1 ID": "7", "#2 ID": "8", "#1 String": "A.", "#2 String": "B."},
        "mrpc sentence1: A. sentence2: B.",
        "equivalent",
    ),
    (
        "rte",
        {"sentence1": "A.", "sentence2": "B.", "label": "not_entailment"},
        "rte sentence1: A. sentence2: B.",
        "not_entailment",
    ),
    ("cola", {"sentence": "Them ran.", "label": 0}, "cola sentence: Them ran.", "unacceptable"),
    ("boolq", {"question": "is it", "passage": "P.", "label": 1}, "boolq question: is it passage: P.", "True"),
    (
        "boolq",
        {"question": "is it", "title": "T", "answer": False, "passage": "P."},
        "boolq question: is it passage: P.",
        "False",
    ),
    (
        "cb",
        {"premise": "A.", "hypothesis": "B.", "label": 1, "idx": 3},
        "cb premise: A. hypothesis: B.",
        "contradiction",
    ),
    ("multirc", MULTIRC, "multirc question: Who ran? answer: Ann paragraph: Sent 1: Ann ran. Sent 2: Bob sat.", "True"),
    (
        "wic",
        {"word": "bat", "sentence1": "A bat.", "sentence2": "To bat.", "start1": 2, "end1": 5, "label": False},
        "wic sentence1: A bat. sentence2: To bat. word: bat",
        "False",
    ),
    ("wsc", WSC | WSC_SPANS, WSC_TEXT, "False"),
    ("wsc", WSC | {"target": WSC_SPANS, "label": True}, WSC_TEXT, "True"),
    (
        "record",
        RECORD,
        "record query: @placeholder came second entities: Bob, Rome, Ann passage: Bob won. He is from Rome. Ann lost",
        "Ann",
        "Ann Lee",
    ),
    ("squad", QA | {"answers": ANSWERS, "title": "T"}, f"squad {QA_TEXT}", "1066", "in 1066"),
    *((task, QA, f"{task} {QA_TEXT}", "1066", "in 1066") for task in ("nq", "hotpotqa", "newsqa", "searchqa")),
    (
        "scitail",
        {"premise": "A.", "hypothesis": "B.", "label": "entails"},
        "scitail premise: A. hypothesis: B.",
        "entailment",
    ),
    (
        "yelp_polarity",
        {"text": "Bad food.\\nNever again", "label": 0},
        "yelp_polarity sentence: Bad food.\\nNever again",
        "negative",
    ),
    (
        "winogrande",
        {"sentence": "The _ is big.", "option1": "cup", "option2": "box", "answer": "2"},
        "winogrande sentence: The _ is big. option0: cup option1: box",
        "1",
    ),
    (
        "paws",
        {"id": 1, "sentence1": "A.", "sentence2": "B.", "label": 0},
        "paws sentence1: A. sentence2: B.",
        "not_duplicate",
    ),
]


def test_there_are_six_source_tasks_and_twenty_one_target_tasks_each_with_a_row_here():
    roles = [role for config in CONFIGS.values() for role in config.epochs]
    assert (roles.count("source"), roles.count("target")) == (6, 21)
    assert {row[0] for row in ROWS} == set(CONFIGS)
    assert set(COLUMNS) <= set(CONFIGS)
    for task, columns in COLUMNS.items():
        needs = " ".join((CONFIGS[task].input, CONFIGS[task].target))
        assert all(f"{{{name}}}" in needs or CONFIGS[task].prepare for name in columns), task


@pytest.mark.parametrize(("task", "row", "text", "target", "others"), [(*row[:4], row[4:]) for row in ROWS])
def test_a_row_becomes_text_and_target(task, row, text, target, others):
    example = Converter(CONFIGS[task], task, COLUMNS.get(task, {})).example(row, "here", "train-1")
    assert (example.dialogue, example.summary, example.references) == (text, target, others)
    assert (example.scenario, example.id) == (task, f"{task}-train-1")


@pytest.mark.parametrize(
    ("names", "role", "rows", "expected"),
    [
        (["cola", "rte"], "target", [8500, 2500], {"steps": (8500 + 2500) * 20 // 32, "max_source": 256}),
        (["nq", "squad"], "source", [1000, 1000], None),  # nq is no source task
        (["squad"], "source", [320], {"steps": 50, "batch_size": 16, "accumulation": 2, "max_source": 512}),
        (["multirc"], "target", [320], {"steps": 100, "max_source": 348, "max_target": 16}),
        (["boolq", "multirc"], "target", [160, 320], {"steps": 200, "max_source": 348}),
    ],
)
def test_flags_of_training(names, role, rows, expected):
    configs = {name: CONFIGS[name] for name in names}
    if expected is None:
        with pytest.raises(KeyError):
            training_flags(configs, dict(zip(names, rows)), role)
        return
    flags, why = training_flags(configs, dict(zip(names, rows)), role)
    assert why is None
    assert expected.items() <= flags.items()
    assert flags["weight_decay"] == 1e-5
    assert flags["warmup_steps"] == 500


def test_tasks_that_cannot_be_trained_together_have_no_flags():
    flags, why = training_flags({name: CONFIGS[name] for name in ("mnli", "squad")}, {"mnli": 9, "squad": 9}, "source")
    assert not flags
    assert "differ in batch_size" in why


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prepare": "spans"}, ("prepare", "'mark_spans'", "'spans'")),
        ({"metrics": ["bleu"]}, ("metrics", "accuracy", "bleu")),
        ({"metrics": ["f1"]}, ("positive", "label", "f1")),
        ({"positive": "1"}, ("positive", "label", "f1", "no metrics")),
        (
            {"target": "a {label}", "labels": {0: "no"}},
            ("target", "one field", "'{label}'", "labels"),
        ),
        ({"labels": {0: False}}, ("labels", "dict", "False", "quotes")),
        ({"input": "{"}, ("template '{'",)),
        ({"input": "{}"}, ("template", "name of a field", "braces")),
        ({"input": "{a:>3}"}, ("template", "name of a field", "braces")),
        ({"split": "thirds"}, ("split", "'given', 'halve', 'hold_out', '8:1:1'", "'thirds'")),
        ({"epochs": {"tail": 2}}, ("epochs", "0", "source or target")),
        ({"files": {"valid": "dev"}}, ("files", "dict", "'dev'")),
        ({"rows": [1]}, ("rows", "list", "[1]")),
        ({"files": {"dev": ["dev"]}}, ("files", "train, valid, test", "dev")),
        ({"turn": "a"}, ("turn", "braces", "{}", "'a'")),
        ({"turn": "{a:>3}"}, ("template", "name of a field", "braces")),
        ({"turn_labels": {"a": {"b": "c"}}}, ("turn_labels", "turn, []", "['a']")),
        ({"turn": "{a}", "turn_labels": {"a": "b"}}, ("turn_labels", "dict", "'b'")),
        ({"references": "a"}, ("references", "list", "'a'")),
        ({"references": [1]}, ("references", "list", "[1]")),
        ({"merge_repeats": 1}, ("merge_repeats", "True or False", "1")),
        ({"limit": -1}, ("limit", "0")),
        ({"limit": "many"}, ("limit", "int", "'many'")),
        ({"inputs": "x"}, ("field: inputs",)),
    ],
)
def test_a_wrong_configuration_says_file_task_and_field(change, message, tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text(json.dumps({"tasks": {"t": {"input": "{a}", "target": "{label}"} | change}}))
    with raises((ValueError, TypeError), str(path), "task 't'", *message):
        read_task_configs(path)


def test_wrong_files(tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text("tasks:\n  a: {input: x, target: y}\n  a: {input: x, target: y}\n")
    with raises(ValueError, "one.yaml, line 2", "YAML", "keys a, a"):
        read_task_configs(path)
    path.write_text("tasks:\n  a: {input: x, target: '{y}', labels: {0: a, false: b}}\n")
    with raises(ValueError, "line 2", "keys 0, false"):
        read_task_configs(path)
    path.write_text("tasks:\n  a: {input: x}\n")
    with raises(ValueError, "task 'a'", "target"):
        read_task_configs(path)
    path.write_text("- a")
    with raises(TypeError, "mapping"):
        read_task_configs(path)
    path.write_text("a: {text: sentence}")
    with raises(TypeError, "task 'a'", "text", "list", "'sentence'"):
        read_columns(path)
    with raises(FileNotFoundError, ".yaml file"):
        read_task_configs(FOLDER.parent)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": "x"}, ("here", "'label'", "column label", "columns are a")),
        ({"a": "x", "label": -1}, ("here", "label", "'-1'", "0, 1", "split")),
        ({"a": " ", "label": 1}, ("here", "input", "empty")),
        ({"a": "x", "label": float("nan")}, ("here", "label", "nan")),
        ({"a": "x", "label": {"b": 1}}, ("here", "label", "object", "fields b")),
        ({"a": "\ud800", "label": 1}, ("here", "`input`", "surrogate pair")),
    ],
)
def test_a_wrong_row_says_where_it_stands(row, message):
    converter = Converter(TaskConfig("{a}", "{label}", labels={0: "no", 1: "yes"}), "t")
    with raises((ValueError, TypeError), *message):
        converter.example(row, "here", "1")


def test_a_span_that_is_not_there_is_said():
    row = WSC | WSC_SPANS | {"span2_index": 12}
    with raises(ValueError, "here", "mark_spans", "'He'", "word 12", "'book.'"):
        Converter(CONFIGS["wsc"], "wsc").example(row, "here", "1")


@pytest.mark.parametrize("score", ["inf", "nan", "high"])
def test_a_score_that_is_no_number_is_said(score):
    with raises(ValueError, "here", "in_fifths"):
        Converter(CONFIGS["stsb"], "stsb").example({"sentence1": "a", "sentence2": "b", "label": score}, "here", "1")
