"""Methods on backbones that bitsandbytes and torchao have quantised."""

import json
from importlib.util import find_spec

import mop_t5
import pytest
import torch
from errors import raises, says
from method_cases import SMALL, attach_moved, corpus, run
from mop_t5.backbone.identity import hash_weights
from mop_t5.backbone.load import is_untied
from mop_t5.backbone.settings import LoadingSettings
from mop_t5.backbone.weights import is_quantised, weights_of
from mop_t5.data import write_examples
from mop_t5.operations.run_folder import load_run
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from t5_oracle import batch, tiny

import mop_kernels

__all__ = ["corpus"]

if not all(map(find_spec, ("bitsandbytes", "torchao"))):
    pytest.skip("bitsandbytes and torchao are not installed: make test-extras", allow_module_level=True)

SCHEMES = ("8bit", "4bit", "int8", "int4")
IDS = torch.tensor([0, 2, 1, 2])
# groups of 32 and 64 weights share a scale; Compacter needs d_model // 3 to be divisible by 4
SIZES = {"d_model": 96, "d_kv": 24, "d_ff": 128, "num_decoder_layers": 2, "dropout_rate": 0.0}
TRAINS_BLOCKS = {"fine_tuning": SCHEMES, "task_moe": ("8bit", "4bit")}  # torchao's blocks can be copied


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a backbone with a tied head and of a gated one with an untied head."""
    made = {}
    for kind in ("t5", "t5_gated"):
        made[kind] = tmp_path_factory.mktemp(kind)
        tiny(kind, dtype=torch.float32, **SIZES).save_pretrained(made[kind])
    return made


def load(folder, scheme, **settings):
    return LoadingSettings(quantise=scheme, **settings).load(folder)


def logits(model):
    model.eval()
    given = {"scenario_ids": IDS} if mop_t5.is_attached(model) else {}
    with torch.no_grad():
        return model(**batch(), **given).logits


def gradients(model, **options):
    model.train()
    inputs = batch()
    model(**inputs, labels=inputs["decoder_input_ids"], scenario_ids=IDS, **options).loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


CASES = [(name, scheme) for name in SMALL for scheme in ("8bit", "4bit")]
CASES += [(name, scheme) for name in ("mop", "adapter", *TRAINS_BLOCKS) for scheme in ("int8", "int4")]


@pytest.mark.parametrize(("name", "scheme"), CASES)
def test_every_method_that_leaves_the_weights_frozen(name, scheme, folders, tmp_path):
    folder = folders["t5_gated" if name in ("mop", "bitfit") else "t5"]
    model = load(folder, scheme)
    before, content = logits(model), hash_weights(weights_of(model))
    if scheme in TRAINS_BLOCKS.get(name, ()):
        with raises(ValueError, "quantised"):
            attach_moved(model, name)
        assert torch.equal(logits(model), before)
        return
    attach_moved(model, name)
    fused = gradients(model, skip_logits=True)
    with mop_kernels.use_backend("reference"):
        plain = gradients(model)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in fused.values())
    largest = max(gradient.norm() for gradient in plain.values())
    assert largest > 1e-4
    for parameter, gradient in plain.items():
        torch.testing.assert_close(fused[parameter], gradient, atol=1e-4 * float(largest), rtol=1e-3)
    mop_t5.save(model, tmp_path)
    loaded, expected = mop_t5.load(load(folder, scheme), tmp_path), logits(model)
    assert not torch.equal(expected, before)
    assert torch.equal(logits(loaded), expected)
    inputs = {k: v for k, v in batch().items() if k != "decoder_input_ids"}
    texts = [one.generate(**inputs, scenario_ids=IDS, max_new_tokens=4, num_beams=2) for one in (model, loaded)]
    assert torch.equal(*texts)
    mop_t5.detach(model)
    assert torch.equal(logits(model), before)
    assert hash_weights(weights_of(model)) == content


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_adapter_belongs_to_its_quantised_backbone(scheme, folders, tmp_path):
    mop_t5.save(attach_moved(load(folders["t5"], scheme)), tmp_path)
    for other in {"no", *SCHEMES} - {scheme}:
        with raises(ValueError, "another backbone", "other weights"):
            mop_t5.load(load(folders["t5"], other), tmp_path)


@pytest.mark.parametrize("scheme", ["8bit", "4bit"])
def test_scales_are_part_of_the_identity(scheme, folders):
    """A backbone of twice the weights has the same integers."""
    model, double = load(folders["t5"], scheme), load(folders["t5"], scheme)
    weight = double.encoder.block[0].layer[0].SelfAttention.q.weight
    (weight.SCB if scheme == "8bit" else weight.quant_state.absmax).mul_(2)
    assert hash_weights(weights_of(model)) != hash_weights(weights_of(double))


@pytest.mark.parametrize("kind", ["t5", "t5_gated"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_saved_quantised(kind, scheme, folders, tmp_path):
    model = load(folders[kind], scheme)
    assert any(map(is_quantised, model.parameters()))
    assert mop_t5.count_parameters(model) == mop_t5.count_parameters(mop_t5.load_backbone(folders[kind]))
    assert is_untied(model) == (kind == "t5_gated")
    assert (logits(model) - logits(mop_t5.load_backbone(folders[kind]))).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    again = mop_t5.load_backbone(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert hash_weights(weights_of(again)) == hash_weights(weights_of(model))
    with raises(ValueError, "quantised already", "quantization_config"):
        load(tmp_path, "8bit")


@pytest.mark.parametrize("scheme", ["8bit", "int4"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w, q: {n: t for n, t in w.items() if n != q}, ("missing",)),
        (lambda w, q: w | {"head.bias": torch.zeros(2)}, ("head.bias", "unknown")),
        (lambda w, q: w | {q: w[q][:-1]}, ("q.weight", "(95, 96)", "(96, 96)")),
        (lambda w, q: w | {q: w[q] * float("nan")}, ("not finite", "q")),
        (lambda w, q: {n: t for n, t in w.items() if n != "shared.weight"}, ("shared.weight", "missing")),
    ],
)
def test_a_checkpoint_that_does_not_fit(scheme, change, message, folders, tmp_path):
    weights = load_file(folders["t5"] / "model.safetensors")
    weights = change(weights, "encoder.block.1.layer.0.SelfAttention.q.weight")
    save_file({name: t.contiguous() for name, t in weights.items()}, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((folders["t5"] / "config.json").read_bytes())
    with raises(ValueError, *message):
        load(tmp_path, scheme)


@pytest.mark.parametrize("scheme", ["8bit", "4bit", "int8"])
def test_a_quantised_checkpoint_that_does_not_fit(scheme, folders, tmp_path):
    load(folders["t5"], scheme).save_pretrained(tmp_path)
    path, layer = tmp_path / "model.safetensors", "encoder.block.1.layer.0.SelfAttention.q"
    whole = f"{layer}._weight_qdata" if scheme == "int8" else f"{layer}.weight"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    weights = load_file(path)
    for change, message in (
        (lambda w: {n: t for n, t in w.items() if n != whole}, ()),  # the error is of transformers
        (lambda w: {n: t for n, t in w.items() if n != "shared.weight"}, ("shared.weight", "missing")),
        (lambda w: w | {whole: w[whole][:-1]}, ("q.weight", "has shape")),
        (lambda w: w | {n: t * float("nan") for n, t in w.items() if n.endswith(("q.SCB", "q.weight.absmax"))}, ()),
    ):
        changed = {name: tensor.contiguous() for name, tensor in change(weights).items()}
        if all(torch.equal(changed.get(name, torch.zeros(0)), tensor) for name, tensor in weights.items()):
            continue  # torchao has no scale of this name
        save_file(changed, path, metadata)
        with raises(ValueError, str(tmp_path), *message):
            mop_t5.load_backbone(tmp_path)


def test_activations_that_are_quantised_are_refused(folders):
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig
    from transformers import TorchAoConfig

    config = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    model = mop_t5.load_backbone(folders["t5"], quantization_config=config)
    with raises(ValueError, "encoder.block.0", "no gradient", "weight-only"):
        attach_moved(model)
    assert not mop_t5.is_attached(model)


def test_an_evaluation_does_not_change_4_bit_weights(folders):
    """On a CPU with AVX512-BF16 bitsandbytes would repack them, and cut their gradients."""
    model = attach_moved(load(folders["t5"], "4bit"))
    before = gradients(model)
    logits(model)
    after = gradients(model)
    assert all(torch.equal(after[name], gradient) for name, gradient in before.items())
    layer = model.encoder.block[0].layer[0].SelfAttention.q
    layer.weight.quant_state.packing_format_for_cpu = True
    with raises(ValueError, "SelfAttention.q", "repacked"):
        attach_moved(mop_t5.detach(model))


def test_one_line_about_casts(folders, caplog):
    model = load(folders["t5"], "8bit")
    logits(model)
    logits(attach_moved(model))
    assert caplog.text.count("will be cast") <= 1


def test_the_loss_is_that_of_the_backbone_in_bfloat16(corpus, tmp_path):
    tokenizer, _ = corpus
    folder = tmp_path / "backbone"
    tiny(dtype=torch.float32, vocab_size=len(tokenizer), **SIZES).save_pretrained(folder)
    losses = {}
    for scheme in ("no", "8bit", "4bit"):
        model = load(folder, scheme, dtype="bfloat16" if scheme == "no" else None)
        torch.manual_seed(11)
        mop_t5.attach(model, "mop", **SMALL["mop"])
        result = run(model, corpus, tmp_path / scheme, steps=24, log_every=6)
        losses[scheme] = [loss for _, loss in result.losses]
    first, last = losses["no"][0], losses["no"][-1]
    assert last < first - 0.3
    for scheme in ("8bit", "4bit"):
        assert losses[scheme][-1] == pytest.approx(last, abs=0.15 * (first - last)), losses


def test_encoder_outputs_can_be_kept(corpus, tmp_path):
    tokenizer, _ = corpus
    tiny(dtype=torch.float32, vocab_size=len(tokenizer), **SIZES).save_pretrained(tmp_path / "backbone")
    losses = []
    for cache in ("no", "disk"):
        model = load(tmp_path / "backbone", "4bit")
        torch.manual_seed(11)
        mop_t5.attach(model, "mop", **SMALL["mop"], attention=["decoder_self", "cross"], others="none")
        folder = {"cache_folder": str(tmp_path / "kept")} if cache == "disk" else {}
        result = run(model, corpus, tmp_path / cache, steps=3, log_every=1, cache_encoder=cache, **folder)
        losses.append([loss for _, loss in result.losses])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_resumed_run_is_not_warned_of_frozen_weights(corpus, tmp_path, monkeypatch):
    said, tokenizer = [], corpus[0]
    monkeypatch.setattr("transformers.trainer.logger.warning", said.append)
    tiny(dtype=torch.float32, vocab_size=len(tokenizer), **SIZES).save_pretrained(tmp_path / "backbone")
    for steps, resume in ((2, False), (3, True)):
        model = attach_moved(load(tmp_path / "backbone", "8bit"), "prompt_tuning")
        run(model, corpus, tmp_path / "run", steps=steps, save_every=2, resume=resume)
    assert not [message for message in said if "keys" in message]


def test_commands_load_the_backbone_as_it_was_trained(corpus, tmp_path, capsys):
    from mop_t5.cli.main import main

    tokenizer, rows = corpus
    for split in ("train", "test"):
        write_examples(tmp_path / "corpus" / f"{split}.jsonl", rows)
    tiny(dtype=torch.float32, vocab_size=len(tokenizer), **SIZES).save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    start = ["train", "--corpus", str(tmp_path / "corpus"), "--steps", "2", "--batch_size", "4", "--max_target", "8"]
    base = [*start, "--backbone", str(tmp_path / "backbone"), "--quantise", "int8"]
    assert main([*base, "--output", str(tmp_path / "all")]) == 1
    says(capsys.readouterr().err, "quantise", "'int8'", "frozen")
    assert not (tmp_path / "all").exists()
    base += ["--method", "prompt_tuning", "--output", str(tmp_path / "run"), "--save_every", "1"]
    assert main(base) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["quantise"] == "int8"
    model, _, _ = load_run(tmp_path / "run")
    assert type(model.encoder.block[0].layer[0].SelfAttention.q.weight).__name__ == "Int8Tensor"
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--floors", "false"]) == 0
    assert main([*base, "--steps", "3", "--resume"]) == 0
    capsys.readouterr()
    assert main([*base, "--quantise", "no", "--resume"]) == 1
    says(capsys.readouterr().err, "configuration", "quantise", "'int8'", "'no'")
    saved, other = tmp_path / "saved", tmp_path / "other"
    for place, scheme in ((saved, "int8"), (other, "8bit")):
        load(tmp_path / "backbone", scheme).save_pretrained(place)
        tokenizer.save_pretrained(place)
        assert main([*start, "--backbone", str(place), "--output", str(tmp_path / "all")]) == 1
        says(capsys.readouterr().err, "backbone", str(place), "quantised", "frozen")
        assert not (tmp_path / "all").exists()
    assert torch.equal(logits(load_run(tmp_path / "run", str(saved))[0]), logits(load_run(tmp_path / "run")[0]))
    with raises(ValueError, "another backbone", "other weights"):
        load_run(tmp_path / "run", str(other))
