"""Batches: padding, labels, scenario ids."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.data import Collator, EncodedExamples, Example, dataset, scenario_ids_of
from transformers import T5Config

ROWS = [Example("taxi", "用户：司机绕路", "绕路。", "a"), Example("food", "用户：点菜", "用户点菜。", "b")]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([text for row in ROWS for text in (row.dialogue, row.summary)], 300)


def test_a_batch(tokenizer):
    rows = EncodedExamples(ROWS, tokenizer, ["food", "taxi"])
    batch = Collator(tokenizer.pad_token_id, 2)([rows[0], rows[1]])
    assert {name: tensor.dtype for name, tensor in batch.items()} == dict.fromkeys(
        ["input_ids", "attention_mask", "labels", "scenario_ids"], torch.int64
    )
    assert batch["scenario_ids"].tolist() == [1, 0]
    for i, row in enumerate(ROWS):
        kept = batch["attention_mask"][i].bool()
        assert batch["input_ids"][i][kept].tolist() == tokenizer(row.dialogue)["input_ids"]
        assert batch["input_ids"][i][~kept].eq(tokenizer.pad_token_id).all()
        labels = batch["labels"][i]
        assert labels[labels != -100].tolist() == tokenizer(row.summary)["input_ids"]
    assert batch["labels"].eq(-100).any()


def test_without_scenarios_and_with_cut_texts(tokenizer):
    rows = EncodedExamples(ROWS, tokenizer, None, max_source=3, max_target=2)
    batch = Collator(tokenizer.pad_token_id)([rows[0], rows[1]])
    assert "scenario_ids" not in batch
    assert batch["input_ids"].shape == (2, 3)
    assert batch["labels"].shape == (2, 2)
    assert batch["input_ids"][:, -1].eq(tokenizer.eos_token_id).all()


def test_threads_do_not_cut_by_each_others_length(tokenizer):
    """The second thread asks while the first is between its length and its texts, as both would without a lock."""
    both = threading.Barrier(2)

    class Slow:
        length = None

        def __call__(self, texts=None, text_target=None, max_length=None, **settings):
            self.length = max_length  # as transformers does: the length belongs to the tokenizer
            with suppress(threading.BrokenBarrierError):
                both.wait(timeout=0.05)
            return tokenizer(texts, text_target=text_target, max_length=self.length, **settings)

    slow = Slow()
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(EncodedExamples, ROWS, slow, None, max_source=n, max_target=n) for n in (2, 3)]
        cut = [{len(row[name]) for row in call.result() for name in row} for call in calls]
    assert cut == [{2}, {3}]


def test_the_text_that_is_encoded_and_cut(tokenizer):
    rows = EncodedExamples(
        ROWS, tokenizer, ["food", "taxi"], source_text=lambda dialogue, scenario: f"{scenario} {dialogue}", max_source=9
    )
    for i, row in enumerate(ROWS):
        text = f"{row.scenario} {row.dialogue}"
        assert rows[i]["input_ids"] == tokenizer(text, truncation=True, max_length=9)["input_ids"]
        assert rows[i]["labels"] == tokenizer(row.summary)["input_ids"]


def test_decoder_inputs_are_the_shifted_labels(tokenizer):
    config = T5Config(vocab_size=300, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=4)
    model = mop_t5.build_backbone(config)
    rows = EncodedExamples(ROWS, tokenizer, None)
    batch = Collator(0, None, model.prepare_decoder_input_ids_from_labels)([rows[0], rows[1]])
    assert batch["decoder_input_ids"][:, 0].eq(0).all()
    assert batch["decoder_input_ids"][1, 1:].tolist() == batch["labels"][1, :-1].tolist()
    assert batch["decoder_input_ids"].min() >= 0


def test_wrong_scenarios(tokenizer):
    with raises(ValueError, "example 'b'", "scenario 'food'", "taxi"):
        scenario_ids_of(ROWS, ["taxi"])
    rows = EncodedExamples(ROWS, tokenizer, ["food", "taxi"])
    with raises(ValueError, "scenario_ids", "[0, 1)", "[1]"):
        Collator(0, 1)([rows[0], rows[1]])
    with raises(ValueError, "examples", "empty"):
        EncodedExamples([], tokenizer, None)


def test_a_forked_process_does_not_wait_for_a_thread_of_its_parent():
    """The thread that holds the lock does not exist there, so nothing would release it."""
    with dataset._TOKENIZING:
        child = os.fork()
        if not child:
            os._exit(dataset._TOKENIZING.locked())
    assert os.waitpid(child, 0)[1] == 0
