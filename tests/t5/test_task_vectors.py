"""Task vectors: the file, text and Fisher vectors against plain loops, the command."""

import json

import mop_t5
import pytest
import torch
from errors import raises
from mop_lab.task_moe.task_representations import (
    fisher_vectors,
    matrices_of,
    principal_components,
    small_adapters,
    text_vectors,
)
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.cli.main import main
from mop_t5.data import Collator, EncodedExamples, synthetic_corpus, write_examples
from mop_t5.storage import task_vectors
from mop_t5.training import TrainingConfig, train
from safetensors import safe_open
from safetensors.torch import save_file
from t5_oracle import encode, tiny

TASKS = ("food", "taxi", "ticket")


@pytest.fixture(scope="module")
def corpus():
    rows = synthetic_corpus(3, general=60, train=60, valid=5, test=5)
    tokenizer = train_tokenizer([text for row in rows["general"] for text in (row.dialogue, row.summary)], 500)
    return tokenizer, [[row for row in rows["train"] if row.scenario == name][:4] for name in TASKS]


def backbone(tokenizer, **options):
    return tiny(vocab_size=len(tokenizer), **options)


def test_the_file(tmp_path):
    vectors, path = torch.randn(3, 5, dtype=torch.float64), tmp_path / "new" / "vectors.safetensors"
    task_vectors.write(path, ["a", "租车", "c"], vectors, {"kind": "random"})
    content = path.read_bytes()
    for _ in range(20):
        task_vectors.write(path, ["a", "租车", "c"], vectors, {"kind": "random"})
        assert path.read_bytes() == content  # a resumed run compares the checksum
    read = task_vectors.read(path, ["c", "租车"])
    assert read.dtype == torch.float32
    assert read.equal(vectors[[2, 1]].float())
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["task_vectors"])["about"] == {"kind": "random"}
    with raises(ValueError, "d, e", "a, 租车, c"):
        task_vectors.read(path, ["d", "a", "e"])
    with raises(FileNotFoundError, "task vectors", "nowhere'"):
        task_vectors.read(tmp_path / "nowhere", ["a"])
    save_file({"weight": torch.zeros(2)}, tmp_path / "other")
    (tmp_path / "text").write_text("vectors")
    for name in ("list", "deep"):
        metadata = {"task_vectors": {"list": "[1]", "deep": "[" * 100000}[name]}
        save_file({"vectors": torch.zeros(1, 2)}, tmp_path / name, metadata)
    for name in ("other", "text", "list", "deep"):
        with raises(ValueError, f"{name}'", "task vectors"):
            task_vectors.read(tmp_path / name, ["a"])
    with raises(ValueError, "(2, width)", "(3, 5)"):
        task_vectors.write(path, ["a", "b"], vectors, {})
    with raises(ValueError, "vectors", "finite"):
        task_vectors.write(path, ["a"], torch.full((1, 2), torch.nan), {})


def test_a_file_of_an_earlier_version_is_read(tmp_path):
    vectors = torch.randn(2, 3)
    metadata = {"tasks": '["a", "b"]', "about": "{}"}
    save_file({"vectors": vectors}, tmp_path / "vectors", metadata)
    assert task_vectors.read(tmp_path / "vectors", ["b", "a"]).equal(vectors[[1, 0]])


def test_random_vectors_of_more_tasks_begin_alike():
    few = task_vectors.random_vectors(2, 7, seed=3)
    assert task_vectors.random_vectors(5, 7, seed=3)[:2].equal(few)
    assert not task_vectors.random_vectors(2, 7, seed=4).equal(few)
    assert task_vectors.random_vectors(50, 768).std().item() == pytest.approx(1, abs=0.02)


def test_text_vectors_are_means_over_real_tokens_and_rows(corpus):
    tokenizer, rows = corpus
    model = backbone(tokenizer).train()
    vectors = text_vectors(model, tokenizer, rows, max_source=30, batch_size=3)
    assert vectors.shape == (3, 24)
    for vector, examples in zip(vectors, rows):
        means = []
        for example in examples:  # one by one, so without padding
            ids = torch.tensor([tokenizer(example.dialogue, truncation=True, max_length=30)["input_ids"]])
            means.append(encode(model, ids)[0].mean(0))
        torch.testing.assert_close(vector, torch.stack(means).mean(0).float(), atol=1e-6, rtol=1e-5)


def test_fisher_vectors_are_mean_squared_gradients_of_adapters_tuned_alone(corpus, tmp_path, capsys):
    tokenizer, rows = corpus
    training = TrainingConfig(steps=3, batch_size=2, learning_rate=0.01, warmup_steps=0, max_source=30, max_target=12)
    model = backbone(tokenizer, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    vectors = fisher_vectors(model, tokenizer, rows, training)
    assert capsys.readouterr().out.splitlines()[1] == "[2/3] taxi: 3 steps on 4 rows"
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())

    torch.manual_seed(training.seed)
    mop_t5.attach(model, "adapter", scenarios=["taxi"], **small_adapters(24))
    train(model, tokenizer, rows[1], training, output=tmp_path, progress=False)
    encoded = EncodedExamples(rows[1], tokenizer, None, max_source=30, max_target=12)
    total = 0
    for row in range(4):
        model.zero_grad()
        model(**Collator(tokenizer.pad_token_id)([encoded[row]])).loss.backward()
        squares = [p.grad.square().flatten() for name, p in model.mop.named_parameters() if not name.endswith("bias")]
        total = total + torch.cat(squares)
    torch.testing.assert_close(vectors[1], total / 4, atol=1e-12, rtol=1e-4)
    assert vectors.shape[1] < sum(p.numel() for p in model.mop.parameters())
    assert (vectors.var(0) > 0).float().mean() > 0.5


def test_the_posters_adapters():
    """Of a model of BART-base's sizes: 60 matrices of 6,144 numbers."""
    model = mop_t5.build_backbone("t5-base", device="meta", num_layers=6, num_decoder_layers=6)
    mop_t5.attach(model, "adapter", **small_adapters(768))
    assert sum(p.numel() for p in matrices_of(model.mop)) == 60 * 6_144
    assert mop_t5.count_parameters(model).trained == 60 * 6_144 + 30 * (768 + 8)


def test_principal_components():
    vectors = torch.tensor([[3.0, 0, 0, 0], [0, 5, 0, 0], [0, 7, 0, 0], [0, 0, 0, 2]])
    components = principal_components(vectors, 128)
    assert components.shape == (4, 3)
    torch.testing.assert_close(components.std(correction=0), torch.tensor(1.0))
    distances = torch.cdist(components, components)  # those of the directions, but for one factor
    expected = torch.cdist(*[torch.nn.functional.normalize(vectors)] * 2)
    torch.testing.assert_close(distances / distances[0, 1] * 2**0.5, expected, atol=1e-5, rtol=1e-5)
    assert principal_components(vectors, 2).shape == (4, 2)
    with raises(ValueError, "2 tasks", "1", "text", "random"):
        principal_components(vectors[:1], 2)


def test_from_the_command_line(corpus, tmp_path, capsys):
    tokenizer, rows = corpus
    backbone(tokenizer, dtype=torch.float32).save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    write_examples(tmp_path / "corpus" / "train.jsonl", [row for own in rows for row in own])
    base = ["task-vectors", "--corpus", str(tmp_path / "corpus"), "--output"]
    of_model = ["--backbone", str(tmp_path / "backbone"), "--max_source", "20"]
    fisher = ["--kind", "fisher", "--steps", "2", "--batch_size", "2", "--rows", "2", "--width", "2"]
    for kind, more, width in (
        ("random", ["--kind", "random"], 768),
        ("text", of_model, 24),
        ("fisher", [*of_model, *fisher], 2),
    ):
        path = str(tmp_path / f"{kind}.safetensors")
        assert main([*base, path, *more]) == 0
        assert task_vectors.read(path, TASKS).shape == (3, width)
        with safe_open(path, "pt") as file:
            assert json.loads(file.metadata()["task_vectors"])["about"]["kind"] == kind
    out = capsys.readouterr().out
    assert "3 vectors of width 768" in out
    assert "[3/3] ticket: 2 steps on 2 rows" in out
    for more, message in (
        (["--kind", "mean"], "kind must be one of 'random', 'text', 'fisher'; got 'mean'"),
        (["--kind", "random", *of_model], "backbone must be given for text and fisher, and only there; got"),
        ([], "backbone must be given for text and fisher, and only there; got None for text"),
        ([*of_model, "--width", "3"], "width is not for kind 'text'"),
        ([*of_model, "--rows", "0"], "rows must be at least 1; got 0"),
        ([*of_model, "--scenarios", "[train]"], "scenarios names train, which have no rows"),
    ):
        assert main([*base, str(tmp_path / "new"), *more]) == 1
        assert message in capsys.readouterr().err
    assert main([*base, str(tmp_path / "text.safetensors"), *of_model]) == 1
    assert "exists. Choose another --output or pass --overwrite" in capsys.readouterr().err
