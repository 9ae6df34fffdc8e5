"""What is read from CSV, TSV, JSON and JSON-lines files, and what damaged files are told."""

import csv
import gzip
import json
import re

import pytest
from errors import raises, says, warns
from mop_t5.cli.main import main
from mop_t5.data import read_split
from mop_t5.data.table_files import read_table
from tables_on_disk import ROWS, fails, written


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.json", "t.jsonl", "t.jsonl.gz", "t.tsv"])
def test_every_format_gives_the_same_rows(name, tmp_path):
    rows = [row | {"b": 'one "word'} for row in ROWS] if "tsv" in name else ROWS  # TSV knows no quotes
    found = list(read_table(written(tmp_path / name, rows)))
    assert [{k: str(v) for k, v in row.items()} for _, row in found] == [
        {k: str(v) for k, v in row.items()} for row in rows
    ]
    place = {"t.csv": "line 3", "t.json": "row 1", "t.jsonl": "line 1", "t.tsv": "line 2"}[name.removesuffix(".gz")]
    assert found[0][0] == f"{tmp_path / name}, {place}"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", 'a,b\n1,"2\n', ("t.csv, line 2", "CSV", "quotation mark")),
        ("t.csv", "a,b\n1,2\n1,2,3\n", ("t.csv, line 3", "3 columns", "header", "2")),
        ("t.tsv", "a\ta\n", ("t.tsv, line 1", "column a", "header")),
        ("t.csv", b"a\n\xff\n", ("t.csv, line 2", "UTF-8")),
        ("t.jsonl", '{"a": 1}\n{"a": 1', ("t.jsonl, line 2", "JSON")),
        ("t.jsonl", "[1]", ("t.jsonl, line 1", "JSON", "list")),
        ("t.json", '{"rows": []}', ("t.json", "list of objects", '"data"')),
        ("t.json", '{"data": [{"a": 1}, 2]}', ("t.json, row 2", "JSON", "int")),
        ("t.json", "[1,\n2", ("t.json", "JSON", "line 2, column 2", "list of objects")),
        ("t.txt", "", ("t.txt", ".jsonl, .json, .csv, .tsv")),
    ],
)
def test_a_damaged_file_says_where(name, text, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with raises((ValueError, TypeError), *message):
        list(read_table(path))


LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("t.json", LINES, "line 1"),
        ("t.json", "\n" + LINES.replace("\n", "\r\n"), "line 2"),
        ("t.jsonl", json.dumps(ROWS), "row 1"),
        ("t.jsonl", json.dumps(ROWS, indent=2), "row 1"),
        ("t.jsonl", json.dumps({"data": ROWS}), "row 1"),
        ("t.json", json.dumps({"version": 1, "data": ROWS}, indent=1), "row 1"),
    ],
)
def test_the_content_of_a_json_file_says_how_it_is_read(name, text, place, gz, tmp_path):
    path = tmp_path / f"{name}{gz}"
    path.write_bytes(gzip.compress(text.encode()) if gz else text.encode())
    found = list(read_table(path))
    assert [row for _, row in found] == ROWS
    assert found[0][0] == f"{path}, {place}"


PANDAS = [("row 1", {"a": "x", "b": 1}), ("row 2", {"a": "y", "b": None})]


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("t.json", '{"a": "x", "b": ["y"]}', [("line 1", {"a": "x", "b": ["y"]})]),
        ("t.json", '{\n"a": "x"\n}\n', [("line 1", {"a": "x"})]),
        ("t.jsonl", '{"a": {"b": "x"}}\n', [("line 1", {"a": {"b": "x"}})]),
        (
            "t.json",
            '{"7": {"a": "x"}, "8": {"a": "y", "id": "own"}}',
            [("row '7'", {"id": "7", "a": "x"}), ("row '8'", {"id": "own", "a": "y"})],
        ),
        ("t.jsonl", '["hi", "ho"]\n["so"]\n', [("line 1", {"turns": ["hi", "ho"]}), ("line 2", {"turns": ["so"]})]),
        ("t.jsonl", '["hi", "ho"]\n', [("line 1", {"turns": ["hi", "ho"]})]),
        ("t.json", '[["hi", "ho"], ["so"]]', [("row 1", {"turns": ["hi", "ho"]}), ("row 2", {"turns": ["so"]})]),
        ("t.json", "", []),
        # a table that pandas wrote by columns, as it does without a word, and split
        ("t.json", '{"a": {"0": "x", "5": "y"}, "b": {"0": 1, "5": null}}', [PANDAS[0], PANDAS[1]]),
        ("t.json", '{"columns": ["a", "b"], "index": [0, 5], "data": [["x", 1], ["y", null]]}', [PANDAS[0], PANDAS[1]]),
    ],
)
def test_other_layouts_of_json(name, text, rows, tmp_path):
    (tmp_path / name).write_text(text)
    assert list(read_table(tmp_path / name)) == [(f"{tmp_path / name}, {place}", row) for place, row in rows]


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\r\na;b\r\nx, y;z\r\n",
        "\ufeffa;b\nx, y;z\n",
        "\ufeffsep=|\na|b\nx, y|z\n",
        "a\tb\nx, y\tz\n",
        'a,b,,\n"x, y",z,,\n',
    ],
)
def test_columns_as_spreadsheets_write_them(text, tmp_path):
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    (row,) = [row for _, row in read_table(tmp_path / "t.csv")]
    assert (row["a"], row["b"]) == ("x, y", "z")


def test_quotation_marks_of_csv_in_a_tsv_file_are_said_once(tmp_path):
    text = 'a\tb\n"he said ""hi"""\tx\n"she said ""ho"""\ty\n'
    (tmp_path / "t.tsv").write_text(text)
    (tmp_path / "t.csv").write_text(text)
    with warns(UserWarning, "t.tsv, line 2", "quoted", "CSV") as said:
        assert [row["b"] for _, row in read_table(tmp_path / "t.tsv")] == ["x", "y"]
    assert len(said) == 1
    assert next(read_table(tmp_path / "t.csv"))[1]["a"] == 'he said "hi"'


def test_a_line_of_texts_does_not_say_what_separates_columns(tmp_path):
    (tmp_path / "t.csv").write_text("one; two\nthree\n")
    assert [row for _, row in read_table(tmp_path / "t.csv", ["a"])] == [{"a": "one; two"}, {"a": "three"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\nx,y\n".encode("utf-16"), ("UTF-16", "`iconv -f UTF-16")),
        (gzip.compress(b"a,b\n", mtime=0), ("gzip data", ".gz")),
        (b"PK\x03\x04\xff", ("ZIP", "Excel")),
        (b"PAR1\x15\xff", ("Parquet", ".parquet")),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json"])
def test_a_file_of_another_kind_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with raises(ValueError, f"{name}, line 1", "UTF-8", *message):
        list(read_table(tmp_path / name))


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.csv.gz"])
def test_a_field_may_be_longer_than_the_limit_of_the_csv_module(name, tmp_path):
    limit = csv.field_size_limit()
    rows = [{"a": "x" * (limit + 1), "b": "y"}, {"a": "z", "b": "y"}]
    reading = read_table(written(tmp_path / name, rows))
    assert next(reading)[1] == rows[0]
    assert csv.field_size_limit() == limit  # also while the file is read
    assert [row for _, row in reading] == rows[1:]


# rows that are left out

GOOD = {
    "csv": ["b,t\n", *(f"taxi,x{i}\n" for i in range(4))],
    "tsv": ["b\tt\n", *(f"taxi\tx{i}\n" for i in range(4))],
    "jsonl": [json.dumps({"b": "taxi", "t": f"x{i}"}) + "\n" for i in range(4)],
}
GOOD["json"] = GOOD["jsonl"]
PLAIN = ["--scenario", "{b}", "--dialogue", "{t}", "--summary", "{b}"]


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize(
    ("name", "bad", "why"),
    [
        ("t.csv", "taxi,x,y\n", "3 columns, but the header has 2"),
        ("t.csv", "taxi\n", "1 columns, but the header has 2"),
        ("t.csv", "taxi,x\ry\n", "cannot be read as CSV .* Correct the line"),
        ("t.csv", 'taxi,"x, \ny",z\n', "3 columns, but the header has 2"),
        ("t.csv", 'taxi,"so "called" x"\n', "cannot be read as CSV"),
        ("t.csv", b"taxi,\xb0\xa1\n", "not UTF-8"),
        ("t.csv", b'taxi,"\n\xb0\xa1"\n', "not UTF-8"),
        ("t.tsv", "taxi\n", "1 columns, but the header has 2"),
        ("t.tsv", '"\tx\ty\n', "3 columns, but the header has 2"),
        ("t.tsv", b"taxi\t\xb0\xa1\n", "not UTF-8"),
        ("t.jsonl", '{"b": "taxi", "t": "cu\n', "not valid JSON"),
        ("t.jsonl", '{"b": "taxi", "t": "x", "t": "y"}\n', "the key 't' stands in it more than once"),
        ("t.jsonl", "[1]\n", "expected a JSON object, got list"),
        ("t.jsonl", '"x"\n', "expected a JSON object, got str"),
        ("t.jsonl", b'{"b": "taxi", "t": "\xb0\xa1"}\n', "not UTF-8"),
        ("t.json", '{"b": "taxi", "t": "cu\n', "not valid JSON"),
    ],
)
def test_a_row_that_cannot_be_read_is_left_out_wherever_it_stands(name, bad, why, gz, tmp_path, capsys):
    """Behind the header, in the middle and at the end."""
    good = [line.encode() for line in GOOD[name[2:]]]
    bad = bad if isinstance(bad, bytes) else bad.encode()
    for number, place in enumerate((0 if "json" in name else 1, 3, len(good))):
        path = tmp_path / f"{number}.{name}{gz}"
        content = b"".join([*good[:place], bad, *good[place:]])
        path.write_bytes(gzip.compress(content) if gz else content)
        flags = ["--input", path, *PLAIN, "--output", tmp_path / f"out{number}"]
        where = f"{path}, line {place + bad.count(10)}"  # its last line
        assert fails(capsys, *flags).startswith(f"mop-t5 corpus convert: {where}: ")
        assert main(["corpus", "convert", *map(str, flags), "--skip_bad_rows"]) == 0
        said = capsys.readouterr().out
        says(said, "Left out 1 rows", where)
        assert re.search(why, said.replace("\n", " "))
        assert [one.dialogue for one in read_split(tmp_path / f"out{number}", "train")] == ["x0", "x1", "x2", "x3"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "".join(GOOD["csv"][:3]) + 'taxi,"x\n' + GOOD["csv"][3], "a quotation mark that is not closed"),
        ("t.csv", GOOD["csv"][0] + 'taxi,"so "it" " is"\n', "a quotation mark that is not closed"),
        ("t.csv", "b,b\ntaxi,x\n", "the column b occurs more than once in the header"),
        ("t.csv", b"b,\xff\ntaxi,x\n", "line 1: not UTF-8"),
        ("t.csv.gz", gzip.compress("".join(GOOD["csv"]).encode(), mtime=0)[:-9], "broken or truncated gzip data"),
        ("t.jsonl.gz", gzip.compress("".join(GOOD["jsonl"]).encode(), mtime=0)[:-9], "broken or truncated gzip data"),
        ("t.json", '[{"b": "taxi", "t": "x"},\n{"b": "taxi"\n', "not valid JSON"),
        ("t.jsonl", "[1]\n[2]\n", r"gives no rows for train \(2 were left out: .*line 1: expected a JSON object"),
    ],
)
def test_what_is_no_row_is_not_left_out(name, content, message, tmp_path, capsys):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    flags = ["--input", path, *PLAIN, "--output", tmp_path / "out", "--skip_bad_rows"]
    assert re.search(message, fails(capsys, *flags))
    assert not (tmp_path / "out").exists()
