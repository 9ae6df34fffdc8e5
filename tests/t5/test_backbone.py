"""Load, build, freeze, and the output head of its own that transformers 5 would tie."""

import json
import logging
import subprocess
import sys
from dataclasses import asdict

import mop_t5
import pytest
import torch
from mop_t5.backbone import BackboneShape, is_untied
from t5_oracle import KINDS, SIZES, batch, tiny
from transformers import BertConfig, MT5Config, MT5ForConditionalGeneration, T5Config, T5ForConditionalGeneration


def logits(model):
    with torch.no_grad():
        return model(**batch()).logits


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("t5-small", 60_506_624),
        ("t5-base", 222_903_552),
        ("t5-large", 737_668_096),
        ("mt5-small", 300_176_768),
        ("mt5-base", 582_401_280),
        ("t5-pegasus-base", 275_029_248),
    ],
)
def test_known_names_count_as_the_published_models(name, parameters):
    model = mop_t5.build_backbone(name, device="meta")
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert mop_t5.count_parameters(model) == (0, parameters, parameters, 0.0)
    assert name in mop_t5.known_backbones()


def test_t5_pegasus_layer_norms():
    model = mop_t5.build_backbone("t5-pegasus-base", device="meta")
    assert sum(p.numel() for n, p in model.named_parameters() if "layer_norm" in n) == 47_616
    assert model.config.vocab_size == 50_000
    assert model.config.dense_act_fn == "gelu_new"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_keep_the_head_and_the_logits(kind, tied, tmp_path, caplog):
    model = tiny(kind, tie_word_embeddings=tied, dtype=torch.float32)
    assert is_untied(model) is not tied
    expected = logits(model)
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        logging.getLogger("transformers").propagate = True
        loaded = mop_t5.load_backbone(tmp_path)
    assert "tie_word_embeddings" not in caplog.text
    assert torch.equal(logits(loaded), expected)
    assert is_untied(loaded) is not tied
    assert mop_t5.count_parameters(loaded) == mop_t5.count_parameters(model)
    loaded.tie_weights()  # Trainer calls it after it has loaded a checkpoint
    assert torch.equal(logits(loaded), expected)
    assert is_untied(loaded) is not tied
    loaded.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(mop_t5.load_backbone(tmp_path / "again")), expected)
    if kind != "umt5" or tied:  # transformers rescales the output of every umT5, tied or not
        plain = type(model).from_pretrained(tmp_path / "again").eval()
        assert torch.equal(logits(plain), expected)


def test_untied_head_changes_the_logits():
    """The two heads of the test above must differ for it to mean anything."""
    tied, untied = tiny("mt5"), tiny("mt5", tie_word_embeddings=True)
    assert (logits(tied) - logits(untied)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16", None])
def test_load_dtype(dtype, tmp_path):
    tiny(dtype=torch.float32).save_pretrained(tmp_path)
    model = mop_t5.load_backbone(str(tmp_path), dtype=dtype)
    assert model.dtype == (torch.float32 if dtype is None else torch.bfloat16)


def test_frozen_and_in_evaluation_mode(tmp_path):
    model = tiny(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    for one in (model, mop_t5.load_backbone(tmp_path), mop_t5.build_backbone("t5-small", device="meta")):
        assert not any(p.requires_grad for p in one.parameters())
        assert not any(module.training for module in one.modules())


def test_random_weights_depend_on_the_seed_only():
    torch.manual_seed(5)
    expected_next = torch.rand(1)
    torch.manual_seed(5)
    first = tiny(seed=1)
    assert torch.equal(torch.rand(1), expected_next), "the global random state must stay as it was"
    torch.manual_seed(6)
    again, other = tiny(seed=1), tiny(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.shared.weight, other.shared.weight)


def test_build_from_a_config_object():
    config = MT5Config(**SIZES)
    model = mop_t5.build_backbone(config, num_layers=1)
    assert isinstance(model, MT5ForConditionalGeneration)
    assert (model.config.num_layers, model.config.num_decoder_layers) == (1, 3)
    assert config.num_layers == 2, "the caller's config must stay as it was"
    assert not is_untied(model)
    untied = mop_t5.build_backbone(model.config, tie_word_embeddings=False)
    assert is_untied(untied)
    assert is_untied(mop_t5.build_backbone(untied.config))
    t5 = mop_t5.build_backbone(T5Config(**SIZES, tie_word_embeddings=False))
    assert isinstance(t5, T5ForConditionalGeneration)
    assert is_untied(t5)
    assert not t5.config.scale_decoder_outputs
    assert model.config.decoder_start_token_id == t5.config.decoder_start_token_id == 0


def test_overrides_of_a_known_name_reach_the_decoder_too():
    model = mop_t5.build_backbone("t5-base", device="meta", num_layers=3)
    assert BackboneShape.of(model).num_decoder_layers == 3


def test_build_errors():
    with pytest.raises(
        ValueError, match=r"config 't5-smal' is not a known backbone; expected one of t5-small, t5-base"
    ):
        mop_t5.build_backbone("t5-smal")
    with pytest.raises(ValueError, match=r"num_layer: not a field of T5Config. Check the spelling"):
        mop_t5.build_backbone("t5-small", num_layer=2)
    with pytest.raises(ValueError, match=r"model_type t5, mt5, umt5; got 'bert'"):
        mop_t5.build_backbone(BertConfig())
    with pytest.raises(TypeError, match=r"config must be a transformers config or a name; got int"):
        mop_t5.build_backbone(3)
    with pytest.raises(TypeError, match=r"dtype must be a floating torch.dtype or its name.*; got torch.int64"):
        mop_t5.build_backbone("t5-small", dtype=torch.int64)
    with pytest.raises(TypeError, match=r"dtype must be .*; got 'float12'"):
        mop_t5.build_backbone("t5-small", dtype="float12")


def test_load_errors(tmp_path):
    with pytest.raises(ValueError, match=r"has no config.json. Expected a folder written by save_pretrained"):
        mop_t5.load_backbone(tmp_path)
    (tmp_path / "mop_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"It is an adapter folder: load its backbone first"):
        mop_t5.load_backbone(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"holds a 'bert' model; expected t5, mt5, umt5"):
        mop_t5.load_backbone(tmp_path)
    with pytest.raises(OSError, match="no/such-model"):
        mop_t5.load_backbone(str(tmp_path / "no/such-model"))


def test_imports():
    """torch comes on first use; jieba, ROUGE and plotting where they are used, never for kernels or injection."""
    code = """
import sys, mop_t5
assert callable(mop_t5.methods) and "torch" not in sys.modules
assert mop_t5.attach(mop_t5.build_backbone("t5-small", device="meta"), "prefix_tuning")
print([name for name in ("jieba", "rouge", "rouge_score", "matplotlib", "rich") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_folder_that_does_not_say_whether_the_backbone_is_gated_still_fits():
    for kind in ("t5", "t5_gated"):
        shape = BackboneShape.of(tiny(kind))
        older = {name: value for name, value in asdict(shape).items() if name != "is_gated_act"}
        assert shape.differences(older) == []
    assert shape.differences({**older, "is_gated_act": False}) == ["is_gated_act: saved False, here True"]
    assert shape.differences({**older, "d_ff": 1}) == ["d_ff: saved 1, here 32"]
