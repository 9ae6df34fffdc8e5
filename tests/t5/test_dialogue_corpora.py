"""Dialogues as people publish them: turns, several summaries, Chinese words; and what is no text."""

import csv
import gzip
import json
import math

import pytest
from errors import raises, says, warns
from mop_t5.cli.main import main
from mop_t5.data import Example, read_split
from mop_t5.data.conversion import Converter, without_spaces
from mop_t5.data.task_configs import TaskConfig

TURNS = [{"speaker": "客户", "text": "在吗"}, {"speaker": "客服", "text": "在的\r\n请说", "time": 3}]


def convert(capsys, *arguments):
    code = main(["corpus", "convert", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def pairs(folder, split):
    return [(row.dialogue, *row.golds) for row in read_split(folder, split)]


# published corpora by their names

DIALOG = {"fname": "train_0", "dialogue": "#Person1#: Hi.\n#Person2#: Ho.", "summary": "They greet.", "topic": "greet"}
TEST = {"dialogue": "#Person1#: So?", "summary1": "S1.", "topic1": "x", "summary2": "S2.", "summary3": "S1."}
CSDS = {
    "DialogueID": 1,
    "QRole": "用户",
    "QA": [{"QueSumm": "x", "AnsSummShortUttIDs": [1]}],
    "Dialogue": [
        {"speaker": "Q", "turn": 0, "utterance": "订单 到 哪 了 ？ 我 买 了 iPhone 8 Plus"},
        {"speaker": "A", "turn": 1, "utterance": "您好 ， 还有 2 天"},
    ],
    "FinalSumm": ["用户询问订单。", "客服表示还有2天。"],
    "UserSumm": ["用户询问订单。"],
}
CSDS_TEXT = "用户：订单到哪了？我买了iPhone 8 Plus\n客服：您好，还有2天"
CROSSWOZ = {
    "messages": [{"role": "usr", "content": "找 酒店", "dialog_act": []}, {"role": "sys", "content": "推荐如家"}],
    "task description": ["你要去一个酒店(id=1)住宿。", "你想知道价格。"],
    "type": "单领域",
}
LCCC = ["火锅 我 在 重庆 吃 了 七八 顿", "哈哈哈哈 ！ 那 我 的 嘴巴", "OK good"]
LCCC_PAIR = ("火锅我在重庆吃了七八顿\n哈哈哈哈！那我的嘴巴", "OK good")


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        (
            "samsum",
            {
                "train.json": [{"id": "1", "summary": "A asks.", "dialogue": "A: so?\r\nB: no\r\n"}],
                "val.json": [{"id": "2", "summary": "B asks.", "dialogue": "B: so?"}],
                "test.jsonl.gz": lines([{"id": "3", "summary": "C asks.", "dialogue": "C: so?"}]),
            },
            {
                "train": [("A: so?\nB: no", "A asks.")],
                "valid": [("B: so?", "B asks.")],
                "test": [("C: so?", "C asks.")],
            },
        ),
        (
            "dialogsum",
            {
                "dialogsum.train.jsonl": lines([DIALOG, DIALOG]),
                "dialogsum.dev.jsonl": lines([DIALOG]),
                "dialogsum.test.jsonl": lines([TEST]),
            },
            {
                "train": 2 * [(DIALOG["dialogue"], "They greet.")],
                "valid": [(DIALOG["dialogue"], "They greet.")],
                "test": [("#Person1#: So?", "S1.", "S2.")],
            },
        ),
        (
            "dialogsum",
            {
                "train.json": lines([DIALOG]),
                "validation.json": lines([DIALOG]),
                "test.json": lines(
                    [
                        {"id": "test_0_1", "dialogue": "D0", "summary": "S1."},
                        {"id": "test_0_2", "dialogue": "D0", "summary": "S2."},
                        {"id": "test_1_1", "dialogue": "D1", "summary": "S1."},
                        {"id": "test_0_3", "dialogue": "D0", "summary": "S1."},
                    ]
                ),
            },
            {"test": [("D0", "S1.", "S2."), ("D1", "S1.")]},
        ),
        (
            "csds",
            {"train.json": [CSDS], "val.json": [CSDS], "test.json": [CSDS]},
            {split: [(CSDS_TEXT, "用户询问订单。客服表示还有2天。")] for split in ("train", "valid", "test")},
        ),
        (
            "lccc",
            {"lccc_base_train.jsonl.gz": lines([LCCC, LCCC[:2]])},
            {"train": [LCCC_PAIR, tuple(LCCC_PAIR[0].split("\n"))]},
        ),
        (
            "lccc",
            {"LCCC-base_train.json": [LCCC], "LCCC-base_test.json": [LCCC]},
            {"train": [LCCC_PAIR], "test": [LCCC_PAIR]},
        ),
        ("lccc", {"train.jsonl": lines([{"dialog": LCCC}])}, {"train": [LCCC_PAIR]}),
        (
            "crosswoz",
            {"train.json": {"7": CROSSWOZ, "8": CROSSWOZ}, "val.json": {"9": CROSSWOZ}},
            {"train": 2 * [("用户：找酒店\n客服：推荐如家", "你要去一个酒店(id=1)住宿。你想知道价格。")]},
        ),
    ],
)
def test_published_corpora(name, files, expected, tmp_path, capsys):
    for file, content in files.items():
        put(tmp_path / name / file, content)  # the folder is called as the corpus is
    code, said, _ = convert(capsys, "--tasks", name, "--input", tmp_path / name, "--output", tmp_path / "out")
    assert code == 0, said
    for split, rows in expected.items():
        assert pairs(tmp_path / "out", split) == rows
        assert {row.scenario for row in read_split(tmp_path / "out", split)} == {name}


def test_a_dialogue_of_one_turn_has_no_answer(tmp_path, capsys):
    put(tmp_path / "train.jsonl", lines([LCCC, ["so"]]))
    flags = ["--tasks", "lccc", "--input", tmp_path, "--output", tmp_path / "out"]
    assert "train.jsonl, line 2: input is empty" in convert(capsys, *flags)[2]
    code, said, _ = convert(capsys, *flags, "--skip_bad_rows")
    assert (code, "Left out 1 rows" in said) == (0, True)


def test_a_role_that_is_not_known_is_said(tmp_path, capsys):
    put(tmp_path / "train.json", [CSDS | {"Dialogue": [{"speaker": "C", "utterance": "x"}]}])
    message = convert(capsys, "--tasks", "csds", "--input", tmp_path, "--output", tmp_path / "out")[2]
    says(message, "row 1", "Dialogue", "'C'", "turn 1", "Q, A")


def test_a_name_that_is_no_file_and_no_corpus(tmp_path, capsys):
    message = convert(capsys, "--tasks", "sansum", "--input", tmp_path, "--output", tmp_path / "out")[2]
    says(message, "sansum", "YAML", "samsum, dialogsum, csds, lccc")


# templates of turns, and references, for tables of one's own


def plain(**changes):
    given = {"scenario": "shop", "dialogue": "{turns}", "summary": "{note}"} | changes
    scenario = given.pop("scenario")
    return Converter(TaskConfig(given.pop("dialogue"), given.pop("summary"), **given), scenario)


def made(row, **changes):
    example = plain(**changes).example(row, "here", "1")
    return (example.dialogue, *example.golds)


ROW = {"turns": TURNS, "note": "问候", "texts": ["在吗", "在的"], "more": ["a", "b"], "other": "c", "empty": ""}
PARALLEL = {"speaker": ["客户", "客服"], "text": ["在吗", "在的"]}  # as the library datasets writes a sequence
PAIRS = [["客户", "在吗"], ["客服", "在的"]]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"turn": "{speaker}: {text}"}, ("客户: 在吗\n客服: 在的\n请说", "问候")),
        ({"turn": "<{{{speaker}}}>{text}"}, ("<{客户}>在吗\n<{客服}>在的\n请说", "问候")),
        ({"turn": "{}", "dialogue": "{texts}"}, ("在吗\n在的", "问候")),
        ({"turn": "说：{}", "dialogue": "#{other}: {turns.text}"}, ("#c: 说：在吗\n说：在的\n请说", "问候")),
        ({"turn": "{text}", "dialogue": "{turns[:-1]}", "summary": "{turns[-1].text}"}, ("在吗", "在的\n请说")),
        ({"dialogue": "{texts[0]}", "summary": "{texts[1]}"}, ("在吗", "在的")),
        ({"dialogue": "{texts}", "join": "。"}, ("在吗。在的", "问候")),
        ({"dialogue": "x {texts}"}, ("x 在吗, 在的", "问候")),
        ({"dialogue": "{other}", "summary": "{more}"}, ("c", "a", "b")),
        ({"dialogue": "{other}", "summary": "{more}", "join": ""}, ("c", "ab")),
        ({"dialogue": "{other}", "references": ["more", "note", "absent", "empty"]}, ("c", "问候", "a", "b")),
    ],
)
def test_lists_are_written_as_the_task_says(changes, expected):
    assert made(ROW, **changes) == expected


@pytest.mark.parametrize(
    ("turns", "turn"),
    [
        (PARALLEL, "{speaker}: {text}"),
        (PAIRS, "{0}: {1}"),
        ([{"speaker": {"name": who}, "text": text} for who, text in PAIRS], "{speaker.name}: {text}"),
        (json.dumps([dict(zip(PARALLEL, pair)) for pair in PAIRS]), "{speaker}: {text}"),  # a cell of a CSV file
        (json.dumps(PARALLEL), "{speaker}: {text}"),
    ],
)
def test_turns_in_other_shapes(turns, turn):
    assert made(ROW | {"turns": turns}, turn=turn)[0] == "客户: 在吗\n客服: 在的"


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({}, {}, ("turns", "list of objects", "speaker, text", "--turn '{speaker}: {text}'")),
        ({}, {"dialogue": "{texts}"}, ("texts", "list", "--turn '{}'", "--join")),
        ({"turns": TURNS[0]}, {}, ("turns", "object", "speaker, text")),
        ({"turns": TURNS[0]}, {"turn": "{text}"}, ("turns", "object", "speaker, text")),
        ({}, {"dialogue": "x {turns}"}, ("turns", "list of objects")),
        (
            {},
            {"turn": "{who}: {text}"},
            ("turns", "'who'", "turn 1", "object", "speaker, text"),
        ),
        ({}, {"turn": "{}"}, ("turns", "object", "speaker, text", "turn 1")),
        ({"turns": ["a", None]}, {"turn": "{}"}, ("turns", "''", "turn 2", "null")),
        ({"turns": ["a", 0.0, math.nan]}, {"turn": "{}"}, ("turns", "nan", "turn 3")),
        ({"turns": [["a", "b"]]}, {"turn": "{}"}, ("turns", "list inside of a list", "turn 1")),
        ({"turns": ["a"]}, {"turn": "{text}"}, ("turns", "'text'", "turn 1", "text")),
        ({"turns": [{"text": {"zh": "a"}}]}, {"turn": "{text}"}, ("turns", "object", "zh")),
        ({"turns": []}, {"turn": "{text}"}, ("input", "empty")),
        ({"turns": "x", "note": math.nan}, {}, ("note", "nan")),
        ({"turns": "x", "note": -math.inf}, {}, ("note", "-inf")),
        ({"turns": math.inf}, {}, ("turns", "inf")),
        ({"turns": None}, {}, ("'turns'",)),
        ({"turns": "x", "note": ["a", None]}, {}, ("note", "null")),
        ({"turns": "x", "note": ["a", {"b": 1}]}, {}, ("note", "object", "b")),
        ({"turns": "x", "note": ["a", ["b"]]}, {"join": ""}, ("note", "list inside of a list")),
        ({"turns": "x", "note": [["a"], ["b"]]}, {}, ("note", "list inside of a list")),
        ({"turns": "x", "note": ["a", " "]}, {}, ("note", "empty")),
        ({"turns": "x", "more": ["a", math.nan]}, {"references": ["more"]}, ("more", "nan")),
        ({"turns": "x", "more": {"a": "b"}}, {"references": ["more"]}, ("more", "object", "a")),
        ({"turns": "x", "more": [["a"]]}, {"references": ["more"]}, ("more", "list inside of a list")),
        ({"turns": "x", "kind": {"a": 1}}, {"scenario": "{kind}"}, ("kind", "object", "a")),
        ({"turns": "x", "kind": math.nan}, {"scenario": "{kind}"}, ("kind", "nan")),
        ({"turns": ["x", {"a": 1}]}, {"dialogue": "y {turns}"}, ("turns", "object", "a")),
        ({"turns": PARALLEL}, {}, ("turns", "list", "--turn '{speaker}: {text}'")),
        ({"turns": PAIRS}, {}, ("turns", "list of lists", "--turn '{0}: {1}'")),
        ({"turns": PAIRS}, {"turn": "{0}: {2}"}, ("turns", "'2'", "turn 1")),
        ({"turns": {"a": ["x"], "b": []}}, {"turn": "{a}"}, ("turns", "object", "a, b")),
        ({"turns": [{"speaker": None, "text": "x"}]}, {"turn": "{speaker}: {text}"}, ("turns", "null", "'speaker'")),
        ({}, {"dialogue": "{turns.speaker}: {turns.text}"}, ("turns.speaker", "turns.text", "'{turns}'")),
        ({}, {"dialogue": "{turns.speaker} {turns.text}", "turn": "{}"}, ("turns.speaker", "turns.text", "list")),
        ({}, {"dialogue": "{texts}: {more}"}, ("texts", "more", "lists", "length")),
        ({"turns": "a: x"}, {"turn": "{text}"}, ("turns", "no list")),
        ({"turns": str(TURNS)}, {}, ("turns", "list or an object", "Python")),
        ({"turns": str(TURNS)}, {"turn": "{text}"}, ("turns", "list or an object", "Python")),
        ({"turns": "x", "note": str(["a", "b"])}, {}, ("note", "list or an object", "Python")),
    ],
)
def test_nothing_but_texts_and_numbers_becomes_text(row, changes, message):
    with raises((ValueError, TypeError), "here", *message):
        made(ROW | row, **changes)


def test_numbers_and_truth_are_written_as_in_json():
    row = {"turns": [1, 2.5, True, "x"], "note": False}
    assert made(row, turn="{}") == ("1\n2.5\ntrue\nx", "false")


def test_turns_and_references_on_the_command_line(tmp_path, capsys):
    rows = [{"turns": TURNS[: 1 + i % 2], "note": f"n{i}", **({"also": "m"} if i == 1 else {})} for i in range(3)]
    flags = ["--input", put(tmp_path / "calls.json", rows), "--scenario", "shop", "--dialogue", "{turns}"]
    flags += ["--summary", "{note}", "--output", tmp_path / "out"]
    assert "--turn '{speaker}: {text}'" in convert(capsys, *flags)[2]
    assert convert(capsys, *flags, "--turn", "#{speaker}: {text}", "--references", "[also]")[0] == 0
    assert read_split(tmp_path / "out", "train")[:2] == [
        Example("shop", "#客户: 在吗", "n0", "shop-calls-1"),
        Example("shop", "#客户: 在吗\n#客服: 在的\n请说", "n1", "shop-calls-2", ("m",)),
    ]
    flags += ["--turn", "{text}", "--overwrite"]
    says(convert(capsys, *flags, "--references", "[also, alas]")[2], "references", "alas")
    says(convert(capsys, "--tasks", "samsum", *flags[:2], *flags[-5:])[2], "dialogue, summary", "--tasks")
    says(convert(capsys, *flags, "--summary", "")[2], "summary", "empty")


@pytest.mark.parametrize(("name", "text"), [("dialogue", r"{t}\n"), ("turn", r"{}\n"), ("join", r"\n")])
def test_a_line_break_that_is_typed_as_two_characters(name, text, tmp_path, capsys):
    flags = {"scenario": "shop", "dialogue": "{t}", "summary": "{n}", "turn": "{}"} | {name: text}
    words = [f"--{flag}={typed}" for flag, typed in flags.items()]
    put(tmp_path / "t.json", [{"t": ["x", "y"], "n": "z"}])
    with warns(UserWarning, name, "backslash", f"--{name} $'"):
        assert convert(capsys, "--input", tmp_path / "t.json", *words, "--output", tmp_path / "out")[0] == 0


def test_nan_in_a_file_is_said_only_where_it_is_read(tmp_path, capsys):
    put(
        tmp_path / "t.json",
        lines([{"t": "x", "n": "y", "z": math.nan}, {"t": "x", "n": math.nan}, {"t": "a", "n": "b"}]),
    )
    flags = ["--input", tmp_path / "t.json", "--scenario", "shop", "--dialogue", "{t}", "--summary", "{n}"]
    flags += ["--output", tmp_path / "out"]
    says(convert(capsys, *flags)[2], "t.json, line 2", "n", "nan", "text")
    assert "Left out 1 rows" in convert(capsys, *flags, "--skip_bad_rows")[1]
    assert pairs(tmp_path / "out", "train") == [("x", "y"), ("a", "b")]


def test_rows_of_a_csv_with_several_summaries_are_merged(tmp_path, capsys):
    """As Hugging Face's datasets save the test split of DialogSum."""
    for split in ("train", "validation", "test"):
        with open(put(tmp_path / f"{split}.csv", ""), "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerows([("id", "dialogue", "summary"), (1, "#Person1#: a\n#Person2#: b", "x"), (2, "c", "x")])
            writer.writerow((3, "#Person1#: a\n#Person2#: b", "y"))
    assert convert(capsys, "--tasks", "dialogsum", "--input", tmp_path, "--output", tmp_path / "out")[0] == 0
    assert pairs(tmp_path / "out", "test") == [("#Person1#: a\n#Person2#: b", "x", "y"), ("c", "x")]
    assert pairs(tmp_path / "out", "valid") == pairs(tmp_path / "out", "test")
    assert len(pairs(tmp_path / "out", "train")) == 3  # each summary is learnt


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("火锅 我 在", "火锅我在"),
        ("你好 ， 吗 ？ （ 是 ）", "你好，吗？（是）"),
        ("买 iPhone 8 Plus 多少 钱", "买iPhone 8 Plus多少钱"),
        ("how are you", "how are you"),
        ("一 行\n二 行", "一行\n二行"),
        ("𠮷 野 家 〇", "𠮷野家〇"),
        ("好 \t 的", "好的"),
    ],
)
def test_chinese_words_are_joined(words, text):
    assert without_spaces(words) == text
