"""generate with a prefix: every search equals the same search on the oracle, which has no cache."""

import copy
import logging

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.attachment.additions import Additions
from t5_oracle import KINDS, batch, random_prefix, search, tiny
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

IDS = torch.tensor([0, 2, 1, 2])
SCENARIOS = ["a", "b", "c"]
SEARCHES = {
    "greedy": {"max_new_tokens": 6, "do_sample": False},
    "beam": {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2},
    "sample": {"max_new_tokens": 6, "do_sample": True},
}


def attached(kind="t5", **options):
    return mop_t5.attach(tiny(kind, **options), "prefix_tuning", prefix_length=2, d_mid=4, scenarios=SCENARIOS)


def mop_model(**overrides):
    fields = {"prefix_length": 5, "d_mid": 8, "terms_down": 4, "terms_up": 4, "scenarios": SCENARIOS, **overrides}
    return mop_t5.attach(tiny("mt5"), "mop", **fields)


def inputs_of(masks="padding"):
    inputs = batch(masks)
    del inputs["decoder_input_ids"]
    return inputs


def run(call, seed=3):
    torch.manual_seed(seed)
    return call()


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize("kind", KINDS)
def test_search_equals_the_oracle(kind, name, use_cache):
    model, inputs = attached(kind), inputs_of()
    prefix = random_prefix(model, 5)
    options = {"use_cache": use_cache, **SEARCHES[name]}
    got = run(lambda: model.generate(**inputs, scenario_ids=IDS, mop_additions=Additions(prefix), **options))
    expected = run(lambda: search(model, prefix, **inputs, scenario_ids=IDS, **SEARCHES[name]))
    assert torch.equal(got, expected)
    plain = run(lambda: model.generate(**inputs, scenario_ids=IDS, mop_additions=Additions({}), **options))
    assert got.shape != plain.shape or not torch.equal(got, plain), "the prefix must change what is generated"


def test_static_cache_equals_dynamic():
    model, inputs = attached(num_decoder_layers=2), inputs_of()
    prefix = Additions(random_prefix(model, 5))
    options = {"scenario_ids": IDS, "mop_additions": prefix, "max_new_tokens": 6}
    dynamic = model.generate(**inputs, **options)
    assert torch.equal(model.generate(**inputs, **options, cache_implementation="static"), dynamic)


def test_encoder_outputs_by_hand():
    model, inputs = mop_model(), inputs_of()
    expected = model.generate(**inputs, scenario_ids=IDS, num_beams=2, max_new_tokens=5)
    with torch.no_grad():
        encoded = model.encoder(**inputs, mop_additions=model.mop.additions(), scenario_ids=IDS)
    got = model.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=encoded.last_hidden_state),
        attention_mask=inputs["attention_mask"],
        scenario_ids=IDS,
        num_beams=2,
        max_new_tokens=5,
    )
    assert torch.equal(got, expected)


def test_prefix_is_made_once_a_generate(monkeypatch):
    model, calls = mop_model(), []
    additions = model.mop.additions
    monkeypatch.setattr(model.mop, "additions", lambda ids=None: calls.append(ids) or additions(ids))
    model.generate(**inputs_of(), scenario_ids=IDS, num_beams=2, max_new_tokens=6)
    assert len(calls) == 1
    model(**batch(), scenario_ids=IDS)
    assert len(calls) == 2


@pytest.mark.parametrize("attention", [("decoder_self",), ("encoder_self", "decoder_self", "cross")])
@pytest.mark.parametrize("name", ["greedy", "beam"])
@pytest.mark.parametrize("ids", [IDS, torch.tensor([0, 2, 0, 2])], ids=["all scenarios", "two of three"])
def test_mixed_batch_equals_batches_of_one_scenario(name, attention, ids):
    model, inputs = mop_model(attention=attention), inputs_of()
    mixed = model.generate(**inputs, scenario_ids=ids, **SEARCHES[name], min_new_tokens=6)
    returned = SEARCHES[name].get("num_return_sequences", 1)
    for scenario in sorted(set(ids.tolist())):
        rows = scenario == IDS
        single = model.generate(
            **{key: value[rows] for key, value in inputs.items()},
            scenario_ids=scenario,
            **SEARCHES[name],
            min_new_tokens=6,
        )
        assert torch.equal(single, mixed[rows.repeat_interleave(returned)])


@pytest.mark.parametrize("attention", [("decoder_self",), ("encoder_self", "decoder_self", "cross")])
def test_mixed_forward_equals_single_scenarios(attention):
    model, inputs = mop_model(attention=attention), batch()
    with torch.no_grad():
        mixed = model(**inputs, scenario_ids=IDS).logits
        for scenario in range(3):
            rows = scenario == IDS
            single = model(**{key: value[rows] for key, value in inputs.items()}, scenario_ids=scenario).logits
            torch.testing.assert_close(single, mixed[rows], atol=1e-12, rtol=0)
        changed = model(**inputs, scenario_ids=torch.tensor([0, 1, 1, 2])).logits
    differs = (changed - mixed).abs().amax((1, 2))
    assert differs[1] > 0.1
    torch.testing.assert_close(differs[[0, 2, 3]], torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("given", [1, [1, 1, 1, 1], torch.tensor(1), torch.tensor([1, 1, 1, 1], dtype=torch.int32)])
def test_ids_as_int_list_or_tensor(given):
    model = mop_model()
    ids = torch.full((4,), 1)
    with torch.no_grad():
        assert torch.equal(model(**batch(), scenario_ids=given).logits, model(**batch(), scenario_ids=ids).logits)
    options = {"num_beams": 2, "max_new_tokens": 4}
    assert torch.equal(
        model.generate(**inputs_of(), scenario_ids=given, **options),
        model.generate(**inputs_of(), scenario_ids=ids, **options),
    )


def test_positional_input_ids():
    model, inputs = mop_model(), inputs_of("none")
    options = {"scenario_ids": IDS, "max_new_tokens": 4}
    assert torch.equal(model.generate(inputs["input_ids"], **options), model.generate(**inputs, **options))
    assert torch.equal(model.generate(inputs=inputs["input_ids"], **options), model.generate(**inputs, **options))


def test_user_cache_and_generation_config_are_respected():
    from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig

    model, inputs = mop_model(), inputs_of()
    expected = model.generate(**inputs, scenario_ids=IDS, max_new_tokens=4)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    got = model.generate(**inputs, scenario_ids=IDS, max_new_tokens=4, past_key_values=cache)
    assert torch.equal(got, expected)
    assert cache.get_seq_length() == 4, "the prefix must not be in the cache"
    config = GenerationConfig(
        max_new_tokens=4, use_cache=False, decoder_start_token_id=0, eos_token_id=1, pad_token_id=0
    )
    assert torch.equal(model.generate(**inputs, scenario_ids=IDS, generation_config=config), expected)


@pytest.mark.parametrize("method", ["mop", "prompt_tuning", "bitfit"])
@pytest.mark.parametrize("search", [{}, {"num_beams": 2}])
def test_padding_is_masked_unasked(method, search):
    fields = {"prompt_tuning": {"prefix_length": 2}, "bitfit": {}}
    model = mop_t5.attach(tiny("mt5"), method, **fields[method]) if method in fields else mop_model()
    inputs, search = inputs_of(), {"min_new_tokens": 5, "max_new_tokens": 5, "scenario_ids": IDS, **search}
    expected = model.generate(**inputs, **search)
    padded = inputs["input_ids"] * inputs["attention_mask"]
    attended = model.generate(padded, attention_mask=torch.ones_like(padded), **search)
    assert not torch.equal(attended, expected)
    other = next(token for token in range(2, 40) if token not in padded)
    for call in (
        lambda: model.generate(padded, **search),
        lambda: model.generate(inputs=padded, **search),
        lambda: model.generate(input_ids=padded, generation_config=GenerationConfig(), **search),
        lambda: model.generate(padded.masked_fill(padded == 0, other), pad_token_id=other, **search),
    ):
        assert torch.equal(call(), expected)
    # a pad token that also ends texts may be part of them
    search["eos_token_id"] = [1, 0]
    attended = model.generate(padded, attention_mask=torch.ones_like(padded), **search)
    assert torch.equal(model.generate(padded, **search), attended)


@torch.no_grad()
def test_a_cache_goes_by_both_names():
    model, step = mop_model(), {"input_ids": inputs_of("none")["input_ids"], "scenario_ids": IDS}
    tokens = torch.full((4, 1), 3)
    first = model(**step, decoder_input_ids=tokens, use_cache=True)
    whole = model(**step, decoder_input_ids=tokens.expand(-1, 2)).logits[:, 1]
    for name in ("cache", "past_key_values"):
        got = model(**step, decoder_input_ids=tokens, **{name: copy.deepcopy(first.past_key_values)})
        torch.testing.assert_close(got.logits[:, 0], whole, atol=1e-11, rtol=0)
        assert model.generate(**step, max_new_tokens=2, **{name: None}).shape == (4, 3)
    both = {"cache": first.past_key_values, "past_key_values": first.past_key_values}
    with raises(ValueError, "cache", "past_key_values", "both"):
        model(**step, decoder_input_ids=tokens, **both)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("attention_masks", "Is attention_mask meant"),
        ("token_type_ids", "Leave it out"),
        ("scenario_id", "scenario_ids"),
    ],
)
def test_a_name_that_nothing_reads_is_refused(given, hint):
    model = mop_model()
    with raises(TypeError, "forward", given, hint):
        model(**batch(), scenario_ids=IDS, **{given: torch.ones(4, 6)})
    model(**batch(), scenario_ids=IDS, output_hidden_states=True, output_attentions=False, return_dict=True)


def test_padding_that_a_forward_attends_to_is_warned_of(caplog, monkeypatch):
    model, inputs = mop_model(), batch()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    logging.Logger.warning_once.cache_clear()  # transformers adds it
    model(**inputs, scenario_ids=IDS)
    assert "attention_mask" not in caplog.text
    inputs["input_ids"] = inputs["input_ids"] * inputs.pop("attention_mask")
    model(**inputs, scenario_ids=IDS)
    assert "input_ids may be padded" in caplog.text


def test_a_batch_without_labels_says_what_the_collator_lacks():
    with raises(ValueError, "labels", "decoder_input_ids", "Collator", "decoder_inputs"):
        mop_model()(**inputs_of(), scenario_ids=IDS)


def test_an_assistant_is_refused():
    model = mop_model()
    with raises(ValueError, "assistant_model", "None", "attached"):
        model.generate(**inputs_of(), scenario_ids=IDS, assistant_model=tiny("mt5"))


def test_errors():
    model, inputs = mop_model(), inputs_of()
    with raises(ValueError, "scenario_ids", "missing", "mop", "0 to 2", "a, b, c"):
        model.generate(**inputs)
    with raises(ValueError, "scenario_ids", "(4,)", "(3,)"):
        model.generate(**inputs, scenario_ids=[0, 1, 2])
    with raises(ValueError, "scenario_ids", "0 to 2 (a, b, c)", "3"):
        model.generate(**inputs, scenario_ids=3)
    with raises(ValueError, "scenario_ids", "0 to 2", "-1"):
        model(**batch(), scenario_ids=[0, 0, 0, -1])
    with raises(TypeError, "ids", "names", "mop_t5.scenario_ids"):
        model(**batch(), scenario_ids=["a"] * 4)
    with raises(TypeError, "list of int", "int", "1.0"):
        model(**batch(), scenario_ids=1.0)
    with raises(TypeError, "integers", "torch.float32"):
        model(**batch(), scenario_ids=torch.ones(4))
    with raises(ValueError, "[0, 1]", "scenario_ids", "[2]"):
        model(**batch(), scenario_ids=2, mop_additions=model.mop.additions(torch.tensor([0, 1])))
    with raises(ValueError, "no input", "input_ids"):
        model(scenario_ids=0)
    with pytest.raises(ValueError, match=r"unused|not used"):
        model.generate(**inputs, scenario_ids=0, scenarios_ids=0)
