"""The corpus format: what is read, and what every broken file is told."""

import gzip
import json

import pytest
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
    with pytest.raises(ValueError, match=r"new\.jsonl, line 1: no `summary` \(or `target`\)\. Keys found: `scenario`"):
        read_examples(path)


@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ('{"scenario": "taxi",', ValueError, r"line 2: not valid JSON \(.*column \d+\)"),
        ('["taxi"]', TypeError, r"line 2: expected a JSON object .* got list"),
        (row(dialogue=None), ValueError, r"line 2: no `dialogue` \(or `input`\)"),
        (row(summary=3), TypeError, r"line 2: `summary` must be a string, got int"),
        (row(summary=["a"]), TypeError, r"line 2: `summary` must be a string, got list"),
        (
            row(dialogue=["a"]),
            TypeError,
            r"line 2: `dialogue` must be a string, got list\. Write its turns as one text",
        ),
        (row(dialogue=[{"text": "a"}]), TypeError, r"line 2: `dialogue` must be a string, got list"),
        (row(scenario={"a": 1}), TypeError, r"line 2: `scenario` must be a string, got dict"),
        (row(summary=float("nan")), TypeError, r"line 2: `summary` must be a string, got float"),
        (row(dialogue=float("inf")), TypeError, r"line 2: `dialogue` must be a string, got float"),
        (row(summary=True), TypeError, r"line 2: `summary` must be a string, got bool"),
        (row(references=["a", None]), TypeError, r"line 2: `references` must be a list of strings, got \['a', None\]"),
        (row(references=["a", float("nan")]), TypeError, r"line 2: `references` must be a list of strings"),
        (row(references="a"), TypeError, r"line 2: `references` must be a list of strings, got 'a'"),
        (row(references=["a", " "]), ValueError, r"line 2: `references` has an empty text"),
        (row(scenario=" "), ValueError, r"line 2: `scenario` is empty"),
        (row(dialogue="\n"), ValueError, r"line 2: `dialogue` is empty"),
        (row(input="x"), ValueError, r"line 2: has both `dialogue` and `input`"),
        (row(id=7), TypeError, r"line 2: `id` must be a string, got int"),
        (b'{"scenario": "\xb0\xa1"}', ValueError, r"line 2: not UTF-8 .*iconv"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, error, message):
    path = write_lines(tmp_path / "train.jsonl", row(), line)
    with pytest.raises(error, match=r"train\.jsonl, " + message):
        read_examples(path)


def test_truncated_gzip(tmp_path):
    data = gzip.compress("".join(row(dialogue=f"用户：{i * 7919}") + "\n" for i in range(500)).encode())
    path = tmp_path / "train.jsonl.gz"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"train\.jsonl\.gz: broken or truncated gzip data after line \d+"):
        read_examples(path)
    path.write_bytes(b"plain text\n")
    with pytest.raises(ValueError, match=r"broken or truncated gzip data after line 0"):
        read_examples(path)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no corpus file at .*none\.jsonl"):
        read_examples(tmp_path / "none.jsonl")
    with pytest.raises(FileNotFoundError, match=r"no corpus folder at .*nowhere"):
        find_split(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=r"has no valid split\. Add valid\.jsonl or valid\.jsonl\.gz"):
        find_split(tmp_path, "valid")
    with pytest.raises(ValueError, match=r"train\.jsonl holds no examples"):
        read_examples(write_lines(tmp_path / "train.jsonl", ""))
    write_examples(tmp_path / "train.jsonl.gz", ROWS)
    with pytest.raises(ValueError, match=r"has train\.jsonl and train\.jsonl\.gz"):
        find_split(tmp_path, "train")


def test_a_corpus_has_three_splits_and_no_scenario_that_train_lacks(tmp_path):
    for split in ("train", "valid"):
        write_examples(tmp_path / f"{split}.jsonl", ROWS)
    with pytest.raises(FileNotFoundError, match="has no test split"):
        read_corpus(tmp_path)
    write_examples(tmp_path / "test.jsonl", [*ROWS, Example("metro", "x", "y", "c")])
    with pytest.raises(ValueError, match=r"test\.jsonl has scenarios that train lacks: metro"):
        read_corpus(tmp_path)
    write_examples(tmp_path / "test.jsonl", ROWS[:1])
    corpus = read_corpus(tmp_path)
    assert list(corpus) == ["train", "valid", "test"]
    assert scenarios_of(corpus["train"]) == ["food", "taxi"]


def test_different_rows_of_a_written_corpus_have_different_ids(tmp_path):
    other = Example("taxi", "x", "y", "a")
    with pytest.raises(ValueError, match=r"two rows have the id 'a'\. Give the files"):
        write_corpus(tmp_path / "corpus", {"train": ROWS, "test": [other]})
    assert not (tmp_path / "corpus").exists()
    write_corpus(tmp_path / "corpus", {"train": ROWS, "valid": ROWS[:1], "test": iter(ROWS[1:])})  # a row in two splits
    assert read_corpus(tmp_path / "corpus") == {"train": ROWS, "valid": ROWS[:1], "test": ROWS[1:]}
