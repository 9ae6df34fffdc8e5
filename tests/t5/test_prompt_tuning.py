"""Prompt-tuning: equal to a plain T5 that is given the longer embeddings by hand; where the prompt starts; errors."""

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.methods.prompt_tuning import PromptTuningConfig
from safetensors.torch import save_file
from t5_oracle import KINDS, batch, tiny
from transformers.modeling_outputs import BaseModelOutput

IDS = torch.tensor([0, 2, 1, 2])
LENGTH = 3
SHARED = {"prefix_length": LENGTH}
OWN = {"prefix_length": LENGTH, "per_scenario": True, "scenarios": ["a", "b", "c"]}
SEARCHES = {
    "greedy": {"max_new_tokens": 6, "do_sample": False},
    "beam": {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2},
    "sample": {"max_new_tokens": 6, "do_sample": True},
}


def attached(kind="t5", fields=SHARED, **options):
    torch.manual_seed(4)
    return mop_t5.attach(tiny(kind, **options), "prompt_tuning", **fields)


def by_hand(model, inputs):
    """inputs with the prompt in front, for a plain model; the prompt of each row by a loop."""
    prompt, embed = model.mop.prompt, model.shared.weight
    rows = [prompt if prompt.dim() == 2 else prompt[i] for i in IDS.tolist()]
    longer = torch.stack([torch.cat([row, embed[ids]]) for row, ids in zip(rows, inputs["input_ids"], strict=True)])
    mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"]))
    ones = torch.ones(len(mask), LENGTH, dtype=mask.dtype)
    rest = {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")}
    return {"inputs_embeds": longer, "attention_mask": torch.cat([ones, mask], 1), **rest}


@torch.no_grad()
def test_encoder_outputs_have_the_prompt_and_their_mask_need_not():
    model, inputs = attached(fields=OWN, num_decoder_layers=2), batch()
    expected = model(**inputs, scenario_ids=IDS)
    mask, encoded = inputs["attention_mask"], (expected.encoder_last_hidden_state,)
    longer = torch.cat([torch.ones(4, LENGTH, dtype=mask.dtype), mask], 1)
    search = SEARCHES["beam"] | {"scenario_ids": IDS}
    searched = model.generate(inputs["input_ids"], attention_mask=mask, **search)
    for given in (mask, longer):
        again = {"encoder_outputs": encoded, "attention_mask": given}
        got = model(**again, decoder_input_ids=inputs["decoder_input_ids"], scenario_ids=IDS)
        torch.testing.assert_close(got.logits, expected.logits, atol=1e-12, rtol=0)
        again["encoder_outputs"] = BaseModelOutput(last_hidden_state=encoded[0])
        assert torch.equal(model.generate(**again, **search), searched)
    with raises(RuntimeError, "encoder", "input_ids", "prompt", "encoder_last_hidden_state"):
        model.encoder(inputs["input_ids"], mop_additions=model.mop(IDS), scenario_ids=IDS)


@pytest.mark.parametrize("fields", [SHARED, OWN], ids=["shared", "own"])
@pytest.mark.parametrize("masks", ["none", "padding", "decoder"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_equal_a_plain_model(kind, masks, fields):
    model, plain, inputs = attached(kind, fields), tiny(kind), batch(masks)
    labels = inputs["decoder_input_ids"]
    expected = plain(**by_hand(model, inputs), labels=labels)
    got = model(**inputs, labels=labels, scenario_ids=IDS)
    assert got.encoder_last_hidden_state.shape[1] == LENGTH + inputs["input_ids"].shape[1]
    for name in ("logits", "loss", "encoder_last_hidden_state"):
        torch.testing.assert_close(got[name], expected[name], atol=1e-12, rtol=1e-12)
    gradients = [torch.autograd.grad(out.loss, model.mop.prompt)[0] for out in (got, expected)]
    assert gradients[0].abs().max() > 1e-4
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-10)
    with torch.no_grad():
        assert (got.logits - plain(**inputs).logits).abs().max() > 1e-2, "the prompt must change what is computed"


@pytest.mark.parametrize("fields", [SHARED, OWN], ids=["shared", "own"])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", SEARCHES)
def test_searches_equal_those_of_a_plain_model(name, use_cache, fields):
    model, inputs = attached("mt5", fields), batch()
    del inputs["decoder_input_ids"]
    with torch.no_grad():
        longer = by_hand(model, inputs)
    mine = inputs | {"scenario_ids": IDS, "use_cache": use_cache}
    # without a cache: transformers makes one of num_layers layers, too short for a deeper decoder
    plain = longer | {"use_cache": False}
    results = []
    for call, given in ((model.generate, mine), (tiny("mt5").generate, plain)):
        torch.manual_seed(3)
        results.append(call(**given, **SEARCHES[name]))
    assert torch.equal(*results)
    torch.manual_seed(3)
    without = tiny("mt5").generate(**inputs, use_cache=False, **SEARCHES[name])
    assert results[0].shape != without.shape or not torch.equal(results[0], without), "the prompt must change it"


def test_padding_without_a_mask_is_masked_in_generate():
    model, inputs = attached(), batch()
    del inputs["decoder_input_ids"]
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 0)
    expected = model.generate(**inputs, max_new_tokens=6)
    assert torch.equal(model.generate(inputs["input_ids"], max_new_tokens=6), expected)
    everything = torch.ones_like(inputs["attention_mask"])
    with torch.no_grad():
        seen, unseen = (
            model(input_ids=inputs["input_ids"], attention_mask=mask, decoder_input_ids=expected).logits
            for mask in (everything, inputs["attention_mask"])
        )
    assert (seen - unseen).abs().max() > 1e-3


def test_what_is_masked_does_not_matter():
    """Neither to the encoder, nor to the decoder, whose mask must count the prompt."""
    model, inputs = attached(), batch()
    other = inputs | {"input_ids": inputs["input_ids"].where(inputs["attention_mask"] == 1, 7)}
    assert not torch.equal(inputs["input_ids"], other["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, model(**other).logits, atol=1e-13, rtol=0)


def test_a_mixed_batch_equals_batches_of_one_scenario():
    model, inputs = attached(fields=OWN), batch()
    with torch.no_grad():
        mixed = model(**inputs, scenario_ids=IDS).logits
        for scenario in range(3):
            rows = scenario == IDS
            single = model(**{k: v[rows] for k, v in inputs.items()}, scenario_ids=scenario).logits
            torch.testing.assert_close(single, mixed[rows], atol=1e-12, rtol=0)
        changed = (model(**inputs, scenario_ids=[0, 1, 1, 2]).logits - mixed).abs().amax((1, 2))
    assert changed[1] > 1e-2
    assert not changed[[0, 2, 3]].any()


def test_other_ways_to_give_the_input():
    model, inputs = attached(), batch()
    with torch.no_grad():
        expected = model(**inputs)
        rest = {name: value for name, value in inputs.items() if name != "input_ids"}
        embedded = model(inputs_embeds=model.shared(inputs["input_ids"]), **rest)
        assert torch.equal(embedded.logits, expected.logits)
        # the encoder's outputs have the prompt in them already, so their mask must be as long
        memory = BaseModelOutput(last_hidden_state=expected.encoder_last_hidden_state)
        mask = by_hand(model, inputs)["attention_mask"]
        decoded = model(encoder_outputs=memory, attention_mask=mask, decoder_input_ids=inputs["decoder_input_ids"])
        assert torch.equal(decoded.logits, expected.logits)
    with raises(ValueError, "input_ids", "inputs_embeds", "both or none"):
        model(inputs_embeds=model.shared(inputs["input_ids"]), **inputs)
    with raises(ValueError, "attention_mask", "(batch, source)", "prompt_tuning", "("):
        model(**inputs | {"attention_mask": inputs["attention_mask"][:, None]})


def test_an_empty_prompt_is_plain_bit_for_bit():
    model, inputs = attached(fields={"prefix_length": 0}), batch()
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, tiny()(**inputs).logits)


def test_a_bfloat16_backbone_keeps_a_float32_prompt():
    model, inputs = attached(fields=OWN, dtype=torch.bfloat16), batch()
    out = model(**inputs, labels=inputs["decoder_input_ids"], scenario_ids=IDS)
    out.loss.backward()
    assert out.logits.dtype == torch.bfloat16
    assert model.mop.prompt.grad.dtype == torch.float32
    assert model.mop.prompt.grad.abs().amax((1, 2)).gt(0).all()


@pytest.mark.parametrize(
    ("fields", "trained"),
    [({}, 30_720), ({"per_scenario": True}, 5 * 30_720), ({"prefix_length": 100}, 76_800)],
)
def test_parameter_counts(fields, trained):
    model = mop_t5.build_backbone("t5-pegasus-base", device="meta")
    mop_t5.attach(model, "prompt_tuning", scenarios=["Taxi", "Ticket", "E-Commerce", "Take-out", "Food"], **fields)
    counted = mop_t5.count_parameters(model)
    assert counted.trained == trained
    assert counted.total == 275_029_248 + trained
    if not fields:
        assert round(100 * counted.share, 4) == 0.0112


@pytest.mark.parametrize(
    ("fields", "low", "high"),
    [
        ({}, -0.5, 0.5),
        ({"init_scale": 2}, -2, 2),
        ({"init": "uniform_positive"}, 0, 0.5),
        ({"init": "uniform_positive", "init_scale": 0.01}, 0, 0.01),
    ],
)
def test_uniform_starts_fill_their_range(fields, low, high):
    prompt = attached(fields={"prefix_length": 200, **fields}).mop.prompt
    assert low <= prompt.min() < low + 0.01 * (high - low)
    assert high - 0.01 * (high - low) < prompt.max() <= high
    # of 4,800 values the mean is within 5 standard errors
    assert abs(prompt.mean() - (low + high) / 2) < 5 * (high - low) / 12**0.5 / prompt.numel() ** 0.5


def test_a_normal_start():
    prompt = attached(fields={"prefix_length": 200, "init": "normal", "init_scale": 0.1}).mop.prompt
    assert 0.095 < prompt.std() < 0.105
    assert prompt.abs().max() > 0.3


@pytest.mark.parametrize("fields", [SHARED, OWN], ids=["shared", "own"])
def test_a_start_from_the_vocabulary(fields):
    model = attached(fields={**fields, "prefix_length": 9, "init": "vocabulary", "init_vocabulary": 12})
    prompts = model.mop.prompt.view(-1, 9, 24)
    drawn = [[(model.shared.weight == row).all(1).nonzero().item() for row in prompt] for prompt in prompts]
    for ids in drawn:
        assert len(set(ids)) == 9
        assert max(ids) < 12
    assert len({tuple(ids) for ids in drawn}) == len(prompts), "every prompt has a draw of its own"
    with raises(ValueError, "prefix_length", "40", "init='vocabulary'"):
        attached(fields={"prefix_length": 41, "init": "vocabulary"})


@pytest.fixture(scope="module")
def with_tokenizer(tmp_path_factory):
    """Folder of a tiny backbone with its tokenizer."""
    folder = tmp_path_factory.mktemp("backbone")
    tokenizer = train_tokenizer(["打车 去 医院，车费 三十 元", "外卖 送错 了"], 300)
    tiny(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, tokenizer


@pytest.mark.parametrize("fields", [SHARED, OWN], ids=["shared", "own"])
def test_a_start_from_words(with_tokenizer, fields):
    folder, tokenizer = with_tokenizer
    words = ["医院", "车费三十元"]
    pieces = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in words]
    assert len(pieces[1]) > 1
    model = mop_t5.load_backbone(folder)
    mop_t5.attach(model, "prompt_tuning", **{**fields, "prefix_length": 5, "init": "words", "init_words": words})
    rows = [sum(model.shared.weight[i] for i in ids) / len(ids) for ids in pieces]
    for prompt in model.mop.prompt.view(-1, 5, 24):
        torch.testing.assert_close(prompt, torch.stack([rows[i % 2] for i in range(5)]))
    mop_t5.detach(model)
    with raises(ValueError, "init_words", "''", "tokenizer"):
        mop_t5.attach(model, "prompt_tuning", prefix_length=2, init="words", init_words=["医院", ""])
    assert not mop_t5.is_attached(model)
    with raises(ValueError, "init='words'", "tokenizer", "backbone", "another init"):
        mop_t5.attach(tiny(), "prompt_tuning", prefix_length=2, init="words", init_words=["医院"])


def test_a_start_from_a_file(tmp_path):
    shared, own = attached(), attached(fields=OWN)
    mop_t5.save(shared, tmp_path / "shared")
    mop_t5.save(own, tmp_path / "own")
    save_file({"anything": shared.mop.prompt.detach()}, tmp_path / "prompt.safetensors")

    def prompt(path, fields):
        torch.manual_seed(99)
        fields = {**fields, "init": "file", "init_file": str(tmp_path / path)}
        return mop_t5.attach(tiny(), "prompt_tuning", **fields).mop.prompt

    for path in ("shared", "prompt.safetensors"):
        assert torch.equal(prompt(path, SHARED), shared.mop.prompt)
        assert torch.equal(prompt(path, OWN), shared.mop.prompt.expand(3, -1, -1))
    assert torch.equal(prompt("own", OWN), own.mop.prompt)

    with raises(ValueError, "one tensor", "(3, 24)", "(3, 3, 24)"):
        prompt("own", SHARED)
    with raises(ValueError, "one tensor", "(3, 4, 24)", "(4, 24)", "{'anything': (3, 24)"):
        prompt("prompt.safetensors", {**OWN, "prefix_length": 4})
    with raises(FileNotFoundError, "nowhere'", "file", "folder"):
        prompt("nowhere", SHARED)
    mop_t5.save(mop_t5.attach(tiny(), "prefix_tuning", prefix_length=3, d_mid=4), tmp_path / "other")
    with raises(ValueError, "'prefix_tuning'", "'prompt_tuning'"):
        prompt("other", SHARED)
    (tmp_path / "text").write_text("no tensors")
    with raises(ValueError, "text'", "safetensors"):
        prompt("text", SHARED)


def test_a_saved_prompt_needs_no_file_to_load(tmp_path):
    save_file({"prompt": torch.ones(LENGTH, 24, dtype=torch.float64)}, tmp_path / "prompt.safetensors")
    fields = {**SHARED, "init": "file", "init_file": str(tmp_path / "prompt.safetensors")}
    model = attached(fields=fields)
    with torch.no_grad():
        model.mop.prompt.add_(1)
    mop_t5.save(model, tmp_path / "saved")
    (tmp_path / "prompt.safetensors").unlink()
    loaded = mop_t5.load(tiny(), tmp_path / "saved")
    assert loaded.mop.prompt.eq(2).all()


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (TypeError, ("prefix_length", "int", "4.0"), {"prefix_length": 4.0}),
        (ValueError, ("prefix_length", "0", "-1"), {"prefix_length": -1}),
        (TypeError, ("per_scenario", "1"), {"per_scenario": 1}),
        (ValueError, ("scenarios", "at least one"), {"per_scenario": True}),
        (ValueError, ("init", "'uniform'", "'file', 'spot'", "'zeros'"), {"init": "zeros"}),
        (TypeError, ("init_scale", "number", "'1'"), {"init_scale": "1"}),
        (ValueError, ("init_scale", "0", "0"), {"init_scale": 0}),
        (ValueError, ("init_scale", "inf"), {"init_scale": float("inf")}),
        (ValueError, ("init_scale", "nan"), {"init_scale": float("nan")}),
        (
            ValueError,
            ("init_vocabulary", "prefix_length = 40", "39"),
            {"init": "vocabulary", "init_vocabulary": 39},
        ),
        (TypeError, ("init_words", "list", "'医院'"), {"init": "words", "init_words": "医院"}),
        (ValueError, ("init_words", "init='words'"), {"init": "words"}),
        (ValueError, ("init_words", "init='uniform'"), {"init_words": ["医院"]}),
        (
            ValueError,
            ("init_words", "prefix_length = 1 words", "2"),
            {"init": "words", "init_words": ["a", "b"], "prefix_length": 1},
        ),
        (ValueError, ("init_file", "init='file'"), {"init": "file"}),
        (TypeError, ("init_file", "3"), {"init": "file", "init_file": 3}),
    ],
)
def test_config_errors(error, message, given):
    with raises(error, *message):
        PromptTuningConfig(**given)
