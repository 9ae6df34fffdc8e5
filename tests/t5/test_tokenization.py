"""The jieba tokenizer: lossless, small, and the same after saving."""

import subprocess
import sys

import pytest
from mop_t5.data import synthetic_corpus
from mop_t5.tokenization import JiebaTokenizer, load_tokenizer, segment, train_tokenizer
from transformers import PreTrainedTokenizerFast

TEXTS = [
    text
    for row in synthetic_corpus(0, general=200, train=1, valid=1, test=1)["general"]
    for text in (row.dialogue, row.summary)
]
STRANGE = ["龘字不在词表里，价格¥12.50", "a  b\tc\n\n全角　空格", "😀👍🏽", " 前后有空格 ", "<pad>"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 1000)


@pytest.mark.parametrize("text", [*TEXTS[:20], *STRANGE[:4]])
def test_decoding_gives_the_text_back(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_words_are_those_of_jieba_without_hmm(tokenizer):
    text = "司机绕路，要求退款"
    assert segment(text) == ["司机", "绕路", "，", "要求", "退款"]
    assert tokenizer.tokenize(text) == segment(text)  # all of them are frequent enough to be one piece
    assert segment("费用过高") != segment("费用过高", hmm=True)


def test_special_tokens_are_those_of_t5(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert len(tokenizer) <= 1000


def test_batches_are_padded_and_cut(tokenizer):
    batch = tokenizer(["退款", "司机绕路，要求退款"], padding=True, return_tensors="pt")
    assert batch["input_ids"].shape == (2, 6)
    assert batch["attention_mask"].sum(1).tolist() == [2, 6]
    assert tokenizer("司机绕路，要求退款", truncation=True, max_length=3)["input_ids"][-1] == tokenizer.eos_token_id


def test_saving_and_loading(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for loaded in (JiebaTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert isinstance(loaded, JiebaTokenizer)
        assert loaded(TEXTS[:5] + STRANGE)["input_ids"] == tokenizer(TEXTS[:5] + STRANGE)["input_ids"]
        assert loaded.decode(loaded(TEXTS[0])["input_ids"], skip_special_tokens=True) == TEXTS[0]


def test_another_tokenizer_is_left_to_transformers(tokenizer, tmp_path):
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>", pad_token="<pad>")
    plain.save_pretrained(tmp_path)
    assert not isinstance(load_tokenizer(tmp_path), JiebaTokenizer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer_config\.json"):
        load_tokenizer(tmp_path / "empty")


def test_training_twice_gives_the_same_vocabulary(tokenizer):
    assert train_tokenizer(TEXTS, 1000).get_vocab() == tokenizer.get_vocab()


def test_errors(tokenizer):
    with pytest.raises(ValueError, match=r"vocab_size must be above 259 .* got 100"):
        train_tokenizer(TEXTS, 100)
    with pytest.raises(TypeError, match="texts must be strings, got int"):
        train_tokenizer([1])
    with pytest.raises(ValueError, match="no pairs"):
        tokenizer("a", "b")
    with pytest.raises(ValueError, match="no offsets"):
        tokenizer("a", return_offsets_mapping=True)


def test_jieba_is_imported_at_the_first_text_only():
    code = "import sys, mop_t5.tokenization, mop_t5.data, mop_t5.evaluation; sys.exit('jieba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
