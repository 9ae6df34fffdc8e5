"""Generation in batches: the order of the rows, the scenario of each, what a single row gives, and the search."""

import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import mop_t5
import pytest
from errors import raises, warns
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.data import Example, synthetic_corpus
from mop_t5.evaluation import generate_summaries
from mop_t5.training import TrainingConfig, train
from transformers import T5Config

ROWS = synthetic_corpus(1, general=60, train=1, valid=1, test=1)["general"]
SCENARIOS = ["food", "take-out", "taxi", "ticket", "e-commerce"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([text for row in ROWS for text in (row.dialogue, row.summary)], 600)


@pytest.fixture
def model(tokenizer):
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=4
    )
    return mop_t5.build_backbone(config, seed=1, initializer_factor=3.0)  # far from uniform, so rows differ


def test_batches_keep_the_order_and_the_result_of_single_rows(model, tokenizer):
    singly = [generate_summaries(model, tokenizer, [row], max_new_tokens=8)[0] for row in ROWS[:9]]
    assert len(set(singly)) > 3
    for batch_size in (1, 4, 32):
        assert generate_summaries(model, tokenizer, ROWS[:9], batch_size=batch_size, max_new_tokens=8) == singly


def test_every_row_gets_its_own_scenario(model, tokenizer):
    mop_t5.attach(model, "mop", scenarios=SCENARIOS, prefix_length=4, d_mid=16, terms_down=4, terms_up=4)
    for parameter in model.mop.parameters():
        parameter.data *= 3  # strong prefixes
    dialogue = ROWS[0].dialogue
    rows = [Example(scenario, dialogue, "", scenario) for scenario in SCENARIOS]
    singly = [generate_summaries(model, tokenizer, [row], max_new_tokens=8)[0] for row in rows]
    assert len(set(singly)) > 1
    assert generate_summaries(model, tokenizer, rows[::-1], max_new_tokens=8) == singly[::-1]
    with raises(ValueError, "example 'x'", "scenario 'metro'", "food, take-out"):
        generate_summaries(model, tokenizer, [Example("metro", dialogue, "", "x")])


@pytest.mark.filterwarnings("ignore:the backbone's generation settings")
def test_the_model_is_left_as_it_was_and_dropout_is_off(model, tokenizer, monkeypatch):
    model.train()
    first = generate_summaries(model, tokenizer, ROWS[:3], max_new_tokens=6)
    assert model.training
    assert generate_summaries(model.eval(), tokenizer, ROWS[:3], max_new_tokens=6) == first
    assert not model.training
    model.generation_config.num_beams = 4
    with ThreadPoolExecutor(2) as pool:
        model.train()
        calls = [pool.submit(generate_summaries, model, tokenizer, ROWS[:3], max_new_tokens=n) for n in (6, 3)]
        texts = [call.result() for call in calls]
    assert texts[0] == first
    assert texts[1] != first
    assert model.generation_config.num_beams == 4
    assert model.training

    def fail(**arguments):
        raise MemoryError("no room")

    monkeypatch.setattr(model, "generate", fail)
    with raises(MemoryError, "room"):
        generate_summaries(model, tokenizer, ROWS[:3])
    assert model.training


def test_a_call_that_ends_leaves_dropout_off_for_the_others(model, tokenizer, monkeypatch):
    expected, plain = generate_summaries(model, tokenizer, ROWS[:2], max_new_tokens=6), model.generate
    modes = []

    def generate(**arguments):
        if not modes:  # another thread begins and ends meanwhile
            modes.append(model.training)
            with ThreadPoolExecutor(1) as pool:
                other = pool.submit(generate_summaries, model, tokenizer, ROWS[:2], max_new_tokens=6)
                assert other.result() == expected
        modes.append(model.training)
        return plain(**arguments)

    monkeypatch.setattr(model.train(), "generate", generate)
    assert generate_summaries(model, tokenizer, ROWS[:2], max_new_tokens=6) == expected
    assert modes == [False, False, False]
    assert model.training


def test_beams_and_limits(model, tokenizer):
    assert len(generate_summaries(model, tokenizer, ROWS[:3], num_beams=3, max_new_tokens=6)) == 3
    with raises(ValueError, "num_beams", "1", "0"):
        generate_summaries(model, tokenizer, ROWS[:1], num_beams=0)
    with raises(ValueError, "examples", "empty"):
        generate_summaries(model, tokenizer, [])


# what checkpoints ask of a search: each of these changes texts, their number or what `generate` returns
ASKED = {
    "max_new_tokens": 3,
    "max_length": 4,
    "min_length": 20,
    "min_new_tokens": 11,
    "num_beams": 5,
    "num_return_sequences": 2,
    "return_dict_in_generate": True,
    "output_scores": True,
    "do_sample": True,
    "repetition_penalty": 5.0,
    "encoder_repetition_penalty": 5.0,
    "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1,
    "length_penalty": -9.0,
    "early_stopping": True,
    "bad_words_ids": [[i] for i in range(3, 400)],
    "suppress_tokens": list(range(3, 400)),
    "begin_suppress_tokens": list(range(3, 400)),
    "sequence_bias": [[[i], -50.0] for i in range(3, 400)],
    "forced_bos_token_id": 7,
    "forced_eos_token_id": 7,
    "exponential_decay_length_penalty": [1, 30.0],
    "guidance_scale": 3.0,
    "renormalize_logits": True,
    "max_time": 1e-9,
    "stop_strings": ["用"],
    "num_beam_groups": 2,
    "diversity_penalty": 2.0,
    "penalty_alpha": 0.6,
    "use_cache": False,
    "cache_implementation": "static",
    "prompt_lookup_num_tokens": 3,
    "decoder_start_token_id": 9,
    "pad_token_id": 9,
}


def asking(model, tokenizer, folder, file, **settings):
    """The model read from a folder whose generation_config.json or config.json asks for a search."""
    model.save_pretrained(folder)
    path = folder / file
    content = json.loads((folder / path).read_text())
    if file == "config.json":  # as old checkpoints have it
        (folder / "generation_config.json").unlink()
        settings = settings | {"task_specific_params": {"summarization": settings}}
    path.write_text(json.dumps(content | settings))
    return mop_t5.load_backbone(folder)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_what_the_checkpoint_asks_of_the_search_changes_no_text(model, tokenizer, num_beams):
    expected = generate_summaries(model, tokenizer, ROWS[:4], num_beams=num_beams, max_new_tokens=12)
    assert len(set(expected)) > 2
    kept = model.generation_config
    for name, value in ASKED.items():
        model.generation_config = asked = type(kept)(**{**kept.to_dict(), "num_beams": 4, name: value})
        before = asked.to_dict()
        with warns(UserWarning, "generation settings", "ignored") as said:
            found = generate_summaries(model, tokenizer, ROWS[:4], num_beams=num_beams, max_new_tokens=12)
        assert found == expected, name
        assert name == "pad_token_id" or f"{name}=" in str(said[0].message)
        assert model.generation_config is asked
        assert asked.to_dict() == before


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_settings_in_the_files_of_a_checkpoint(model, tokenizer, tmp_path, file):
    expected = generate_summaries(model, tokenizer, ROWS[:4], max_new_tokens=12)
    settings = {"num_beams": 4, "num_return_sequences": 2, "max_length": 5, "length_penalty": 0.6}
    read = asking(model, tokenizer, tmp_path, file, **settings)
    with warns(UserWarning, "ignored", "max_length=5", "12 tokens", "num_beams (--num_beams)"):
        assert generate_summaries(read, tokenizer, ROWS[:4], max_new_tokens=12) == expected
    mop_t5.attach(read, "prefix_tuning", scenarios=SCENARIOS, prefix_length=2, d_mid=4)
    with warns(UserWarning, "ignored"):
        assert len(generate_summaries(read, tokenizer, ROWS[:4], num_beams=2, max_new_tokens=12)) == 4


def test_a_checkpoint_that_asks_for_nothing_is_not_warned_of(model, tokenizer, tmp_path):
    defaults = {"max_length": 20, "num_beams": 1, "do_sample": False, "temperature": 1.0, "top_k": 50}
    read = asking(model, tokenizer, tmp_path, "generation_config.json", **defaults, use_cache=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        generate_summaries(read, tokenizer, ROWS[:1], max_new_tokens=2)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_texts_end_where_targets_do_and_where_the_checkpoint_says(model, tokenizer, count):
    """A greedy text is cut at the first end; without one in the checkpoint, at that of the tokenizer."""
    steps = []

    def spy(*arguments, **keywords):
        tokens = type(model).generate(model, *arguments, **keywords)
        steps.append(tokens)
        return tokens

    model.generate = spy
    model.generation_config.eos_token_id = None
    model.config.eos_token_id = None
    generate_summaries(model, tokenizer, ROWS[:8], max_new_tokens=12)
    (free,) = steps
    ends = [int(free[row, 6]) for row in range(count)]  # tokens that stand in the texts
    model.generation_config.eos_token_id = ends[0] if count == 1 else ends or None
    generate_summaries(model, tokenizer, ROWS[:8], max_new_tokens=12)
    assert model.generation_config.eos_token_id == (ends[0] if count == 1 else ends or None)
    stops, cut = {tokenizer.eos_token_id, *ends}, 0
    for one, two in zip(free.tolist(), steps[1].tolist()):
        end = next((i for i, token in enumerate(one[1:], start=1) if token in stops), len(one))
        assert two[: end + 1] == one[: end + 1]
        assert set(two[end + 1 :]) <= {tokenizer.pad_token_id}
        cut += end < 12
    assert cut >= count


def test_validation_while_training_searches_as_evaluation_does(model, tokenizer, tmp_path):
    """Trainer takes the settings of the checkpoint, and several texts per dialogue would be scored on wrong rows."""
    fields = {"steps": 2, "batch_size": 2, "warmup_steps": 0, "evaluate_every": 1, "max_target": 8, "max_source": 30}
    histories = []
    for number, asked in enumerate(({}, {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 1})):
        trained = asking(model, tokenizer, tmp_path / f"backbone-{number}", "generation_config.json", **asked)
        before = trained.generation_config.to_dict()
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            result = train(
                trained.requires_grad_(True),
                tokenizer,
                ROWS[:20],
                TrainingConfig(**fields),
                output=tmp_path / str(number),
                valid=ROWS[20:26],
                progress=False,
            )
        assert any("num_return_sequences=2" in str(one.message) for one in said) == bool(asked)
        assert {k: v for k, v in trained.generation_config.to_dict().items() if k in asked} == {
            k: v for k, v in before.items() if k in asked
        }
        histories.append([point["eval_rouge"] for point in result.history if "eval_rouge" in point])
    assert len(histories[0]) >= 2
    assert histories[0] == histories[1]
