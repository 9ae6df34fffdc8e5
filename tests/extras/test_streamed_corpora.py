"""Rows that stay on the disk: the same rows, batches, losses and weights as in memory, and a bounded memory."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from arrow_files import FORMS, table_of, write_split
from errors import raises, says
from mop_t5.cli.main import main
from mop_t5.data import (
    EncodedExamples,
    Example,
    TemperatureBatchSampler,
    of_scenarios,
    scenario_ids_of,
    scenarios_of,
    stream_split,
    write_examples,
)
from mop_t5.data.arrow_tables import table_of_file
from mop_t5.data.rows import StoredExamples, store_examples
from mop_t5.operations.contents import of_rows
from mop_t5.training import TrainingConfig, train
from safetensors.torch import load_file
from small_training import CORPUS, SCENARIOS, new_model, new_tokenizer

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

MANY = [
    Example(("taxi", "food", "0571")[number % 7 % 3], f"用户：{number}", f"\u2028{number:05}", f"i{number}")
    for number in range(2300)
]
TOKENIZER = new_tokenizer()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return store_examples(MANY, tmp_path_factory.mktemp("rows") / "train.arrow")


def test_stored_rows_are_the_rows_in_memory(stored):
    assert len(stored) == len(MANY)
    assert list(stored) == MANY
    assert [stored[place] for place in (0, 999, 1000, 2299, -1, -2300)] == [
        MANY[place] for place in (0, 999, 1000, 2299, -1, -2300)
    ]
    assert stored[995:1005] == MANY[995:1005]
    for place in (2300, -2301):
        with pytest.raises(IndexError):
            stored[place]
    assert scenarios_of(stored) == scenarios_of(MANY)
    assert of_rows(stored) == of_rows(MANY) == of_rows(list(stored))
    order = ["food", "0571", "taxi"]
    assert list(scenario_ids_of(stored, order)) == scenario_ids_of(MANY, order)
    with raises(ValueError, "example 'i1'", "scenario 'food'", "0571, taxi"):
        scenario_ids_of(stored, ["0571", "taxi"])
    assert list(pickle.loads(pickle.dumps(stored))) == MANY


def test_stored_rows_of_some_scenarios(stored):
    chosen = ["0571", "taxi"]
    some, expected = of_scenarios(stored, chosen), of_scenarios(MANY, chosen)
    assert isinstance(some, StoredExamples)
    assert list(some) == expected
    assert [some[0], some[-1], *some[5:9]] == [expected[0], expected[-1], *expected[5:9]]
    assert of_rows(some) == of_rows(expected)
    assert scenarios_of(some) == chosen
    assert list(scenario_ids_of(some, chosen)) == scenario_ids_of(expected, chosen)
    assert list(of_scenarios(some, ["taxi"])) == of_scenarios(MANY, ["taxi"])
    assert list(pickle.loads(pickle.dumps(some))) == expected
    assert of_scenarios(stored, None) is stored
    with raises(ValueError, "metro", "0571, food, taxi"):
        of_scenarios(stored, ["metro"])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_streams(tmp_path, form):
    rows = [*MANY[:1200], Example("taxi", "a", "b", "last", ("c", "d"))]
    write_split(tmp_path / "corpus", form, "train", rows)
    first = stream_split(tmp_path / "corpus", "train", tmp_path / "rows")
    assert list(first) == rows
    assert of_rows(first) == of_rows(rows)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    assert len(files) == 2
    assert stream_split(tmp_path / "corpus", "train", tmp_path / "rows").path == first.path
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()} == files


def test_other_content_is_another_file(tmp_path):
    corpus, folder = tmp_path / "corpus", tmp_path / "rows"
    found = []
    for rows in (MANY[:3], MANY[1:4], MANY[:3]):
        write_examples(corpus / "train.jsonl", rows)
        found.append(stream_split(corpus, "train", folder))
        assert list(found[-1]) == rows
    assert found[0].path == found[2].path != found[1].path
    write_examples(corpus / "valid.jsonl", MANY[:3])
    (corpus / "test.jsonl").write_text((corpus / "valid.jsonl").read_text().replace('"i0"', '"i9"'))
    assert stream_split(corpus, "test", folder)[0].id == "i9"


def test_nothing_is_left_of_a_corpus_with_a_bad_row(tmp_path):
    write_examples(tmp_path / "train.jsonl", MANY[:1500])
    with open(tmp_path / "train.jsonl", "a") as file:
        file.write('{"scenario": "taxi", "dialogue": "a", "summary": null}\n')
    with raises(TypeError, "train.jsonl, line 1501", "`summary`", "null"):
        stream_split(tmp_path, "train", tmp_path / "rows")
    assert list((tmp_path / "rows").iterdir()) == []
    (tmp_path / "train.jsonl").write_text("\n")
    with raises(ValueError, "train.jsonl", "no examples"):
        stream_split(tmp_path, "train", tmp_path / "rows")
    (tmp_path / "file").write_text("")
    write_examples(tmp_path / "train.jsonl", MANY[:3])
    with raises(OSError, "rows of the corpus", "file"):
        stream_split(tmp_path, "train", tmp_path / "file" / "rows")


@pytest.mark.parametrize("size", [0, 100_000])
def test_a_full_disk(tmp_path, size):
    """The file has 142,706 bytes: the first write fails, or the last."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with raises(OSError, "rows of the corpus", str(tmp_path), "another folder"):
            store_examples(MANY, tmp_path / "train.arrow")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_rows_that_cannot_be_read_on(tmp_path):
    def rows():
        yield from MANY[:1500]
        raise OSError(5, "the source is gone")

    with raises(OSError, "source is gone"):
        store_examples(rows(), tmp_path / "train.arrow")
    with raises(ValueError, "no rows", "train.arrow"):
        store_examples([], tmp_path / "train.arrow")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_of_rows(tmp_path):
    path = store_examples(MANY, tmp_path / "train.arrow").path
    content = path.read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with raises(ValueError, "train.arrow", "Delete"):
            StoredExamples(path)
    path.write_bytes(content)
    for change in ({"rows": 3}, {"scenarios": None}):
        about = json.loads((tmp_path / "train.json").read_text())
        (tmp_path / "train.json").write_text(json.dumps(about | change))
        with raises(ValueError, "train.arrow", "Delete"):
            StoredExamples(path)
        (tmp_path / "train.json").write_text(json.dumps(about))
    (tmp_path / "train.json").write_text("{")
    with raises(ValueError, "train.json", "Delete"):
        StoredExamples(path)


@pytest.mark.parametrize("scenarios", [None, SCENARIOS])
def test_rows_are_encoded_as_in_memory(tmp_path, scenarios):
    rows = CORPUS["train"]
    stored = store_examples(rows, tmp_path / "train.arrow")
    fields = {"source_text": lambda dialogue, scenario: f"{scenario} {dialogue}", "max_source": 20, "max_target": 9}
    here, there = (EncodedExamples(one, TOKENIZER, scenarios, **fields) for one in (rows, stored))
    assert len(here) == len(there)
    assert [here[place] for place in range(len(here))] == [there[place] for place in range(len(there))]
    assert list(there.lengths) == list(here.lengths)
    short = EncodedExamples(stored, TOKENIZER, scenarios, vocab_size=5)
    with raises(ValueError, f"example {rows[3].id!r}", "5 embeddings"):
        short[3]


@pytest.mark.parametrize(
    "changes", [{}, {"batching": "mixed", "by_length": True}, {"batch_size": 16, "tokens_per_batch": 90}]
)
def test_training_equals_training_in_memory_also_when_resumed(tmp_path, changes):
    fields = {"steps": 4, "batch_size": 2, "warmup_steps": 0, "save_every": 2, "max_source": 24, "max_target": 12}
    config = TrainingConfig(**fields | {"log_every": 1} | changes)
    stored = store_examples(CORPUS["train"], tmp_path / "train.arrow")

    def trained(rows, name, resume=False):
        model = new_model(TOKENIZER)
        losses = train(model, TOKENIZER, rows, config, output=tmp_path / name, resume=resume, progress=False).losses
        return losses, {name: weight.detach().clone() for name, weight in model.mop.named_parameters()}

    losses, weights = trained(CORPUS["train"], "memory")
    streamed = trained(stored, "streamed")
    for checkpoint in (tmp_path / "memory" / "checkpoints").glob("checkpoint-4"):  # continue this run from the disk
        for path in sorted(checkpoint.rglob("*"), reverse=True):
            path.unlink()
        checkpoint.rmdir()
    resumed = trained(stored, "memory", resume=True)
    for other_losses, other_weights in (streamed, resumed):
        assert other_losses == losses
        assert all(torch.equal(other_weights[name], weight) for name, weight in weights.items())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    new_model(TOKENIZER, method=None).save_pretrained(folder / "backbone")
    TOKENIZER.save_pretrained(folder / "backbone")
    for form in ("jsonl", "parquet"):
        for split in ("train", "valid", "test"):
            write_split(folder / form, form, split, CORPUS[split])
    return folder


def test_the_commands(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = ["train", "--backbone", str(place / "backbone"), "--method", "prompt_tuning", "--steps", "4"]
    base += ["--batch_size", "2", "--log_every", "1", "--save_every", "2", "--max_source", "24", "--max_target", "12"]
    base += ["--scenarios", "[food, taxi]"]

    def trained(name, form, *more):
        run = ["--output", str(tmp_path / name), "--corpus", str(place / form)]
        assert main([*base, *run, *more]) == 0
        points = map(json.loads, (tmp_path / name / "loss.jsonl").read_text().splitlines())
        history = [(point["step"], point["loss"], point["grad_norm"]) for point in points if "loss" in point]
        assert len(history) == 4
        made_of = json.loads((tmp_path / name / "contents.json").read_text())
        return history, made_of, load_file(next((tmp_path / name / "adapter").glob("*.safetensors")))

    history, made_of, weights = trained("memory", "jsonl")
    for name, form, more in [
        ("parquet", "parquet", ()),
        ("streamed", "parquet", ("--stream", "rows")),
        ("lines", "jsonl", ("--stream", "rows")),
    ]:
        other_history, other_made_of, other_weights = trained(name, form, *more)
        assert other_history == history
        assert other_made_of == made_of
        assert all(torch.equal(other_weights[key], weight) for key, weight in weights.items())
    assert json.loads((tmp_path / "streamed" / "run.json").read_text())["stream"] == str(tmp_path / "rows")
    again = ["--output", str(tmp_path / "memory"), "--corpus", str(place / "parquet"), "--stream", "rows"]
    assert main([*base, *again, "--steps", "6", "--resume"]) == 0  # the rows of a run may move to the disk

    capsys.readouterr()
    assert main([*base, *again, "--overwrite", "--cache_encoder", "memory"]) == 1
    says(capsys.readouterr().err, "cache_encoder", "stream", "'memory'")

    assert main(["evaluate", "--run", str(tmp_path / "parquet"), "--batch_size", "8"]) == 0
    assert (
        main(["evaluate", "--run", str(tmp_path / "memory"), "--batch_size", "8", "--corpus", str(place / "jsonl")])
        == 0
    )
    texts = [(tmp_path / name / "evaluation-test" / "contents.json").read_text() for name in ("parquet", "memory")]
    assert json.loads(texts[0])["test"] == json.loads(texts[1])["test"]

    rows = CORPUS["test"][:5]
    new = table_of(rows).set_column(2, "summary", pa.array(range(5)))
    pq.write_table(new.set_column(0, "scenario", pa.array(["taxi"] * 4 + ["metro"])), tmp_path / "new.parquet")
    write_examples(tmp_path / "new.jsonl", [Example("taxi", row.dialogue, "x", row.id) for row in rows[:4]])
    for form in ("jsonl", "parquet"):
        command = ["generate", "--run", str(tmp_path / "memory"), "--input", f"new.{form}", "--output", f"{form}.out"]
        assert main([*command, "--batch_size", "2"]) == 0
        assert main([*command, "--batch_size", "2", "--resume"]) == 0
    lines, table = (
        [json.loads(line) | {"key": None} for line in (tmp_path / f"{form}.out").read_text().splitlines()]
        for form in ("jsonl", "parquet")
    )
    assert table[:4] == lines
    assert [row["id"] for row in table] == [row.id for row in rows]
    # a test set without labels has -1
    features = {"info": {"features": {"scenario": {"names": ["taxi", "food"], "_type": "ClassLabel"}}}}
    labelled = new.set_column(0, "scenario", pa.array([0, -1, 0, 1, 0]))
    pq.write_table(labelled.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "labels.parquet")
    assert main([*command[:3], "--input", "labels.parquet", "--output", "labels.out"]) == 3
    answers = [json.loads(line) for line in (tmp_path / "labels.out").read_text().splitlines()]
    assert [answer["scenario"] for answer in answers] == ["taxi", None, "taxi", "food", "taxi"]
    assert [answer["summary"] is None for answer in answers] == [False, True, False, False, False]
    says(answers[1]["error"], "labels.parquet, row 2", "`scenario`", "-1")
    pq.write_table(new.drop_columns(["dialogue"]), tmp_path / "new.parquet")
    assert main(["generate", "--run", str(tmp_path / "memory"), "--input", "new.parquet", "--output", "none.out"]) == 1
    says(capsys.readouterr().err, "new.parquet", "`dialogue`", "`scenario`")


def test_memory_does_not_grow_with_the_texts(tmp_path):
    """The peak while rows are written, and what a training keeps of them, in bytes of Python and numpy."""
    kept, peaks, sizes = [], [], (1_000, 2_000, 12_000)  # the first fills caches
    for size in sizes:
        rows = (Example("taxi" if n % 3 else "food", f"{n} " + "x" * 2000, "y" * 50, f"i{n}") for n in range(size))
        tracemalloc.start()
        stored = store_examples(rows, tmp_path / f"{size}.arrow")
        peaks.append(tracemalloc.get_traced_memory()[1])
        encoded = EncodedExamples(stored, TOKENIZER, ["food", "taxi"])
        sampler = TemperatureBatchSampler(scenario_ids_of(stored, ["food", "taxi"]), 4)
        batch = next(iter(sampler))
        assert [encoded[row]["scenario_ids"] for row in batch] == [int(stored[row].scenario == "taxi") for row in batch]
        kept.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    more = sizes[2] - sizes[1]
    assert peaks[2] - peaks[1] < 20 * more
    assert (kept[2] - kept[1]) / more < 40
    assert np.dtype(np.int32).itemsize <= (kept[2] - kept[1]) / more  # something is measured


@pytest.mark.parametrize("group", [500, 20_000])
def test_a_parquet_file_is_not_kept_while_it_is_read(tmp_path, group):
    drawn = np.random.default_rng(0)
    texts = [drawn.bytes(500).hex() for _ in range(20_000)]  # they do not compress well
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"dialogue": texts}), path, row_group_size=group, use_dictionary=False)
    before = pa.total_allocated_bytes()
    peak = max(pa.total_allocated_bytes() - before for _ in table_of_file(path).rows())
    assert peak < path.stat().st_size / 3
