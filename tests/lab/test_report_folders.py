"""Which folders `mop-t5 report` takes, what it makes of their files, and what goes wrong."""

import shutil

import pytest
from command_results import last_error
from errors import says
from mop_lab.report import report_page
from mop_lab.report.found import tables_of
from mop_t5.cli.main import main
from mop_t5.evaluation import Table, present, read_scores, to_markdown, write_scores
from report_page import Page, check_structure, copy_of, evaluations, rewrite


@pytest.fixture(scope="module")
def suite(suite_copy):
    out = suite_copy
    present([Table("An analysis", ["a"], [["b"]])], "own", out / "analyses")
    (out / "only.png").write_bytes(b"not looked into")
    return out


def test_what_is_not_finished_is_named_and_left_out(suite, tmp_path):
    copy = copy_of(suite, tmp_path)
    first, second = (folder.parent for folder in evaluations(copy, "mtl-vanilla"))
    shutil.rmtree(second / "evaluation-test")
    untrained = first.with_name("seed-7")
    untrained.mkdir()
    shutil.copy(first / "run.json", untrained)
    for rate in ("0.1", "0.01"):  # trials of a grid
        trial = copy / "rates" / rate / "seed-0"
        trial.mkdir(parents=True)
        shutil.copy(first / "run.json", trial)
        shutil.copytree(first / "evaluation-test", trial / "evaluation-valid")
    (copy / "ragged.md").write_text("t\n\n| a | b |\n|---|---|\n| 1 | 2 | 3 |\n")
    (copy / "binary.md").write_bytes(b"\xff\xfe")
    shutil.rmtree(copy / "runs" / "prefix-tuning" / "seed-1")
    alone = copy / "runs" / "prefix-tuning" / "seed-1" / "1-taxi"  # as a suite of one run a scenario leaves it
    shutil.copytree(copy / "runs" / "prefix-tuning" / "seed-0", alone)
    rewrite(alone / "run.json", lambda run: run.update(seed=1))
    means = read_scores(alone / "evaluation-test")
    write_scores(alone / "evaluation-test", {name: {"taxi": scores["taxi"]} for name, scores in means.items()})
    page = Page(report_page([copy]))
    check_structure(page)
    left_out = [text for text in page.texts["li"] if ": " in text and text.startswith((str(copy), "prefix", "r", "b"))]
    assert left_out == [
        "prefix-tuning, seed 1: not finished: food, ticket",
        "binary.md: " + left_out[1].split(": ", 1)[1],
        "ragged.md: its tables cannot be read (a row must have 2 cells, one per column; got 3: ['1', '2', '3'].)",
        f"{second}: trained, not evaluated on the test split",
        f"{untrained}: not trained to its end",
        f"{copy / 'rates'}: 2 runs with evaluation-valid only",
    ]
    assert [system["seeds"] for system in page.data["systems"]] == [[0], [0]]
    assert "±" not in "".join(cell for row in page.rows[:8] for _, cell in row)


def test_several_folders(suite, tmp_path):
    copy = copy_of(suite, tmp_path)
    (tmp_path / "plots").mkdir()
    shutil.copy(suite / "only.png", tmp_path / "plots")
    page = Page(report_page([suite, copy, tmp_path / "plots", suite / "analyses"]))
    check_structure(page)
    labels = [system["label"] for system in page.data["systems"]]
    assert labels == [f"{name} ({f})" for f in (suite, copy) for name in ("MTL-vanilla", "prefix-tuning")]
    assert {"suite/analyses/own", "copy/analyses/own", "plots/only"} <= set(page.texts["h3"])
    assert "analyses/own" not in page.texts["h3"]  # it has been shown as one of the suite's
    names = [row[0][1] for row in page.rows if row[0][1] == "nearest reference"]
    assert len(names) == 2 + 2  # in overview and scores by scenario once, the floors being equal, and in each table-2
    both = tmp_path / "both"  # one folder that holds two suites
    for name in ("a", "b"):
        shutil.copytree(suite, both / name)
    page = Page(report_page([both]))
    labels = [system["label"] for system in page.data["systems"]]
    assert len(set(labels)) == 4
    for label in labels:
        assert [row[0][1] for row in page.rows].count(label) == 2  # in overview and in scores by scenario
        assert label in " ".join(page.texts["th"])


def test_tables_are_read_back():
    table = Table("Title [x]", ["a|b", "b c"], [["猫", "1.0/2.0"], ["", "é | é"]], notes=["n: 1", "m"])
    bare = Table("", ["x"], [["1"]])
    found = tables_of("\n".join(map(to_markdown, [table, bare, table])) + "\n\nAn end.\n")
    assert [(t.title, list(t.columns), t.rows, list(t.notes)) for t in found] == [
        (t.title, list(t.columns), t.rows, list(t.notes)) for t in (table, bare, table)
    ]


def test_the_command(suite, tmp_path, capsys):
    output = tmp_path / "new" / "page.html"
    words = ["report", str(suite), "--output", str(output)]
    assert main(words) == 0
    first = output.read_text(encoding="utf-8")
    assert first == report_page([suite])
    assert main(words) == 0
    assert [path.name for path in output.parent.iterdir()] == ["page.html"]  # the same page
    assert main([*words, "--title", "Ours"]) == 0
    says(capsys.readouterr().out, "page.1.html")
    assert output.with_name("page.1.html").read_text(encoding="utf-8") == first
    (tmp_path / "report.yaml").write_text(f"runs: ['{suite}']\ntitle: Theirs\n")
    assert main(["report", "--config", str(tmp_path / "report.yaml"), "--output", str(output), "--overwrite"]) == 0
    assert "<h1>Theirs</h1>" in output.read_text(encoding="utf-8")
    assert sorted(path.name for path in output.parent.iterdir()) == ["page.1.html", "page.html"]


def fails(capsys, *words):
    assert main(["report", *map(str, words)]) == 1
    return last_error(capsys)


def test_what_goes_wrong_is_one_sentence(suite, tmp_path, monkeypatch, capsys):
    copy, output = copy_of(suite, tmp_path), ["--output", tmp_path / "page.html"]
    (tmp_path / "empty").mkdir()
    said = fails(capsys, tmp_path / "empty", *output)
    assert str(tmp_path / "empty") in said
    assert "test split" in said
    assert f"{tmp_path / 'empty'} holds no" in fails(capsys, suite, tmp_path / "empty", *output)
    assert f"{tmp_path / 'none'} is no folder" in fails(capsys, suite, tmp_path / "none", *output)
    assert "valid split" in fails(capsys, suite, "--split", "valid", *output)
    says(fails(capsys, suite, "--split", "train", *output), "split", "'test'", "'valid'", "'train'")
    assert str(tmp_path / "none") in fails(capsys, suite, "--corpus", tmp_path / "none", *output)
    assert f"{tmp_path} is a folder" in fails(capsys, suite, "--output", tmp_path)
    (folder, _) = evaluations(copy, "mtl-vanilla")
    assert "is a file" in fails(capsys, suite, "--output", folder / "scores.json" / "page.html")
    history = (folder.parent / "loss.jsonl").read_text()
    (folder.parent / "loss.jsonl").write_text("{")
    assert f"{folder.parent / 'loss.jsonl'} is damaged" in fails(capsys, copy, *output)
    (folder.parent / "loss.jsonl").write_text(history)
    (folder / "predictions.jsonl").write_text("{}\n")
    assert f"{folder / 'predictions.jsonl'} is damaged" in fails(capsys, copy, *output)
    (folder / "scores.json").write_text("{}[")
    assert f"{folder / 'scores.json'} is damaged" in fails(capsys, copy, *output)
    monkeypatch.setattr("mop_t5.files.os.access", lambda path, mode: False)  # root may write anywhere
    says(fails(capsys, suite, *output), str(tmp_path), "permissions")
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(SystemExit, match="2"):
        main(["report"])
