"""Tokenizers for Chinese dialogues: words by jieba, pieces of words by a vocabulary.

`JiebaTokenizer` has a small BPE vocabulary that is trained on a corpus; a character it lacks becomes its UTF-8 bytes.
So any value of a dialogue can be copied, and decoding gives the text back without spaces between the words.
`T5PegasusTokenizer` has the vocabulary of T5-pegasus. Both cut text by `jieba.cut(text, HMM=False)`; jieba is imported
at the first text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mop_t5.backbone.hub_files import find, read_json
from mop_t5.backbone.segmentation import SegmentingTokenizer, checked_text, segment
from mop_t5.backbone.tokenizer_checks import check_ids, check_size, fit_for_t5
from mop_t5.backbone.tokenizer_files import class_of_transformers, read_sentencepiece
from mop_t5.files import unreadable_in_a_sentence

# files that may hold a tokenizer
_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json", "vocab.txt", "vocab.json")
_IDS = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
_T5_CLASSES = ("", "T5Tokenizer", "MT5Tokenizer", "UMT5Tokenizer")
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2: T5 starts the decoder with the padding id
# A space separates the words below, so a space of the text itself travels as this character.
_SPACE = "\u2423"
# what no space belongs beside: Chinese characters and their punctuation
_WIDE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f\u3000-\u303f\uff00-\uffef"
_WIDE += "\u2013\u2014\u2018\u2019\u201b-\u201f\u2026\u2027\ufe4f\ufe51\ufe54\u00b7"
# applied one after the other to the tokens of T5-pegasus, joined by spaces: which of these go
_NO_SPACE = (
    rf"(?<=[{_WIDE}]) +| +(?=[{_WIDE}])",
    r" +(?=[\p{P}$+<=>^`|~])",
    r"(?<=[-+/={(<\[#@_]) +",
    r"(?<=\d[.:]) +(?=\d)",
    r"(?<=') +(?=(?:re|m|s|t|ve|d|ll) )",
)


class JiebaTokenizer(SegmentingTokenizer):
    """Make one with `train_tokenizer` and read one with `JiebaTokenizer.from_pretrained(folder)` or `load_tokenizer`.
    A text ends with `</s>`."""

    def separate(self, text: str) -> str:
        return _separate(text)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2000) -> JiebaTokenizer:
    """A `JiebaTokenizer` whose pieces are learnt from `texts`.

    `vocab_size` counts everything, the three special tokens and the 256 bytes too; a small corpus may give fewer.
    Raises ValueError for a size that leaves no room for pieces.
    """
    fixed = 3 + 256
    if vocab_size <= fixed:
        raise ValueError(f"vocab_size must be above {fixed} (special tokens and bytes), got {vocab_size}.")
    # No piece may cross the space between two words, and it is no piece itself.
    splitter = pre_tokenizers.Split(" ", "removed")
    learner = Tokenizer(models.BPE(unk_token=UNK))
    learner.pre_tokenizer = splitter
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 256, special_tokens=[PAD, EOS, UNK], show_progress=False)
    learner.train_from_iterator((_separate(checked_text(text)) for text in texts), trainer)

    learnt = json.loads(learner.to_str())["model"]
    # The bytes join after training: as special tokens of the trainer they would be recognised in running text.
    vocabulary = learnt["vocab"] | {f"<0x{byte:02X}>": len(learnt["vocab"]) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in learnt["merges"]]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNK, byte_fallback=True))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(_SPACE, " ")])
    backend.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return JiebaTokenizer(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


class _Specials(NamedTuple):
    """What stands around a text, which token ends it, and which one the decoder starts from."""

    source: str
    target: str
    end: str
    start: str


SPECIALS = {
    "cls_sep": _Specials("[CLS] $A [SEP]", "$A [SEP]", "[SEP]", "[CLS]"),
    "sep": _Specials("$A [SEP]", "$A [SEP]", "[SEP]", "[CLS]"),
    "eos": _Specials(f"$A {EOS}", f"$A {EOS}", EOS, "[PAD]"),
}
_BERT_CLEANER = normalizers.BertNormalizer(lowercase=True)
_BERT_SPLITTER = pre_tokenizers.BertPreTokenizer()


class T5PegasusTokenizer(SegmentingTokenizer):
    """The tokenizer of T5-pegasus. Make one with `read_pegasus_vocabulary` and read a saved one with `load_tokenizer`.

    Text is lower-cased and cut by jieba. A word of the vocabulary is one token; any other is cleaned and cut as BERT
    does, each Chinese character by itself, and then into WordPieces. `specials`, one of SPECIALS, says what stands
    around a text: "cls_sep" is `[CLS] x [SEP]` with a decoder that starts from `[CLS]`, as the published weights were
    trained; "sep" leaves out the `[CLS]` before a source; "eos" is `x </s>` with a decoder that starts from `[PAD]`,
    where `[unused1]` is renamed `</s>`. A target (`text_target=`) has no start: the model puts it there. Decoding
    leaves no space beside a Chinese character, and one between Latin words.
    """

    ignores_case = True

    # no __init__: transformers would rebuild the tokenizer from its bare vocabulary when it reads a saved one

    @property
    def _specials(self) -> _Specials:
        return SPECIALS[self.init_kwargs["specials"]]

    @cached_property
    def _words(self) -> set[str]:
        return self.get_vocab().keys() - set(self.all_special_tokens)

    @property
    def decoder_start_token_id(self) -> int:
        return self.convert_tokens_to_ids(self._specials.start)

    def separate(self, text: str) -> str:
        pieces = []
        for word in segment(text.lower()):
            if word in self._words:
                pieces.append(word)
            else:
                cut = _BERT_SPLITTER.pre_tokenize_str(_BERT_CLEANER.normalize_str(word))
                pieces += [piece for piece, _ in cut]
        return " ".join(pieces)

    def _switch_to_input_mode(self) -> None:
        _surround(self.backend_tokenizer, self._specials.source)

    def _switch_to_target_mode(self) -> None:
        _surround(self.backend_tokenizer, self._specials.target)


def read_pegasus_vocabulary(path: str | Path, specials: str = "cls_sep") -> T5PegasusTokenizer:
    """A `T5PegasusTokenizer` from a vocab.txt: one token a line, the number of the line is its id.

    Raises FileNotFoundError, and ValueError for a file that is not UTF-8 or lacks a special token.
    """
    if specials not in SPECIALS:
        raise ValueError(f"specials must be one of {', '.join(SPECIALS)}; got {specials!r}.")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no vocabulary at {path}. Give the vocab.txt of T5-pegasus.")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}). Give the vocab.txt of T5-pegasus.") from error
    tokens = [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]
    needed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if specials == "eos":
        needed.append("[unused1]")
    missing = [token for token in needed if token not in tokens]
    if missing:
        raise ValueError(f"{path} has no line {', '.join(missing)}. Give the vocab.txt of T5-pegasus.")
    if specials == "eos":
        tokens[tokens.index("[unused1]")] = EOS
    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    gone = [decoders.Replace(Regex(pattern), "") for pattern in _NO_SPACE]
    backend.decoder = decoders.Sequence([decoders.WordPiece(cleanup=False), decoders.Fuse(), *gone])
    _surround(backend, SPECIALS[specials].source)
    return T5PegasusTokenizer(
        tokenizer_object=backend,
        specials=specials,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token=SPECIALS[specials].end,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def load_tokenizer(path_or_hub_name: str | os.PathLike) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a backbone, from its folder or from the hub, as a T5 needs it.

    A tokenizer.json is read as it stands, whatever class its folder names; then comes spiece.model; other files are
    left to transformers. The batches of every tokenizer go into `forward` and `generate` alike, and its `eos_token` is
    the token that it puts behind a text.

    Raises:
        FileNotFoundError: The folder holds no tokenizer.
        ImportError: A package that reads a spiece.model is missing.
        ValueError: A file cannot be read, or the tokenizer does not serve the backbone; see `fit_for_t5`.
    """
    place = os.fspath(path_or_hub_name)
    if os.path.isdir(place) and not any(os.path.isfile(os.path.join(place, file)) for file in _FILES):
        raise FileNotFoundError(
            f"{place} has no tokenizer: none of {', '.join(_FILES)}. Save the tokenizer there, too."
        )
    with unreadable_in_a_sentence("the tokenizer", place):
        config, saved = read_json(place, "config.json"), read_json(place, "tokenizer_config.json")
        ids = {name: config[name] for name in _IDS if name in config}
        ids |= {name: i for name, i in read_json(place, "generation_config.json").items() if name in _IDS}
        whole, pieces = find(place, "tokenizer.json"), find(place, "spiece.model")
    named = saved.get("tokenizer_class") or config.get("tokenizer_class") or ""
    vocab_size = config.get("vocab_size")
    if whole is not None:
        own = {own.__name__: own for own in (JiebaTokenizer, T5PegasusTokenizer)}.get(named)
        read = (own or PreTrainedTokenizerFast).from_pretrained
    elif pieces is not None and named.removesuffix("Fast") in _T5_CLASSES:
        read = partial(read_sentencepiece, pieces=pieces, extra_ids=saved.get("extra_ids"), vocab_size=vocab_size)
    else:
        read = class_of_transformers(named, place).from_pretrained
    with unreadable_in_a_sentence("the tokenizer", place):
        tokenizer = read(place)
    if not isinstance(tokenizer, SegmentingTokenizer):
        fit_for_t5(tokenizer, place)
    check_size(tokenizer, place, vocab_size)
    check_ids(tokenizer, place, ids)
    return tokenizer


def _surround(backend: Tokenizer, template: str) -> None:
    used = [(token, backend.token_to_id(token)) for token in template.split() if token != "$A"]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)


def _separate(text: str) -> str:
    return " ".join(segment(text.replace(" ", _SPACE)))
