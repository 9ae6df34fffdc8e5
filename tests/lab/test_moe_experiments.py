"""The experiments on task-level mixtures of experts: the grid, resumed rows, unseen tasks, routes, disabled experts."""

import itertools
import json
import math
import re

import mop_t5
import pytest
import torch
from command_results import csv_rows
from errors import raises, says
from mop_lab.suites import trial
from mop_lab.suites.score_rows import average_relative_gain
from mop_lab.suites.suite_config import SuiteConfig
from mop_lab.task_moe.comparison import Factors, MixtureComparison, combinations
from mop_lab.task_moe.disabling import disabling_table, strongest, without
from mop_lab.task_moe.routes import Correlation, correlations, experts_of, read_features, route_matrix
from mop_t5.cli.main import main
from mop_t5.data import read_split
from mop_t5.evaluation import Scores, read_scores
from mop_t5.methods.task_moe.selection import temperature_at
from mop_t5.operations.run_folder import load_run, read_history
from mop_t5.storage import task_vectors
from mop_t5.training import TrainingConfig
from safetensors.torch import load_file
from t5_oracle import tiny

TASKS = ("food", "taxi", "ticket")


@pytest.fixture(scope="module")
def place(place):
    """With task vectors of width 4."""
    task_vectors.write(place / "vectors", TASKS, task_vectors.random_vectors(3, 4), {})
    return place


def flags(place, *more, steps=3):
    base = ["--corpus", str(place / "corpus"), "--backbone", str(place / "backbone"), "--steps", str(steps)]
    return [*base, "--max_source", "30", "--max_target", "8", "--warmup_steps", "0", *more]


def comparison(place, tables=("training", "routers"), options=None, **fields):
    config = SuiteConfig(str(place / "corpus"), str(place / "backbone"), str(place / "none"), options=options or {})
    return MixtureComparison(config, TrainingConfig(steps=200), Factors(**fields), tables)


def test_the_grid_is_the_posters():
    factors = Factors(representations={"text": "a", "fisher": "b"})
    assert len(combinations(factors, "training")) == 3 * 2 * 2 * 2
    assert len(combinations(factors, "routers")) == 10 * 3 * 2
    both = {one.label for name in ("training", "routers") for one in combinations(factors, name)}
    assert len(both) == 24 + 60 - 1, "the two tables share the row of all first values"


def test_rows_are_what_their_labels_say(place):
    made = comparison(place, representations={"text": str(place / "vectors")})
    rows = {row.system.label: row for row in made.trials()}
    assert list(rows)[:4] == ["vanilla", "random 1", "random 2", "average"]
    assert len(rows) == 4 + 24 + 40 - 1
    for label, row in rows.items():
        assert (row.start is not None) == ("two-stage" in label)
        if row.start is not None:
            first = row.start.trial.system.label
            assert list(rows).index(first) < list(rows).index(label)
            assert first == label.replace("two-stage", "one-stage")
    for combination in made.combinations["routers"]:
        row = rows[combination.label]
        config = row.system.config(TASKS)
        assert (config.router, config.train_task_vectors) == (combination.router, combination.vectors == "trained")
        assert (config.task_vectors is None, config.d_task) == (
            (True, 768) if combination.representation == "random" else (False, 4)
        )
        rates = {"router": 100.0} | ({"task_vectors": 100.0} if combination.vectors == "trained" else {})
        assert row.config.group_rates == rates
        assert row.schedule.batching == "mixed"
    one, two = (
        rows[f"gumbel, homogeneous, one-speed, {n}-stage, linear_layer_specific, random trained"]
        for n in ("one", "two")
    )
    assert one.schedule.batching == two.schedule.batching == "homogeneous"
    assert one.config.group_rates == two.config.group_rates == {}
    assert one.system.config(TASKS).selection == "gumbel"
    second = two.system.config(TASKS)
    assert (second.selection, two.schedule.steps) == ("softmax", 400)
    schedule = (second.temperature, second.temperature_rate, second.minimum_temperature)
    assert temperature_at(0, *schedule) == 300
    assert temperature_at(379, *schedule) > 1 == pytest.approx(temperature_at(380, *schedule))


def test_what_the_grid_does_not_take(place):
    for fields, message in (
        ({"selections": ["hard"]}, ("selections", "'softmax'", "'hard'")),
        ({"speeds": ["two", "two"]}, ("speeds", "['two', 'two']")),
        ({"routers": []}, ("routers", "none")),
        ({"representations": {"random": "x"}}, ("representations", "'random'")),
        ({"learning_rate": 0}, ("learning_rate", "0")),
        ({"options": {"selection": "softmax"}}, ("options", "selection")),
        ({"tables": ["table"]}, ("tables", "'training', 'routers'", "'table'")),
    ):
        with raises(ValueError, *message):
            comparison(place, **fields)
    with raises(ValueError, "options", "prefix", "vanilla,"):
        comparison(place, options={"prefix": 1, "experts": 2}).trials()


def test_average_relative_gain():
    def scores(**means):
        return [{task: Scores(mean, mean, mean) for task, mean in means.items()}]

    gain = average_relative_gain(scores(a=0.6, b=0.2, average=9), scores(a=0.5, b=0.4, average=1))
    assert gain == pytest.approx(100 * (0.2 - 0.5) / 2)
    assert average_relative_gain(scores(a=0.6), scores(a=0.0)) is None


COMPARE = ["--tables", "[training]", "--selections", "[softmax]", "--batchings", "[mixed]", "--speeds", "[two]"]
COMPARE += ["--baselines", "[vanilla]", "--seeds", "[0, 1]", "--learning_rate", "0.05", "--batch_size", "4"]
COMPARE += ["--router_speed", "2", "--options", "{experts: 2, d_task: 4}", "--stage_two_steps", "2"]


def test_the_comparison_runs_and_resumes(place, capsys, monkeypatch):
    output = place / "compared"
    command = ["moe", "compare", *flags(place, *COMPARE, steps=6), "--output", str(output)]
    assert main([*command, "--dry_run"]) == 0
    assert not output.exists()
    assert capsys.readouterr().out.count("train, after its starting point") == 2

    real, trained = trial.TrainingRun.run, itertools.count()

    def until_the_disk_is_full(run):
        if next(trained) == 5:  # in the second of the rows that start from another
            raise OSError("no space")
        return real(run)

    with monkeypatch.context() as patch:
        patch.setattr(trial.TrainingRun, "run", until_the_disk_is_full)
        assert main(command) == 1
    capsys.readouterr()
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.count(": finished\n") == 5
    table = csv_rows(output / "moe-training.csv")
    assert [row["selection"] for row in table] == ["vanilla", "softmax", "softmax"]
    assert [row["stages"] for row in table[1:]] == ["one", "two"]

    labels = (
        "vanilla",
        *(f"softmax-mixed-two-speed-{n}-stage-linear_layer_specific-random-trained" for n in ("one", "two")),
    )
    runs = [[output / "runs" / label / f"seed-{seed}" for seed in (0, 1)] for label in labels]
    names = ("fine_tuning", "task_moe", "task_moe")
    scores = [[read_scores(run / "evaluation-test")[n] for run in own] for own, n in zip(runs, names)]
    for row, own in zip(table, scores):
        assert float(row["average"]) == pytest.approx(50 * sum(one["average"].mean for one in own))
        points = [[sum(one[task].mean for one in seeds) for task in TASKS] for seeds in (own, scores[0])]
        gains = [mine / vanilla - 1 for mine, vanilla in zip(*points) if vanilla]
        shown = row["gain over vanilla, %"]
        assert shown == "" if len(gains) < 3 else float(shown) == pytest.approx(100 * sum(gains) / 3)
    factors = csv_rows(output / "moe-training-factors.csv")
    assert [(row["factor"], row["value"]) for row in factors][3:] == [("stages", "one"), ("stages", "two")]
    assert float(factors[4]["minus first value"]) == pytest.approx(
        float(table[2]["average"]) - float(table[1]["average"])
    )

    for first, second in zip(*runs[1:]):
        (one, _, _), (two, _, settings) = (load_run(run, str(place / "backbone")) for run in (first, second))
        with torch.no_grad():
            torch.testing.assert_close(two.mop.logits(), one.mop.logits())
        assert settings["options"]["routes_from"] == str((first / "adapter").resolve())
        assert not two.mop.config.has_router
        assert two.mop.temperature.item() == pytest.approx(1)
    assert load_run(runs[2][0])[0].mop.route_weights().std() > 1e-3, "else nothing was learnt that could be kept"


@pytest.fixture(scope="module")
def run(place):
    """A trained mixture of two tasks of the corpus."""
    output = place / "run"
    options = json.dumps({"task_vectors": str(place / "vectors"), "d_task": 4, "experts": 3, "temperature": 0.5})
    more = ["--method", "task_moe", "--options", options, "--output", str(output), "--scenarios", "[food, taxi]"]
    more += ["--learning_rate", "0.02", "--batch_size", "4", "--evaluate_every", "2"]
    assert main(["train", *flags(place, *more, steps=4)]) == 0
    return output


def test_unseen_tasks(place, run, capsys):
    output = place / "unseen"
    command = ["moe", "adapt", *flags(place, steps=4), "--output", str(output), "--experts", str(run / "adapter")]
    command += ["--task_vectors", str(place / "vectors"), "--routes", "[learned, average]", "--shots", "2"]
    command += ["--rates", "[0.01, 0.3]", "--batch_sizes", "[2]", "--evaluate_every", "2", "--seeds", "[1]"]
    assert main([*command, "--scenarios", "[taxi]"]) == 1
    assert re.search("experts .*adapter'.* taxi", capsys.readouterr().err)
    assert main([*command, "--scenarios", "[ticket]", "--options.prefix_length", "3"]) == 1
    assert re.search("options .*prefix_length", capsys.readouterr().err)
    command += ["--scenarios", "[ticket]", "--options.exploration", "0.1"]
    assert main([*command, "--evaluate_every", "0"]) == 1
    assert re.search(r"evaluate_every .*\b2 rates", capsys.readouterr().err)
    assert main(command) == 0
    table, chosen = csv_rows(output / "adaptation.csv"), csv_rows(output / "adaptation-chosen.csv")
    assert main(command) == 0
    assert csv_rows(output / "adaptation.csv") == table

    runs = output / "ticket" / "draw-1" / "runs"
    drawn = {split: read_split(output / "ticket" / "draw-1" / "corpus", split) for split in ("train", "valid", "test")}
    assert [len(rows) for rows in drawn.values()] == [2, 2, 3]
    assert {row.scenario for rows in drawn.values() for row in rows} == {"ticket"}

    # as it is: the experts, the router and the temperature of the run, and the route of the new task's vector
    before, _, _ = load_run(run)
    model, _, _ = load_run(runs / "learned-routes-zero-shot" / "seed-1")
    vector = task_vectors.read(place / "vectors", ["ticket"])
    with torch.no_grad():
        expected = (before.mop.router(vector) / before.mop.temperature).softmax(-1)
    torch.testing.assert_close(model.mop.route_weights(), expected)
    assert 0.1 < before.mop.temperature < 0.5
    mine, theirs = (m.mop.experts.state_dict() for m in (model, before))
    assert all(mine[name].equal(theirs[name]) for name in theirs)
    assert read_history(runs / "learned-routes-zero-shot" / "seed-1") == [{"step": 0}]

    # few-shot: the pair with the best validation is scored, and no other
    for row in chosen:
        folder = output / "ticket" / f"draw-{row['draw']}" / "runs"
        tried = {}
        for rate in ("0.01", "0.3"):
            one = folder / f"{row['system'].replace(' ', '-')}-few-shot-rate-{rate.replace('.', '-')}-batch-2"
            (seed,) = one.glob("seed-*")
            tried[rate] = max(point["eval_rouge"] for point in read_history(seed) if "eval_rouge" in point)
            assert (seed / "evaluation-test").is_dir() == (float(row["rate"]) == float(rate))
        assert tried[f"{float(row['rate']):g}"] == max(tried.values()) == float(row["best validation"])
    few = {row["system"]: row for row in table if row["use"] == "few-shot"}
    for system in ("learned routes", "average routes"):
        gain = float(few[system]["ticket"]) / float(few["vanilla"]["ticket"]) - 1
        assert float(few[system]["gain over vanilla, %"]) == pytest.approx(100 * gain, abs=1e-4)
    trained = load_file(runs / "average-routes-few-shot-rate-0-01-batch-2" / "seed-1" / "adapter" / "model.safetensors")
    assert not any("router" in name for name in trained)
    tuned, _, _ = load_run(runs / "learned-routes-few-shot-rate-0-3-batch-2" / "seed-1")
    torch.testing.assert_close(tuned.mop.temperature, before.mop.temperature)
    assert not tuned.mop.route_weights().equal(model.mop.route_weights())


def test_routes_of_a_run(place, run, tmp_path, capsys):
    (tmp_path / "features.yaml").write_text("food: {eaten: 1, fast: 1}\ntaxi: {fast: 1}\n")
    command = ["moe", "routes", "--run", str(run), "--features", str(tmp_path / "features.yaml"), "--output"]
    assert main([*command, str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    model, _, _ = load_run(run)
    table = csv_rows(tmp_path / "out" / "routes.csv")
    weights = model.mop.route_weights()
    for task, row in zip(("food", "taxi"), table):
        assert row["task"] == task
        for (layer, expert), name in experts_of(model.mop).items():
            assert float(row[name]) == pytest.approx(weights[layer, model.scenarios.index(task), expert].item())
    assert list(table[0])[4] == "encoder 1, expert 0"
    says(out, "2 tasks", "correlation", "1")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"{n}.{s}" for n in ("routes",) for s in ("md", "csv", "png", "svg")} | {
        "correlations.md",
        "correlations.csv",
        "entropy.png",
        "entropy.svg",
    }
    (place / "plain").mkdir(exist_ok=True)
    assert main(["moe", "routes", "--run", str(place / "plain")]) == 1


def test_disabling_from_the_command_line(run, tmp_path, capsys):
    (tmp_path / "features.yaml").write_text("food: {eaten: 1}\ntaxi: {eaten: 0}\n")
    command = ["moe", "disable", "--run", str(run), "--features", str(tmp_path / "features.yaml"), "--draws", "2"]
    assert main([*command, "--top", "2", "--output", str(tmp_path), "--split", "valid"]) == 0
    table = csv_rows(tmp_path / "disabling.csv")
    assert [row["on"] for row in table] == ["1 tasks with it", "1 tasks without it"]
    assert all(float(row["all experts"]) >= 0 for row in table)
    for more, message in (
        (["--top", "99"], "top .*99"),
        (["--top", "0"], "top .*0"),
        (["--only", "[big]"], "only .*big; .* eaten"),
    ):
        assert main([*command, *more]) == 1
        assert re.search(message, capsys.readouterr().err)


def attached(**fields):
    torch.manual_seed(0)
    given = {"scenarios": list("abcdef"), "experts": 3, "d_task": 4, "temperature": 0.2, **fields}
    return mop_t5.attach(tiny(), "task_moe", **given).mop


def test_correlations():
    method = attached()
    matrix, names = route_matrix(method), experts_of(method)
    assert matrix.shape == (6, 5 * 3)
    assert names[2, 1] == "decoder 0, expert 1"
    torch.testing.assert_close(matrix[3].view(5, 3), method.route_weights()[:, 3].double())
    features = {"odd": [1, 0, 1, 0, 1, 0], "all": [1] * 6}
    found = correlations(matrix, list(names), features)
    assert len(found) == 15
    assert {one.feature for one in found} == {"odd"}
    assert [abs(one.r) for one in found] == sorted((abs(one.r) for one in found), reverse=True)
    for one in found:
        column = matrix[:, list(names).index(one.expert)]
        r = torch.corrcoef(torch.stack([torch.tensor(features["odd"]).double(), column]))[0, 1].item()
        assert one.r == pytest.approx(r, abs=1e-9)
        # Student's t of four degrees of freedom, whose distribution function is elementary
        t = abs(r) * math.sqrt(4 / (1 - r * r))
        s = t / math.sqrt(4 + t * t)
        assert one.p == pytest.approx(1 - s * (3 - s * s) / 2, rel=1e-6, abs=1e-9)
    assert correlations(matrix * 0 + 1 / 3, list(names), features) == []


def test_features_are_read_strictly(tmp_path):
    path = tmp_path / "features.yaml"
    path.write_text("a: {new: 1}\nb: {old: 1, new: 0}\n")
    assert read_features(path, ["b", "a"]) == {"old": [1, 0], "new": [0, 1]}
    for text, message in (
        ("a: {new: 1}", ("tasks a, b", "got a")),
        ("a: {new: 2}\nb: {}", ("'new'", "'a'", "0", "1", "2")),
        ("a: 1\nb: 2", ("{task: {feature: 0 or 1}}",)),
        ("a: {new: 1", ("features.yaml",)),
    ):
        path.write_text(text)
        with raises(ValueError, *message):
            read_features(path, ["a", "b"])


def test_the_strongest_experts_leave_every_layer_one():
    found = [Correlation("f", (0, e), 0.9 - e / 10, 0.0) for e in range(3)] + [Correlation("f", (1, 0), 0.1, 0.5)]
    found += [Correlation("f", (2, 1), -0.95, 0.0), Correlation("g", (2, 2), 0.99, 0.0)]
    assert strongest(found, "f", 3, 3) == [(0, 0), (0, 1), (1, 0)]
    with raises(ValueError, "top", "3", "'f'", "4"):
        strongest(found, "f", 4, 3)


def test_random_sets_are_as_large_and_all_experts_come_back():
    method, seen = attached(experts=2), []

    def score():
        seen.append(method.disabled)
        weights = method.route_weights()
        assert all(not weights[layer, :, expert].any() for layer, expert in method.disabled)
        return {"a": float(len(seen))}

    chosen, others = without(method, [(0, 0), (3, 1)], score, 6, seed=1)
    assert (chosen, [one["a"] for one in others]) == ({"a": 1.0}, [2, 3, 4, 5, 6, 7])
    assert seen[0] == ((0, 0), (3, 1))
    assert all(len({layer for layer, _ in one}) == len(one) == 2 for one in seen), "of two experts one stays"
    assert len(set(seen)) > 3
    assert method.disabled == ()
    assert without(method, [(0, 0)], lambda: {"a": hash(method.disabled)}, 3, 5) == without(
        method, [(0, 0)], lambda: {"a": hash(method.disabled)}, 3, 5
    )
    with pytest.raises(ZeroDivisionError):
        without(method, [(0, 0)], lambda: 1 / 0, 1, 0)
    assert method.disabled == ()


def test_drops_on_tasks_with_and_without_the_feature():
    whole = {"a": 0.5, "b": 0.7, "c": 0.9}
    disabled = {
        "f": (["e1"], {"a": 0.3, "b": 0.6, "c": 0.9}, [{"a": 0.5, "b": 0.7, "c": 0.8}, {"a": 0.4, "b": 0.7, "c": 0.9}])
    }
    table = disabling_table("x", {"f": [1, 1, 0]}, ["a", "b", "c"], whole, disabled)
    (_, on, score, drop, random, spread), other = table.rows
    assert (on, other[1]) == ("2 tasks with it", "1 tasks without it")
    assert (score, drop, random, spread) == pytest.approx((60, 15, 2.5, 2.5 * 2**0.5))
    assert other[2:] == pytest.approx([90, 0, 5, 5 * 2**0.5])
    assert table.notes == ["f: without e1"]
