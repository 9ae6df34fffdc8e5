"""The corpus format: what is read, and what every broken file is told."""

import gzip
import json

import pytest
from errors import raises
from mop_t5.data import Example, read_corpus, read_examples, read_split, scenarios_of, write_examples
from mop_t5.data.corpus import find_split, write_corpus

ROWS = [
    Example("taxi", "用户：你好\n客服：您好", "用户问好。", "a"),
    Example("food", "用户：点菜", "用户点菜。", "b"),
]


def write_lines(path, *lines):
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


def row(**changes):
    fields = {"scenario": "taxi", "dialogue": "用户：你好", "summary": "问好。"} | changes
    return json.dumps({key: value for key, value in fields.items() if value is not None}, ensure_ascii=False)


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_written_rows_are_read_back_equal(tmp_path, name):
    write_examples(tmp_path / name, ROWS)
    assert read_examples(tmp_path / name) == ROWS
    assert read_split(tmp_path, "train") == ROWS
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")


def test_other_key_names_missing_ids_blank_lines_and_a_byte_order_mark(tmp_path):
    line = json.dumps({"task": "taxi", "input": "你好", "target": "问好", "extra": 1}, ensure_ascii=False)
    path = write_lines(tmp_path / "part.jsonl", b"\xef\xbb\xbf" + line.encode(), "", row(id="x"))
    assert [(e.scenario, e.dialogue, e.summary, e.id) for e in read_examples(path)] == [
        ("taxi", "你好", "问好", "part-1"),
        ("taxi", "用户：你好", "问好。", "x"),
    ]


def test_summary_may_be_missing_only_where_asked(tmp_path):
    path = write_lines(tmp_path / "new.jsonl", row(summary=None))
    assert read_examples(path, need_summary=False)[0].summary == ""
    with raises(ValueError, "new.jsonl, line 1", "`summary`", "`target`", "`scenario`"):
        read_examples(path)


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ('{"scenario": "taxi",', ValueError, ("line 2", "JSON", "column")),
        ('["taxi"]', TypeError, ("line 2", "JSON object", "list")),
        (row(dialogue=None), ValueError, ("line 2", "`dialogue`", "`input`")),
        (row(summary=3), TypeError, ("line 2", "`summary`", "int")),
        (row(summary=["a"]), TypeError, ("line 2", "`summary`", "list")),
        (
            row(dialogue=["a"]),
            TypeError,
            ("line 2", "`dialogue`", "string", "list", "turns"),
        ),
        (row(dialogue=[{"text": "a"}]), TypeError, ("line 2", "`dialogue`", "list")),
        (row(scenario={"a": 1}), TypeError, ("line 2", "`scenario`", "dict")),
        (row(summary=float("nan")), TypeError, ("line 2", "`summary`", "float")),
        (row(dialogue=float("inf")), TypeError, ("line 2", "`dialogue`", "float")),
        (row(summary=True), TypeError, ("line 2", "`summary`", "bool")),
        (row(references=["a", None]), TypeError, ("line 2", "`references`", "['a', None]")),
        (row(references=["a", float("nan")]), TypeError, ("line 2", "`references`", "list", "nan")),
        (row(references="a"), TypeError, ("line 2", "`references`", "'a'")),
        (row(references=["a", " "]), ValueError, ("line 2", "`references`", "empty")),
        (row(scenario=" "), ValueError, ("line 2", "`scenario`", "empty")),
        (row(dialogue="\n"), ValueError, ("line 2", "`dialogue`", "empty")),
        (row(input="x"), ValueError, ("line 2", "both", "`dialogue`", "`input`")),
        (row(id=7), TypeError, ("line 2", "`id`", "int")),
        (b'{"scenario": "\xb0\xa1"}', ValueError, ("line 2", "UTF-8", "iconv")),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, error, message):
    path = write_lines(tmp_path / "train.jsonl", row(), line)
    with raises(error, "train.jsonl", *message):
        read_examples(path)


def test_truncated_gzip(tmp_path):
    data = gzip.compress("".join(row(dialogue=f"用户：{i * 7919}") + "\n" for i in range(500)).encode())
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(data[: len(data) // 2])
    with raises(ValueError, "train.jsonl.gz", "gzip", "line"):
        read_examples(path)
    path.write_bytes(b"plain text\n")
    with raises(ValueError, "gzip", "line 0"):
        read_examples(path)


def test_missing_and_empty_files(tmp_path):
    with raises(FileNotFoundError, "corpus file", "none.jsonl"):
        read_examples(tmp_path / "none.jsonl")
    with raises(FileNotFoundError, "corpus folder", "nowhere"):
        find_split(tmp_path / "nowhere", "train")
    with raises(FileNotFoundError, "valid split", "valid.jsonl", "valid.jsonl.gz"):
        find_split(tmp_path, "valid")
    with raises(ValueError, "train.jsonl", "no examples"):
        read_examples(write_lines(tmp_path / "train.jsonl", ""))
    write_examples(tmp_path / "train.jsonl.gz", ROWS)
    with raises(ValueError, "train.jsonl", "train.jsonl.gz"):
        find_split(tmp_path, "train")


def test_a_corpus_has_three_splits_and_no_scenario_that_train_lacks(tmp_path):
    for split in ("train", "valid"):
        write_examples(tmp_path / f"{split}.jsonl", ROWS)
    with raises(FileNotFoundError, "test split"):
        read_corpus(tmp_path)
    write_examples(tmp_path / "test.jsonl", [*ROWS, Example("metro", "x", "y", "c")])
    with raises(ValueError, "test.jsonl", "train", "metro"):
        read_corpus(tmp_path)
    write_examples(tmp_path / "test.jsonl", ROWS[:1])
    corpus = read_corpus(tmp_path)
    assert list(corpus) == ["train", "valid", "test"]
    assert scenarios_of(corpus["train"]) == ["food", "taxi"]


def test_different_rows_of_a_written_corpus_have_different_ids(tmp_path):
    other = Example("taxi", "x", "y", "a")
    with raises(ValueError, "two rows", "id 'a'"):
        write_corpus(tmp_path / "corpus", {"train": ROWS, "test": [other]})
    assert not (tmp_path / "corpus").exists()
    write_corpus(tmp_path / "corpus", {"train": ROWS, "valid": ROWS[:1], "test": iter(ROWS[1:])})  # a row in two splits
    assert read_corpus(tmp_path / "corpus") == {"train": ROWS, "valid": ROWS[:1], "test": ROWS[1:]}
