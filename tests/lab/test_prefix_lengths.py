"""`mop-t5 analyse lengths` by what a person types: what is trained, counted, shown, interrupted and gone on with."""

import json
import shutil
from statistics import mean, stdev

import pytest
from command_results import csv_rows
from mop_lab.analysis.prefix_lengths import LengthSweep
from mop_lab.suites.sizes import size_of, skeleton
from mop_lab.suites.suite_config import SuiteConfig
from mop_lab.suites.systems import System, all_systems
from mop_t5.cli.main import main
from mop_t5.evaluation import read_scores
from mop_t5.training import TrainingConfig, TrainingRun

SMALL = ["--steps", "2", "--batch_size", "4", "--max_target", "12", "--warmup_steps", "0", "--lengths", "[4, 2]"]
SMALL += ["--seeds", "[0, 3]", "--options", "{d_mid: 8, terms_down: 4, terms_up: 4}", "--learning_rates", "{MOP: 1e-3}"]


def words(place, output):
    given = {"corpus": place / "corpus", "backbone": place / "backbone", "output": output}
    return ["analyse", "lengths", *(part for name, path in given.items() for part in (f"--{name}", str(path))), *SMALL]


@pytest.fixture(scope="module")
def sweep(place):
    assert main(words(place, place / "sweep")) == 0
    return place / "sweep"


def test_a_row_has_the_mean_and_deviation_of_its_runs(sweep):
    rows = csv_rows(sweep / "lengths.csv")
    assert [(row["system"], row["N"]) for row in rows] == [
        *(("MOP", "2"), ("MOP", "4"), ("prefix-tuning", "2"), ("prefix-tuning", "4"))
    ]
    for row in rows:
        folder = sweep / "runs" / f"{row['system'].lower()}-n-{row['N']}"
        system = json.loads((folder / "system.json").read_text())
        assert system["label"] == f"{row['system']}, N = {row['N']}"
        assert int(row["trained"]) == system["trained"]
        assert float(row["trained, %"]) == pytest.approx(100 * system["trained"] / system["backbone"])
        scores = []
        for seed in (0, 3):
            run = json.loads((folder / f"seed-{seed}" / "run.json").read_text())
            assert run["options"]["prefix_length"] == int(row["N"])
            assert run["options"]["d_mid"] == 8
            assert run["learning_rate"] == (1e-3 if row["system"] == "MOP" else 5e-4)
            (own,) = read_scores(folder / f"seed-{seed}" / "evaluation-test").values()
            scores.append(100 * own["average"].rouge1)
        assert float(row["average R-1"]) == pytest.approx(mean(scores), abs=1e-6)
        assert float(row["deviation R-1"]) == pytest.approx(stdev(scores), abs=1e-6)
    svg = (sweep / "lengths.svg").read_text()
    assert all(label in svg for label in ("R-1", "R-2", "R-L", "prefix-tuning", "deviation over 2 seeds"))
    assert not list(sweep.glob("lengths-so-far.*"))


def test_an_interrupted_sweep_leaves_what_it_has_and_is_gone_on_with(place, sweep, monkeypatch):
    output = place / "interrupted"
    shutil.copytree(sweep / "runs" / "mop-n-4", output / "runs" / "mop-n-4")
    shutil.rmtree(output / "runs" / "mop-n-4" / "seed-3")  # of the first row one seed is finished
    real, begun = TrainingRun.run, []

    def run(training):
        begun.append(training)
        if len(begun) == 3:  # the second seed of the second row
            raise KeyboardInterrupt("stopped")
        return real(training)

    monkeypatch.setattr(TrainingRun, "run", run)
    assert main(words(place, output)) == 130
    assert sorted(path.name for path in output.iterdir() if path.is_file()) == [
        f"lengths-so-far.{suffix}" for suffix in ("csv", "md", "png", "svg")
    ]
    so_far = csv_rows(output / "lengths-so-far.csv")
    assert [(row["system"], row["N"], row["seeds"]) for row in so_far] == [
        *(("MOP", "4", "2"), ("prefix-tuning", "4", "1"))
    ]
    assert "Of 8 runs 5 are not finished" in (output / "lengths-so-far.md").read_text()
    for name in ("mop-n-2", "prefix-tuning-n-2"):  # of the next two rows all is finished, too
        shutil.copytree(sweep / "runs" / name, output / "runs" / name, dirs_exist_ok=True)
    assert main(words(place, output)) == 0
    assert len(begun) == 4
    names = sorted(path.name for path in output.iterdir() if path.is_file())
    assert names == ["lengths.csv", "lengths.md", "lengths.png", "lengths.svg"]
    for name in names:
        assert (output / name).read_bytes() == (sweep / name).read_bytes()


def test_prefix_tuning_grows_by_2304_parameters_a_row():
    """On T5-base, and as the MOP paper's: 7,520,640 with 40 rows."""
    model, known = skeleton("t5-base"), all_systems()["prefix-tuning"]
    for length in (5, 40, 80):
        system = System(known.label, known.method, {"prefix_length": length}, False, 1e-3)
        assert size_of(system, model, 5).trained == 2304 * length + 7_428_480


def test_what_a_sweep_refuses(place, capsys, tmp_path):
    base = words(place, tmp_path / "out")
    for more, message in (
        (["--lengths", "[]"], "lengths must be different integers of at least 1, one or more; got []"),
        (["--lengths", "[4, 4]"], "got [4, 4]"),
        (["--lengths", "[0]"], "got [0]"),
        (["--systems", "[MOP, MTL]"], "systems names MTL, whose method has no prefix_length"),
        (["--systems", "[MOPP]"], "systems names MOPP"),
        (["--options.prefix_length", "3"], "options names prefix_length"),
        (["--learning_rates", "{BOP: 1}"], "learning_rates names BOP"),
    ):
        assert main([*base, *more]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_plan_has_every_length_with_every_seed_and_writes_nothing(place, capsys, tmp_path):
    assert main([*words(place, tmp_path / "out"), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("8 runs of 2 steps\n")
    assert printed.count(", N = 4  ") == 4
    assert not (tmp_path / "out").exists()
    config = SuiteConfig(str(place / "corpus"), str(place / "backbone"), str(tmp_path), systems=["HyperPrefix (small)"])
    planned = LengthSweep(config, TrainingConfig(), [7]).suite.trials
    assert [(one.system.label, one.seed, one.finished) for one in planned] == [("HyperPrefix (small), N = 7", 0, False)]
