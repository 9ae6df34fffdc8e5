"""Values and cases of finished runs: a small suite whose predictions are then written by hand."""

import json
import shutil

import pytest
from command_results import csv_rows
from errors import raises, says
from mop_lab.analysis.cases import Segment, case_of, marked, most_different, to_markdown, to_row, to_text
from mop_lab.commands.cases import _of_ids
from mop_t5.cli.main import main
from mop_t5.data import Example, read_split
from mop_t5.evaluation import BASELINES, Values, read_scores, value_recall
from visits import NAMES, visit


@pytest.fixture(scope="module")
def values():
    return Values([visit(name, number=number) for name in NAMES for number in range(3)])


ROW = visit("静之湖", "50-100元", "4.5分")
SUMMARY = "用户要去名叫明城墙的景点游玩，希望景点的票价是50-100元的，希望景点的评分是5分。"


def test_the_segments_of_a_summary_are_the_summary(values):
    segments = marked(ROW, SUMMARY, values)
    assert segments == [
        Segment("用户要去名叫", ""),
        Segment("明城墙", "invented"),
        Segment("的景点游玩，希望景点的票价是", ""),
        Segment("50-100元", "kept"),
        Segment("的，希望景点的评分是", ""),
        Segment("5分", "invented"),
        Segment("。", ""),
    ]
    reference = marked(ROW, ROW.summary, values)
    assert "".join(segment.text for segment in reference) == ROW.summary
    assert [segment.text for segment in reference if segment.mark] == ["静之湖", "50-100元", "4.5分"]
    assert {segment.mark for segment in reference} == {"", "kept"}
    assert marked(ROW, "", values) == []


def test_a_name_that_is_half_right_is_marked_half(values):
    row = Example("attraction", "用户：去全聚德(前门店)。", "去名叫全聚德(前门店)的景点。", "x")
    assert [s for s in marked(row, "去名叫全聚德(西单店)的景点。", values) if s.mark] == [Segment("西单店", "invented")]
    assert [s for s in marked(row, "去名叫全聚德(前门店)的景点。", values) if s.mark] == [
        Segment("全聚德(前门店)", "kept")
    ]


def test_a_case_in_three_forms(values):
    hostile = Example("attraction", f"{ROW.dialogue}\n用户：<b>*a*|b</b>", ROW.summary, "<i>_1_")
    case = case_of(hostile, {("MOP", 0): SUMMARY, ("p|q", 3): ""}, values)
    lines = to_markdown([case]).splitlines()
    assert "## 1. attraction, &lt;i&gt;\\_1\\_" in lines
    assert "> 用户：&lt;b&gt;\\*a\\*\\|b&lt;/b&gt;  " in lines
    mop, other = lines[-2:]
    assert mop == (
        "| MOP, seed 0 | 用户要去名叫<b>+明城墙+</b>的景点游玩，希望景点的票价是50-100元的，"
        "希望景点的评分是<b>+5分+</b>。 | 1 of 3 | <del>静之湖</del>, <del>4.5分</del> |"
    )
    assert other.startswith("| p\\|q, seed 3 |  | 0 of 3 | <del>静之湖</del>")
    shown = to_text([case]).plain
    assert "MOP, seed 0 (1 of 3 values): 用户要去名叫+明城墙+的景点游玩" in shown
    assert "  omitted: 静之湖, 4.5分\n" in shown
    row = to_row(case)
    assert row["dialogue"] == hostile.dialogue
    assert [value["text"] for value in row["said"]] == ["静之湖", "50-100元", "4.5分"]
    assert row["summaries"][0]["invented"][0] == {"text": "明城墙", "kind": "name", "start": 6, "end": 9}
    assert json.loads(json.dumps(row)) == row


def test_cases_are_chosen_by_how_much_they_differ(values):
    def case(scenario, name, *texts):
        row = visit(name, "30元", "5分")
        row = Example(scenario, row.dialogue, row.summary, name)
        return case_of(row, {(f"s{i}", 0): text for i, text in enumerate(texts)}, values)

    cases = [
        case("b", "one", "", ""),
        case("a", "two", "票价是30元", ""),
        case("a", "three", "票价是30元，评分是5分", ""),
        case("c", "four", "", "票价是30元"),
        case("a", "five", "", "票价是30元"),
    ]
    chosen = [one.example.id for one in most_different(cases, 9)]
    assert chosen == ["three", "four", "two", "five", "one"]
    assert [one.example.id for one in most_different(cases, 2)] == chosen[:2]


@pytest.fixture(scope="module")
def suite(suite_place, suite_copy):
    """MTL-vanilla says the references with seed 0 and nothing with seed 1; prefix-tuning the random references."""
    random = dict(zip(*_said(suite_place, BASELINES["random reference"])))
    for path in suite_copy.rglob("predictions.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows:
            if "fine_tuning" in row["predictions"]:
                row["predictions"]["fine_tuning"] = row["summary"] if path.parts[-3] == "seed-0" else ""
            else:
                row["predictions"]["prefix_tuning"] = random[row["id"]]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return suite_copy


def _said(suite_place, make):
    train, test = read_split(suite_place / "corpus", "train"), read_split(suite_place / "corpus", "test")
    return [row.id for row in test], make(test, train)


def call(capsys, *words):
    capsys.readouterr()
    code = main(["analyse", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.strip().splitlines()[-1] if captured.err.strip() else ""


def table(folder):
    return {row["system"]: row for row in csv_rows(folder / "values.csv")}


def test_the_table_of_values(suite, suite_place, tmp_path, capsys):
    code, printed, _ = call(capsys, "values", suite, "--output", tmp_path)
    assert (code, "Written to" in printed) == (0, True)
    rows = table(tmp_path)
    assert list(rows) == ["MTL-vanilla", "prefix-tuning", *BASELINES]
    expected = {"seeds": 2, "values kept": 50, "names": 50, "prices": 50, "invented": 0}
    assert {name: float(rows["MTL-vanilla"][name]) for name in expected} == expected
    assert float(rows["MTL-vanilla"]["deviation"]) == pytest.approx(100 / 2**0.5)
    assert rows["MTL-vanilla"]["ratings"] == ""  # none in this corpus
    assert float(rows["prefix-tuning"]["deviation"]) == 0
    for name in ("values kept", "names", "prices", "numbers", "invented"):
        assert float(rows["prefix-tuning"][name]) == pytest.approx(float(rows["random reference"][name]))
    floors = read_scores(suite / "floors")
    for name, scores in floors.items():
        assert float(rows[name]["average R-1"]) == pytest.approx(100 * scores["average"].rouge1)
    test = read_split(suite_place / "corpus", "test")
    values = Values(read_split(suite_place / "corpus", "train"))
    nearest = value_recall(values, test, _said(suite_place, BASELINES["nearest reference"])[1])
    assert float(rows["nearest reference"]["values kept"]) == pytest.approx(100 * nearest.recall)
    assert float(rows["nearest reference"]["invented"]) == pytest.approx(100 * nearest.invented)
    assert f"% of the {sum(nearest.said.values())} values" in printed


def test_cases_of_a_suite(suite, suite_place, tmp_path, capsys):
    words = ["cases", suite, "--output", tmp_path]
    code, printed, _ = call(capsys, *words, "--count", 4)
    assert code == 0
    rows = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert {row["scenario"] for row in rows} == {"taxi", "food", "ticket"}
    assert [[one["system"] for one in row["summaries"]] for row in rows] == [["MTL-vanilla", "prefix-tuning"]] * 4
    for row in rows:
        kept, lost = row["summaries"]
        assert kept["omitted"] == kept["invented"] == []
        assert lost["omitted"]
        assert row["dialogue"] in printed
    before = (tmp_path / "cases.md").read_bytes()
    code, printed, _ = call(capsys, *words, "--count", 4)
    assert (code, "earlier" in printed, (tmp_path / "cases.md").read_bytes() == before) == (0, False, True)

    ids = [row.id for row in read_split(suite_place / "corpus", "test")]
    wanted = [ids[5], ids[2]]
    assert call(capsys, *words, "--ids", f"[{', '.join(wanted)}]", "--seed", 1)[0] == 0
    assert (tmp_path / "cases.1.md").read_bytes() == before
    rows = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == wanted
    assert [one["seed"] for one in rows[0]["summaries"]] == [1, 1]
    assert rows[0]["summaries"][0]["summary"] == ""
    assert rows[0]["summaries"][0]["omitted"] == rows[0]["said"]
    assert call(capsys, *words, "--seed", 5)[0] == 0  # which no system has
    assert '"seed": 0' in (tmp_path / "cases.jsonl").read_text()


@pytest.mark.parametrize("command", ["values", "cases"])
def test_bad_input(command, suite, suite_place, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(suite, copy)
    words = [command, copy, "--output", tmp_path / "out"]
    assert str(tmp_path / "none") in call(capsys, *words, "--corpus", tmp_path / "none")[2]
    (settings,) = (copy / "runs").glob("mtl-vanilla/seed-1/run.json")
    other = json.loads(settings.read_text()) | {"corpus": "elsewhere"}
    settings.write_text(json.dumps(other))
    assert "elsewhere" in call(capsys, *words)[2]
    words += ["--corpus", suite_place / "corpus"]
    (predictions,) = (copy / "runs").glob("prefix-tuning/seed-0/evaluation-test/predictions.jsonl")
    lines = predictions.read_text().splitlines(keepends=True)
    predictions.write_text("".join(lines[1:]))
    assert "(9 and 8)" in call(capsys, *words)[2]
    predictions.write_text("{")
    assert str(predictions) in call(capsys, *words)[2]
    predictions.unlink()
    assert f"{predictions} is missing" in call(capsys, *words)[2]
    assert "valid split" in call(capsys, *words, "--split", "valid")[2]
    assert not (tmp_path / "out").exists()


def test_more_bad_input(suite, tmp_path, capsys):
    words = ["cases", suite, "--output", tmp_path / "out"]
    code, _, said = call(capsys, *words, "--ids", "[nobody, test-x]")
    assert code == 1
    says(said, "ids", "nobody, test-x")
    says(call(capsys, *words, "--count", 0)[2], "count", "1", "0")
    copy = tmp_path / "copy"
    shutil.copytree(suite, copy)
    path = next(copy.rglob("evaluation-test/run.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unit": "jieba"}))
    said = call(capsys, "values", copy, "--output", tmp_path / "out")[2]
    assert "unit jieba" in said
    assert "unit char" in said
    assert not (tmp_path / "out").exists()


def test_an_id_of_several_rows_is_refused():
    assert _of_ids(["a", "a", "b", "c"], ["c", "b"]) == [3, 2]
    with raises(ValueError, "ids", "a,"):
        _of_ids(["a", "a", "b"], ["b", "a"])
