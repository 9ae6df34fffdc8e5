"""The page of `mop-t5 report`: its structure, its numbers, and texts that are hostile."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from statistics import mean, stdev

import mop_lab.report
import pytest
from errors import says
from mop_lab.report import report_page
from mop_t5.evaluation import Scores, Table, present, read_scores, to_markdown, write_scores
from mop_t5.plots.charts import plot_points
from report_page import Page, check_structure, copy_of, evaluations, rewrite

HOSTILE = "</script><script>alert(1)</script>&amp;<!-- \"'> \u2028 <img src=https://evil.example/x>"
NOTED = Table("Of two", ["system", "F1"], [["a", Scores(0.5, 0.25, 1)], ["b", None]], notes=["One.", "2"])


@pytest.fixture(scope="module")
def suite(suite_copy):
    """A finished suite with its tables, a plot, and files that do not belong on the page."""
    out = suite_copy
    present([NOTED, NOTED], "own", out / "analyses")
    plot_points(
        out / "analyses" / "curve", {"a & b": [(0, 1), (1, 2)], "c": [(0, 2)]}, "t", x_label="length", y_label="score"
    )
    shutil.copy(out / "analyses" / "curve.png", out / "only.png")
    (out / "own.1.md").write_text("no table of own.md here\n")
    (out / "table-2.1.md").write_text(to_markdown(Table("kept from before", ["a"], [["b"]])))
    (out / "README.md").write_text(f"# Notes\n\n{to_markdown(NOTED)}")
    return out


def whole(parts):
    return "".join(part if isinstance(part, str) else part[0] for part in parts)


def test_the_page_of_a_suite(suite):
    text = report_page([suite])
    assert text == report_page([suite])
    page = Page(text)
    check_structure(page)
    assert page.texts["h1"] == ["Report on suite"]
    found = [a["href"] for a in page.all("a") if re.match("#(table|plot)-", a["href"])]
    names = ["table-2", "analyses/own", "only", "analyses/curve"]
    assert found == ["#table-1", "#table-2", "#plot-1", "#plot-2"]
    assert [name for name in page.texts["h3"] if name] == names
    assert "kept from before" not in text
    assert [a["alt"] for a in page.all("img")][1] == "Plot analyses/curve: length, score, t, a & b, c"
    kinds = [a["src"].split(";")[0] for a in page.all("img")]
    assert kinds == ["data:image/png", "data:image/svg+xml", "data:image/svg+xml"]  # the last: loss curves
    assert page.texts["caption"].count("Of two") == 2
    assert [cell for _, cell in page.row("a")] == ["a", "50.0/25.0/100.0"]
    assert page.texts["li"].count("One.") == 2
    says(text, "averages over scenarios", "ROUGE F1 × 100", "rouge_score, unit char", "greedy search")
    assert [a.get("class") for a in page.all("p")].count("warning") == 1  # what is missing without JavaScript
    assert "left-out" not in [a.get("class") for a in page.all("details")]


def test_the_numbers_are_those_of_the_evaluations(suite):
    page = Page(report_page([suite]))
    trained = {"MTL-vanilla": "fine_tuning", "prefix-tuning": "prefix_tuning"}
    means = {}
    for label, method in trained.items():
        seeds = [read_scores(folder)[method] for folder in evaluations(suite, label.lower())]
        size = json.loads((suite / "runs" / label.lower() / "system.json").read_text())
        overview, scenarios = (row for row in page.rows if row[0][1] == label and "data-value" in row[-1][0])
        assert [cell for _, cell in overview[1:5]] == [
            method,
            "2",
            f"{size['trained']:,}",
            f"{100 * size['trained'] / size['backbone']:.4g}",
        ]
        columns = [(s, m) for s in ("average", "food", "taxi", "ticket") for m in Scores._fields]
        for (scenario, metric), (attributes, shown) in zip(columns, overview[5:] + scenarios[1:], strict=True):
            numbers = [100 * getattr(one[scenario], metric) for one in seeds]
            assert float(attributes["data-value"]) == pytest.approx(mean(numbers))
            assert shown == f"{mean(numbers):.2f} ± {stdev(numbers):.2f}"
            means.setdefault((scenario, metric), {})[label] = (round(mean(numbers), 2), attributes["class"])
    for both in means.values():  # the best of a column is marked, both where they are equal
        highest = max(number for number, _ in both.values())
        assert all(("best" in kind.split()) == (number == highest) for number, kind in both.values())
    floors = read_scores(suite / "floors")
    for name, scores in floors.items():
        shown = [row for row in page.rows if row[0][1] == name and row[-1][0].get("data-value")]
        assert [float(row[-1][0]["data-value"]) for row in shown] == [
            pytest.approx(100 * scores[scenario].rougeL) for scenario in ("average", "ticket")
        ]
        assert not any("best" in a["class"] for row in shown for a, _ in row[1:])


def test_every_prediction_is_there_with_its_score(suite):
    data = Page(report_page([suite])).data
    assert data["systems"] == [{"label": "MTL-vanilla", "seeds": [0, 1]}, {"label": "prefix-tuning", "seeds": [0, 1]}]
    rows = {row["id"]: row for row in data["rows"]}
    for number, (system, method) in enumerate((("mtl-vanilla", "fine_tuning"), ("prefix-tuning", "prefix_tuning"))):
        for seed, folder in enumerate(evaluations(suite, system)):
            lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
            assert len(lines) == len(rows)
            scores = {}
            for line in map(json.loads, lines):
                row = rows[line["id"]]
                said = row["texts"][row["said"][number][seed]]
                assert whole(said["parts"]) == line["predictions"][method]
                assert row["dialogue"] == line["dialogue"]
                assert [whole(parts) for parts in row["references"]] == [line["summary"]]
                scores.setdefault(line["scenario"], []).append(said["rouge"])
            for scenario, means in read_scores(folder)[method].items():
                if scenario != "average":
                    columns = [mean(column) / 100 for column in zip(*scores[scenario])]
                    assert columns == pytest.approx(list(means), abs=1e-4)


def test_hostile_texts_stay_texts(suite, tmp_path):
    copy = copy_of(suite, tmp_path)
    for system in ("mtl-vanilla", "prefix-tuning"):
        for folder in evaluations(copy, system):

            def spoil(rows):
                rows[0] |= {"dialogue": HOSTILE, "summary": f"s{HOSTILE}", "scenario": HOSTILE, "id": HOSTILE}
                rows[0]["predictions"] = dict.fromkeys(rows[0]["predictions"], f"p{HOSTILE}")

            rewrite(folder / "predictions.jsonl", spoil)
            rewrite(
                folder / "scores.json", lambda means: [one.update({HOSTILE: one["taxi"]}) for one in means.values()]
            )
    rewrite(copy / "runs" / "mtl-vanilla" / "system.json", lambda system: system.update(label=HOSTILE))
    rewrite(copy / "runs" / "mtl-vanilla" / "seed-0" / "run.json", lambda run: run.update({HOSTILE: HOSTILE}))
    title = HOSTILE.replace("\u2028", "")
    present([Table(title, [title, "b"], [[title, title]], notes=[title])], "hostile", copy)
    (copy / "bad.svg").write_text(f"<svg><text>{HOSTILE}</text><script>alert(1)</script></svg>")
    text = report_page([copy], title=HOSTILE)
    page = Page(text)
    check_structure(page)
    assert page.texts["h1"] == [HOSTILE]
    assert page.row(HOSTILE)
    assert HOSTILE in page.texts["summary"]
    assert title in page.texts["caption"]
    assert text.count("<script") == 2
    assert "\u2028" not in page.texts["script"][0]
    assert page.data["systems"][0]["label"] == HOSTILE
    row = next(row for row in page.data["rows"] if row["id"] == HOSTILE)
    assert (row["dialogue"], row["scenario"]) == (HOSTILE, HOSTILE)
    assert [whole(one["parts"]) for one in row["texts"]] == [f"p{HOSTILE}"]


def test_values_are_marked_by_the_training_rows(suite, suite_place, tmp_path):
    copy = copy_of(suite, tmp_path)
    (folder, _) = evaluations(copy, "prefix-tuning")
    lines = (folder / "predictions.jsonl").read_text().splitlines()
    numbers = [re.findall(r"\d+", json.loads(line)["summary"]) for line in lines]
    place = next(i for i, found in enumerate(numbers) if found)

    def say(rows):
        rows[place]["predictions"]["prefix_tuning"] = "987654"

    rewrite(folder / "predictions.jsonl", say)
    row_id = json.loads(lines[place])["id"]
    said = next(row for row in Page(report_page([copy])).data["rows"] if row["id"] == row_id)
    text = said["texts"][said["said"][1][0]]
    assert text["parts"] == [["987654", "invented"]]
    assert numbers[place][0] in "".join(text["omitted"])
    assert any(part[1] == "kept" for part in said["references"][0] if isinstance(part, list))

    for path in copy.rglob("seed-*/run.json"):
        rewrite(path, lambda run: run.update(corpus=str(tmp_path / "gone")))
    page = Page(report_page([copy]))
    assert all(isinstance(part, str) for row in page.data["rows"] for one in row["texts"] for part in one["parts"])
    (left_out,) = [text for text in page.texts["li"] if "not marked" in text]
    assert str(tmp_path / "gone") in left_out
    again = Page(report_page([copy], corpus=str(suite_place / "corpus")))
    said = next(row for row in again.data["rows"] if row["id"] == row_id)
    assert said["texts"][said["said"][1][0]]["parts"] == [["987654", "invented"]]


def test_configurations_are_said_once(suite):
    page = Page(report_page([suite]))
    names = page.texts["dt"]
    assert names.count("steps") == names.count("evaluation.unit") == 1
    assert names.count("learning_rate") == names.count("method") == 2
    assert not {"seed", "seeds", "evaluation.run"} & set(names)
    options = dict(zip(names, page.texts["dd"]))
    assert options["options.prefix_length"] == "2"
    assert options["steps"] == "2"


def test_other_corpora_and_ways_of_scoring_are_warned_of(suite, tmp_path):
    copy = copy_of(suite, tmp_path)
    for folder in evaluations(copy, "prefix-tuning"):
        rewrite(folder / "run.json", lambda how: how.update(num_beams=4))
        means = read_scores(folder)
        write_scores(folder, {name: {s: v for s, v in scores.items() if s != "food"} for name, scores in means.items()})
    page = Page(report_page([copy]))
    warnings = [text for text, a in zip(page.texts["p"], page.all("p")) if a.get("class") == "warning"]
    ways, scenarios = warnings[:-1]  # the last: what is missing without JavaScript
    assert "num_beams 1" in ways
    assert "num_beams 4" in ways
    assert "scenarios" in scenarios
    overview = next(row for row in page.rows if row[0][1] == "MTL-vanilla")
    assert not any("best" in a["class"] for a, _ in overview[1:])


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to parse JavaScript with")
def test_the_script_parses():
    script = Path(mop_lab.report.__file__).with_name("page.js")
    subprocess.run(["node", "--check", str(script)], check=True)
