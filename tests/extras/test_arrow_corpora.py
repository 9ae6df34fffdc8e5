"""Corpora in Parquet and Arrow files, in folders of save_to_disk and in datasets: read as JSON lines are."""

import json
import math
import sys
from dataclasses import replace

import pytest
from arrow_files import FORMS, dataset_of, table_of, write_ipc, write_split
from errors import raises, says
from mop_lab.attempt.few_shot import write_draw
from mop_lab.suites.suite_config import SuiteConfig
from mop_t5.cli.main import main
from mop_t5.data import (
    SPLITS,
    EncodedExamples,
    Example,
    examples_of,
    read_corpus,
    read_examples,
    read_split,
    scenarios_of,
    write_examples,
)
from mop_t5.data.conversion import Converter
from mop_t5.data.dataset_objects import table_of_dataset
from mop_t5.data.table_files import read_table
from mop_t5.data.task_configs import TaskConfig
from mop_t5.evaluation.corpus_statistics import corpus_table
from mop_t5.operations.contents import of_rows

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROWS = [
    Example("0571", "用户：你好\n客服：您好", "用户问好。", "a"),
    Example("taxi", "007", "1e3", "b", ("null", "NaN")),
    Example("0571", "\u2028\U0001f695\x00", "x" * 3000, "c", ("é",)),
    *(Example("food", f"用户：{number}", f"{number:04}", f"d{number}") for number in range(30)),
]


@pytest.fixture
def corpus(tmp_path):
    """Return a function that writes a corpus in one form."""

    def write(form):
        for split, rows in zip(SPLITS, (ROWS, ROWS[:2], ROWS[2:])):
            write_split(tmp_path / form, form, split, rows)
        return tmp_path / form

    return write


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(corpus, form):
    folder = corpus(form)
    assert read_corpus(folder) == {"train": ROWS, "valid": ROWS[:2], "test": ROWS[2:]}
    assert of_rows(read_split(folder, "train")) == of_rows(ROWS)
    assert corpus_table(folder).rows[-1][:5] == ["all", 66, 33, 2, 31]


def test_rows_without_ids_and_other_names_and_types_of_texts(tmp_path):
    texts = pa.table(
        {
            "task": pa.array(["taxi", "food"]).dictionary_encode(),
            "input": pa.array(["a", "b"], pa.large_string()),
            "target": pa.array(["0571", "d"], pa.string_view()),
            "id": pa.array([None, "x"]),
            "references": pa.array([None, ["r"]], pa.large_list(pa.large_string())),
            "turns": [1, 2],
        }
    )
    write_ipc(tmp_path / "part.arrow", texts)
    expected = [Example("taxi", "a", "0571", "part-1"), Example("food", "b", "d", "x", ("r",))]
    assert read_examples(tmp_path / "part.arrow") == expected
    no_summary = texts.drop_columns(["target"])
    pq.write_table(no_summary, tmp_path / "new.parquet")
    assert [row.summary for row in read_examples(tmp_path / "new.parquet", need_summary=False)] == ["", ""]
    with raises(ValueError, "new.parquet", "`summary`", "`target`", "`task`", "`turns`"):
        read_examples(tmp_path / "new.parquet")


def test_datasets_in_hand():
    datasets = pytest.importorskip("datasets")
    given = dataset_of(table_of(ROWS))
    assert examples_of(given) == ROWS
    assert examples_of(given.to_iterable_dataset()) == ROWS
    assert examples_of(given.select([4, 0, 4])) == [ROWS[4], ROWS[0], ROWS[4]]
    other = pa.table({"business": [1, 0], "text": ["a", "b"], "note": ["c", "d"], "task": ["e", "f"]})
    kinds = datasets.Features(
        {name: datasets.Value("string") for name in ("text", "note", "task")}
        | {"business": datasets.ClassLabel(names=["food", "taxi"])}
    )
    labelled = datasets.Dataset(other, info=datasets.DatasetInfo(features=kinds), fingerprint="of-a-test")
    names = {"scenario": "business", "dialogue": "text", "summary": "note"}
    expected = [Example("taxi", "a", "c", "row-1"), Example("food", "b", "d", "row-2")]
    assert examples_of(labelled, **names) == expected
    assert examples_of(labelled.to_iterable_dataset(), **names) == expected
    assert examples_of(labelled, **names | {"scenario": "task"}) == [
        replace(row, scenario=name) for row, name in zip(expected, "ef")
    ]
    for one in (labelled, labelled.to_iterable_dataset()):
        with raises(ValueError, "`subject`", "`business`"):
            examples_of(one, **names | {"scenario": "subject"})
    with raises(TypeError, "DatasetDict", "train"):
        examples_of(datasets.DatasetDict(train=given))
    with raises(TypeError, "list"):
        examples_of(ROWS)
    with raises(ValueError, "rows"):
        examples_of(given.select([]))
    with raises(ValueError, "transform", "reset_format"):
        examples_of(given.with_transform(dict))
    with raises(TypeError, "examples", "Dataset", "examples_of"):
        EncodedExamples(given, None, None)
    with raises(TypeError, "examples", "IterableDataset", "save_to_disk", "to_parquet"):
        EncodedExamples(given.to_iterable_dataset(), None, None)


def test_labels_that_datasets_has_written_into_a_file(tmp_path):
    features = {"info": {"features": {"scenario": {"names": ["food", "taxi"], "_type": "ClassLabel"}}}}
    numbers = pa.table({"scenario": [1, 0, -1], "dialogue": ["a", "b", "c"], "summary": ["d", "e", "f"]})
    numbers = numbers.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(numbers[:2], tmp_path / "train.parquet")
    assert [row.scenario for row in read_split(tmp_path, "train")] == ["taxi", "food"]
    pq.write_table(numbers, tmp_path / "train.parquet")
    with raises(ValueError, "train.parquet, row 3", "`scenario`", "-1"):
        read_split(tmp_path, "train")
    # other programs change the values of a column and keep the metadata
    columns = {"scenario": ["shop", "hotel"], "dialogue": ["a", "b"], "summary": ["d", "e"]}
    pq.write_table(pa.table(columns).replace_schema_metadata(numbers.schema.metadata), tmp_path / "train.parquet")
    assert [row.scenario for row in read_split(tmp_path, "train")] == ["shop", "hotel"]
    for values, kind in (([1.0, 0.0], "double"), ([True, False], "bool")):
        other = pa.table(columns | {"scenario": values}).replace_schema_metadata(numbers.schema.metadata)
        pq.write_table(other, tmp_path / "train.parquet")
        with raises(TypeError, "train.parquet", "`scenario`", kind):
            read_split(tmp_path, "train")


GOOD = {"scenario": ["taxi", "food"], "dialogue": ["a", "b"], "summary": ["c", "d"]}
NOT_UTF8 = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))


@pytest.mark.parametrize(
    ("columns", "error", "parts"),
    [
        ({"summary": ["c", None]}, TypeError, ("row 2", "`summary`", "null")),
        ({"summary": pa.nulls(2)}, TypeError, ("row 1", "`summary`", "null")),
        ({"summary": ["c", " "]}, ValueError, ("row 2", "`summary`", "empty")),
        ({"scenario": [571, 10]}, TypeError, ("`scenario`", "texts", "int64")),
        ({"summary": [0.5, 1.0]}, TypeError, ("`summary`", "double")),
        ({"dialogue": [["a"], ["b"]]}, TypeError, ("`dialogue`", "list", "turns")),
        ({"dialogue": [b"a", b"b"]}, TypeError, ("`dialogue`", "binary")),
        ({"id": [1, 2]}, TypeError, ("`id`", "int64")),
        ({"references": ["a", "b"]}, TypeError, ("`references`", "lists", "string")),
        ({"references": [[1], [2]]}, TypeError, ("`references`", "lists", "int64")),
        ({"references": [["a"], ["b", None]]}, TypeError, ("row 2", "`references`")),
        ({"task": ["x", "y"]}, ValueError, ("`scenario`, `task`",)),
        ({"summary": NOT_UTF8}, ValueError, ("UTF8",)),
        ({name: [] for name in GOOD}, ValueError, ("examples",)),
    ],
)
@pytest.mark.parametrize("name", ["train.parquet", "train.arrow"])
def test_a_bad_table_is_named(tmp_path, name, columns, error, parts):
    texts = {key: pa.array(value, pa.string()) for key, value in columns.items() if value == []}
    table = pa.table(GOOD | columns | texts)
    if name.endswith("parquet"):
        pq.write_table(table, tmp_path / name)
    else:
        write_ipc(tmp_path / name, table)
    with raises(error, name, *parts):
        read_examples(tmp_path / name)


@pytest.mark.parametrize("form", ["parquet", "arrow", "stream", "saved"])
def test_a_damaged_table_is_refused(corpus, form):
    folder = corpus(form)
    path = next(path for path in sorted(folder.rglob("*")) if path.suffix in (".arrow", ".parquet"))
    content = path.read_bytes()
    lengths = [0, 1, 7, len(content) // 3, len(content) // 2, len(content) - 8, len(content) - 1]
    for length in lengths:
        path.write_bytes(content[:length])
        with raises(ValueError, str(folder), "read"):
            [read_split(folder, split) for split in SPLITS]
    if form == "saved":
        path.write_bytes(content)
        (folder / "train" / "state.json").write_text("{")
        with raises(ValueError, "train", "read"):
            read_split(folder, "train")


def test_a_stream_that_was_cut_between_two_batches(tmp_path):
    write_ipc(tmp_path / "whole.arrow", table_of(ROWS), stream=True)
    with pa.OSFile(str(tmp_path / "whole.arrow")) as file:
        pa.ipc.open_stream(file).read_next_batch()
        end = file.tell()
    (tmp_path / "train.arrow").write_bytes((tmp_path / "whole.arrow").read_bytes()[:end])
    assert pa.ipc.open_stream((tmp_path / "train.arrow").read_bytes()).read_all().num_rows == 7  # pyarrow says nothing
    with raises(ValueError, "train.arrow", "end mark"):
        read_split(tmp_path, "train")


def test_places_of_splits(tmp_path, corpus):
    folder = corpus("saved")
    with raises(FileNotFoundError, "train", "single dataset", "save_to_disk"):
        read_split(folder / "train", "train")
    write_examples(folder / "valid.jsonl", ROWS)
    with raises(ValueError, "valid.jsonl and validation"):
        read_split(folder, "valid")
    twice = pa.Table.from_arrays([pa.array(["a"])] * 2, ["scenario", "scenario"])
    write_ipc(tmp_path / "twice.arrow", twice)
    with raises(ValueError, "twice.arrow", "`scenario`"):
        read_examples(tmp_path / "twice.arrow")
    with raises(FileNotFoundError, "none.parquet", ".arrow"):
        read_examples(tmp_path / "none.parquet")


@pytest.mark.parametrize("missing", ["pyarrow", "datasets"])
def test_a_missing_package_is_named(corpus, monkeypatch, missing):
    folder = corpus("saved" if missing == "datasets" else "parquet")
    monkeypatch.setitem(sys.modules, missing, None)
    with raises(ImportError, missing, "pip install 'mop-kernels[datasets]'"):
        read_split(folder, "train")


def test_the_experiments_take_every_form(corpus, tmp_path):
    for form in ("parquet", "saved"):
        folder = tmp_path / f"drawn-{form}"
        write_draw(corpus(form), folder, None, 1, 0, "test")
        assert {path.name for path in folder.glob("*.jsonl")} == {"train.jsonl", "valid.jsonl", "test.jsonl"}
        assert scenarios_of(read_split(folder, "valid")) == ["0571", "taxi"]
    config = SuiteConfig(corpus="hub:a/b", backbone="b", output="o")
    assert config.scoring()["corpus"] == "hub:a/b"


def test_labels_inside_of_turns(tmp_path):
    datasets = pytest.importorskip("datasets")
    turns = {"speaker": datasets.ClassLabel(names=["USER", "SYSTEM"]), "text": datasets.Value("string")}
    texts = {"scenario": datasets.Value("string"), "note": datasets.Value("string")}
    kinds = [[turns], datasets.List(turns)]  # a list of objects
    objects = [{"speaker": 1, "text": "x"}, {"speaker": 0, "text": "y"}]
    for number, (kind, value) in enumerate([*((kind, objects) for kind in kinds), (turns, objects[0])]):
        features = datasets.Features({**texts, "turns": kind})
        table = pa.table({"scenario": ["taxi"], "note": ["z"], "turns": [value]}, schema=features.arrow_schema)
        pq.write_table(table, tmp_path / "calls.parquet")
        ((_, row),) = read_table(tmp_path / "calls.parquet")
        given = datasets.Dataset(table, fingerprint="of-a-test")
        ((_, other),) = table_of_dataset(given, "dataset").rows()
        speakers = row["turns"]["speaker"] if number == 2 else [turn["speaker"] for turn in row["turns"]]
        assert speakers == ("SYSTEM" if number == 2 else ["SYSTEM", "USER"])
        assert other == row
    bad = table.set_column(
        2, table.schema.field(2), pa.array([{"speaker": 2, "text": "x"}], table.schema.field(2).type)
    )
    pq.write_table(bad, tmp_path / "calls.parquet")
    with raises(ValueError, "calls.parquet, row 1", "`turns.speaker`", "label 2", "0 to 1"):
        list(read_table(tmp_path / "calls.parquet"))


def labelled_table(path, labels, **columns):
    """Write a Parquet file. labels: Column -> names of its numbers."""
    features = {name: {"names": names, "_type": "ClassLabel"} for name, names in labels.items()}
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("names", "labels", "targets"),
    [
        (["negative", "positive"], {0: "bad", 1: "good"}, ["good", "bad", "good"]),
        (["Negative", "Positive"], {"negative": "bad", "positive": "good"}, ["good", "bad", "good"]),
        (["1", "2"], {0: "bad", 1: "good"}, ["good", "bad", "good"]),  # all numbers are keys, not all names
        (["1", "2"], {1: "bad", 2: "good"}, ["good", "bad", "good"]),
        (["a", "b"], {0: "bad", 1: "good", "a": "bad", "b": "good"}, ["good", "bad", "good"]),
        (["1", "0"], {0: "bad", 1: "good"}, None),
        (["a", "b"], {"a": "bad"}, None),
    ],
)
def test_labels_of_a_configuration_may_be_numbers_or_names(tmp_path, names, labels, targets):
    labelled_table(tmp_path / "train.parquet", {"label": names}, text=["a", "b", "c", "d"], label=[1, 0, 1, -1])
    config = TaskConfig(input="{text}", target="{label}", labels=labels)
    with raises(ValueError, "train.parquet, row"):
        Converter(config, "taxi").rows(tmp_path / "train.parquet")
    converter = Converter(config, "taxi", skip=True)
    rows = converter.rows(tmp_path / "train.parquet")
    if targets is not None:
        assert [row.summary for row in rows] == targets
        assert [where.rpartition(" ")[2] for where, _ in converter.skipped] == ["4"]
    assert all(row.summary == "bad" and row.dialogue == "b" for row in rows if targets is None)


def test_short_floats_keep_their_digits(tmp_path):
    columns = {
        "score": pa.array([3.8, None, float("nan")], pa.float32()),
        "half": pa.array([0.1, 2.5, 1], pa.float16()),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    (_, first), (_, second), (_, third) = read_table(tmp_path / "x.parquet")
    assert (first, second) == ({"score": 3.8, "half": 0.1}, {"score": None, "half": 2.5})
    assert third["half"] == 1
    assert math.isnan(third["score"])


class Builder:
    """A builder of the library `datasets` that asks no hub."""

    def __init__(self, splits):
        self.as_dataset = lambda: splits

    def download_and_prepare(self):
        pass


def test_convert(tmp_path, capsys, monkeypatch):
    (tmp_path / "raw").mkdir()
    turns = [[{"speaker": "A", "text": "x"}, {"speaker": "B", "text": "y"}]] * 20
    table = pa.table({"business": ["0571"] * 20, "turns": turns, "note": list(range(20))})
    pq.write_table(table, tmp_path / "raw" / "train.parquet")
    write_ipc(tmp_path / "raw" / "dev.arrow", table, stream=True)
    command = ["corpus", "convert", "--output", str(tmp_path / "made"), "--scenario", "{business}"]
    command += ["--dialogue", "{turns}", "--turn", "{speaker}: {text}", "--summary", "{note}"]
    assert main([*command, "--input", str(tmp_path / "raw")]) == 0
    assert [len(read_split(tmp_path / "made", split)) for split in ("train", "valid")] == [20, 20]
    row = read_split(tmp_path / "made", "train")[7]
    assert (row.scenario, row.dialogue, row.summary) == ("0571", "A: x\nB: y", "7")
    command += ["--overwrite", "--input"]
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    made = (tmp_path / "made" / "train.jsonl").read_bytes()
    given = dataset_of(table)
    given.save_to_disk(str(tmp_path / "saved" / "train"))
    splits_there = datasets.DatasetDict(train=given, validation=given)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, **__: Builder(splits_there))
    for source, splits in ((tmp_path / "saved", 1), (tmp_path / "saved" / "train", 1), ("hub:a/b@v1", 2)):
        assert main([*command, str(source)]) == 0
        assert (tmp_path / "made" / "train.jsonl").read_bytes() == made
        assert len([*(tmp_path / "made").glob("*.jsonl")]) == splits
    capsys.readouterr()
    assert main([*command, "hub:a/b", "--split", "8:1:1", "--header", "[a]"]) == 1
    says(capsys.readouterr().err, "header", "hub:a/b")
    assert main([*command, str(tmp_path / "saved" / "train"), "--split", "halve"]) == 1
    says(capsys.readouterr().err, "train is one file", "'halve'")
    nulls = table.set_column(2, "note", pa.array([*range(19), None]))
    pq.write_table(nulls, tmp_path / "calls.parquet")
    capsys.readouterr()
    assert main([*command, str(tmp_path / "calls.parquet")]) == 1
    says(capsys.readouterr().err, "calls.parquet, row 20", "note", "null")
    (tmp_path / "calls.parquet.gz").write_bytes(b"")
    assert main([*command, str(tmp_path / "calls.parquet.gz")]) == 1
    says(capsys.readouterr().err, "calls.parquet.gz", "gunzip")
    assert main([*command, str(tmp_path / "calls.parquet"), "--header", "[a]"]) == 1
    says(capsys.readouterr().err, "header", "calls.parquet")


def test_form_of_a_hub_name(tmp_path, monkeypatch):
    for name in ("hub:", "hub:csv", "hub:a/b/c", "hub:/b", "hub:a/", "hub:a/b@", "hub:a/b:", "hub:@x"):
        with raises(ValueError, "corpus", "hub:OWNER/NAME", repr(name)):
            read_split(name, "train")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "calls").mkdir(parents=True)  # load_dataset would read it
    with raises(ValueError, "corpus", "folder here/calls", "hub:here/calls"):
        read_split("hub:here/calls", "train")
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, config, revision):
        asked.append((name, config, revision))
        splits = datasets.DatasetDict(train=dataset_of(table_of(ROWS)), validation=dataset_of(table_of(ROWS[:2])))
        return Builder(splits)

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    assert read_split("hub:a/b@refs/pr/1:small", "train") == ROWS
    assert read_split("hub:a/b", "valid") == ROWS[:2]
    assert asked == [("a/b", "small", "refs/pr/1"), ("a/b", None, None)]
    with raises(FileNotFoundError, "hub:a/b", "test", "train, validation"):
        read_split("hub:a/b", "test")
