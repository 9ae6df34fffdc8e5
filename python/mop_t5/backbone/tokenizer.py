"""Load the tokenizer of any backbone, and make tokenizers for Chinese dialogues.

`JiebaTokenizer` has a small BPE vocabulary that is trained on a corpus. A character that the vocabulary lacks becomes
its UTF-8 bytes. So any value of a dialogue can be copied, and decoding gives the text back without spaces between the
words. `T5PegasusTokenizer` has the vocabulary of T5-pegasus. Both cut text into words by `jieba.cut(text, HMM=False)`
and words into pieces by their vocabulary.
"""

import json
import os
from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mop_t5.backbone import tokenizer_files
from mop_t5.backbone.segmentation import SegmentingTokenizer, checked_text, segment
from mop_t5.backbone.source import Source
from mop_t5.checks import check_choice, check_type
from mop_t5.files import StrPath, unreadable_in_a_sentence

# files that may hold a tokenizer
_FILES = ("tokenizer.json", "spiece.model", "tokenizer_config.json", "vocab.txt", "vocab.json")
_IDS = ("pad_token_id", "eos_token_id", "decoder_start_token_id")
_T5_CLASSES = ("", "T5Tokenizer", "MT5Tokenizer", "UMT5Tokenizer")
_OPTIONS: dict[str, Any] = {  # of both tokenizers
    "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "attention_mask"],
}
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2: T5 starts the decoder with the padding id
# A space separates the words, so this character stands for a space of the text itself.
_SPACE = "\u2423"
# Chinese characters and their punctuation: no space stands beside them
_WIDE = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f\u3000-\u303f\uff00-\uffef"
_WIDE += "\u2013\u2014\u2018\u2019\u201b-\u201f\u2026\u2027\ufe4f\ufe51\ufe54\u00b7"
# The tokens of T5-pegasus are joined by spaces. These patterns, one after the other, select which spaces are removed.
_NO_SPACE = (
    rf"(?<=[{_WIDE}]) +| +(?=[{_WIDE}])",
    r" +(?=[\p{P}$+<=>^`|~])",
    r"(?<=[-+/={(<\[#@_]) +",
    r"(?<=\d[.:]) +(?=\d)",
    r"(?<=') +(?=(?:re|m|s|t|ve|d|ll) )",
)


class JiebaTokenizer(SegmentingTokenizer):
    """Tokenizer of words by jieba and pieces by a trained BPE vocabulary. A text ends with `</s>`.

    `train_tokenizer` makes one. `JiebaTokenizer.from_pretrained(folder)` and `load_tokenizer` read a saved one.
    """

    @staticmethod
    def separate(text: str) -> str:
        """Return the jieba words of a text, separated by spaces."""
        return " ".join(segment(text.replace(" ", _SPACE)))


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2000) -> JiebaTokenizer:
    """Train a `JiebaTokenizer` on texts.

    Args:
        texts: The texts.
        vocab_size: Number of tokens, with the three special tokens and the 256 bytes. A small corpus may give fewer.

    Raises:
        TypeError: A text is no string.
        ValueError: `vocab_size` leaves no room for pieces.
    """
    fixed = 3 + 256
    if vocab_size <= fixed:
        raise ValueError(f"vocab_size must be above {fixed} (special tokens and bytes), got {vocab_size}.")
    # no piece crosses the space between two words, and the space is no piece
    splitter = pre_tokenizers.Split(" ", "removed")
    learner = Tokenizer(models.BPE(unk_token=UNK))
    learner.pre_tokenizer = splitter
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 256, special_tokens=[PAD, EOS, UNK], show_progress=False)
    learner.train_from_iterator((JiebaTokenizer.separate(checked_text(text)) for text in texts), trainer)

    learnt = json.loads(learner.to_str())["model"]
    # the bytes are added after training, because special tokens of the trainer would be found in a text
    vocabulary = learnt["vocab"] | {f"<0x{byte:02X}>": len(learnt["vocab"]) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in learnt["merges"]]
    backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=UNK, byte_fallback=True))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(_SPACE, " ")])
    backend.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return JiebaTokenizer(tokenizer_object=backend, pad_token=PAD, eos_token=EOS, unk_token=UNK, **_OPTIONS)


# templates of a source text in T5-pegasus; each ends with the token that also ends a target
SPECIALS = {"cls_sep": "[CLS] $A [SEP]", "sep": "$A [SEP]", "eos": f"$A {EOS}"}
_BERT_CLEANER = normalizers.BertNormalizer(lowercase=True)
_BERT_SPLITTER = pre_tokenizers.BertPreTokenizer()


class T5PegasusTokenizer(SegmentingTokenizer):
    """Tokenizer of T5-pegasus. `read_pegasus_vocabulary` makes one, and `load_tokenizer` reads a saved one.

    Text is lower-cased and cut by jieba. A word of the vocabulary is one token. Any other word is cleaned and cut as in
    BERT, each Chinese character by itself, and then into WordPieces.

    `specials`, a key of SPECIALS, names the special tokens around a text. "cls_sep" is `[CLS] x [SEP]` with a decoder
    that starts from `[CLS]`, as the published weights were trained. "sep" leaves out the `[CLS]` before a source. "eos"
    is `x </s>` with a decoder that starts from `[PAD]`, and `[unused1]` is renamed `</s>`. A target (`text_target=`)
    has no start token, because the model adds it. Decoding leaves one space between Latin words and no space beside a
    Chinese character.
    """

    ignores_case = True

    # no __init__: transformers would rebuild the tokenizer from its bare vocabulary when it reads a saved one

    @cached_property
    def _words(self) -> set[str]:
        return self.get_vocab().keys() - set(self.all_special_tokens)

    @property
    def decoder_start_token_id(self) -> int:
        """Id of the token that the decoder starts from."""
        start = "[PAD]" if self.init_kwargs["specials"] == "eos" else "[CLS]"
        return cast(int, self.convert_tokens_to_ids(start))  # a list only for a list of tokens

    def separate(self, text: str) -> str:
        """Return the words of the vocabulary and the cut pieces of other words, separated by spaces."""
        pieces = []
        for word in segment(text.lower()):
            if word in self._words:
                pieces.append(word)
            else:
                cut = _BERT_SPLITTER.pre_tokenize_str(_BERT_CLEANER.normalize_str(word))
                pieces += [piece for piece, _ in cut]
        return " ".join(pieces)

    def _switch_to_input_mode(self) -> None:
        _surround(self.backend_tokenizer, SPECIALS[self.init_kwargs["specials"]])

    def _switch_to_target_mode(self) -> None:
        _surround(self.backend_tokenizer, SPECIALS[self.init_kwargs["specials"]].removeprefix("[CLS] "))


def read_pegasus_vocabulary(path: StrPath, specials: str = "cls_sep") -> T5PegasusTokenizer:
    """Return a `T5PegasusTokenizer` from a vocab.txt with one token per line. The number of the line is the id.

    Args:
        path: Path of vocab.txt.
        specials: A key of SPECIALS, see `T5PegasusTokenizer`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not UTF-8 or lacks a special token, or `specials` is unknown.
    """
    check_choice("specials", specials, SPECIALS)
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no vocabulary at {path}. Give the vocab.txt of T5-pegasus.")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}). Give the vocab.txt of T5-pegasus.") from error
    tokens = [line.rstrip("\r") for line in (lines if lines[-1] else lines[:-1])]
    needed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(["[unused1]"] if specials == "eos" else [])]
    missing = [token for token in needed if token not in tokens]
    if missing:
        raise ValueError(f"{path} has no line {', '.join(missing)}. Give the vocab.txt of T5-pegasus.")
    if specials == "eos":
        tokens[tokens.index("[unused1]")] = EOS
    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    gone = [decoders.Replace(Regex(pattern), "") for pattern in _NO_SPACE]
    backend.decoder = decoders.Sequence([decoders.WordPiece(cleanup=False), decoders.Fuse(), *gone])
    _surround(backend, SPECIALS[specials])
    return T5PegasusTokenizer(
        tokenizer_object=backend,
        specials=specials,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token=SPECIALS[specials].split()[-1],
        **_OPTIONS,
    )


def load_tokenizer(
    path_or_hub_name: StrPath,
    *,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
    cache_dir: StrPath | None = None,
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a backbone as a T5 needs it.

    A tokenizer.json is read unchanged, whatever class the folder names. A folder without tokenizer.json is read from
    spiece.model, and a folder without both is read by its class of transformers. `forward` and `generate` take the
    batches of the returned tokenizer. Its `eos_token` is the token that it puts behind a text.

    Args:
        path_or_hub_name: Folder of the backbone, or its name on the model hub.
        revision: Branch, tag or commit on the model hub. None for the main branch.
        subfolder: Folder of the files within the folder or repository.
        token: Access token of the model hub. None for the token that is saved on this machine.
        cache_dir: Folder of downloaded files. None for the cache of the hub.

    Raises:
        FileNotFoundError: The folder holds no tokenizer.
        ImportError: A package that reads a spiece.model is missing.
        ValueError: A file cannot be read, or the tokenizer does not serve the backbone; see `fit_for_t5`.
    """
    source = Source(path_or_hub_name, revision, subfolder, token, cache_dir)
    place = str(source)
    if os.path.isdir(source.place) and not any((source.folder / file).is_file() for file in _FILES):
        raise FileNotFoundError(
            f"{place} has no tokenizer: none of {', '.join(_FILES)}. Save the tokenizer there, too."
        )
    with unreadable_in_a_sentence("the tokenizer", place):
        config, saved = source.find_json("config.json"), source.find_json("tokenizer_config.json")
        ids = {name: config[name] for name in _IDS if name in config}
        ids |= {name: i for name, i in source.find_json("generation_config.json").items() if name in _IDS}
        whole, pieces = source.find("tokenizer.json"), source.find("spiece.model")
        named = saved.get("tokenizer_class") or config.get("tokenizer_class") or ""
        vocab_size, extra_ids = config.get("vocab_size"), saved.get("extra_ids")
        check_type("tokenizer_class", named, str)
        for name, value in {"vocab_size": vocab_size, "extra_ids": extra_ids}.items():
            check_type(name, value, int | None)
        for name, value in ids.items():
            check_type(name, value, int | list[int] | None)
    read: Callable[..., PreTrainedTokenizerBase]
    if whole is not None:
        own = {own.__name__: own for own in (JiebaTokenizer, T5PegasusTokenizer)}.get(named)
        read = (own or PreTrainedTokenizerFast).from_pretrained
    elif pieces is not None and named.removesuffix("Fast") in _T5_CLASSES:
        read = partial(tokenizer_files.read_sentencepiece, pieces=pieces, extra_ids=extra_ids, vocab_size=vocab_size)
    else:
        read = tokenizer_files.class_of_transformers(named, place).from_pretrained
    with unreadable_in_a_sentence("the tokenizer", place):
        tokenizer = read(source.place, **source.arguments)
    try:
        if not isinstance(tokenizer, SegmentingTokenizer):
            tokenizer_files.fit_for_t5(tokenizer, place)
        tokenizer_files.check_size(tokenizer, place, vocab_size)
        tokenizer_files.check_ids(tokenizer, place, ids)
    except ValueError:
        raise
    except Exception as error:  # tokenizers reads some files that it cannot use
        raise ValueError(f"the tokenizer in {place!r} does not work ({error}). Copy it again.") from error
    return tokenizer


def _surround(backend: Tokenizer, template: str) -> None:
    used = [(token, backend.token_to_id(token)) for token in template.split() if token != "$A"]
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
