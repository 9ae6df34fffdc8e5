"""Generation in batches: the order of the rows, the scenario of each, and what a single row gives."""

import mop_t5
import pytest
from mop_t5.data import Example, synthetic_corpus
from mop_t5.evaluation import generate_summaries
from mop_t5.tokenization import train_tokenizer
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
    with pytest.raises(ValueError, match=r"example 'x' is of scenario 'metro'; known are food, take-out"):
        generate_summaries(model, tokenizer, [Example("metro", dialogue, "", "x")])


def test_the_mode_of_the_model_is_kept_and_dropout_is_off(model, tokenizer):
    model.train()
    first = generate_summaries(model, tokenizer, ROWS[:3], max_new_tokens=6)
    assert model.training
    assert generate_summaries(model.eval(), tokenizer, ROWS[:3], max_new_tokens=6) == first
    assert not model.training


def test_beams_and_limits(model, tokenizer):
    assert len(generate_summaries(model, tokenizer, ROWS[:3], num_beams=3, max_new_tokens=6)) == 3
    with pytest.raises(ValueError, match="num_beams and batch_size must be at least 1, got 0 and 32"):
        generate_summaries(model, tokenizer, ROWS[:1], num_beams=0)
    with pytest.raises(ValueError, match="examples is empty"):
        generate_summaries(model, tokenizer, [])
