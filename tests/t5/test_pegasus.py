"""T5-pegasus: its tokenizer from a vocab.txt, and its checkpoints in the layouts that are published."""

import json

import jieba
import mop_t5
import pytest
import torch
from errors import raises, says
from mop_t5.backbone.load import is_untied
from mop_t5.backbone.pegasus import convert_checkpoint, from_tensorflow
from mop_t5.backbone.tokenizer import SPECIALS, T5PegasusTokenizer, load_tokenizer, read_pegasus_vocabulary
from mop_t5.cli.main import main
from mop_t5.data import Collator, EncodedExamples, Example
from mop_t5.evaluation import generate_summaries
from pegasus_layout import TOKENS, variables, write_bert4keras_config, write_vocabulary
from t5_oracle import batch, tiny
from transformers import BertTokenizer

TEXTS = [
    "司机绕路，要求退款",
    "用户：我用 iPhone 打车\n客服：24小时",
    "12.50元的 unaffable!",
    "龘 hello ",
    "",
    "[SEP]</s>",
]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return write_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture
def model():
    return tiny("mt5", dtype=torch.float32, num_decoder_layers=2, vocab_size=len(TOKENS) + 3)


def logits(model):
    with torch.no_grad():
        return model(**batch()).logits


# the tokenizer


def by_the_rule(text, bert):
    """Words of the vocabulary whole, all others by BERT's tokenizer."""
    words = jieba.cut(text.lower(), HMM=False)
    return [token for word in words for token in ([word] if word in TOKENS else bert.tokenize(word))]


@pytest.mark.parametrize("text", TEXTS)
def test_words_of_the_vocabulary_stay_whole(text, vocabulary):
    tokenizer = read_pegasus_vocabulary(vocabulary)
    expected = by_the_rule(text, BertTokenizer(vocab={token: i for i, token in enumerate(TOKENS)}))
    assert tokenizer.tokenize(text) == expected
    ids = tokenizer(text)["input_ids"]
    assert ids == [TOKENS.index(token) for token in ["[CLS]", *expected, "[SEP]"]]


def test_the_cases_tell_the_rule_from_others(vocabulary):
    tokenizer = read_pegasus_vocabulary(vocabulary)
    assert tokenizer.tokenize("要求不客气") == ["要求", "不", "客", "气"]  # a word, and one that is cut
    assert tokenizer.tokenize("Unaffable") == ["un", "##aff", "##able"]
    assert tokenizer.tokenize("[SEP]").count("[SEP]") == 0  # what a user types is text


@pytest.mark.parametrize(
    ("specials", "source", "target", "start"),
    [
        ("cls_sep", ["[CLS]", "退款", "[SEP]"], ["退款", "[SEP]"], "[CLS]"),
        ("sep", ["退款", "[SEP]"], ["退款", "[SEP]"], "[CLS]"),
        ("eos", ["退款", "</s>"], ["退款", "</s>"], "[PAD]"),
    ],
)
def test_what_stands_around_a_text(specials, source, target, start, vocabulary, tmp_path):
    made = read_pegasus_vocabulary(vocabulary, specials)
    made.save_pretrained(tmp_path)
    for tokenizer in (made, load_tokenizer(tmp_path)):
        assert isinstance(tokenizer, T5PegasusTokenizer)
        as_target = tokenizer(text_target=["退款", "退款"])["input_ids"]
        as_source = tokenizer("退款")["input_ids"]  # as before, after a target
        assert [tokenizer.convert_ids_to_tokens(ids) for ids in (as_source, *as_target)] == [source, target, target]
        assert tokenizer.eos_token == target[-1]
        assert tokenizer.convert_ids_to_tokens(tokenizer.decoder_start_token_id) == start
        assert tokenizer(TEXTS)["input_ids"] == made(TEXTS)["input_ids"]
        assert tokenizer("[unused1]</s>")["input_ids"].count(1) == (specials == "eos")  # only the one at the end
    assert set(SPECIALS) == {"cls_sep", "sep", "eos"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("司机绕路，要求退款。", None),
        ("用户：（24小时）12.50元", None),
        ("10:30", None),
        ("用户：#b，10-12", None),
        ("hello world! it's unaffable, hello (a)", "hello world! it's unaffable, hello(a)"),
        ("我用 iPhone 打车", "我用iphone打车"),
        ("hello  world\n客服", "hello world客服"),
        ("用户龘退款", "用户退款"),  # a character that the vocabulary lacks
    ],
)
def test_decoding_gives_the_text_back(text, expected, vocabulary, tmp_path):
    made = read_pegasus_vocabulary(vocabulary)
    made.save_pretrained(tmp_path)
    for tokenizer in (made, load_tokenizer(tmp_path)):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == (text if expected is None else expected)


def test_batches_are_padded_and_cut(vocabulary):
    tokenizer = read_pegasus_vocabulary(vocabulary)
    encoded = tokenizer(["退款", "司机绕路，要求退款"], padding=True, truncation=True, max_length=5)
    assert encoded["attention_mask"] == [[1, 1, 1, 0, 0], [1] * 5]
    assert [ids[-1] for ids in encoded["input_ids"]] == [0, TOKENS.index("[SEP]")]


def test_errors_of_the_tokenizer(vocabulary, tmp_path):
    with raises(ValueError, "specials", "'cls_sep', 'sep', 'eos'", "'bert'"):
        read_pegasus_vocabulary(vocabulary, "bert")
    with raises(FileNotFoundError, "vocab.txt"):
        read_pegasus_vocabulary(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[SEP]\n")
    with raises(ValueError, "vocab.txt", "[CLS], [unused1]"):
        read_pegasus_vocabulary(tmp_path / "vocab.txt", "eos")
    (tmp_path / "vocab.txt").write_bytes("退款".encode("gb18030"))
    with raises(ValueError, "vocab.txt", "UTF-8"):
        read_pegasus_vocabulary(tmp_path / "vocab.txt")
    with raises(ValueError, "T5PegasusTokenizer", "offsets"):
        read_pegasus_vocabulary(vocabulary)("退款", return_offsets_mapping=True)
    with raises(TypeError, "texts", "int"):
        read_pegasus_vocabulary(vocabulary)([1])


# the checkpoints


def test_every_variable_of_the_tensorflow_layout_finds_its_place(model):
    found = {name: torch.from_numpy(values) for name, values in variables(model).items()}
    found |= {"global_step": torch.tensor(1), "shared/embedding_slot_v": torch.zeros(3)}
    weights, left_out = from_tensorflow(found)
    assert left_out == ("global_step", "shared/embedding_slot_v")
    expected = dict(model.named_parameters())
    assert set(weights) == set(expected)
    assert all(torch.equal(weights[name], parameter) for name, parameter in expected.items())


def publish(model, folder, config="transformers"):
    """As the PyTorch conversion is published: older names of the embedding, and ids that do not fit the vocabulary."""
    write_vocabulary(folder)
    state = model.state_dict() | {"encoder.embed_tokens.weight": model.shared.weight.detach()}
    torch.save(state, folder / "pytorch_model.bin")
    if config == "bert4keras":
        write_bert4keras_config(folder, model.config)
    else:
        fields = ("d_ff", "d_kv", "d_model", "num_heads", "num_layers", "num_decoder_layers", "vocab_size")
        fields += ("relative_attention_num_buckets",)
        described = {name: getattr(model.config, name) for name in fields} | {"model_type": "mt5", "eos_token_id": 1}
        described |= {"decoder_start_token_id": 0, "tokenizer_class": "T5Tokenizer", "tie_word_embeddings": False}
        (folder / "config.json").write_text(json.dumps(described))
    return folder


def check_converted(folder, model):
    loaded = mop_t5.load_backbone(folder)
    state = loaded.state_dict()
    assert all(torch.equal(state[name], parameter) for name, parameter in model.named_parameters())
    assert is_untied(loaded)
    assert not torch.equal(loaded.lm_head.weight, loaded.shared.weight)
    model.config.relative_attention_max_distance = 128  # no published config says another
    for stack in (model.encoder, model.decoder):
        stack.block[0].layer[0].SelfAttention.relative_attention_max_distance = 128
    assert torch.equal(logits(loaded), logits(model))
    return loaded


@pytest.mark.parametrize("config", ["transformers", "bert4keras"])
def test_a_pytorch_checkpoint_is_converted(config, model, tmp_path, capsys):
    publish(model, tmp_path / "published", config)
    output = tmp_path / "models" / "pegasus"
    assert main(["convert", "--checkpoint", str(tmp_path / "published"), "--output", str(output)]) == 0
    count = sum(p.numel() for p in model.parameters())
    said = capsys.readouterr().out
    says(said, f"{count:,} parameters", "PyTorch layout", f"{len(TOKENS)} tokens")
    assert "Left out: encoder.embed_tokens.weight, decoder.embed_tokens.weight." in said
    loaded = check_converted(output, model)
    loaded.save_pretrained(tmp_path / "again")
    check_converted(tmp_path / "again", model)

    tokenizer = load_tokenizer(output)
    cls, sep = TOKENS.index("[CLS]"), TOKENS.index("[SEP]")
    for ids in (loaded.config, loaded.generation_config):
        assert (ids.decoder_start_token_id, ids.eos_token_id, ids.pad_token_id) == (cls, sep, 0)
    rows = [Example("taxi", "用户：退款", "退款，要求", "1"), Example("taxi", "用户：退款要求", "退款", "2")]
    encoded = EncodedExamples(rows, tokenizer, None)
    inputs = Collator(tokenizer.pad_token_id)([encoded[0], encoded[1]])
    assert inputs["labels"].tolist()[1][:2] == [TOKENS.index("退款"), sep]
    shifted = loaded.prepare_decoder_input_ids_from_labels(inputs["labels"])
    assert shifted.tolist()[1] == [cls, TOKENS.index("退款"), sep, 0]
    assert len(generate_summaries(loaded, tokenizer, rows, max_new_tokens=4)) == 2


def test_a_tensorflow_checkpoint_is_converted(model, tmp_path):
    tensorflow = pytest.importorskip("tensorflow", reason="only needed to read TensorFlow's files")
    published = tmp_path / "published"
    write_vocabulary(published)
    write_bert4keras_config(published, model.config)
    graph = tensorflow.Graph()
    with graph.as_default(), tensorflow.compat.v1.Session(graph=graph) as session:
        for name, values in variables(model).items():
            tensorflow.compat.v1.get_variable(name, initializer=values)
        session.run(tensorflow.compat.v1.global_variables_initializer())
        tensorflow.compat.v1.train.Saver().save(session, str(published / "model.ckpt"))
    made = convert_checkpoint(published, tmp_path / "converted")
    assert (made.layout, made.left_out) == ("TensorFlow", ())
    check_converted(tmp_path / "converted", model)


def test_errors_of_the_conversion(model, tmp_path):
    published = publish(model, tmp_path / "published")
    output = tmp_path / "output"
    state = torch.load(published / "pytorch_model.bin")

    def fails(error, *message):
        with raises(error, *message):
            convert_checkpoint(published, output)
        assert not output.exists()

    name = "decoder.block.1.layer.1.EncDecAttention.q.weight"
    for changed, message in (
        ({n: t for n, t in state.items() if n != "lm_head.weight"}, ("lm_head.weight", "missing")),
        (state | {"lm_head.bias": torch.zeros(2)}, ("lm_head.bias", "unknown")),
        ({f"module.{n}": t for n, t in state.items()}, ("'module.'",)),
        (state | {name: state[name] / 0}, ("not finite", name)),
        (state | {name: torch.zeros(2, 3)}, (name, "(2, 3)", "(32, 24)")),
        (state | {"decoder.embed_tokens.weight": torch.zeros(2)}, ("decoder.embed_tokens.weight", "shared")),
    ):
        torch.save(changed, published / "pytorch_model.bin")
        fails(ValueError, *message)
    torch.save(state, published / "model.ckpt.index")
    fails(FileNotFoundError, "one set of weights", "pytorch_model.bin, model.ckpt")
    (published / "model.ckpt.index").unlink()
    (published / "pytorch_model.bin").write_bytes(b"no weights")
    fails(ValueError, "pytorch_model.bin", "damaged")
    (published / "pytorch_model.bin").unlink()
    fails(FileNotFoundError, "one set of weights", "none")
    (published / "config.json").write_text('{"hidden_size": 3}')
    fails(ValueError, "config.json", "attention_head_size")
    (published / "vocab.txt").write_text("\n".join([*TOKENS, *map(str, range(100, 200))]))
    publish_again = {"vocab_size": 7, "d_model": 2, "d_kv": 2, "d_ff": 2, "num_heads": 1, "num_layers": 1}
    (published / "config.json").write_text(json.dumps(publish_again))
    fails(ValueError, "vocabulary", f"{len(TOKENS) + 100} tokens", "vocab_size of config.json", "7")
    output.mkdir()
    (output / "mine").write_text("")
    with raises(FileExistsError, "exists", "not empty"):
        convert_checkpoint(published, output)
