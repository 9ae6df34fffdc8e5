"""Tables 2 and 3: many systems on one corpus, interrupted and resumed, separately trained scenarios, wrong input."""

import csv
import json
import re
import signal

import pytest
from command_results import last_error
from errors import says
from killed import report_of
from mop_lab.suites.systems import SYSTEMS, all_systems, table_2_systems
from mop_t5.cli.main import main
from mop_t5.data import Example, read_examples, write_examples
from mop_t5.evaluation import BASELINES, Scorer, read_scores
from mop_t5.training import CHECKPOINTS
from safetensors.torch import load_file

OPTIONS = {"prefix_length": 3, "d_mid": 8, "terms_down": 4, "terms_up": 4, "reduction": 4, "d_hidden": 8}
OPTIONS |= {"d_embedding": 8, "d_projected": 8}


def flags(place, *more, steps=6, options=OPTIONS):
    base = ["--corpus", str(place / "corpus"), "--backbone", str(place / "backbone"), "--options", json.dumps(options)]
    return [*base, "--steps", str(steps), "--batch_size", "4", "--max_target", "12", "--warmup_steps", "0", *more]


def read_table(path):
    with open(path, newline="") as file:
        return {(row["system"], row["quantity"]): row for row in csv.DictReader(file)}


def fails(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    return last_error(capsys)


TWO = ["--systems", "[MTL-vanilla, MOP]", "--seeds", "[0, 1]", "--save_every", "2", "--schedule", "constant"]
TWO += ["--learning_rates", "{MTL-vanilla: 0.2, MOP: 0.05}"]
OF_MOP = {name: OPTIONS[name] for name in ("prefix_length", "d_mid", "terms_down", "terms_up")}


@pytest.fixture(scope="module")
def killed(place, forks_with_t5):
    """A folder with the suite run in one go, "straight", and another one that was killed five times, "killed"."""
    folder = place / "suites"
    folder.mkdir()
    report_of(forks_with_t5, "table", folder, *flags(place, *TWO, options=OF_MOP))
    return folder


@pytest.mark.slow
def test_a_suite_that_is_killed_and_started_again_ends_in_the_same_table(killed):
    report = json.loads((killed / "report.json").read_text())
    assert [attempt["signal"] for attempt in report.values()] == [signal.SIGKILL] * 5 + [0]
    assert [attempt["states"] for attempt in report.values()] == [
        ["train", "train"],
        ["finished", "resume from checkpoint-4", "train"],
        ["finished", "finished", "start anew"],
        ["finished", "finished", "evaluate", "train"],
        ["finished", "finished", "finished", "resume from checkpoint-6"],
        ["finished", "finished", "finished", "finished"],
    ]
    for name in ("table-2.md", "table-2.csv"):
        assert (killed / "killed" / name).read_bytes() == (killed / "straight" / name).read_bytes()
    weights = list((killed / "straight").glob("runs/*/*/adapter/*.safetensors"))
    assert len(weights) == 4
    for path in weights:
        again = load_file(killed / "killed" / path.relative_to(killed / "straight"))
        assert all(tensor.equal(again[name]) for name, tensor in load_file(path).items())
    assert not list(killed.glob(f"*/runs/*/*/{CHECKPOINTS}"))


def test_the_table_is_made_of_the_runs_of_all_seeds(killed, place):
    rows = read_table(killed / "straight" / "table-2.csv")
    for folder, label, method in (("mtl-vanilla", "MTL-vanilla", "fine_tuning"), ("mop", "MOP", "mop")):
        runs = [killed / "straight" / "runs" / folder / f"seed-{seed}" / "evaluation-test" for seed in (0, 1)]
        one, two = (read_scores(run)[method] for run in runs)
        assert one != two
        for scenario in ("food", "taxi", "ticket", "average"):
            for metric, a, b in zip(("R-1", "R-2", "R-L"), one[scenario], two[scenario]):
                column = f"{scenario} {metric}"
                assert float(rows[label, "mean of 2"][column]) == pytest.approx(50 * (a + b), abs=1e-5)
                deviation = 100 * abs(a - b) / 2**0.5
                assert float(rows[label, "deviation (n - 1)"][column]) == pytest.approx(deviation, abs=1e-5)
        # the scores are those of the predictions that lie beside them
        predictions = [json.loads(line) for line in (runs[0] / "predictions.jsonl").read_text("utf-8").splitlines()]
        examples = [
            Example(**{name: p[name] for name in ("scenario", "dialogue", "summary", "id")}) for p in predictions
        ]
        assert Scorer()(examples, [p["predictions"][method] for p in predictions]) == one
    # the floors
    train, test = (read_examples(place / "corpus" / f"{split}.jsonl") for split in ("train", "test"))
    for name, make in BASELINES.items():
        expected = Scorer()(test, make(test, train))["average"].rouge1
        assert float(rows[name, "baseline"]["average R-1"]) == pytest.approx(100 * expected, abs=1e-5)


def test_another_configuration_is_an_error_that_says_what_differs(killed, place, capsys):
    again = ["table", "2", "--output", killed / "straight"]
    base = flags(place, *TWO, options=OF_MOP)
    before = {path: path.stat().st_mtime_ns for path in (killed / "straight").rglob("*") if path.is_file()}
    for more, difference in (
        (["--steps", "7"], "steps was 6, now 7"),
        (["--learning_rates", "{MTL-vanilla: 0.2, MOP: 0.03}"], "learning_rate was 0.05, now 0.03"),
        (["--options.prefix_length", "4"], "options was .*'prefix_length': 3.*now .*'prefix_length': 4"),
        (["--num_beams", "2"], "num_beams was 1, now 2"),
        (["--unit", "jieba"], "unit was 'char', now 'jieba'"),
        (["--normalise", "nfkc"], "normalise was 'none', now 'nfkc'"),
    ):
        message = fails(capsys, *again, *base, *more)
        assert message.startswith("mop-t5 table 2: ")
        says(message, "resumed", "configuration")
        assert re.search(difference, message)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # more seeds and other systems are no other configuration
    more = ["--seeds", "[0, 2]", "--systems", "[MOP, prompt-tuning]", "--dry_run"]
    assert main([str(word) for word in (*again, *base, *more)]) == 0
    states = re.findall(r"seed-\d +(\w+)", capsys.readouterr().out)
    assert states == ["finished", "train", "train", "train"]


def test_a_dry_run_says_what_it_would_do_and_does_nothing(place, capsys):
    output = place / "dry"
    assert main(["table", "2", *flags(place, "--output", str(output), "--dry_run")]) == 0
    text = capsys.readouterr().out
    assert not output.exists()
    rows = [re.split(r" {2,}", line.strip()) for line in text.splitlines() if line.endswith("   train")]
    assert list(dict.fromkeys(row[0] for row in rows)) == table_2_systems()
    alone = [row[1] for row in rows if row[0] == "fine-tuning per scenario"]
    assert alone == ["food", "taxi", "ticket"]
    rates = {row[0]: float(row[4]) for row in rows}
    assert rates["MTL-vanilla"] == SYSTEMS["fine_tuning"].learning_rate == 5e-5
    assert rates["MOP"] == 5e-4


def test_a_system_that_is_trained_once_a_scenario_joins_its_runs(place, capsys):
    output = place / "separate"
    label = "fine-tuning per scenario"
    command = [
        "table",
        "2",
        "--output",
        str(output),
        "--systems",
        f"[{label}]",
        "--learning_rates",
        f"{{{label}: 0.02}}",
    ]
    assert main([*command, *flags(place, steps=3, options={})]) == 0
    says(capsys.readouterr().out, "missing", "MTL-vanilla")
    rows = read_table(output / "table-2.csv")
    runs = sorted((output / "runs" / "fine-tuning-per-scenario" / "seed-0").iterdir())
    assert [run.name for run in runs] == ["1-food", "2-taxi", "3-ticket"]
    own = []
    for run in runs:
        scenario = run.name[2:]
        assert json.loads((run / "run.json").read_text())["scenarios"] == [scenario]
        lines = (run / "evaluation-test" / "predictions.jsonl").read_text("utf-8").splitlines()
        assert {json.loads(line)["scenario"] for line in lines} == {scenario}
        own.append(100 * read_scores(run / "evaluation-test")["fine_tuning"][scenario].rougeL)
        assert float(rows[label, "ours"][f"{scenario} R-L"]) == pytest.approx(own[-1], abs=1e-5)
    assert float(rows[label, "ours"]["average R-L"]) == pytest.approx(sum(own) / 3, abs=1e-5)
    # each learnt from its own rows only: other scenarios would have drawn other batches
    weights = [load_file(run / "adapter" / "model.safetensors") for run in runs]
    assert any(not weights[0][name].equal(weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_every_method_and_every_ablation_runs_in_one_folder(place, capsys):
    output = place / "all"
    first = {s.method: label for label, s in reversed(all_systems().items()) if not s.separate}
    labels = [first[name] for name in SYSTEMS]
    base = flags(place, "--output", str(output), steps=2)
    assert main(["table", "2", *base, "--systems", json.dumps(labels)]) == 0
    ours = [label for label, quantity in read_table(output / "table-2.csv") if quantity == "ours"]
    assert ours == labels
    capsys.readouterr()
    assert main(["table", "3", *flags(place, "--output", str(output), steps=2, options=OF_MOP)]) == 0
    assert "[1/7] MOP, seed 0: finished" in capsys.readouterr().out  # it is shared with Table 2
    rows = read_table(output / "table-3.csv")
    assert rows["MOP w/o LoRE", "paper"]["average R-2"] == "31.81"
    assert {("MOP dense experts", "minus MOP, ours"), ("MOP one shared expert", "ours")} <= set(rows)


def test_errors_come_before_the_work(place, capsys, tmp_path):
    base = ["table", "2", *flags(place, "--output", str(tmp_path / "out"))]
    for more, *named in (
        (["--systems", "[MOPP]"], "systems", "MOPP", "MTL-vanilla, MTL,"),
        (["--seeds", "[1, 1]"], "seeds", "[1, 1]"),
        (["--seeds", "[1, -1]"], "seed", "-1"),
        (["--split", "dev"], "split", "'test', 'valid'", "'dev'"),
        (["--num_beams", "0"], "num_beams", "0"),
        (["--unit", "word"], "unit", "word"),
        (["--options.terms_down", "5"], "terms_down", "d_model = 16", "5"),
        (["--corpus", "nowhere"], "nowhere"),
        (["--learning_rates", "{MOP: 0}"], "learning_rate", "0"),
    ):
        message = fails(capsys, *base, *more)
        assert all(name in message for name in named)
    rows = read_examples(place / "corpus" / "train.jsonl")
    write_examples(tmp_path / "corpus" / "train.jsonl", [row for row in rows if row.scenario != "taxi"])
    write_examples(tmp_path / "corpus" / "test.jsonl", rows[:20])
    message = fails(capsys, *base, "--corpus", tmp_path / "corpus")
    assert all(name in message for name in ("test split", "train", "taxi"))
    write_examples(tmp_path / "corpus" / "train.jsonl", rows)
    write_examples(tmp_path / "corpus" / "valid.jsonl", [row for row in rows if row.scenario == "taxi"])
    message = fails(capsys, *base, "--corpus", tmp_path / "corpus", "--evaluate_every", "2")
    assert all(name in message for name in ("valid split", "food, ticket", "fine-tuning per scenario"))
    assert not (tmp_path / "out").exists()


def test_flags_that_a_table_gives_each_system_do_not_exist():
    for flag in ("--seed", "--learning_rate", "--group_rates"):
        with pytest.raises(SystemExit, match="2"):
            main(["table", "2", "--corpus", "c", "--backbone", "b", "--output", "o", flag, "1"])
