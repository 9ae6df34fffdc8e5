"""Where a backbone is loaded from, and where its layers lie."""

import json
import shutil
from dataclasses import asdict

import mop_t5
import pytest
import torch
from errors import raises, says
from method_cases import SMALL, attach_moved
from mop_t5.backbone.identity import hash_weights
from mop_t5.backbone.settings import LoadingSettings
from mop_t5.backbone.tokenizer import load_tokenizer
from mop_t5.backbone.weights import device_of, weights_of
from mop_t5.cli.main import main
from mop_t5.operations.run_folder import load_run, read_settings, write_settings
from mop_t5.training import TrainingConfig, train
from t5_oracle import batch, tiny

IDS = torch.tensor([0, 2, 1, 2])
SIZES = {"d_kv": 6, "num_decoder_layers": 2, "dropout_rate": 0.0}
ON_DISK = {
    **dict.fromkeys(("shared", "encoder", "decoder.embed_tokens", "decoder.final_layer_norm", "lm_head"), "cpu"),
    "decoder.block": "disk",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    tiny("t5_gated", dtype=torch.float32, **SIZES).save_pretrained(folder)
    return folder


def logits(model):
    given = {"scenario_ids": IDS} if mop_t5.is_attached(model) else {}
    with torch.no_grad():
        return model(**batch(), **given).logits


def gradients(model, **options):
    model.train()
    inputs = batch()
    model(**inputs, labels=inputs["decoder_input_ids"], scenario_ids=IDS, **options).loss.backward()
    model.eval()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


# ---- the hub


@pytest.fixture
def asked(monkeypatch, place, tmp_path):
    """The questions to a hub. Its cache, tmp_path, has the backbone of `place` in the folder "small" of owner/name."""
    from huggingface_hub.errors import EntryNotFoundError
    from transformers.utils import hub

    commit, questions = "0" * 40, []
    repository = tmp_path / "models--owner--name"
    shutil.copytree(place / "backbone", repository / "snapshots" / commit / "small")
    (repository / "refs").mkdir()
    (repository / "refs" / "v2").write_text(commit)

    def download(name, file, *, subfolder, revision, cache_dir, token, **others):
        questions.append((name, subfolder, revision, str(cache_dir), token))
        if not (place / "backbone" / file).is_file():
            raise EntryNotFoundError(f"no {file}")

    def download_several(name, *, allow_patterns, revision, cache_dir, token, **others):
        for path in allow_patterns:
            questions.append((name, path.partition("/")[0], revision, str(cache_dir), token))

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "snapshot_download", download_several)
    # transformers lists the repository for chat templates, and would wait for the network
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_tree", lambda *_, **__: iter(()))
    return questions


@pytest.mark.parametrize("load", [mop_t5.load_backbone, load_tokenizer])
def test_every_question_to_the_hub_names_revision_subfolder_token_and_cache(load, asked, place, tmp_path):
    loaded = load("owner/name", revision="v2", subfolder="small", token="hf_secret", cache_dir=tmp_path)
    assert len(asked) >= 3  # transformers finds the other files by the commit
    assert set(asked) == {("owner/name", "small", "v2", str(tmp_path), "hf_secret")}
    assert type(loaded) is type(load(place / "backbone"))


def test_a_subfolder_of_a_folder(place):
    model = mop_t5.load_backbone(place, subfolder="backbone")
    assert torch.equal(model.shared.weight, mop_t5.load_backbone(place / "backbone").shared.weight)
    assert len(load_tokenizer(place, subfolder="backbone")) == model.config.vocab_size
    with raises(ValueError, "subfolder", "'backbones'"):
        mop_t5.load_backbone(place, subfolder="backbones")


@pytest.mark.parametrize("load", [mop_t5.load_backbone, load_tokenizer])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"revision": "main"}, ValueError, ("revision", "'main'", "folder")),
        ({"revision": 3}, TypeError, ("revision", "3")),
        ({"subfolder": "../other"}, ValueError, ("subfolder", "'../other'")),
        ({"subfolder": None}, TypeError, ("subfolder", "None")),
        ({"token": 17}, TypeError, ("token", "int")),
        ({"cache_dir": 17}, TypeError, ("cache_dir", "17")),
    ],
)
def test_wrong_places(load, arguments, error, message, folder):
    with raises(error, *message):
        load(folder, **arguments)


# ---- devices


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"device_map": "automatic"}, ValueError, ("device_map", "auto", "'automatic'")),
        ({"device_map": 1.5}, TypeError, ("device_map", "1.5")),
        ({"device_map": True}, TypeError, ("device_map", "True")),
        ({"device_map": {}}, ValueError, ("device_map", "{}")),
        ({"device_map": {"encoder": "gpu"}}, ValueError, ("device_map['encoder']", "'gpu'")),
        ({"device_map": "meta"}, ValueError, ("device_map", "'meta'")),
        ({"device_map": "cuda:7"}, ValueError, ("device_map", "'cuda:7'", "GPUs")),
        ({"device_map": {"encoder": "cpu"}}, ValueError, ("device_map", "shared.weight")),
        ({"device_map": {"encodr": "cpu"}}, ValueError, ("device_map", "encodr", "encoder")),
        ({"max_memory": {0: "1GiB"}}, ValueError, ("max_memory", "device_map", "None")),
        ({"device_map": "auto", "max_memory": {}}, TypeError, ("max_memory", "{}")),
        ({"device_map": "auto", "max_memory": {"cpu": "much"}}, ValueError, ("max_memory['cpu']", "'much'")),
        ({"device_map": "auto", "max_memory": {"gpu": 3}}, ValueError, ("'gpu'", "max_memory")),
        ({"offload_folder": 3}, TypeError, ("offload_folder", "3")),
        ({"quantization_config": "8bit"}, TypeError, ("quantization_config", "'8bit'")),
        ({"attn_implementation": "fast"}, ValueError, ("fast",)),
        ({"device_map": {**ON_DISK, "decoder.embed_tokens": "disk"}}, ValueError, ("decoder.embed_tokens", "disk")),
    ],
)
def test_wrong_arguments(arguments, error, message, folder):
    with raises(error, *message):
        mop_t5.load_backbone(folder, **arguments)


@pytest.mark.parametrize("device_map", ["auto", "cpu", torch.device("cpu"), {"": "cpu"}])
def test_one_device_has_no_hooks(device_map, folder):
    model = mop_t5.load_backbone(folder, device_map=device_map)
    assert torch.equal(logits(model), logits(mop_t5.load_backbone(folder)))
    assert not any("forward" in vars(module) for module in model.modules())


def test_attention_implementation(folder):
    model = mop_t5.load_backbone(folder, attn_implementation="eager")
    assert {one.config._attn_implementation for one in (model, model.encoder, model.decoder)} == {"eager"}


@pytest.mark.parametrize("kind", ["t5", "t5_gated"])
def test_all_on_the_disk(kind, tmp_path):
    tiny(kind, dtype=torch.float32, **SIZES).save_pretrained(tmp_path)
    model, plain = mop_t5.load_backbone(tmp_path, device_map={"": "disk"}), mop_t5.load_backbone(tmp_path)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert device_of(model.shared) == torch.device("cpu")
    assert torch.equal(logits(model), logits(plain))
    assert hash_weights(weights_of(model)) == hash_weights(weights_of(plain))
    with raises(ValueError, "device_map", "shared", "max_memory"):
        mop_t5.attach(model, "prompt_tuning", prefix_length=3)
    assert torch.equal(logits(model), logits(plain))


# methods that can leave all weights of the backbone alone
METHODS: dict[str, dict[str, bool]] = {name: {} for name in SMALL if name not in ("fine_tuning", "task_moe")}
METHODS |= {name: {"layer_norms": False} for name in ("adapter", "compacter", "hyperformer", "hyper_prefix")}


@pytest.mark.parametrize("name", METHODS)
def test_methods_on_layers_that_are_on_the_disk(name, folder, tmp_path):
    model, plain = mop_t5.load_backbone(folder, device_map=ON_DISK), mop_t5.load_backbone(folder)
    before = logits(model)
    for one in (model, plain):
        attach_moved(one, name, **METHODS[name])
    torch.testing.assert_close(logits(model), logits(plain), atol=1e-5, rtol=1e-5)
    ours, theirs = gradients(model, skip_logits=True), gradients(plain)
    largest = float(max(gradient.abs().max() for gradient in theirs.values()))
    assert largest > 1e-4
    for parameter, gradient in theirs.items():
        torch.testing.assert_close(ours[parameter], gradient, atol=1e-5 * largest, rtol=1e-3)
    inputs = {k: v for k, v in batch().items() if k != "decoder_input_ids"}
    texts = [one.generate(**inputs, scenario_ids=IDS, max_new_tokens=4, num_beams=2) for one in (model, plain)]
    assert torch.equal(*texts)
    mop_t5.save(model, tmp_path)
    loaded = mop_t5.load(mop_t5.load_backbone(folder), tmp_path)  # the identity does not depend on the place
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-5)
    mop_t5.detach(model)
    assert torch.equal(logits(model), before)
    model = mop_t5.load(model, tmp_path)
    torch.testing.assert_close(logits(model), logits(loaded), atol=1e-5, rtol=1e-5)


def test_what_layers_on_the_disk_cannot_do(folder, tmp_path):
    model = mop_t5.load_backbone(folder, device_map=ON_DISK)
    before = logits(model)
    with raises(ValueError, "'fine_tuning'", "device_map", "trained"):
        mop_t5.attach(model, "fine_tuning")
    with raises(RuntimeError, "forward", "device_map"):
        attach_moved(model, "task_moe")
    assert torch.equal(logits(model), before)
    attach_moved(model, "prompt_tuning")
    with raises(ValueError, "device_map", "Trainer"):
        train(model, None, [], TrainingConfig(), output=tmp_path)


# ---- the settings of commands


def test_settings_are_checked():
    for fields, error, message in (
        ({"quantise": "3bit"}, ValueError, ("quantise", "'8bit'", "'3bit'")),
        ({"quantise": 8}, TypeError, ("quantise", "8")),
        ({"dtype": "int8"}, TypeError, ("dtype", "torch.int8")),
        ({"attn_implementation": "flash"}, ValueError, ("attn_implementation", "'sdpa'", "'flash'")),
        ({"device_map": 3.5}, TypeError, ("device_map", "3.5")),
    ):
        with raises(error, *message):
            LoadingSettings(**fields)


def test_a_package_that_is_missing(folder, monkeypatch):
    from mop_t5.backbone import quantisation

    monkeypatch.setattr(quantisation, "find_spec", lambda name: None)
    for scheme, package in (("8bit", "bitsandbytes"), ("int4", "torchao")):
        with raises(ImportError, f"quantise='{scheme}'", package, "mop-kernels[quantised]"):
            LoadingSettings(quantise=scheme).load(folder)


def test_commands_load_a_backbone_as_it_was_trained(place, tmp_path, capsys):
    run, other = tmp_path / "run", tmp_path / "moved"
    base = ["train", "--corpus", str(place / "corpus"), "--backbone", str(place), "--subfolder", "backbone"]
    base += ["--method", "prompt_tuning", "--options.prefix_length", "2", "--steps", "1", "--max_target", "8"]
    base += ["--dtype", "bfloat16", "--device_map", "auto", "--max_memory", '{"cpu": "1GiB"}']
    base += ["--attn_implementation", "eager", "--output", str(run)]
    assert main(base) == 0
    settings = read_settings(run)
    expected = {"dtype": "bfloat16", "device_map": "auto", "max_memory": {"cpu": "1GiB"}, "subfolder": "backbone"}
    assert settings.items() >= {**expected, "quantise": "no", "attn_implementation": "eager"}.items()
    model, _, _ = load_run(run)
    assert model.shared.weight.dtype == torch.bfloat16
    assert mop_t5.detach(model).encoder.config._attn_implementation == "eager"
    (place / "backbone").rename(other)
    try:
        assert load_run(run, str(other))[0].shared.weight.dtype == torch.bfloat16
    finally:
        other.rename(place / "backbone")
    assert main([*base[:-1], str(tmp_path / "again"), "--config", str(run / "run.json"), "--dry_run"]) == 0
    capsys.readouterr()
    assert main([*base, "--dtype", "float32", "--resume"]) == 1
    says(capsys.readouterr().err, "configuration", "dtype", "'bfloat16'", "'float32'")
    write_settings(run, settings | {"device_map": "cuda:99", "max_memory": None})
    assert main(["evaluate", "--run", str(run)]) == 1
    says(capsys.readouterr().err, "device_map", "'cuda:99'", str(run / "run.json"))


def test_a_run_of_an_earlier_version_loads(place, tmp_path):
    base = ["train", "--corpus", str(place / "corpus"), "--backbone", str(place / "backbone"), "--steps", "1"]
    assert main([*base, "--method", "prompt_tuning", "--max_target", "8", "--output", str(tmp_path / "run")]) == 0
    new = set(asdict(LoadingSettings()))
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    write_settings(tmp_path / "run", {name: value for name, value in settings.items() if name not in new})
    assert read_settings(tmp_path / "run").items() >= asdict(LoadingSettings()).items()
    assert load_run(tmp_path / "run")[0].shared.weight.dtype == torch.float32
