"""Work that is done is used again only where its inputs hold what they held: `train --resume`, suites, reports."""

import gzip
import json
import re
import shutil
from contextlib import contextmanager

import mop_t5
import pytest
import torch
from errors import raises, says, warns
from mop_lab.analysis.comparability import not_comparable
from mop_lab.attempt.few_shot import write_draw
from mop_lab.finished_runs import finished_systems
from mop_t5.backbone.tokenizer import load_tokenizer, read_pegasus_vocabulary, train_tokenizer
from mop_t5.cli.main import main
from mop_t5.data import Example, read_examples, write_examples
from mop_t5.data.rows import checksum_of
from mop_t5.evaluation import BASELINES, Scorer, read_scores
from mop_t5.evaluation.generation import lengths_of
from mop_t5.evaluation.serving import Summariser
from mop_t5.methods.attempt import AttemptConfig
from mop_t5.methods.prompt_tuning import PromptTuningConfig
from mop_t5.methods.task_moe.config import TaskMoEConfig
from mop_t5.operations.contents import of_tokenizer, of_training
from mop_t5.operations.run_folder import load_run
from mop_t5.storage import prompt_library

SMALL = ["--batch_size", "4", "--max_source", "30", "--max_target", "8", "--warmup_steps", "0"]
OLD = "earlier version"


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def prompts(place):
    """A library with a source prompt and another one, for the same backbone."""
    for name in ("one", "other"):
        model = mop_t5.load_backbone(place / "backbone")
        torch.manual_seed(len(name))
        mop_t5.attach(model, "prompt_tuning", scenarios=["taxi"], prefix_length=2)
        mop_t5.save(model, place / f"adapter-{name}")
        prompt_library.add(place / "library", name, place / f"adapter-{name}")
    return place / "library"


@pytest.fixture(scope="module")
def begun(place, prompts):
    """Runs with a checkpoint, in a folder with all that they were made of. Some validate, one starts from a prompt."""
    for name in ("plain", "spot", "validating"):
        assert run("train", *command(place, name), "--steps", "2") == 0
    (place / "corpus" / "tasks.yaml").write_text("food: {metrics: [rougeL]}\n")
    assert run("train", *command(place, "validating", place / "tasks"), "--steps", "2") == 0
    (place / "corpus" / "tasks.yaml").unlink()
    return place


def command(place, name, output=None):
    options = {"prefix_length": 2}
    if name == "spot":
        options |= {"init": "spot", "init_library": str(place / "library"), "init_prompts": ["one"]}
        options |= {"init_target": str(place / "adapter-one")}
    words = ["--corpus", place / "corpus", "--backbone", place / "backbone", "--method", "prompt_tuning", *SMALL]
    words += ["--options", json.dumps(options), "--save_every", "2", "--output", output or place / name]
    return words + (["--evaluate_every", "2"] if name == "validating" else [])


@contextmanager
def changed(place, tmp_path, change):
    """The inputs with a change, under their own names; as they were afterwards."""
    for name in ("corpus", "backbone", "library"):
        shutil.copytree(place / name, tmp_path / "kept" / name)
    try:
        change(place)
        yield
    finally:
        for name in ("corpus", "backbone", "library"):
            shutil.rmtree(place / name)
            shutil.copytree(tmp_path / "kept" / name, place / name)


def rows_of(place, split):
    return read_examples(place / "corpus" / f"{split}.jsonl")


def write(place, split, rows):
    write_examples(place / "corpus" / f"{split}.jsonl", rows)


def without_a_row(split):
    return lambda place: write(place, split, rows_of(place, split)[:-1])


def other_summary(split):
    def change(place):
        first, *rows = rows_of(place, split)
        write(place, split, [Example(first.scenario, first.dialogue, "另一份摘要", first.id), *rows])

    return change


def reversed_rows(place):
    write(place, "train", rows_of(place, "train")[::-1])


def more_answers(place):
    rows = rows_of(place, "valid")
    write(place, "valid", [Example(r.scenario, r.dialogue, r.summary, r.id, ("或者",)) for r in rows])


def other_weights(place):
    model = mop_t5.load_backbone(place / "backbone")
    with torch.no_grad():
        model.shared.weight.mul_(2)
    model.save_pretrained(place / "backbone")


def other_tokenizer(place):
    texts = [row.dialogue[::-1] for row in rows_of(place, "train")]
    train_tokenizer(texts, len(load_tokenizer(place / "backbone"))).save_pretrained(place / "backbone")


def other_prompt(place):
    prompt_library.add(place / "library", "one", place / "adapter-other", overwrite=True)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("plain", without_a_row("train"), r"the train split changed \((\d+) rows then, (\d+) now\)"),
        ("plain", other_summary("train"), r"the train split changed \((\d+) rows then, \1 now, with other content\)"),
        ("plain", reversed_rows, r"the train split changed \((\d+) rows then, \1 now, with other content\)"),
        ("validating", without_a_row("valid"), r"the valid split changed"),
        ("validating", more_answers, r"the valid split changed"),
        ("tasks", lambda place: None, "tasks.yaml names other metrics"),
        ("plain", other_weights, "the backbone has other weights"),
        ("plain", other_tokenizer, "the backbone has another tokenizer"),
        ("spot", other_prompt, "what options.init_library names has another content"),
    ],
)
def test_a_run_is_not_resumed_on_other_data(begun, tmp_path, capsys, name, change, said):
    words = command(begun, "validating", begun / name) if name == "tasks" else command(begun, name)
    with changed(begun, tmp_path, change):
        capsys.readouterr()
        assert run("train", *words, "--steps", "4", "--resume") == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(f"{name} .*other data: {said}", message), message
    assert message.endswith("--output.")


def moved(place):
    """Other bytes and other places, the same content: gzip, long keys, other ids, blank lines."""
    for split in ("train", "valid", "test"):
        names = {"summary": "target", "scenario": "task", "dialogue": "input"}
        rows = ({names[n]: getattr(row, n) for n in names} | {"id": f"new {row.id}"} for row in rows_of(place, split))
        text = "\n\n".join(map(json.dumps, rows))
        (place / "corpus" / f"{split}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        (place / "corpus" / f"{split}.jsonl").unlink()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("validating", moved),
        ("validating", without_a_row("test")),
        ("plain", without_a_row("valid")),
        ("plain", lambda place: (place / "corpus" / "tasks.yaml").write_text("food: {metrics: [rougeL]}\n")),
        ("spot", lambda place: prompt_library.remove(place / "library", "other")),
    ],
)
def test_a_run_is_resumed_on_the_same_data(begun, tmp_path, capsys, recwarn, name, change):
    with changed(begun, tmp_path, change):
        assert run("train", *command(begun, name), "--steps", "4", "--resume", "--dry_run") == 0
    assert "from checkpoint-2" in capsys.readouterr().out
    assert not [one for one in recwarn if OLD in str(one.message)]


def test_rows_of_other_scenarios_do_not_matter(place):
    """of_training takes the rows that are used, so a run of one scenario goes on where another one changed."""
    rows = rows_of(place, "train")
    taxi = [row for row in rows if row.scenario == "taxi"]
    assert of_training(taxi, None, {}, None)["train"] == {"rows": len(taxi), "sha256": checksum_of(taxi)}
    assert checksum_of(taxi) != checksum_of(taxi[::-1])
    assert checksum_of([Example("a", "b", "c", "1")]) != checksum_of([Example("a", "b", "c", "1", ("d",))])
    assert checksum_of([Example("a", "bc", "d", "1")]) != checksum_of([Example("a", "b", "cd", "1")])


def test_a_moved_run_and_one_of_an_earlier_version_go_on(begun, tmp_path, capsys):
    shutil.copytree(begun / "plain", tmp_path / "run")
    shutil.copytree(begun / "corpus", tmp_path / "data")
    words = [*command(begun, "plain", tmp_path / "run"), "--corpus", tmp_path / "data", "--resume"]
    assert run("train", *words, "--steps", "3") == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == 3
    known = (tmp_path / "run" / "contents.json").read_bytes()
    assert known == (begun / "plain" / "contents.json").read_bytes()
    (tmp_path / "run" / "contents.json").unlink()
    with warns(UserWarning, OLD):
        assert run("train", *words, "--steps", "4") == 0
    assert not (tmp_path / "run" / "contents.json").exists()  # what its first steps were made of stays unknown
    (tmp_path / "run" / "contents.json").write_text('{"train": 3}')
    capsys.readouterr()
    assert run("train", *words, "--steps", "5") == 1
    assert "contents.json is damaged" in capsys.readouterr().err


def test_seeds_that_ended_after_other_steps_are_not_shown_as_these(begun, tmp_path, capsys):
    words = [*command(begun, "plain", tmp_path / "runs"), "--seeds", "[0, 1]", "--save_every", "0"]
    assert run("train", *words, "--steps", "1") == 0
    assert [(tmp_path / "runs" / name / "contents.json").is_file() for name in (".", "seed-0", "seed-1")] == [True] * 3
    assert run("train", *words, "--steps", "2", "--resume") == 1
    says(capsys.readouterr().err, "seed-0", "1 steps", "checkpoint", "2")
    assert run("train", *words, "--steps", "1", "--resume") == 0


def test_scores_of_a_run_that_was_trained_on_are_not_its_own(begun, tmp_path, capsys):
    shutil.copytree(begun / "plain", tmp_path / "run")
    assert run("evaluate", "--run", tmp_path / "run") == 0
    assert len(finished_systems([tmp_path / "run"])) == 1
    assert run("train", *command(begun, "plain", tmp_path / "run"), "--steps", "3", "--resume") == 0
    for words in (["report", "--output", tmp_path / "r.html"], ["analyse", "share", "--output", tmp_path]):
        capsys.readouterr()
        assert run(*words, tmp_path / "run") == 1
        said = "was trained on, so its scores are of other weights. Evaluate again with --overwrite."
        assert said in capsys.readouterr().err
    assert run("evaluate", "--run", tmp_path / "run", "--overwrite") == 0
    assert len(finished_systems([tmp_path / "run"])) == 1


def test_a_run_whose_adapter_is_of_another_method_is_damaged(begun, tmp_path):
    shutil.copytree(begun / "plain", tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"method": "mop"}))
    with raises(ValueError, "run", "damaged", "run.json", "'mop'", "adapter"):
        load_run(tmp_path / "run")


def test_a_run_is_not_used_with_another_tokenizer(begun, tmp_path, capsys):
    model, tokenizer, _ = load_run(begun / "plain")
    key = Summariser(model, tokenizer, {}, lengths_of({})).key
    other = train_tokenizer(["出租车"], len(tokenizer))
    assert Summariser(model, other, {}, lengths_of({})).key != key
    with changed(begun, tmp_path, other_tokenizer):
        for words in (["evaluate"], ["generate", "--scenario", "taxi", "--dialogue", "用户：好"]):
            capsys.readouterr()
            assert run(*words, "--run", begun / "plain") == 1
            says(capsys.readouterr().err, "another tokenizer", "--backbone")


def test_tokenizers_are_told_apart_and_known_again(tmp_path):
    lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[unused1]", "用", "户", "：", "司机", "a", "##b"]
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    made = [read_pegasus_vocabulary(tmp_path / "vocab.txt", specials) for specials in ("cls_sep", "sep", "eos")]
    made += [train_tokenizer(["用户：司机绕路了"] * 3, 270), train_tokenizer(["用户：退票"] * 3, 270)]
    found = [of_tokenizer(one)["sha256"] for one in made]
    assert len(set(found)) == len(made)
    for number, one in enumerate(made):
        one(["x" * 50], truncation=True, max_length=3)  # leaves a state behind
        one.save_pretrained(tmp_path / str(number))
        assert (
            of_tokenizer(one)["sha256"]
            == of_tokenizer(load_tokenizer(tmp_path / str(number)))["sha256"]
            == found[number]
        )


def test_the_files_that_a_method_starts_from(prompts, place):
    spot = {"init": "spot", "init_library": str(prompts), "init_target": "target", "prefix_length": 2}
    assert {n: [p.name for p in paths] for n, paths in PromptTuningConfig(**spot).sources().items()} == {
        "init_library": ["one", "other"],
        "init_target": ["target"],
    }
    assert [p.name for p in PromptTuningConfig(**spot, init_prompts=["one"]).sources()["init_library"]] == ["one"]
    assert list(PromptTuningConfig(init="file", init_file="f").sources()) == ["init_file"]
    mixed = AttemptConfig(("taxi",), library=str(prompts), source_prompts=("other",), prior="prior").sources()
    assert {n: [p.name for p in paths] for n, paths in mixed.items()} == {"library": ["other"], "prior": ["prior"]}
    experts = TaskMoEConfig(("taxi",), routes_from="r", experts_from="e", task_vectors="v").sources()
    assert sorted(experts) == ["experts_from", "routes_from", "task_vectors"]
    rows = rows_of(place, "train")
    config = PromptTuningConfig(**spot | {"init_target": str(place / "adapter-one")})
    first = of_training(rows, None, {}, config)
    assert set(first) == {"train", "options.init_library", "options.init_target"}
    gone = PromptTuningConfig(**spot | {"init_target": str(place / "gone")})
    assert "options.init_target" not in of_training(rows, None, {}, gone)


@pytest.fixture(scope="module")
def suite(begun):
    """A finished suite of two systems."""
    assert run(*table(begun)) == 0
    return begun / "suite"


def table(place, output=None, systems="[prompt-tuning, prefix-tuning]"):
    words = ["table", "2", "--corpus", place / "corpus", "--backbone", place / "backbone", "--steps", "1", *SMALL]
    words += ["--options", "{prefix_length: 2}", "--output", output or place / "suite"]
    return [*words, "--systems", systems]


def states(capsys, *words):
    capsys.readouterr()
    assert run(*words, "--dry_run") == 0
    return re.findall(r"seed-\d+ +([\w -]+)$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_suite_is_scored_again_where_the_split_changed(suite, begun, tmp_path, capsys, recorded):
    """What the rows of an evaluation were is known of those of earlier versions, too: they stand in its predictions."""
    copy = tmp_path / "suite"
    shutil.copytree(suite, copy)
    if not recorded:
        for path in copy.rglob("evaluation-test/contents.json"):
            path.unlink()
    assert states(capsys, *table(begun, copy)) == ["finished", "finished"]
    before = {path: path.read_bytes() for path in copy.rglob("scores.json")}
    assert len(before) == 3
    with changed(begun, tmp_path, other_summary("test")):
        assert states(capsys, *table(begun, copy)) == ["evaluate", "evaluate"]
        assert run(*table(begun, copy, "[prompt-tuning]")) == 0
        test = rows_of(begun, "test")
        (old, new) = (
            next(copy.glob(f"runs/{name}/seed-0/evaluation-test")) for name in ("prefix-tuning", "prompt-tuning")
        )
        rows = [json.loads(line) for line in (new / "predictions.jsonl").read_text().splitlines()]
        assert [row["summary"] for row in rows] == [row.summary for row in test]
        texts = [row["predictions"]["prompt_tuning"] for row in rows]
        assert read_scores(new)["prompt_tuning"] == Scorer()(test, texts)
        floors = read_scores(copy / "floors")
        assert floors == {name: Scorer()(test, make(test, rows_of(begun, "train"))) for name, make in BASELINES.items()}
        assert floors != json.loads(before[copy / "floors" / "scores.json"])
        # the system that was left out is not shown beside the others as if it were of the same rows
        (said,) = not_comparable(finished_systems([copy]))
        scenario = test[0].scenario
        says(said, "prefix-tuning", "prompt-tuning", f"different rows of {scenario}")
        assert before[old / "scores.json"] == (old / "scores.json").read_bytes()
        assert run("report", copy, "--output", tmp_path / "page.html") == 0
        assert said in (tmp_path / "page.html").read_text()
        assert run("analyse", "share", copy, "--output", tmp_path) == 0
        assert said in (tmp_path / "share.md").read_text()
        assert run(*table(begun, copy)) == 0
        assert not_comparable(finished_systems([copy])) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_summary("train"), r"the train split changed \((\d+) rows then, \1 now, with other content\)"),
        (other_weights, "the backbone has other weights"),
        (other_tokenizer, "the backbone has another tokenizer"),
    ],
)
def test_a_suite_that_would_have_to_train_again_says_so(suite, begun, tmp_path, capsys, change, said):
    with changed(begun, tmp_path, change):
        capsys.readouterr()
        assert run(*table(begun)) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(f"seed-0 cannot be resumed with other data: {said}", message), message


@pytest.mark.parametrize("change", [moved, without_a_row("valid")])
def test_a_suite_is_used_again_on_the_same_data(suite, begun, tmp_path, capsys, change):
    with changed(begun, tmp_path, change):
        assert states(capsys, *table(begun)) == ["finished", "finished"]
    for name in ("corpus", "backbone"):
        shutil.copytree(begun / name, tmp_path / "elsewhere" / name)
    assert states(capsys, *table(tmp_path / "elsewhere", suite)) == ["finished", "finished"]


def test_a_suite_of_an_earlier_version_is_used_with_a_warning(suite, begun, tmp_path, capsys):
    copy = tmp_path / "suite"
    shutil.copytree(suite, copy)
    for path in copy.rglob("contents.json"):
        path.unlink()
    with warns(UserWarning, "run", "suite", OLD):
        assert states(capsys, *table(begun, copy)) == ["finished", "finished"]
    shutil.copytree(begun / "corpus", tmp_path / "data")  # where contents are not known, paths are all there is
    assert run(*table(begun, copy), "--corpus", tmp_path / "data") == 1
    assert "corpus was" in capsys.readouterr().err
    assert len(finished_systems([copy])) == 2


def test_scores_by_other_ways_are_said_to_be_incomparable(suite, tmp_path, capsys):
    copy = tmp_path / "suite"
    shutil.copytree(suite, copy)
    path = next(copy.glob("runs/prompt-tuning/seed-0/evaluation-test/run.json"))
    content = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in content.items() if name != "normalise"}))
    assert not_comparable(finished_systems([copy])) == []  # earlier versions did not normalise
    path.write_text(json.dumps(content | {"normalise": "nfkc"}))
    (said,) = not_comparable(finished_systems([copy]))
    says(said, "systems", "scored", "normalise nfkc")
    path.write_text(json.dumps(content | {"metrics": {"taxi": {"metrics": ["rougeL"]}}}))
    assert "taxi: rougeL" in not_comparable(finished_systems([copy]))[0]
    assert run("analyse", "values", copy, "--output", tmp_path) == 1
    assert "taxi: rougeL" in capsys.readouterr().err


def test_drawn_rows_follow_the_split_that_is_scored_and_nothing_else(place, tmp_path):
    shutil.copytree(place / "corpus", tmp_path / "corpus")
    (tmp_path / "corpus" / "tasks.yaml").write_text("food: {metrics: [rougeL]}\n")
    arguments = (tmp_path / "corpus", tmp_path / "drawn", None, 2, 0, "test")
    write_draw(*arguments)
    assert (tmp_path / "drawn" / "tasks.yaml").is_file()
    (tmp_path / "corpus" / "tasks.yaml").unlink()
    other_summary("test")(tmp_path)
    write_draw(*arguments)
    assert not (tmp_path / "drawn" / "tasks.yaml").exists()
    assert read_examples(tmp_path / "drawn" / "test.jsonl") == rows_of(tmp_path, "test")
    (tmp_path / "corpus" / "valid.jsonl").unlink()
    with raises(ValueError, "valid.jsonl", "other rows"):
        write_draw(*arguments)
