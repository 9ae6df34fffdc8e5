"""The jieba tokenizer: lossless, small, and the same after saving. Tokenizers of other origins, as people have them."""

import json

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.backbone import tokenizer_files
from mop_t5.backbone.tokenizer import JiebaTokenizer, load_tokenizer, read_pegasus_vocabulary, segment, train_tokenizer
from mop_t5.data import EncodedExamples, Example, synthetic_corpus
from mop_t5.evaluation import generate_summaries
from pegasus_layout import write_vocabulary
from t5_oracle import tiny
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
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
    with raises(FileNotFoundError, "empty", "tokenizer.json, spiece.model"):
        load_tokenizer(tmp_path / "empty")


def test_training_twice_gives_the_same_vocabulary(tokenizer):
    assert train_tokenizer(TEXTS, 1000).get_vocab() == tokenizer.get_vocab()


def test_errors(tokenizer):
    with raises(ValueError, "vocab_size", "259", "100"):
        train_tokenizer(TEXTS, 100)
    with raises(TypeError, "texts", "int"):
        train_tokenizer([1])
    with raises(ValueError, "pairs"):
        tokenizer("a", "b")
    with raises(ValueError, "offsets"):
        tokenizer("a", return_offsets_mapping=True)


# added tokens


@pytest.fixture(params=["jieba", "pegasus"])
def segmenting(request, tmp_path):
    if request.param == "jieba":
        return train_tokenizer(TEXTS, 700)
    return read_pegasus_vocabulary(write_vocabulary(tmp_path))


def test_added_tokens_stay_whole(segmenting, tmp_path):
    before, plain = len(segmenting), segmenting.tokenize("司机退款，用户")
    assert segmenting.add_tokens(["绕路费", "绕路费用", "VIP卡"]) == 3
    assert segmenting.add_special_tokens({"additional_special_tokens": ["<taxi>"]}) == 1
    assert len(segmenting) == before + 4
    segmenting.save_pretrained(tmp_path / "saved")
    loaded = load_tokenizer(tmp_path / "saved")
    assert (type(loaded), len(loaded)) == (type(segmenting), before + 4)
    text = "司机绕路费，用户绕路费用<taxi>"
    ids = segmenting(text)["input_ids"]
    for tokenizer in (segmenting, loaded):
        encoded = tokenizer([text, text], text_target=[text])
        assert encoded["input_ids"] == [ids, ids]
        assert encoded["labels"][0] == [i for i in ids if tokenizer.convert_ids_to_tokens(i) != "[CLS]"]
        tokens = tokenizer.tokenize(text)
        assert [t for t in tokens if t in ("绕路费", "绕路费用", "<taxi>")] == ["绕路费", "绕路费用", "<taxi>"]
        assert [i for i in ids if i >= before] == tokenizer.convert_tokens_to_ids(["绕路费", "绕路费用", "<taxi>"])
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.removesuffix("<taxi>")
        assert "<taxi>" not in tokenizer.tokenize(text, split_special_tokens=True)
        assert tokenizer.tokenize("司机退款，用户") == plain
        assert tokenizer.tokenize("VIP卡") == ["VIP卡"]
        # as transformers does: a tokenizer that ignores case finds an ordinary added token in any case
        assert ("VIP卡" in tokenizer.tokenize("vip卡")) is tokenizer.ignores_case


def test_what_is_no_added_token(segmenting):
    segmenting.add_tokens([AddedToken("<a>", lstrip=True, rstrip=True), AddedToken("单号", single_word=True)])
    built_in = set(segmenting.all_special_tokens) - {segmenting.unk_token}
    assert not built_in & set(segmenting.tokenize("".join(built_in)))  # what a user types is text
    assert [token.strip() for token in segmenting.tokenize("用户  <a> 客服")] == ["用户", "<a>", "客服"]
    assert segmenting.tokenize("订单号") != [*segmenting.tokenize("订"), "单号"]
    with raises(ValueError, "'a b'"):
        segmenting.add_tokens(["c", "a b"])


# tokenizers of other origins


VOCAB_TXT = "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"用户司机绕路：客服"]) + "\n"
T5_SPECIALS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def folder_of(folder, *, model_type="t5", vocab_size=64, **files):
    """files: name with _ for the dot -> content, a text or what becomes JSON."""
    folder.mkdir(exist_ok=True)
    files["config_json"] = {"model_type": model_type, "vocab_size": vocab_size} | files.get("config_json", {})
    for name, content in files.items():
        path = folder / ".".join(name.rsplit("_", 1))
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


def whole_words(*, eos="</s>", specials=("<pad>", "</s>", "<unk>"), normalizer=None, words=("a", "taxi", "ride")):
    """A tokenizer.json that knows words, unlike what T5Tokenizer would make of it."""
    vocabulary = {token: i for i, token in enumerate([*specials, *words])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=next(s for s in specials if "unk" in s.lower())))
    backend.pre_tokenizer, backend.normalizer = pre_tokenizers.Whitespace(), normalizer
    if eos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"$A {eos}", special_tokens=[(eos, vocabulary[eos])]
        )
    return backend.to_str()


@pytest.mark.parametrize("model_type", ["t5", "mt5", "umt5"])
@pytest.mark.parametrize("named", [None, "T5TokenizerFast", "BertTokenizerFast", "PreTrainedTokenizerFast", "Unknown"])
def test_a_tokenizer_json_is_read_as_it_stands(model_type, named, tmp_path):
    config = T5_SPECIALS | ({} if named is None else {"tokenizer_class": named})
    text = whole_words(normalizer=normalizers.Lowercase())
    folder = folder_of(tmp_path, model_type=model_type, tokenizer_json=text, tokenizer_config_json=config)
    tokenizer = load_tokenizer(folder)
    assert tokenizer("A taxi home")["input_ids"] == [3, 4, 2, 1]
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token) == ("<pad>", "</s>", "<unk>")
    (folder / "tokenizer_config.json").unlink()
    tokenizer = load_tokenizer(folder)  # the names are those of T5
    assert tokenizer("A taxi home", padding="max_length", max_length=5)["input_ids"] == [3, 4, 2, 1, 0]
    assert tokenizer.decode([3, 4, 1, 0], skip_special_tokens=True) == "a taxi"


@pytest.mark.parametrize("model_type", ["mt5", "umt5"])
def test_the_batch_of_a_bert_tokenizer_goes_into_training_and_generation(model_type, tmp_path):
    model = tiny("mt5", dtype=torch.float32, vocab_size=64, num_decoder_layers=2)
    model.save_pretrained(tmp_path)
    named = {"tokenizer_class": "BertTokenizer"}
    config = json.loads((tmp_path / "config.json").read_text())
    folder_of(tmp_path, model_type=model_type, vocab_txt=VOCAB_TXT, tokenizer_config_json=named, config_json=config)
    tokenizer = load_tokenizer(tmp_path)
    batch = tokenizer(["用户：司机绕路", "客服"], padding=True, return_tensors="pt")
    assert list(batch) == ["input_ids", "attention_mask"]
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][1])[:4] == ["[CLS]", "客", "服", "[SEP]"]
    assert tokenizer.eos_token == "[SEP]"  # what stands behind a target, so what a model learns to end with
    model = mop_t5.attach(mop_t5.load_backbone(tmp_path), "bitfit") if model_type == "mt5" else model
    assert model(**batch, labels=torch.tensor([[5, 3], [6, 3]])).loss.isfinite()
    model.generate(**batch, max_new_tokens=2)


def test_a_summary_ends_where_training_ended_it(tmp_path):
    """The config's end token, 1, is [UNK] in this vocabulary."""
    model = tiny("mt5", dtype=torch.float32, vocab_size=64, num_decoder_layers=2)
    folder_of(tmp_path, vocab_txt=VOCAB_TXT, tokenizer_config_json={"tokenizer_class": "BertTokenizer"})
    seen = []
    plain = model.generate
    model.generate = lambda **inputs: seen.append(inputs["eos_token_id"]) or plain(**inputs)
    generate_summaries(model, load_tokenizer(tmp_path), [Example("a", "用户", "", "1")], max_new_tokens=3)
    assert seen == [[1, 3]]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"vocab_txt": VOCAB_TXT, "tokenizer_config_json": {}}, ("tokenizer", "`mop-t5 convert`")),
        ({"vocab_txt": VOCAB_TXT}, ("tokenizer", "`mop-t5 convert`")),
        (
            {"vocab_txt": VOCAB_TXT, "tokenizer_config_json": {"tokenizer_class": "T5PegasusTokenizer"}},
            ("class T5PegasusTokenizer", "transformers"),
        ),
        ({"vocab_json": {"a": 0}, "merges_txt": ""}, ("tokenizer", "tokenizer.json")),
        (
            {"vocab_txt": VOCAB_TXT, "config_json": {"tokenizer_class": "T5Tokenizer"}},
            ("tokenizer", "class T5Tokenizer"),
        ),
        (
            {
                "vocab_txt": "[PAD]\n[UNK]\n[CLS]\n[SEP]\n▁用户\n▁司机\n",
                "tokenizer_config_json": {"tokenizer_class": "BertTokenizer"},
            },
            ("BertTokenizer", "tokens", "'[UNK]'"),
        ),
        ({"tokenizer_json": whole_words(eos=None)}, ("end token",)),
        (
            {"tokenizer_json": whole_words(specials=("[X]", "</s>", "<unk>"))},
            ("padding token", "tokenizer_config.json", '"pad_token"'),
        ),
        (
            {"tokenizer_json": whole_words(words=[f"w{i}" for i in range(70)])},
            ("73 tokens", "64 embeddings", "'w61'", "resize_token_embeddings"),
        ),
        ({"tokenizer_config_json": "{"}, ("tokenizer_config.json", "damaged")),
        ({"tokenizer_config_json": []}, ("JSON", "list")),
        ({"tokenizer_json": "{}"}, ("tokenizer", "cannot be read")),
        ({"tokenizer_json": "nothing"}, ("tokenizer", "cannot be read")),
    ],
)
def test_a_tokenizer_that_does_not_serve_a_t5(files, message, tmp_path):
    with raises(ValueError, *message):
        load_tokenizer(folder_of(tmp_path, **files))


@pytest.mark.parametrize("file", ["config_json", "generation_config_json"])
@pytest.mark.parametrize("field", ["pad_token_id", "eos_token_id", "decoder_start_token_id"])
def test_an_id_of_the_backbone_that_is_a_word_of_the_tokenizer(field, file, tmp_path):
    tokenizer = whole_words(words=("a", "extra0", "taxi"))
    ids = {"a": 3, "extra0": 4, "taxi": 5}
    folder = folder_of(tmp_path, tokenizer_json=tokenizer)
    path = folder / f"{file.removesuffix('_json')}.json"
    written = json.loads(path.read_text()) if path.exists() else {}
    for harmless in (None, 0, 1, 63, ids["extra0"]):
        path.write_text(json.dumps(written | {field: harmless}))
        load_tokenizer(folder)
    for value in (ids["taxi"], [1, ids["taxi"]]):
        path.write_text(json.dumps(written | {field: value}))
        own = 1 if field == "eos_token_id" else 0
        with raises(ValueError, field, "5", "'taxi'", "tokenizer", str(own)):
            load_tokenizer(folder)


def test_a_token_without_an_embedding_is_found_before_training(tokenizer):
    rows = [Example("taxi", "退款", "退款", "1"), Example("taxi", "退款", "司机绕路，要求退款", "2")]
    fits = max(i for row in rows for i in tokenizer(row.summary)["input_ids"]) + 1
    assert len(EncodedExamples(rows, tokenizer, None, vocab_size=fits)) == 2
    with raises(ValueError, "example '2'", f"id {fits - 1}", f"{fits - 1} embeddings"):
        EncodedExamples(rows, tokenizer, None, vocab_size=fits - 1)
    with raises(ValueError, "model", "8 embeddings"):
        generate_summaries(tiny("t5", dtype=torch.float32, vocab_size=8), tokenizer, rows)


# sentencepiece

LINES = ["a driver took a long way round and the rider wants money back", "用户司机绕路要求退款，客服处理。"] * 40


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """pieces(**options): a spiece.model, and sentencepiece's own reader of it."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "lines.txt").write_text("\n".join(LINES), encoding="utf-8")

    def make(**options):
        ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} | options
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "lines.txt"),
            model_prefix=str(folder / "spiece"),
            hard_vocab_limit=False,
            minloglevel=2,
            **({"vocab_size": 70} | ids),
        )
        path = folder / "spiece.model"
        return path.read_bytes(), sentencepiece.SentencePieceProcessor(model_file=str(path))

    return make


@pytest.mark.parametrize("model_type", ["t5", "mt5", "umt5"])
@pytest.mark.parametrize("with_bytes", [False, True])
def test_a_spiece_model_is_read_as_sentencepiece_does(model_type, with_bytes, pieces, tmp_path):
    content, reader = pieces(**({"byte_fallback": True, "vocab_size": 330} if with_bytes else {}))
    size = reader.get_piece_size()
    folder = folder_of(tmp_path / "backbone", model_type=model_type, vocab_size=size + 12)
    (folder / "spiece.model").write_bytes(content)
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == size + 12  # as many sentinels as there is room for
    tokenizer.save_pretrained(tmp_path / "again")
    for text in ("the driver  用户：司机", "龘 😀 wants", " "):
        for one in (tokenizer, load_tokenizer(tmp_path / "again")):
            assert one(text)["input_ids"] == [*reader.encode(text), 1]
            if with_bytes:
                assert one.decode(one(text)["input_ids"], skip_special_tokens=True).strip() == reader.decode(
                    reader.encode(text)
                )
    (folder / "tokenizer_config.json").write_text(json.dumps(T5_SPECIALS | {"extra_ids": 0}))
    assert len(load_tokenizer(folder)) == size
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": size + 128}))
    tokenizer = load_tokenizer(folder)
    assert len(tokenizer) == size + 100
    assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == size + 99


def test_another_order_of_special_tokens_is_refused(pieces, tmp_path):
    content, _ = pieces(pad_id=3, eos_id=2, unk_id=0, bos_id=1)
    (folder_of(tmp_path) / "spiece.model").write_bytes(content)
    with raises(ValueError, "</s>", "'<unk>'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("absent", [["sentencepiece"], ["protobuf"], ["sentencepiece", "protobuf"]])
def test_a_missing_reader_of_sentencepiece_is_named(absent, tmp_path, monkeypatch):
    for package in ("sentencepiece", "protobuf"):
        monkeypatch.setattr(tokenizer_files, f"is_{package}_available", lambda package=package: package not in absent)
    (folder_of(tmp_path) / "spiece.model").write_bytes(b"")
    with raises(ImportError, "mop-kernels[t5]", f"pip install {' '.join(absent)}"):
        load_tokenizer(tmp_path)
