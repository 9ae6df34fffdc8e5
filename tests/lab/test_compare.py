"""The comparison of methods: the paired bootstrap, rates from one grid, and the command `mop-t5 compare`."""

import itertools
import math
import shutil

import numpy as np
import pytest
from command_results import csv_rows
from errors import raises
from mop_lab.finished_runs import SYSTEM, finished_systems
from mop_lab.suites.compared_systems import FROZEN, CompareConfig, default_systems, known_systems
from mop_lab.suites.method_comparison import MethodComparison
from mop_lab.suites.suite_config import SuiteConfig
from mop_lab.suites.systems import choose
from mop_t5.cli.main import main
from mop_t5.data import read_split, write_examples
from mop_t5.evaluation import AVERAGE, Rouge, read_scores
from mop_t5.evaluation.bootstrap import holm, paired_bootstrap
from mop_t5.methods import method_names
from mop_t5.training import TrainingConfig


def exact(rows):
    """The distribution of the mean of as many draws from rows with replacement, by all of them."""
    return np.array([np.mean(draw) for draw in itertools.product(rows, repeat=len(rows))])


def test_the_bootstrap_has_the_distribution_of_all_resamples():
    rows = [1.0, 2.0, -1.0, 3.5, 0.5]
    means = exact(rows)
    found = paired_bootstrap({"a": rows}, resamples=200_000)
    assert found.mean == pytest.approx(np.mean(rows))
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.1)
    assert found.p == pytest.approx(2 * np.mean(means <= 0), abs=0.005)


def test_the_bootstrap_averages_scenarios_whatever_their_sizes():
    rows = {"large": [1.0] * 100, "small": [-2.0, 4.0]}
    found = paired_bootstrap(rows, resamples=50_000)
    assert found.mean == pytest.approx(1.0)
    # of "small" the means -2, 1, 4 come with probabilities 1/4, 1/2, 1/4; with "large" -0.5, 1, 2.5
    assert (found.low, found.high) == (-0.5, 2.5)
    assert found.p == pytest.approx(0.5, abs=0.02)


def test_the_bootstrap_of_equal_and_of_clearly_different_systems():
    assert paired_bootstrap({"a": [0.0, 0.0]}, 100) == (0.0, 0.0, 0.0, 1.0)
    assert paired_bootstrap({"a": [-1.0, -2.0]}, 100).p == 2 / 100  # not 0: no resample says that it cannot be
    noise = list(np.random.default_rng(0).normal(0.0, 1.0, 50))
    assert paired_bootstrap({"a": noise}, 500, seed=3) == paired_bootstrap({"a": noise}, 500, seed=3)


@pytest.mark.parametrize(("rows", "resamples"), [({}, 10), ({"a": []}, 10), ({"a": [1.0]}, 0)])
def test_the_bootstrap_refuses_what_has_no_mean(rows, resamples):
    with pytest.raises(ValueError, match="at least"):
        paired_bootstrap(rows, resamples)


def test_holm():
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert list(holm({"z": 0.5, "a": 0.1})) == ["z", "a"]


def test_the_default_rows_have_every_method_of_the_registry(place):
    made = MethodComparison(config(place), TrainingConfig(), CompareConfig())
    found = {made.systems[label].method for label in made.systems if label != FROZEN}
    assert found == set(method_names())


def config(place, **more):
    return SuiteConfig(str(place / "corpus"), str(place / "backbone"), str(place / "none"), **more)


def test_what_cannot_be_compared_is_said(place):
    with raises(ValueError, "reference", "prefix-tuning", "'MOP'"):
        MethodComparison(config(place, systems=["prefix-tuning"]), TrainingConfig(), CompareConfig())
    with raises(ValueError, "rates", "[0.1, 0.1]"):
        CompareConfig(rates=[0.1, 0.1])
    with raises(ValueError, "resamples", "0"):
        CompareConfig(resamples=0)


def test_variants_are_systems_with_some_fields_changed():
    known = known_systems({"MOP from zero": {"system": "MOP", "init": "zero_up", "prefix_length": 3}})
    (made,) = choose(["MOP from zero"], [], {"prefix_length": 9, "d_mid": 8}, {}, known)
    fields = made.config(["taxi"])
    assert (fields.init, fields.prefix_length, fields.d_mid, fields.preset) == ("zero_up", 3, 8, "paper")
    assert default_systems(["MOP from zero"])[-1] == "MOP from zero"
    for wrong in ({"MOP": {"system": "MOP"}}, {"new": {"init": "zero_up"}}, {"new": {"system": "nothing"}}):
        with pytest.raises(ValueError, match=r"variants.*new|variants.*MOP"):
            known_systems(wrong)
    with raises(ValueError, "options", "inti", "MOP"):
        known_systems({"new": {"system": "MOP", "inti": "zero_up"}})


@pytest.fixture(scope="module")
def compared(place):
    """The output of a comparison of three systems with two seeds and two rates."""
    run(place)
    return place / "compared"


def run(place, *more):
    arguments = ["compare", "--corpus", str(place / "corpus"), "--backbone", str(place / "backbone")]
    arguments += ["--output", str(place / "compared"), "--steps", "3", "--max_source", "30", "--max_target", "8"]
    arguments += ["--warmup_steps", "0", "--seeds", "[0, 1]", "--systems", f"[{FROZEN}, MOP, prefix-tuning]"]
    arguments += ["--options", "{prefix_length: 2, d_mid: 8, terms_down: 4, terms_up: 2}"]
    assert main([*arguments, "--rates", "[1e-3, 0.1]", "--rate_steps", "2", "--resamples", "200", *more]) == 0


def test_the_best_rate_of_the_grid_is_taken(compared):
    trials = {row["system"]: row for row in csv_rows(compared / "rates.csv")}
    assert set(trials) == {"MOP", "prefix-tuning"}
    table = {row["system"]: row for row in csv_rows(compared / "comparison.csv")}
    for label, row in trials.items():
        best = max(("0.001", "0.1"), key=lambda rate: float(row[rate]))
        assert float(table[label]["rate"]) == float(best)
        runs = [
            run for system in finished_systems([compared / "runs"]) if system.label == label for run in system.seeds
        ]
        assert runs == [0, 1]
    for rate in ("0.001", "0.1"):
        (trial,) = [s for s in finished_systems([compared / "rates" / rate], "valid") if s.label == "MOP"]
        (tried,) = trial.seeds[0]
        assert (tried.settings["learning_rate"], tried.settings["steps"]) == (float(rate), 2)
        assert float(trials["MOP"][rate]) == pytest.approx(100 * trial.scores[0][AVERAGE].mean)


def test_the_numbers_are_those_of_the_runs(place, compared):
    table = {row["system"]: row for row in csv_rows(compared / "comparison.csv")}
    systems = {system.label: system for system in finished_systems([compared / "runs"])}
    assert list(table) == [FROZEN, "MOP", "prefix-tuning", "first user turn", "random reference", "nearest reference"]
    floors = read_scores(compared / "floors")
    for name in ("first user turn", "random reference", "nearest reference"):
        assert float(table[name]["average R-L"]) == pytest.approx(100 * floors[name][AVERAGE].rougeL, abs=1e-5)
    test = read_split(place / "corpus", "test")
    by_row = {}
    for label, system in systems.items():
        means = [scores[AVERAGE] for scores in system.scores.values()]
        assert float(table[label]["average R-1"]) == pytest.approx(
            100 * np.mean([one.rouge1 for one in means]), abs=1e-5
        )
        if label == FROZEN:
            assert table[label]["deviation"] == table[label]["rate"] == ""
            continue
        deviation = np.std([100 * one.mean for one in means], ddof=1)
        assert float(table[label]["deviation"]) == pytest.approx(deviation, abs=1e-9)
        texts = [{e.id: text for e, text in system.predictions(seed)} for seed in (0, 1)]
        rows = [Rouge()([e.summary for e in test], [one[e.id] for e in test]) for one in texts]
        by_row[label] = [100 * (a.mean + b.mean) / 2 for a, b in zip(*rows)]
    scenarios = {}
    for example, own, reference in zip(test, by_row["prefix-tuning"], by_row["MOP"]):
        scenarios.setdefault(example.scenario, []).append(own - reference)
    expected = paired_bootstrap(scenarios, 200)
    shown = table["prefix-tuning"]["minus MOP [95 %]"]
    assert shown == f"{expected.mean:+.2f} [{expected.low:+.2f}, {expected.high:+.2f}]"
    assert table["MOP"]["minus MOP [95 %]"] == table["MOP"]["p"] == ""
    for row in table.values():
        assert 0 <= float(row["values kept, %"]) <= 100 or math.isnan(float(row["values kept, %"]))


def test_a_finished_comparison_trains_nothing_again(place, compared, capsys):
    before = times(compared)
    capsys.readouterr()
    run(place)
    assert ": train" not in capsys.readouterr().out
    assert times(compared) == before


@pytest.mark.parametrize(
    ("split", "left"),
    [
        (None, {FROZEN: "finished", "MOP": "finished", "prefix-tuning": "finished"}),  # the corpus has moved
        ("test", {FROZEN: "evaluate", "MOP": "evaluate", "prefix-tuning": "evaluate"}),
        ("valid", {FROZEN: "finished", "MOP": "2 of 2 trials", "prefix-tuning": "2 of 2 trials"}),  # rates once more
    ],
)
def test_a_comparison_is_of_the_rows_that_the_corpus_has_now(place, compared, tmp_path, capsys, split, left):
    shutil.copytree(place / "corpus", tmp_path / "corpus")
    if split is not None:
        write_examples(tmp_path / "corpus" / f"{split}.jsonl", read_split(place / "corpus", split)[1:])
    capsys.readouterr()
    run(place, "--corpus", str(tmp_path / "corpus"), "--dry_run")
    shown = {line.split("  ")[1]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert all(what in shown[label] for label, what in left.items()), shown


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != SYSTEM}


def test_a_dry_run_says_what_is_left(place, compared, capsys):
    capsys.readouterr()
    run(place, "--systems", f"[{FROZEN}, MOP, prompt-tuning]", "--dry_run")
    shown = capsys.readouterr().out
    assert "2 of 2 trials, then 2 seeds" in shown
    assert not (compared / "runs" / "prompt-tuning").exists()
