"""Encoder outputs that are kept: bit-equal to each dialogue alone, equal to no cache, from memory and from disk."""

import shutil
from types import SimpleNamespace

import mop_t5
import pytest
import torch
from method_cases import SCENARIOS, SMALL, backbone, corpus, run
from mop_t5.attachment.additions import Additions
from mop_t5.attachment.caches import CACHE
from mop_t5.attachment.encoder import acting_in_encoder, acting_on_cross_keys, evaluating
from mop_t5.cli.main import main
from mop_t5.data import Collator
from mop_t5.evaluation.generation import encoded
from mop_t5.methods import method_names
from mop_t5.training import EncoderCache, TrainingConfig, encoder_cache

__all__ = ["corpus"]  # a fixture
MOP = SMALL["mop"] | {"others": "none"}
TRAINING = {"steps": 3, "batch_size": 4, "learning_rate": 0.02, "max_source": 200}


def new_model(corpus, *, kind="t5", dtype=torch.float32, **options):
    model = backbone(kind=kind, dtype=dtype, vocab_size=len(corpus[0]), **options)
    torch.manual_seed(0)
    return mop_t5.attach(model, "mop", **MOP)


def batch_of(corpus, max_source=200):
    """Rows of the corpus, of different lengths: their ids, and their batch."""
    tokenizer, rows = corpus
    every = encoded(backbone(vocab_size=len(tokenizer)), tokenizer, rows, SCENARIOS, max_source=max_source)
    chosen = [every[number] for number in (0, 5, 10, 11)]
    sources = [row["input_ids"] for row in chosen]
    assert len(set(map(len, sources))) > 2
    return sources, Collator(tokenizer.pad_token_id, 3)(chosen)


def filled(model, sources, **options):
    cache = EncoderCache(model, sources, **options)
    cache.fill()
    return cache


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trained(corpus, folder, dropout_rate=0.0, resume=False, model=None, **changes):
    model = model or new_model(corpus, dropout_rate=dropout_rate)
    result = run(model, corpus, folder, resume=resume, **TRAINING | changes)
    return weights(model), result.losses


@pytest.mark.parametrize("kind", ["t5", "umt5"])
@pytest.mark.parametrize("cross", [False, True])
def test_bit_equal_to_each_dialogue_alone(corpus, kind, cross):
    model, (sources, batch) = new_model(corpus, kind=kind, dropout_rate=0.1).train(), batch_of(corpus)
    cached = filled(model, sources, cross=cross)(batch)
    assert model.training
    (hidden,) = cached["encoder_outputs"]
    maps = [block.layer[1].EncDecAttention for block in model.decoder.block]
    assert (CACHE in cached) == cross
    for row, ids in enumerate(sources):
        with evaluating(model):
            alone = model.encoder(torch.tensor([ids]), mop_additions=Additions()).last_hidden_state
        assert torch.equal(hidden[row, : len(ids)], alone[0])
        assert not hidden[row, len(ids) :].any()
        layers = cached[CACHE].cross_attention_cache.layers if cross else []
        for attention, layer in zip(maps, layers, strict=cross):
            for kept, made in ((layer.keys, attention.k(alone)), (layer.values, attention.v(alone))):
                assert torch.equal(kept[row, :, : len(ids)].transpose(0, 1).flatten(1), made[0])
    # nothing but the outputs changes: the loss is that of the model with these outputs
    model.eval()
    given = {name: tensor for name, tensor in batch.items() if name != "input_ids"} | {"encoder_outputs": (hidden,)}
    torch.testing.assert_close(
        loss_and_gradients(model, cached),
        loss_and_gradients(model, given),
        **({} if cross else {"rtol": 0, "atol": 0}),
    )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("cross", [False, True])
def test_equal_to_no_cache(corpus, cross, checkpointing):
    model, (sources, batch) = new_model(corpus, dtype=torch.float64), batch_of(corpus)
    model.train().encoder.eval()  # in training the encoder would take fused layers
    expected = loss_and_gradients(model, batch)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    cached = filled(model, sources, cross=cross)(batch)
    torch.testing.assert_close(loss_and_gradients(model.train(), cached), expected, rtol=1e-9, atol=1e-12)
    assert expected[1]


def test_the_decoder_reads_the_kept_keys(corpus):
    """Maps that change after `fill` have no effect: the keys and values are not computed again."""
    model, (sources, batch) = new_model(corpus), batch_of(corpus)
    cached = filled(model, sources, cross=True)(batch)
    expected = loss_and_gradients(model, cached)
    for block in model.decoder.block:
        torch.nn.init.zeros_(block.layer[1].EncDecAttention.k.weight)
    torch.testing.assert_close(loss_and_gradients(model, cached), expected, rtol=0, atol=0)


@pytest.mark.parametrize("changes", [{}, {"cache_cross": True}, {"bf16": True}, {"bf16": True, "cache_cross": True}])
def test_training_with_batches_of_one_is_bit_equal(corpus, tmp_path, changes):
    """A batch of one dialogue has no padding. An encoder in evaluation mode gives the kept bits, then."""
    changes = {"batch_size": 1, "label_smoothing": 0.1, "dropout_rate": 0.1} | changes
    plain = {name: value for name, value in changes.items() if name != "cache_cross"}
    model = new_model(corpus, dropout_rate=0.1).eval()
    model.encoder.train = lambda mode: model.encoder  # stays in evaluation mode
    expected = trained(corpus, tmp_path / "plain", model=model, **plain)
    assert not torch.equal(expected[0]["mop.input"], new_model(corpus).state_dict()["mop.input"])
    got = trained(corpus, tmp_path / "cached", cache_encoder="memory", **changes)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_training_is_equal_to_rounding(corpus, tmp_path):
    changes = {"accumulation": 2, "evaluate_every": 2, "loss": "mean", "learning_rate": 1e-3}
    expected = trained(corpus, tmp_path / "plain", **changes)
    got = trained(corpus, tmp_path / "cached", cache_encoder="memory", cache_cross=True, **changes)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


def test_memory_disk_and_a_second_run_are_bit_equal(corpus, tmp_path, monkeypatch):
    expected = trained(corpus, tmp_path / "memory", 0.1, cache_encoder="memory")
    disk = {"cache_encoder": "disk", "cache_folder": str(tmp_path / "cache")}
    torch.testing.assert_close(trained(corpus, tmp_path / "first", 0.1, **disk), expected, rtol=0, atol=0)
    (file,) = (tmp_path / "cache").iterdir()
    written = file.stat()
    model = new_model(corpus, dropout_rate=0.1)
    monkeypatch.setattr(model.encoder, "forward", None)  # must not be called
    got = trained(corpus, tmp_path / "second", model=model, **disk)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert file.stat() == written
    assert list((tmp_path / "cache").iterdir()) == [file]


def test_resumed_run_is_bit_equal(corpus, tmp_path):
    changes = {"cache_encoder": "memory", "save_every": 2, "dropout_rate": 0.1}
    expected, _ = trained(corpus, tmp_path / "straight", **changes | {"steps": 4})
    trained(corpus, tmp_path / "resumed", **changes | {"steps": 2})
    got, _ = trained(corpus, tmp_path / "resumed", resume=True, **changes | {"steps": 4})
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_what_a_stored_encoding_depends_on(corpus, tmp_path):
    """Other weights, texts, kept tensors and dtypes add encodings, and never read those of another kind."""
    model, (sources, batch) = new_model(corpus), batch_of(corpus)
    filled(model, sources, folder=tmp_path)

    def added(model, sources=sources, **options):
        before = set(tmp_path.iterdir())
        cache = filled(model, sources, folder=tmp_path, **options)
        return cache, set(tmp_path.iterdir()) - before

    assert not added(model, sources[1:])[1]
    _, (longer,) = added(model, [*sources, [5, 6, 7]])
    assert longer.stat().st_size < 3000  # the three tokens alone
    assert len(added(model, [source[:-1] for source in sources])[1]) == 1
    for options in ({"cross": True}, {"bf16": True}):
        assert len(added(model, **options)[1]) == 1
    with torch.no_grad():
        model.shared.weight[sources[0][0], 0] += 1e-3  # one value of many, which hash_weights may not sample
    cache, new = added(model)
    assert len(new) == 1
    expected = filled(model, sources)(batch)["encoder_outputs"][0]
    assert torch.equal(cache(batch)["encoder_outputs"][0], expected)
    model.set_attn_implementation("eager")
    assert len(added(model)[1]) == 1


def test_a_dialogue_that_was_not_given(corpus):
    model, (sources, batch) = new_model(corpus), batch_of(corpus)
    with pytest.raises(ValueError, match="lacks a dialogue"):
        filled(model, sources[:-1])(batch)
    with pytest.raises(ValueError, match="lacks a dialogue"):
        EncoderCache(model, sources)(batch)  # not filled
    with pytest.raises(ValueError, match="0 tokens"):
        EncoderCache(model, [[4], []])


def test_several_processes_share_the_files(corpus, tmp_path, monkeypatch):
    model, (sources, batch) = new_model(corpus), batch_of(corpus)
    expected = filled(model, sources)(batch)["encoder_outputs"][0]
    looked = []
    for rank in (1, 0):
        team = SimpleNamespace(process_index=rank, num_processes=2, wait_for_everyone=lambda: looked.append(1))
        monkeypatch.setattr(encoder_cache, "processes", lambda team=team: team)
        if rank == 1:
            filled(model, sources, folder=tmp_path)
            (first,) = tmp_path.iterdir()
            first.rename(tmp_path / "hidden")  # process 0 had looked before process 1 wrote
        else:
            filled(model, sources, folder=tmp_path)
            (tmp_path / "hidden").rename(first)
    monkeypatch.undo()
    assert len(looked) == 4
    monkeypatch.setattr(model.encoder, "forward", None)
    got = filled(model, sources, folder=tmp_path)(batch)["encoder_outputs"][0]
    assert len(list(tmp_path.iterdir())) == 2
    assert torch.equal(got, expected)


@pytest.mark.parametrize("damage", ["cut", "changed", "renamed", "no safetensors"])
def test_damaged_file(corpus, tmp_path, damage):
    model, (sources, batch) = new_model(corpus), batch_of(corpus)
    filled(model, sources, folder=tmp_path / "one")
    (file,) = (tmp_path / "one").iterdir()
    content = file.read_bytes()
    if damage == "renamed":
        filled(model, sources, folder=tmp_path / "two", cross=True)
        shutil.copy(next((tmp_path / "two").iterdir()), file)
    else:
        other = {"cut": content[:-8], "no safetensors": b"{}" * 9}
        file.write_bytes(other.get(damage, content[:-1] + bytes([content[-1] ^ 1])))
    with pytest.raises(ValueError, match=file.name):
        filled(model, sources, folder=tmp_path / "one")(batch)
    file.unlink()
    filled(model, sources, folder=tmp_path / "one")(batch)
    assert file.read_bytes() == content


def test_failed_writing_leaves_no_file(corpus, tmp_path, monkeypatch):
    model, (sources, _) = new_model(corpus).train(), batch_of(corpus)
    calls = []

    def encode(model, tokens, cross):
        calls.append(tokens)
        return [torch.zeros(len(tokens) - len(calls) // 2, 24)]

    monkeypatch.setattr(encoder_cache, "encode", encode)
    with pytest.raises(RuntimeError, match="shape"):
        filled(model, sources, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert model.training
    assert torch.is_grad_enabled()


def test_size_is_stated_and_limited(corpus, tmp_path, monkeypatch):
    model, (sources, _) = new_model(corpus), batch_of(corpus)
    tokens = sum(map(len, sources))
    cache = filled(model, [*sources, sources[0]], folder=tmp_path)
    assert (cache.tokens, cache.bytes) == (tokens, tokens * 24 * 4)
    header = 4096
    assert 0 <= next(tmp_path.iterdir()).stat().st_size - cache.bytes <= header
    assert "4 different dialogues" in str(cache)
    assert f"{tokens:,} tokens" in str(cache)
    whole = EncoderCache(model, sources, cross=True, bf16=True)
    assert whole.bytes == tokens * 2 * (24 + 2 * 2 * 24)
    assert EncoderCache(model, sources, gigabytes=cache.bytes / 1e9)
    with pytest.raises(ValueError, match=rf"cache_gigabytes .*4 .*dialogues of {tokens:,} .*{cache.bytes:,} .*disk"):
        EncoderCache(model, sources, gigabytes=(cache.bytes - 1) / 1e9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(OSError, match="cache_folder"):
        filled(model, sources, folder=tmp_path / "another")


IN_ENCODER = {
    "mop": "encoder_self",
    "prefix_tuning": "encoder_self",
    "hyper_prefix": "encoder_self.*layer_norm",
    "prompt_tuning": "prompt",
    "attempt": "prompt",
    "fine_tuning": "encoder.embed_tokens.weight",
    "hyperformer": "adapters at (self_attention, feed_forward|feed_forward, self_attention)",
    "compacter": "adapters at (self_attention, feed_forward|feed_forward, self_attention)",
    "adapter": "adapters at (self_attention, feed_forward|feed_forward, self_attention)",
    "bitfit": "adapters at self_attention",
    "task_moe": "experts in 2 encoder blocks",
}


@pytest.mark.parametrize("name", method_names())
def test_methods_that_act_in_the_encoder_are_refused(name):
    model = mop_t5.attach(backbone(), name, **SMALL[name]).train()
    with pytest.raises(ValueError, match=f"{IN_ENCODER[name]}.*others='none'"):
        EncoderCache(model, [[4, 5]])
    assert model.training


def test_what_acts_in_the_encoder():
    model = mop_t5.attach(backbone(), "mop", **MOP)
    assert acting_in_encoder(model) == acting_on_cross_keys(model) == []
    mop_t5.detach(model)
    mop_t5.attach(model, "mop", **MOP | {"attention": ["encoder_self", "cross"], "layers": [1]})
    assert len(acting_in_encoder(model)) == 1
    assert acting_on_cross_keys(model) == []
    mop_t5.detach(model)
    mop_t5.attach(model, "mop", **MOP | {"prefix_length": 0, "others": "mlp"})
    assert acting_in_encoder(model) == []
    mop_t5.detach(model)
    # a plain backbone of which the decoder is trained, without the embeddings
    model.requires_grad_(False).decoder.block[1].requires_grad_(True)
    assert acting_in_encoder(model) == []
    assert "decoder.block.1.layer.1.EncDecAttention.k.weight" in acting_on_cross_keys(model)[0]
    with pytest.raises(ValueError, match=r"cache_cross.*EncDecAttention\.k"):
        EncoderCache(model, [[4, 5]], cross=True)
    model.shared.weight.requires_grad_(True)
    assert len(acting_in_encoder(model)) == 1
    mop_t5.attach(model, "bitfit")
    assert any("cross_attention_k" in phrase for phrase in acting_on_cross_keys(model))


def test_plain_backbone_with_a_frozen_encoder(corpus):
    model, (sources, batch) = backbone(dtype=torch.float64, vocab_size=len(corpus[0])), batch_of(corpus)
    model.requires_grad_(False).decoder.block.requires_grad_(True)
    del batch["scenario_ids"]
    expected = loss_and_gradients(model, batch)
    torch.testing.assert_close(loss_and_gradients(model, filled(model, sources)(batch)), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cache_encoder": "ram"}, "cache_encoder.*'ram'"),
        ({"cache_encoder": "disk"}, "cache_folder.*None"),
        ({"cache_folder": "x"}, "cache_folder.*'x'"),
        ({"cache_cross": True}, "cache_cross"),
        ({"cache_encoder": "memory", "cache_gigabytes": 0}, "cache_gigabytes.*0"),
    ],
)
def test_settings_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**fields)


def test_the_command(place, tmp_path, capsys):
    flags = ["train", "--corpus", str(place / "corpus"), "--backbone", str(place / "backbone"), "--method", "mop"]
    flags += ["--options.prefix_length", "2", "--options.d_mid", "8", "--options.terms_down", "4", "--steps", "2"]
    flags += ["--options.terms_up", "4", "--batch_size", "2", "--save_every", "1", "--output", str(tmp_path / "run")]
    kept = ["--cache_encoder", "disk", "--cache_folder", str(tmp_path / "cache")]
    assert main([*flags, *kept]) == 1
    assert "encoder_self" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    flags += ["--options.others", "none"]
    assert main([*flags, *kept, "--dry_run"]) == 0
    assert "different dialogues" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()
    assert main([*flags, *kept]) == 0
    said = capsys.readouterr().out
    assert "different dialogues" in said
    assert "without dropout" in said
    assert len(list((tmp_path / "cache").iterdir())) == 1
    (tmp_path / "cache").rename(tmp_path / "moved")
    kept[-1] = str(tmp_path / "moved")
    assert main([*flags, *kept, "--cache_gigabytes", "1", "--steps", "3", "--resume"]) == 0
    assert main([*flags, "--steps", "3", "--resume"]) == 1
    assert "cache_encoder was 'disk', now 'no'" in capsys.readouterr().err
