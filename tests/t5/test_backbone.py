"""Load, build, freeze, and the output head of its own that transformers 5 would tie."""

import json
import logging
import subprocess
import sys
from dataclasses import asdict

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.backbone import load as backbone
from mop_t5.backbone.load import BackboneShape, is_untied
from safetensors.torch import load_file, save_file
from t5_oracle import KINDS, SIZES, batch, tiny
from transformers import (
    BertConfig,
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5Model,
    UMT5Config,
)


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
    loaded.set_attn_implementation(model.encoder.config._attn_implementation)
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
        attention = model.decoder.config._attn_implementation
        plain = type(model).from_pretrained(tmp_path / "again", attn_implementation=attention).eval()
        assert torch.equal(logits(plain), expected)


@pytest.mark.parametrize(("version", "implementation"), [("5.17.0", "eager"), ("5.18.0", "sdpa")])
def test_umt5_is_causal_in_every_release(version, implementation, tmp_path, monkeypatch):
    """Up to 5.17 it is not with sdpa."""
    monkeypatch.setattr(backbone.transformers, "__version__", version)
    for config, expected in ((UMT5Config(**SIZES), implementation), (MT5Config(**SIZES), "sdpa")):
        built = mop_t5.build_backbone(config)
        built.save_pretrained(tmp_path)
        for model in (built, mop_t5.load_backbone(tmp_path)):
            assert {owner.config._attn_implementation for owner in (model, model.encoder, model.decoder)} == {expected}


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
    with raises(ValueError, "config", "'t5-smal'", "t5-small, t5-base"):
        mop_t5.build_backbone("t5-smal")
    with raises(ValueError, "num_layer", "T5Config"):
        mop_t5.build_backbone("t5-small", num_layer=2)
    with raises(ValueError, "model_type t5, mt5, umt5", "'bert'"):
        mop_t5.build_backbone(BertConfig())
    with raises(TypeError, "config", "int"):
        mop_t5.build_backbone(3)
    with raises(TypeError, "dtype", "torch.dtype", "torch.int64"):
        mop_t5.build_backbone("t5-small", dtype=torch.int64)
    with raises(TypeError, "dtype", "'float12'"):
        mop_t5.build_backbone("t5-small", dtype="float12")


def test_a_config_that_asks_for_tuples(tmp_path):
    tiny().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"return_dict": False}))
    model = mop_t5.load_backbone(tmp_path)
    tokens = torch.tensor([[5, 6, 7, 1]])
    assert model.generate(tokens, max_new_tokens=2, use_cache=False).shape == (1, 3)
    assert model(tokens, labels=tokens).loss.isfinite()


def test_load_errors(tmp_path):
    with raises(ValueError, "config.json", "save_pretrained"):
        mop_t5.load_backbone(tmp_path)
    (tmp_path / "mop_config.json").write_text("{}")
    with raises(ValueError, "config.json", "adapter folder", "mop_t5.load(backbone, folder)"):
        mop_t5.load_backbone(tmp_path)
    for other, cure in (
        ("adapter_config.json", ("PEFT", "merge_and_unload()", "save_pretrained")),
        ("run.json", ("run.json", "backbone")),
    ):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / other).write_text("{}")
        with raises(ValueError, *cure):
            mop_t5.load_backbone(tmp_path / "x")
        (tmp_path / "x" / other).unlink()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with raises(ValueError, "'bert'", "t5, mt5, umt5"):
        mop_t5.load_backbone(tmp_path)
    with raises(OSError, "no/such-model"):
        mop_t5.load_backbone(str(tmp_path / "no/such-model"))
    (tmp_path / "adapter_config.json").write_text("{}")
    with raises(ValueError, "PEFT (adapter_config.json)"):
        mop_t5.load_backbone(tmp_path)


# checkpoints whose weights are not those of their config.json

QUERY = "encoder.block.1.layer.0.SelfAttention.q.weight"
CROSS_BIAS = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def without(*starts):
    return lambda weights: {name: tensor for name, tensor in weights.items() if not name.startswith(starts)}


def with_prefix(prefix):
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def with_query(change):
    return lambda weights: weights | {QUERY: change(weights[QUERY])}


def again(*names):
    """The shared table under more names, as older releases of transformers wrote it."""
    return lambda weights: weights | {f"{name}.weight": weights["shared.weight"].clone() for name in names}


@pytest.fixture
def checkpoint(tmp_path):
    """checkpoint(kind, change, config): a model, and its checkpoint with changed weights and fields of config.json."""

    def make(kind="t5", change=None, config=None, file="model.safetensors"):
        model = tiny(kind, dtype=torch.float32)
        model.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        weights = load_file(path)
        path.unlink()
        weights = weights if change is None else change(weights)
        if file == path.name:
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, metadata={"format": "pt"})
        else:
            torch.save(weights, tmp_path / file)
        fields = json.loads((tmp_path / "config.json").read_text()) | (config or {})
        (tmp_path / "config.json").write_text(json.dumps(fields))
        return model, tmp_path

    return make


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("t5", None),
        ("mt5", None),
        ("t5", again("encoder.embed_tokens", "decoder.embed_tokens", "lm_head")),
        ("t5", lambda weights: without("shared")(again("encoder.embed_tokens")(weights))),
        ("t5", lambda weights: weights | {CROSS_BIAS: torch.zeros(8, 4)}),
        ("t5", with_prefix("transformer.")),
        ("t5", lambda weights: {name: tensor.double() for name, tensor in weights.items()}),
    ],
)
def test_checkpoints_with_all_weights(kind, change, file, checkpoint):
    model, folder = checkpoint(kind, change, file=file)
    assert torch.equal(logits(mop_t5.load_backbone(folder)), logits(model))


@pytest.mark.parametrize(
    ("kind", "change", "config", "message"),
    [
        ("mt5", with_prefix("module."), {}, ("'module.'",)),
        ("t5", with_prefix("_orig_mod."), {}, ("'_orig_mod.'",)),
        ("t5", with_prefix("base_model.model."), {}, ("'base_model.model.'",)),
        ("t5", without(QUERY), {}, (QUERY, "missing", "checkpoint")),
        ("t5", lambda weights: weights | {"head.bias": torch.zeros(2)}, {}, ("head.bias", "unknown")),
        ("t5", lambda weights: {}, {}, ("missing", "more")),
        (
            "t5",
            lambda weights: weights | {QUERY.replace("weight", "lora_A.weight"): torch.zeros(2, 24)},
            {},
            ("lora_A.weight", "unknown", "PEFT"),
        ),
        ("t5", without("decoder."), {}, ("encoder alone",)),
        ("mt5", without("lm_head"), {}, ("lm_head.weight", "missing")),
        ("mt5", without("shared"), {}, ("shared.weight", "missing")),
        ("t5", without("shared"), {}, ("shared.weight", "missing")),
        (
            "mt5",
            None,
            {"model_type": "t5", "is_gated_act": False, "feed_forward_proj": "relu"},
            ("are gated", "mT5"),
        ),
        ("t5", None, {"is_gated_act": True, "feed_forward_proj": "gated-gelu"}, ("not gated", "first T5")),
        ("umt5", None, {"model_type": "mt5"}, ("position biases", "every layer", "umT5")),
        ("mt5", None, {"model_type": "umt5"}, ("position biases", "one layer", "T5 and mT5")),
        ("t5", None, {"num_layers": 3}, ("encoder.block.2", "missing")),
        ("t5", None, {"num_decoder_layers": 2}, ("decoder.block.2", "unknown")),
        ("t5", None, {"vocab_size": 41}, ("shared.weight", "(40, 24)", "(41, 24)")),
        ("mt5", None, {"vocab_size": 41}, ("lm_head.weight", "(40, 24)", "(41, 24)", "shared.weight")),
        ("t5", None, {"d_ff": 40}, ("wi.weight", "(32, 24)", "(40, 24)")),
        (
            "t5",
            lambda weights: {name: torch.zeros(0) for name in weights},
            {},
            ("holds 0", "Empty tensors", "ZeRO-3"),
        ),
        ("t5", with_query(lambda t: (100 * t).to(torch.int8)), {}, ("floating point", QUERY)),
        ("t5", with_query(lambda t: t * float("nan")), {}, ("not finite", QUERY)),
        ("t5", with_query(lambda t: t / 0), {}, ("not finite", QUERY)),
        (
            "t5",
            lambda weights: weights | {"encoder.embed_tokens.weight": weights["shared.weight"] + 1},
            {},
            ("encoder.embed_tokens.weight", "shared.weight"),
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(kind, change, config, message, checkpoint, caplog):
    _, folder = checkpoint(kind, change, config)
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING), raises(ValueError, *message):
        mop_t5.load_backbone(folder)
    assert "LOAD REPORT" not in caplog.text  # the error says it


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiny, ("pytorch_model.bin", "damaged", "tensors")),
        (
            lambda: {"state_dict": {}, "epoch": 3},
            ("dictionary of tensors", "state_dict, epoch"),
        ),
        (lambda: [torch.zeros(1)], ("dictionary of tensors", "state_dict", "list")),
    ],
)
def test_a_file_that_is_no_state_dict(content, message, checkpoint):
    _, folder = checkpoint(change=lambda weights: content(), file="pytorch_model.bin")
    with raises(ValueError, *message):
        mop_t5.load_backbone(folder)


def test_shards(tmp_path):
    model = tiny(dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*"))
    assert len(shards) > 2
    assert torch.equal(logits(mop_t5.load_backbone(tmp_path)), logits(model))
    index = tmp_path / "model.safetensors.index.json"
    told = json.loads(index.read_text())
    tiny(seed=1, dtype=torch.float32).save_pretrained(tmp_path / "older")
    (tmp_path / "older" / "model.safetensors").rename(tmp_path / "model.safetensors")  # transformers would read this
    with raises(ValueError, "model.safetensors", "model.safetensors.index.json"):
        mop_t5.load_backbone(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    kept = {name: shard for name, shard in told["weight_map"].items() if shard != shards[0].name}
    index.write_text(json.dumps(told | {"weight_map": kept}))
    with raises(ValueError, ".weight", "missing", "checkpoint"):
        mop_t5.load_backbone(tmp_path)
    index.write_text("{}")
    with raises(ValueError, "model.safetensors.index.json", "weight_map"):
        mop_t5.load_backbone(tmp_path)
    index.write_text(json.dumps(told))
    shards[0].unlink()
    with raises(OSError, "cannot be read", shards[0].name):
        mop_t5.load_backbone(tmp_path)


def test_a_damaged_generation_config_is_said(checkpoint):
    _, folder = checkpoint()
    (folder / "generation_config.json").write_text('{"max_length": 200')
    with raises(ValueError, "generation_config.json", "damaged"):
        mop_t5.load_backbone(folder)


def test_models_of_other_classes(tmp_path):
    whole = T5Model(T5Config(**SIZES))  # has all but the head, which is tied; its config names no start token
    whole.save_pretrained(tmp_path / "whole")
    loaded = mop_t5.load_backbone(tmp_path / "whole")
    assert torch.equal(loaded.lm_head.weight, whole.shared.weight)
    assert loaded.config.decoder_start_token_id == loaded.generation_config.decoder_start_token_id == 0
    assert logits(loaded).isfinite().all()
    T5EncoderModel(T5Config(**SIZES)).save_pretrained(tmp_path / "encoder")
    with raises(ValueError, "encoder alone", "whole model"):
        mop_t5.load_backbone(tmp_path / "encoder")


def test_values_that_the_dtype_cannot_hold(checkpoint):
    _, folder = checkpoint(change=with_query(lambda t: t + 1e6))
    mop_t5.load_backbone(folder)
    with raises(ValueError, "not finite", "dtype", "dtype='float32'"):
        mop_t5.load_backbone(folder, dtype="float16")


def test_imports(forks_with_t5):
    """torch comes on first use; jieba, ROUGE and plotting where they are used, never for kernels or injection."""
    first = 'import sys, mop_t5; assert callable(mop_t5.methods) and "torch" not in sys.modules'
    subprocess.run([sys.executable, "-c", first], check=True)
    code = """
import sys
names = ("jieba", "rouge", "rouge_score", "matplotlib", "rich")
theirs = [name for name in names if name in sys.modules]  # transformers 5.15 itself imports rich
import mop_t5
assert mop_t5.attach(mop_t5.build_backbone("t5-small", device="meta"), "prefix_tuning")
assert [name for name in names if name in sys.modules] == theirs
import mop_t5.backbone.tokenizer, mop_t5.data, mop_t5.evaluation
assert "jieba" not in sys.modules
"""
    forks_with_t5.run(code)


def test_a_folder_that_does_not_say_whether_the_backbone_is_gated_still_fits():
    for kind in ("t5", "t5_gated"):
        shape = BackboneShape.of(tiny(kind))
        older = {name: value for name, value in asdict(shape).items() if name != "is_gated_act"}
        assert shape.differences(older) == []
    assert shape.differences({**older, "is_gated_act": False}) == ["is_gated_act: saved False, here True"]
    assert shape.differences({**older, "d_ff": 1}) == ["d_ff: saved 1, here 32"]
