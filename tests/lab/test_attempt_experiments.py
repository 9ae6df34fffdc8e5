"""The experiments of the ATTEMPT paper by the commands a person types: what is trained from what, resumed, counted."""

import json
import re
import shutil
import statistics
from collections import Counter

import mop_t5
import pytest
import torch
from command_results import csv_rows, last_error
from errors import raises, warns
from mop_lab.analysis.share import measured
from mop_lab.attempt.few_shot import draw
from mop_lab.attempt.memory import RESET
from mop_t5.backbone.tokenizer import load_tokenizer
from mop_t5.cli.main import main
from mop_t5.data import Collator, EncodedExamples, read_examples, read_split
from mop_t5.evaluation import Scorer, generate_summaries, read_scores
from mop_t5.methods.parts import spot
from mop_t5.operations.run_folder import load_run
from mop_t5.plots.charts import heat_map, plot_points
from mop_t5.storage import adapter_folder, prompt_library

SOURCES, TARGETS = ["food", "taxi"], ["taxi", "ticket"]
SMALL = ["--options.bottleneck", "4", "--batch_size", "4", "--max_target", "12", "--warmup_steps", "0"]


def run(*words):
    assert main([str(word) for word in words]) == 0


def fails(capsys, *words):
    capsys.readouterr()
    assert main([str(word) for word in words]) == 1
    return last_error(capsys)


def base(place, output, *more, steps=2):
    return ["--corpus", place / "corpus", "--backbone", place / "backbone", "--output", output, "--steps", steps, *more]


def states(text):
    return re.findall(r"^\[\d+/\d+\] .*: (.+)$", text, re.MULTILINE)


def settings(folder):
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def sources(place):
    """The command that trains two source prompts and a general one, done; its words."""
    common = [*SMALL[2:], "--learning_rates", "{source prompts: 0.5}", "--scenarios", json.dumps(SOURCES)]
    words = ["attempt", "sources", *base(place, place / "sources", *common), "--library", place / "library"]
    words += ["--prompt_length", 3]
    run(*words)
    return words


@pytest.fixture(scope="module")
def starts(place, sources):
    """Flags that say what to start from: a library, a general prompt and a prior."""
    words = base(place, place / "prior", *SMALL, "--library", place / "library")
    run("attempt", "prior", *words, "--groups", "{g1: [food, taxi], g2: [taxi]}", "--group_rates", "{attention: 0.5}")
    general, prior = (
        place / "sources/runs/general-prompt/seed-0/adapter",
        place / "prior/runs/prior/seed-0/g1/adapter",
    )
    return ["--library", place / "library", "--general_prompt", general, "--prior", prior, "--first_steps", 1]


def test_sources_fill_a_library_and_are_done_once(place, sources, capsys):
    assert prompt_library.names(place / "library") == tuple(SOURCES)
    for number, name in enumerate(SOURCES, start=1):
        folder = place / "sources/runs/source-prompts/seed-0" / f"{number}-{name}"
        assert (settings(folder)["scenarios"], settings(folder)["learning_rate"]) == ([name], 0.5)
        assert not list(folder.glob("evaluation-*"))
        stored = prompt_library.read(place / "library", name)
        assert stored.prompt.equal(adapter_folder.read(folder / "adapter")[1]["mop.prompt"])
        assert (len(stored.prompt), stored.scenarios) == (3, (name,))
    general = settings(place / "sources/runs/general-prompt/seed-0")
    assert (general["scenarios"], general["options"]["init"]) == (SOURCES, "vocabulary")
    before = {path: path.stat().st_mtime_ns for path in (place / "library").rglob("*") if path.is_file()}
    run(*sources)
    assert states(capsys.readouterr().out) == ["finished"] * 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    # a name that another prompt has
    mine = place / "library" / "food"
    shutil.copytree(place / "library" / "taxi", place / "another" / "food")
    assert "another/food" in fails(capsys, *sources, "--library", place / "another")
    assert mine.is_dir()


def test_a_prior_is_trained_on_a_group_and_taken_up(place, starts):
    folder = place / "prior/runs/prior/seed-0"
    assert [settings(folder / group)["scenarios"] for group in ("g1", "g2")] == [["food", "taxi"], ["taxi"]]
    assert settings(folder / "g1")["group_rates"] == {"attention": 0.5}
    prior = adapter_folder.read(folder / "g1" / "adapter")[1]
    assert prior["mop.target_prompts"].shape[0] == 2
    assert prior["mop.attention.norm.weight"].ne(1).any()  # it was trained


@pytest.fixture(scope="module")
def ablations(place, starts):
    words = ["attempt", "ablations", *base(place, place / "table", *SMALL, *starts)]
    words += ["--systems", "[frozen backbone, SPoT-t, ATTEMPT, ATTEMPT frozen prior]"]
    run(*words, "--seeds", "[0, 1]")
    return words


def test_the_rows_that_start_from_a_library(place, starts, capsys):
    words = ["attempt", "ablations", *base(place, place / "dry", *SMALL, *starts), "--dry_run"]
    run(*words)
    shown = [re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    labels = [line[0] for line in shown if line[-1] == "train"]
    attempt = ["ATTEMPT", "ATTEMPT (token)", "ATTEMPT (constant)", "ATTEMPT w/o attention", "ATTEMPT w/o target"]
    attempt += ["ATTEMPT single source", "ATTEMPT untrained sources"]
    prompts = ["frozen backbone", "PT", "SPoT-t, first version", "SPoT-t"]
    prompts += ["SPoT-t (mixed), first version", "SPoT-t (mixed)"]
    assert labels == [*prompts, "SPoT-g", *attempt, "ATTEMPT w/o prior", "ATTEMPT frozen prior"]
    assert not (place / "dry").exists()
    words = ["attempt", "ablations", *base(place, place / "dry", *SMALL, *starts[:2]), "--dry_run"]
    run(*words)  # neither a general prompt nor a prior
    shown = [re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in shown if line[-1] == "train"] == [*prompts, *attempt]


def test_what_each_row_starts_from(place, ablations):
    runs = place / "table" / "runs"
    options = {path.name: settings(path / "seed-1")["options"] for path in runs.iterdir() if (path / "seed-1").is_dir()}
    assert options["attempt"]["prior"].endswith("g1/adapter")
    assert options["attempt"]["source_prompts"] == SOURCES
    assert (options["attempt"]["prompt_length"], options["spot-t"]["prefix_length"]) == (3, 3)
    assert options["attempt-frozen-prior"]["train_attention"] is False
    frozen = adapter_folder.read(runs / "attempt-frozen-prior" / "seed-1" / "adapter")[1]
    prior = adapter_folder.read(place / "prior/runs/prior/seed-0/g1/adapter")[1]
    assert frozen["mop.attention.up.weight"].equal(prior["mop.attention.up.weight"])
    # the first version is a short run of its own
    first = runs / "spot-t-first-version" / "seed-1"
    assert settings(first)["steps"] == 1
    assert options["spot-t"]["init_target"] == str((first / "adapter").resolve())
    targets = adapter_folder.read(first / "adapter")[1]["mop.prompt"]
    assert targets.shape == (3, 3, 16)  # scenarios, rows, width
    library = torch.stack([prompt_library.read(place / "library", name).prompt for name in SOURCES])
    model = mop_t5.load_backbone(place / "backbone")
    mop_t5.attach(model, "prompt_tuning", scenarios=["food", "taxi", "ticket"], **options["spot-t"])
    for target, started in zip(targets, model.mop.prompt):
        assert started.equal(library[spot.similarities(target, library).argmax()])


def test_the_frozen_backbone_is_a_row(place, ablations):
    model, tokenizer = mop_t5.load_backbone(place / "backbone"), load_tokenizer(place / "backbone")
    rows = read_split(place / "corpus", "test")
    texts = generate_summaries(model, tokenizer, rows, max_source=512, max_new_tokens=12)
    expected = Scorer()(rows, texts)
    found = read_scores(place / "table/runs/frozen-backbone/seed-0/evaluation-test")["prompt_tuning"]
    assert found == expected
    assert settings(place / "table/runs/frozen-backbone/seed-0")["steps"] == 1


def test_the_table_of_ablations_and_going_on(place, ablations, capsys):
    table = {(row["system"], row["quantity"]): row for row in csv_rows(place / "table" / "ablations.csv")}
    for label, folder, method in (("ATTEMPT", "attempt", "attempt"), ("SPoT-t", "spot-t", "prompt_tuning")):
        runs = [place / "table/runs" / folder / f"seed-{seed}" / "evaluation-test" for seed in (0, 1)]
        points = [100 * read_scores(path)[method]["taxi"].mean for path in runs]
        assert float(table[label, "mean of 2"]["taxi"]) == pytest.approx(statistics.mean(points))
        assert float(table[label, "deviation (n - 1)"]["taxi"]) == pytest.approx(statistics.stdev(points))
    assert ("nearest reference", "baseline") in table
    capsys.readouterr()
    run(*ablations, "--seeds", "[0, 1]")
    assert states(capsys.readouterr().out) == ["finished"] * 10
    assert "learning_rate was 0.3, now 0.1" in fails(capsys, *ablations, "--learning_rates", "{ATTEMPT: 0.1}")
    assert "steps was 1, now 2" in fails(capsys, *ablations, "--first_steps", "2")
    message = fails(capsys, *ablations, "--group_rates", "{attend: 2}")
    assert "group_rates" in message
    assert "attend" in message


def test_source_prompts_are_added_one_by_one(place, starts):
    words = [*base(place, place / "table", *SMALL), *starts[:2], *starts[4:6], "--source_prompts", "[taxi, food]"]
    run("attempt", "modularity", *words)
    found = csv_rows(place / "table" / "modularity.csv")
    assert [row["system"] for row in found if row["quantity"] == "score"] == ["1 source: taxi", "2 sources: + food"]
    runs = place / "table" / "runs"
    assert settings(runs / "1-source-taxi" / "seed-0")["options"]["source_prompts"] == ["taxi"]
    assert settings(runs / "2-sources-+-food" / "seed-0")["options"]["source_prompts"] == ["taxi", "food"]
    for suffix in ("md", "png", "svg"):
        assert (place / "table" / f"modularity.{suffix}").stat().st_size > 100


@pytest.fixture(scope="module")
def few(place, starts):
    words = ["attempt", "few-shot", *base(place, place / "few", *SMALL[2:], *starts)]
    words += ["--scenarios", json.dumps(TARGETS)]
    # one that learns enough in two steps for its texts to change
    words += ["--systems", "[MTL-vanilla]", "--learning_rates", "{MTL-vanilla: 0.2}"]
    words += ["--shots", "[2, 3]", "--draws", "[0, 5]"]
    run(*words)
    return words


def test_few_shot_draws_are_nested_and_the_same_for_all(place, few, capsys):
    train = read_split(place / "corpus", "train")
    drawn = {}
    for shots in (2, 3):
        for seed in (0, 5):
            folder = place / "few" / f"k-{shots}" / f"draw-{seed}"
            rows = read_examples(folder / "corpus" / "train.jsonl")
            drawn[shots, seed] = {row.id for row in rows}
            assert sorted(row.scenario for row in rows) == [name for name in TARGETS for _ in range(shots)]
            assert all(row in train for row in rows)
            valid = Counter(row.scenario for row in read_split(place / "corpus", "valid"))
            chosen = Counter(row.scenario for row in read_examples(folder / "corpus" / "valid.jsonl"))
            assert chosen == {name: min(shots, valid[name]) for name in TARGETS}
            scored = [row for row in read_split(place / "corpus", "test") if row.scenario in TARGETS]
            assert read_examples(folder / "corpus" / "test.jsonl") == scored
            runs = folder / "runs" / "mtl-vanilla" / f"seed-{seed}"
            assert sorted(path.name for path in runs.iterdir()) == ["1-taxi", "2-ticket"]
            for name in ("1-taxi", "2-ticket"):
                assert settings(runs / name)["corpus"] == str((folder / "corpus").resolve())
    assert drawn[2, 0] < drawn[3, 0]
    assert drawn[2, 0] != drawn[2, 5]
    # rows of other tasks change nothing
    of_taxi = [row for row in train if row.scenario == "taxi"]
    assert set(draw(of_taxi, 3, 5)) < set(draw(train, 3, 5))
    capsys.readouterr()
    run(*few)
    assert states(capsys.readouterr().out) == ["finished"] * 8
    run(*few, "--systems", "[MTL, ATTEMPT]", *SMALL[:2], "--dry_run")  # of any method
    shown = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith("   train")]
    assert [line[:2] for line in shown] == [[name, task] for name in ("MTL", "ATTEMPT") for task in TARGETS] * 4
    for shots, names in (("[500]", ("taxi, ticket", "500")), ("[0]", ("1", "[0]"))):
        message = fails(capsys, *few, "--shots", shots)
        assert all(name in message for name in ("shots", *names))


def test_the_few_shot_table_is_the_mean_over_draws(place, few):
    table = {(r["system"], r["rows"], r["quantity"]): r for r in csv_rows(place / "few" / "few-shot.csv")}
    assert len(table) == 2 * 2
    points = []
    for seed in (0, 5):
        folder = place / "few/k-3" / f"draw-{seed}" / "runs/mtl-vanilla" / f"seed-{seed}"
        own = [folder / f"{n}-{name}" / "evaluation-test" for n, name in enumerate(TARGETS, start=1)]
        both = [read_scores(path)["fine_tuning"][name] for path, name in zip(own, TARGETS)]
        points.append(100 * statistics.mean(score.mean for score in both))
    assert points[0] != points[1]
    assert float(table["MTL-vanilla", "3", "mean of 2"]["average"]) == pytest.approx(statistics.mean(points))
    assert float(table["MTL-vanilla", "3", "deviation (n - 1)"]["average"]) == pytest.approx(statistics.stdev(points))


def test_the_attention_matrix_is_the_mean_of_the_weights(place, ablations, capsys, tmp_path):
    folder = place / "table/runs/attempt/seed-0"
    run("attempt", "attention", "--run", folder, "--output", tmp_path)
    table = {row["task"]: row for row in csv_rows(tmp_path / "attention-test.csv")}
    model, tokenizer, _ = load_run(folder)
    rows = [row for row in read_split(place / "corpus", "test") if row.scenario == "ticket"]
    total = torch.zeros(3)
    for row in rows:  # one at a time: nothing is padded
        batch = Collator(tokenizer.pad_token_id, 3)([EncodedExamples([row], tokenizer, model.scenarios)[0]])
        embedded = model.get_input_embeddings()(batch["input_ids"])
        total += model.mop.attention_of(embedded, None, batch["scenario_ids"])[0]
    found = [float(table["ticket"][name]) for name in (*SOURCES, "target")]
    torch.testing.assert_close(torch.tensor(found), total / len(rows))
    assert sum(found) == pytest.approx(1, abs=1e-5)
    assert int(table["ticket"]["rows"]) == len(rows)
    assert all((tmp_path / f"attention-test.{suffix}").is_file() for suffix in ("md", "png", "svg"))
    wrong = fails(capsys, "attempt", "attention", "--run", place / "table/runs/spot-t/seed-0")
    assert "'prompt_tuning'" in wrong


def test_scores_against_sizes(place, ablations, few, capsys, tmp_path):
    found = {one.label: one for one in measured(place / "table")}
    assert (found["frozen backbone"].trained, found["SPoT-t"].trained) == (0, 3 * 3 * 16)
    table = {(row["system"], row["quantity"]): row for row in csv_rows(place / "table" / "ablations.csv")}
    assert statistics.mean(found["ATTEMPT"].averages) == pytest.approx(float(table["ATTEMPT", "mean of 2"]["average"]))
    assert not any("first version" in label for label in found)
    # once a task: two models, their tasks' mean
    (alone,) = measured(place / "few/k-3/draw-0")
    assert (alone.label, alone.trained) == ("MTL-vanilla", 2 * alone.backbone)
    shutil.copytree(place / "table", tmp_path / "larger")
    for path in (tmp_path / "larger").glob("runs/*/system.json"):
        path.write_text(path.read_text().replace(f'"backbone": {alone.backbone}', '"backbone": 99999999'))
    suites = json.dumps([str(place / "table"), str(tmp_path / "larger")])
    run("attempt", "scale", "--suites", suites, "--output", tmp_path / "plots")
    names = sorted(path.name for path in (tmp_path / "plots").glob("*.png"))
    assert names == [
        *("score-by-backbone.png", "score-by-trained-1.png", "score-by-trained-2.png", "trained-by-backbone.png")
    ]
    assert len(csv_rows(tmp_path / "plots" / "scale.csv")) == 2 * len(found)
    assert "nowhere" in fails(capsys, "attempt", "scale", "--suites", "[nowhere]", "--output", tmp_path / "p")


def test_wrong_starting_points(place, sources, capsys, tmp_path):
    words = ["attempt", "ablations", *base(place, tmp_path / "out", *SMALL)]
    for more, *named in (
        (["--library", tmp_path / "none"], "none"),
        (["--library", place / "library", "--source_prompts", "[mnli]"], "source_prompts", "mnli", "food, taxi"),
        (["--library", place / "library", "--first_steps", "0"], "first_steps", "0"),
        (["--library", place / "library", "--prior", place / "library" / "food"], "'prompt_tuning'"),
        (["--library", place / "library", "--systems", "[SPoT-g]"], "systems", "SPoT-g", "ATTEMPT w/o target"),
    ):
        message = fails(capsys, *words, *more)
        assert all(name in message for name in named)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not RESET.exists(), reason="needs Linux's /proc/self/clear_refs")
def test_peak_memory_of_training(tmp_path, capsys):
    model = mop_t5.build_backbone("t5-small", d_model=256, d_ff=1024, num_layers=4, num_decoder_layers=4)
    model.save_pretrained(tmp_path / "backbone")
    weights = sum(parameter.nbytes for parameter in model.parameters())
    words = ["attempt", "memory", "--backbones", f"[{tmp_path / 'backbone'}]", "--batch_sizes", "[1]", "--source", 4]
    run(*words, "--target", 4, "--systems", "[MTL-vanilla, prompt-tuning]", "--output", tmp_path)
    found = {row["system"]: row for row in csv_rows(tmp_path / "memory.csv")}
    full, prompt = (1e9 * float(list(found[label].values())[1]) for label in ("MTL-vanilla", "prompt-tuning"))
    # weights, gradients, two states and what detach restores, against weights alone; and some for everything else
    assert 4 * weights < full < 8 * weights
    assert weights < prompt < 2 * weights
    assert "ATTEMPT 13.7 -> 16.1 GB" in capsys.readouterr().out
    for more, names in ((["--batch_sizes", "[1, 2]"], ("1 backbones", "[1, 2]")), (["--device", "tpu"], ("'tpu'",))):
        message = fails(capsys, *words, *more)
        assert all(name in message for name in (more[0][2:], *names))


@pytest.mark.filterwarnings("ignore:no font here has 出租")
def test_plots_of_chinese_labels(tmp_path):
    matrix = [[0.25, 0.75], [1.0, 0.0]]
    written = heat_map(tmp_path / "map", ["出租", "metro"], ["a", "b"], matrix, "title")
    assert [path.name for path in written] == ["map.png", "map.svg"]
    assert "出租" in written[1].read_text("utf-8")  # as text, for the fonts of who looks at it
    before = [path.read_bytes() for path in written]
    heat_map(tmp_path / "map", ["出租", "metro"], ["a", "b"], matrix, "title")
    assert [path.read_bytes() for path in written] == before
    with warns(UserWarning, "font", "𪛕"):
        heat_map(tmp_path / "rare", ["𪛕"], ["a"], [[1.0]], "title")
    with raises(ValueError, "values", "2 rows of 2", "1 rows"):
        heat_map(tmp_path / "wrong", ["x", "y"], ["a", "b"], [[1, 2]], "title")
    with pytest.raises(ValueError, match="series"):
        plot_points(tmp_path / "none", {"a": []}, "title", x_label="x", y_label="y")
