"""The adapter folder: what is in it, what is refused, and that a failure leaves nothing half written."""

import json
import os

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.storage import adapter_folder
from safetensors.torch import load_file
from t5_oracle import batch, tiny

IDS = torch.tensor([0, 2, 1, 2])
FIELDS = {
    "mop": {"scenarios": ["打车", "ticket", "food"], "prefix_length": 5, "d_mid": 8, "terms_down": 4, "terms_up": 4},
    "prefix_tuning": {"prefix_length": 5, "d_mid": 8},
}


def attached(method="mop", model=None, **overrides):
    torch.manual_seed(11)
    return mop_t5.attach(tiny() if model is None else model, method, **{**FIELDS[method], **overrides})


def logits(model):
    with torch.no_grad():
        return model(**batch(), scenario_ids=IDS).logits


@pytest.mark.parametrize("method", FIELDS)
def test_round_trip(method, tmp_path):
    model = attached(method)
    mop_t5.save(model, tmp_path / "new" / "folder")
    torch.manual_seed(99)
    fresh = tiny()
    loaded = mop_t5.load(fresh, tmp_path / "new" / "folder")
    assert loaded is fresh
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.mop.config == model.mop.config
    assert loaded.scenarios == model.scenarios
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == {
        n for n, _ in loaded.named_parameters() if n.startswith("mop.")
    }
    mop_t5.detach(loaded)
    with torch.no_grad():
        assert torch.equal(loaded(**batch()).logits, tiny()(**batch()).logits)


def test_files(tmp_path):
    model = attached()
    mop_t5.save(model, tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["README.md", "model.safetensors", "mop_config.json"]
    tensors = load_file(tmp_path / "model.safetensors")
    assert {n for n, _ in model.named_parameters() if n.startswith("mop.")} == set(tensors)
    description = json.loads((tmp_path / "mop_config.json").read_text(encoding="utf-8"))
    assert description["method"] == "mop"
    assert description["format_version"] == 2
    assert description["config"]["scenarios"] == ["打车", "ticket", "food"]
    assert description["backbone"]["name"] is None  # built, not loaded
    assert description["backbone"]["shape"]["model_type"] == "t5"
    assert description["backbone"]["shape"]["num_decoder_layers"] == 3
    assert len(description["backbone"]["sha256"]) == 64
    assert "打车" in (tmp_path / "mop_config.json").read_text(encoding="utf-8")
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o444 == 0o444


def test_save_pretrained_writes_the_same_and_no_config(tmp_path):
    model = attached()
    model.save_pretrained(tmp_path / "a")
    mop_t5.save(model, tmp_path / "b")
    for name in ("model.safetensors", "mop_config.json", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not (tmp_path / "a" / "config.json").exists()
    model.save_pretrained(tmp_path / "c", is_main_process=False)
    assert not (tmp_path / "c").exists()
    changed = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "d", state_dict=changed)
    saved = load_file(tmp_path / "d" / "model.safetensors")
    assert torch.equal(saved["mop.input"], model.mop.input + 1)
    with raises(ValueError, "mop_t5.push_to_hub"):
        model.save_pretrained(tmp_path / "e", push_to_hub=True)


def test_trainer_can_load_the_file(tmp_path):
    """Trainer's own loading: load_state_dict(strict=False), and no warning if what is missing was to be ignored."""
    model = attached()
    mop_t5.save(model, tmp_path)
    other = attached()
    with torch.no_grad():
        other.mop.input.zero_()
    result = other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    assert set(result.missing_keys) == other._keys_to_ignore_on_save
    assert not result.unexpected_keys
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("mt5", {}, ("another backbone", "model_type", "t5", "mt5", "is_gated_act", "False", "True")),
        ("t5", {"num_decoder_layers": 2}, ("num_decoder_layers", "3", "2")),
        ("t5", {"d_kv": 16, "num_heads": 2}, ("d_kv", "8", "16", "num_heads", "4", "2")),
        ("t5", {"vocab_size": 50}, ("vocab_size", "40", "50")),
    ],
)
def test_another_backbone_is_refused_and_left_alone(kind, overrides, message, tmp_path):
    mop_t5.save(attached(), tmp_path)
    model = tiny(kind, **overrides)
    before, attributes = {n: p.clone() for n, p in model.state_dict().items()}, dict(vars(model))
    with raises(ValueError, *message):
        mop_t5.load(model, tmp_path)
    assert not mop_t5.is_attached(model)
    assert vars(model) == attributes
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert model.decoder.config._attn_implementation == "sdpa"


def test_broken_folders_are_refused(tmp_path):
    model, config = tiny(), tmp_path / "mop_config.json"
    with raises(FileNotFoundError, "mop_config.json", "mop_t5.save"):
        mop_t5.load(model, tmp_path)
    mop_t5.save(attached(), tmp_path)
    description = json.loads(config.read_text(encoding="utf-8"))

    def rewrite(sign=True, **changes):
        changed = {**description, **changes}
        if sign:  # as a mop_t5 would write it that is not this one
            changed["sha256"] = adapter_folder._checksum(changed, (tmp_path / "model.safetensors").read_bytes())
        config.write_text(json.dumps(changed))

    rewrite(format_version=1)
    with raises(ValueError, "format_version 1", "mop_t5", "2"):
        mop_t5.load(model, tmp_path)
    rewrite(method="unheard_of")
    with raises(ValueError, "method 'unheard_of'"):
        mop_t5.load(model, tmp_path)
    rewrite(config={**description["config"], "d_mid": 16})
    with raises(ValueError, "mop_config.json", "mop.experts", "another shape"):
        mop_t5.load(model, tmp_path)
    rewrite(config={**description["config"], "new_field": 1})
    with raises(ValueError, "field new_field", "MOPConfig"):
        mop_t5.load(model, tmp_path)
    rewrite(config=None)
    with raises(ValueError, "config", "mop_t5.save"):
        mop_t5.load(model, tmp_path)
    rewrite(backbone={"name": None, "shape": {}})
    with raises(ValueError, "sha256", "backbone", "mop_t5.save"):
        mop_t5.load(model, tmp_path)
    rewrite(sign=False, config={**description["config"], "scenarios": ["ticket", "打车", "food"]})
    with raises(ValueError, "damaged"):
        mop_t5.load(model, tmp_path)
    config.write_text("[1, 2")
    with raises(ValueError, "mop_config.json", "damaged"):
        mop_t5.load(model, tmp_path)
    rewrite()
    os.unlink(tmp_path / "model.safetensors")
    with raises(FileNotFoundError, "model.safetensors"):
        mop_t5.load(model, tmp_path)
    assert not mop_t5.is_attached(model)


def other_weights(seed=5):
    return tiny(seed=seed)


def one_other_norm():
    model = tiny()
    with torch.no_grad():
        model.decoder.final_layer_norm.weight[3] += 0.01
    return model


def own_head():
    """The shape says nothing of the head."""
    return tiny(tie_word_embeddings=False)


@pytest.mark.parametrize("other", [other_weights, one_other_norm, own_head])
def test_another_checkpoint_of_the_same_shape_is_refused(other, tmp_path):
    mop_t5.save(attached(), tmp_path)
    model = other()
    with raises(ValueError, "another backbone", "same shape", "other weights"):
        mop_t5.load(model, tmp_path)
    assert not mop_t5.is_attached(model)


def test_the_name_of_the_backbone_is_said(tmp_path):
    tiny().save_pretrained(tmp_path / "somewhere" / "my-t5")
    mop_t5.save(attached(model=mop_t5.load_backbone(tmp_path / "somewhere" / "my-t5")), tmp_path / "adapter")
    text = (tmp_path / "adapter" / "mop_config.json").read_text(encoding="utf-8")
    assert '"name": "my-t5"' in text
    assert "somewhere" not in text
    with raises(ValueError, "another backbone", "'my-t5'", "same shape"):
        mop_t5.load(tiny(seed=5), tmp_path / "adapter")
    mop_t5.load(mop_t5.load_backbone(tmp_path / "somewhere" / "my-t5"), tmp_path / "adapter")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_backbone_is_known_in_another_dtype(dtype, tmp_path):
    single = tiny().to(torch.float32)
    mop_t5.save(attached(model=single), tmp_path)
    loaded = mop_t5.load(tiny().to(torch.float32).to(dtype), tmp_path)
    assert torch.equal(loaded.mop.input, single.mop.input)


def test_other_errors(tmp_path):
    with raises(RuntimeError, "model", "mop_t5.attach"):
        mop_t5.save(tiny(), tmp_path)
    mop_t5.save(attached(), tmp_path)
    with raises(RuntimeError, "method 'mop'", "mop_t5.detach"):
        mop_t5.load(attached(), tmp_path)
    with raises(NotADirectoryError, "file", "directory"):
        mop_t5.save(attached(), tmp_path / "mop_config.json")
    with raises(TypeError, "model", "T5ForConditionalGeneration"):
        mop_t5.load(torch.nn.Linear(2, 2), tmp_path)


def test_a_bfloat16_backbone_loads_a_float32_method(tmp_path):
    model = attached(model=tiny(dtype=torch.bfloat16))
    mop_t5.save(model, tmp_path)
    loaded = mop_t5.load(tiny(dtype=torch.bfloat16), tmp_path)
    assert {p.dtype for p in loaded.mop.parameters()} == {torch.float32}
    assert torch.equal(logits(loaded), logits(model))
