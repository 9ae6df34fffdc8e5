"""`mop-t5 analyse variance` and `share` on finished suites whose scores are known: numbers by hand, plots, errors."""

import json
import re
import shutil
from itertools import combinations
from statistics import mean

import pytest
from command_results import csv_rows, last_error
from errors import raises, says
from matplotlib.figure import Figure
from matplotlib.text import Text
from mop_lab.analysis.share import baselines_in, measured, plot_share
from mop_lab.finished_runs import FinishedRun, finished_systems
from mop_t5.cli.main import main
from mop_t5.evaluation import Scores, with_average, write_scores
from mop_t5.operations.run_folder import read_history
from mop_t5.plots.point_labels import label_points

# system -> what it trains, and R-1 of 出租 and 地铁 with each seed; R-2 and R-L are half of it and the same
SYSTEMS = {
    "MOP": (20, [(0.50, 0.40), (0.52, 0.44)]),
    "prefix-tuning": (30, [(0.30, 0.40), (0.60, 0.46)]),
    "frozen backbone": (0, [(0.10, 0.20)]),
}
FLOORS = {"nearest reference": (0.2, 0.1)}


def scores(first, second):
    return with_average({name: Scores(r, r / 2, r) for name, r in (("出租", first), ("地铁", second))})


def put(folder, seed, means, method="mop"):
    (folder / "evaluation-test").mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"method": method, "seed": seed, "corpus": "c"}))
    write_scores(folder / "evaluation-test", {method: means})


@pytest.fixture
def suite(tmp_path):
    folder = tmp_path / "suite"
    for label, (trained, seeds) in SYSTEMS.items():
        for seed, rouge in enumerate(seeds):
            put(folder / "runs" / label / f"seed-{seed}", seed, scores(*rouge))
        system = {"label": label, "trained": trained, "backbone": 1000, "runs": 1}
        (folder / "runs" / label / "system.json").write_text(json.dumps(system))
    put_floors(folder, {name: scores(*rouge) for name, rouge in FLOORS.items()})
    return folder


def put_floors(folder, means):
    (folder / "floors").mkdir(exist_ok=True)
    (folder / "floors" / "run.json").write_text('{"split": "test"}')
    write_scores(folder / "floors", means)


def analyse(what, output, *folders):
    return main(["analyse", what, *map(str, folders), "--output", str(output)])


def test_variances_are_those_counted_by_hand(suite, tmp_path, capsys):
    assert analyse("variance", tmp_path / "out", suite) == 0
    rows = {(row["system"], row["quantity"]): row for row in csv_rows(tmp_path / "out" / "variance.csv")}
    assert list(rows) == [
        (label, f"variance ({e})") for label in ("MOP", "prefix-tuning") for e in ("n - 1", "n")
    ]  # the frozen backbone has one seed
    # 出租 50 and 52, 地铁 40 and 44: squares around the mean 2 and 8; R-2 a quarter of that
    expected = {"出租 R-1": 2, "出租 R-2": 0.5, "出租 R-L": 2, "地铁 R-1": 8, "地铁 R-2": 2, "地铁 R-L": 8}
    expected |= {"average R-1": 5, "average R-2": 1.25, "average R-L": 5, "all": (5 + 1.25 + 5) / 3}
    for name, value in expected.items():
        assert float(rows["MOP", "variance (n - 1)"][name]) == pytest.approx(value)
        assert float(rows["MOP", "variance (n)"][name]) == pytest.approx(value / 2)
    assert float(rows["prefix-tuning", "variance (n - 1)"]["all"]) == pytest.approx((450 + 18) / 2 * 0.75)
    text = (tmp_path / "out" / "variance.md").read_text()
    says(text, "one seed", "frozen backbone")
    svg = (tmp_path / "out" / "variance.svg").read_text()
    assert "prefix-tuning" in svg
    assert "frozen" not in svg
    assert (tmp_path / "out" / "variance.png").read_bytes().startswith(b"\x89PNG")
    assert analyse("variance", tmp_path / "alone", suite / "runs" / "frozen backbone") == 1
    says(last_error(capsys), "frozen backbone", "one seed")
    put(suite / "runs" / "frozen backbone" / "seed-1", 1, with_average({"出租": Scores(0, 0, 0)}))
    assert analyse("variance", tmp_path / "alone", suite) == 1
    says(last_error(capsys), "seeds", "frozen backbone")
    assert not (tmp_path / "alone").exists()


def test_the_share_of_a_system_and_its_score(suite, tmp_path, capsys):
    assert analyse("share", tmp_path / "out", suite) == 0
    rows = {row["system"]: row for row in csv_rows(tmp_path / "out" / "share.csv")}
    assert list(rows) == ["frozen backbone", "MOP", "prefix-tuning", "nearest reference"]
    score = mean([0.45, 0.48]) * 100 * 2.5 / 3
    assert float(rows["MOP"]["score"]) == pytest.approx(score)
    assert float(rows["MOP"]["trained, %"]) == 2
    assert float(rows["MOP"]["deviation (n - 1)"]) == pytest.approx(3 * 2.5 / 3 / 2**0.5)
    assert rows["frozen backbone"]["deviation (n - 1)"] == ""
    assert float(rows["nearest reference"]["score"]) == pytest.approx(15 * 2.5 / 3)
    svg = (tmp_path / "out" / "share.svg").read_text()
    for text in ("MOP", "prefix-tuning", "frozen backbone, 12.5", "nearest reference, 12.5"):
        assert f">{text}<" in svg
    # of two folders the systems keep their names apart, and floors have to agree
    second = tmp_path / "second"
    suite.rename(second)
    put(suite / "runs" / "MOP" / "seed-0", 0, scores(0.1, 0.1))
    (suite / "runs" / "MOP" / "system.json").write_text((second / "runs" / "MOP" / "system.json").read_text())
    assert analyse("share", tmp_path / "both", suite, second) == 0
    svg = (tmp_path / "both" / "share.svg").read_text()
    assert ">MOP (suite)<" in svg
    assert ">MOP (second)<" in svg
    with pytest.raises(SystemExit):
        analyse("share", tmp_path / "never")
    assert "runs" in last_error(capsys)
    with raises(ValueError, "folders"):
        finished_systems([])
    put_floors(suite, {"nearest reference": scores(0.9, 0.9)})
    assert analyse("share", tmp_path / "never", suite, second) == 1
    says(last_error(capsys), "score", "'nearest reference'")
    assert not (tmp_path / "never").exists()
    assert baselines_in([suite], "valid") == {}
    assert list(baselines_in([suite], "test")) == ["nearest reference"]


def test_folders_of_one_name_are_told_apart(suite, tmp_path):
    first, second = tmp_path / "a" / "tables", tmp_path / "b" / "tables"
    for folder in (first, second):
        shutil.copytree(suite, folder)
    assert analyse("share", tmp_path / "out", first, second) == 0
    svg = (tmp_path / "out" / "share.svg").read_text()
    for folder in (first, second):
        assert f">frozen backbone ({folder}), 12.5<" in svg


def test_no_two_systems_have_one_label(suite, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(suite, other)
    labels = [one.label for one in finished_systems([suite, other])]
    assert labels == [f"{label} ({folder})" for folder in (suite, other) for label in sorted(SYSTEMS)]
    within = [one.label for one in finished_systems([tmp_path])]  # one folder holds both
    assert within == [f"{l} ({f / 'runs' / l})" for f in (other, suite) for l in sorted(SYSTEMS)]


def test_one_seed_of_a_run_of_several_has_the_name_of_the_run(tmp_path):
    run = tmp_path / "mine"
    for seed in (0, 1):
        put(run / f"seed-{seed}", seed, scores(0.5, 0.4))
    (run / "run.json").write_text("{}")
    for given, seeds in ((run, {0, 1}), (run / "seed-1", {1})):
        (system,) = finished_systems([given])
        assert (system.label, set(system.seeds)) == ("mine", seeds)


def damaged(change, what, file, suite):
    run = finished_systems([suite / "runs" / "MOP"])[0].seeds[0][0]
    path = suite / "runs" / "MOP" / "seed-0" / file
    path.write_text(change)
    with pytest.raises(ValueError, match=re.escape(str(path))) as raised:
        what(run)
    return str(raised.value)


def test_what_a_run_lacks_is_said(suite):
    row = {"scenario": "taxi", "id": "1", "dialogue": "d", "summary": "s", "predictions": {"prompt": "t"}}
    said = damaged(json.dumps(row), FinishedRun.predictions, "evaluation-test/predictions.jsonl", suite)
    assert "'mop'" in said
    assert "'prompt'" in said
    said = damaged('{"corpus": "c", "unit": "char"}', lambda run: run.scoring, "evaluation-test/run.json", suite)
    assert "num_beams, implementation" in said
    write_scores(suite / "runs" / "MOP" / "seed-1" / "evaluation-test", {"prompt": scores(0.1, 0.1)})
    with raises(ValueError, "scores.json", "'mop'", "'prompt'"):
        _ = finished_systems([suite / "runs" / "MOP"])[0].scores
    said = damaged('{"loss": 1.0}', lambda run: read_history(run.folder), "loss.jsonl", suite)
    assert "step" in said
    said = damaged('{"method": "mop"}', lambda run: finished_systems([suite]), "run.json", suite)
    assert "seed" in said
    (suite / "runs" / "MOP" / "system.json").write_text("{}")
    with raises(ValueError, "system.json", "label"):
        finished_systems([suite])


def test_a_floor_far_from_all_systems_is_named_in_the_legend_alone(suite, tmp_path):
    floors = {"near": 20.0, "far": -60.0}  # the systems have 26 to 47, with their bars
    plot_share(tmp_path / "share", measured(suite), floors, "title")
    svg = (tmp_path / "share.svg").read_text()
    assert ">near, 20.0<" in svg
    assert ">far, -60.0 (below or above the picture)<" in svg
    assert svg.count("stroke-dasharray") > 0
    ticks = [float(tick.replace("\u2212", "-")) for tick in re.findall(r">(\u2212?[\d.]+)</text>", svg)]
    assert min(ticks) >= 0  # the axis does not go down to it


def test_a_seed_counts_when_all_its_runs_are_evaluated(suite):
    (suite / "runs" / "MOP" / "system.json").write_text('{"label": "MOP", "trained": 1, "backbone": 2, "runs": 2}')
    assert [one.label for one in finished_systems([suite])] == ["frozen backbone", "prefix-tuning"]
    with pytest.raises(FileNotFoundError, match=re.escape(str(suite / "runs" / "MOP"))):
        finished_systems([suite / "runs" / "MOP"])
    put(suite / "runs" / "MOP" / "seed-1" / "2-地铁", 1, scores(0.1, 0.2))
    found = {one.label: list(one.seeds) for one in finished_systems([suite])}
    assert found["MOP"] == [1]


def test_runs_without_a_suite_are_counted(place, tmp_path):
    base = ["--corpus", str(place / "corpus"), "--backbone", str(place / "backbone"), "--steps", "1"]
    base += ["--batch_size", "2", "--max_target", "4"]
    for name, more in (("prompt", ["--method", "prompt_tuning", "--options.prefix_length", "3"]), ("full", [])):
        assert main(["train", *base, *more, "--output", str(tmp_path / name)]) == 0
        assert main(["evaluate", "--run", str(tmp_path / name)]) == 0
    prompt, full = measured(tmp_path)
    assert (prompt.label, prompt.trained) == ("prompt", 3 * 16)
    assert full.trained == full.backbone == prompt.backbone


def test_labels_keep_off_points_and_each_other():
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    points = [(2.5 + 0.01 * (n % 3), 40 + 0.4 * n, 0.5) for n in range(15)] + [(0.01, 30, 0), (500, 50, 0)]
    for x, y, bar in points:
        axes.errorbar(x, y, bar or None, marker="o")
    axes.set_xscale("log")
    axes.margins(x=0.15)
    label_points(axes, points, [f"a system, number {n}" for n in range(len(points))], [45])
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]  # without the lines that lead to the points
    frame = axes.get_window_extent()
    assert len(boxes) == 17
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
    marks = [axes.transData.transform(point[:2]) for point in points]
    assert not [box for box in boxes for mark in marks if box.contains(*mark)]
