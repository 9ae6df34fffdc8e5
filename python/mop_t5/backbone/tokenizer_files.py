"""Read the tokenizer of any backbone, and check that it serves a T5."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerBase, T5Tokenizer
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from mop_t5.files import StrPath

_NEEDED_FILES = (
    "A folder needs tokenizer.json, spiece.model, or a vocab.txt whose class is named in tokenizer_config.json: "
    '"tokenizer_class": "BertTokenizer". Of the published files of T5-pegasus `mop-t5 convert` makes such a folder.'
)
_SENTINELS = 100  # number of sentinels, <extra_id_0> to <extra_id_99>, that T5 adds behind a vocabulary
_SENTINEL = "<extra_id_"
_T5_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_UNUSED = re.compile(r"\W?(?:extra|extra_id_|unused)\d+\W?")  # entries of a vocabulary that no text holds
_PROBES = 64  # largest number of tokens that are tried as words
_RARE = "\U00010380"  # a letter that hardly any vocabulary has


def class_of_transformers(name: str, place: str) -> type[PreTrainedTokenizerBase]:
    """Return the class of transformers for a folder without tokenizer.json and spiece.model.

    Args:
        name: Name of the class in the folder. Empty if there is none.
        place: Folder or hub name, for messages.

    Raises:
        ValueError: transformers has no class of this name, or the class reads only the missing files.
    """
    name = name.removesuffix("Fast")
    found = getattr(transformers, name, None) if name else None
    known = found if isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase) else None
    if known and known not in (T5Tokenizer, transformers.PreTrainedTokenizer):
        return known
    of_class = f" of the class {name}" if name else ""
    unknown = "" if known or not name else f", which transformers {transformers.__version__} does not know"
    raise ValueError(f"{place!r} has no files of a tokenizer{of_class}{unknown}. {_NEEDED_FILES}")


def read_sentencepiece(
    path_or_hub_name: StrPath, pieces: Path, extra_ids: int | None, vocab_size: int | None, **hub: Any
) -> T5Tokenizer:
    """Return the tokenizer of a spiece.model. It reads a text as sentencepiece itself does.

    Args:
        path_or_hub_name: Folder or hub name of the tokenizer.
        pieces: Path of spiece.model.
        extra_ids: Number of sentinels to add behind the vocabulary. None for all that fit, up to 100.
        vocab_size: Number of embeddings of the backbone. None if it is not known.
        **hub: Arguments of from_pretrained about the model hub.

    Raises:
        ImportError: A package that reads the file is missing.
    """
    installed = {"sentencepiece": is_sentencepiece_available(), "protobuf": is_protobuf_available()}
    missing = [package for package, is_there in installed.items() if not is_there]
    if missing:
        raise ImportError(
            f"reading its spiece.model needs {' and '.join(missing)}, which belongs to the extra mop-kernels[t5]: "
            f"pip install {' '.join(missing)}"
        )
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(pieces))
    if extra_ids is None:  # the vocabularies of mT5 and umT5 have no room for sentinels
        room = _SENTINELS if vocab_size is None else vocab_size - processor.get_piece_size()
        extra_ids = min(_SENTINELS, max(0, room))
    tokenizer = T5Tokenizer.from_pretrained(path_or_hub_name, extra_ids=extra_ids, **hub)
    if any(map(processor.is_byte, range(processor.get_piece_size()))):
        # mT5 and umT5 have 256 bytes for unknown characters, which T5Tokenizer of transformers 5 does not use
        backend = tokenizer.backend_tokenizer
        model = json.loads(backend.to_str())["model"]
        vocabulary = [(piece, score) for piece, score in model["vocab"]]
        backend.model = models.Unigram(vocabulary, unk_id=model["unk_id"], byte_fallback=True)
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), backend.decoder])
    return tokenizer


def fit_for_t5(tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Give a tokenizer the token names that a T5 needs. The tokenizer is changed in place.

    The token behind every text becomes the end token, whatever name it had, because training learns to end with this
    token. A batch gets the names that `forward` and `generate` of a T5 take, without token types.

    Args:
        tokenizer: Any tokenizer of transformers.
        place: Folder or hub name, for messages.

    Raises:
        ValueError: The tokenizer knows no words, writes another special token than its unknown token for an unknown
            word, has no padding token, or puts no end token behind a text.
    """
    vocabulary = tokenizer.get_vocab()
    unnamed = {name: token for name, token in _T5_TOKENS.items() if getattr(tokenizer, name) is None}
    tokenizer.add_special_tokens({name: token for name, token in unnamed.items() if token in vocabulary})
    _check_words(tokenizer, vocabulary, place)
    if tokenizer.pad_token is None:
        raise ValueError(
            f"the tokenizer in {place!r} has no padding token, and a T5 needs one. Name it in tokenizer_config.json, "
            'for example "pad_token": "[PAD]".'
        )
    encoded = tokenizer("a", return_special_tokens_mask=True)
    if not (encoded["input_ids"] and encoded["special_tokens_mask"][-1]):
        raise ValueError(
            f"the tokenizer in {place!r} puts no end token behind a text, so a model would never learn to end. Add one "
            'to its backend_tokenizer, post_processor = TemplateProcessing(single="$A </s>", ...), and save it again.'
        )
    end = tokenizer.convert_ids_to_tokens(encoded["input_ids"][-1])
    if end != tokenizer.eos_token:
        tokenizer.eos_token = end
    tokenizer.model_input_names = ["input_ids", "attention_mask"]


def check_size(tokenizer: PreTrainedTokenizerBase, place: str, vocab_size: int | None) -> None:
    """Check that the backbone has an embedding for every token.

    Sentinels may be missing: T5Tokenizer adds them behind any vocabulary, and texts do not hold them.

    Args:
        tokenizer: The tokenizer.
        place: Folder or hub name, for messages.
        vocab_size: Number of embeddings of the backbone. None if it is not known.

    Raises:
        ValueError: A token has no embedding.
    """
    if vocab_size is None:
        return
    vocabulary = tokenizer.get_vocab()
    beyond = [t for t in sorted(vocabulary, key=vocabulary.__getitem__) if vocabulary[t] >= vocab_size]
    beyond = [token for token in beyond if _SENTINEL not in token]
    if beyond:
        raise ValueError(
            f"the tokenizer in {place!r} has {len(vocabulary)} tokens, but the backbone has {vocab_size} embeddings "
            f"(vocab_size of config.json): none for {', '.join(map(repr, beyond[:4]))}{', ...' if beyond[4:] else ''}. "
            "Put the tokenizer there that belongs to the backbone. If you added tokens, call "
            "resize_token_embeddings(len(tokenizer)) and save the backbone, too."
        )


def check_ids(tokenizer: PreTrainedTokenizerBase, place: str, ids: Mapping[str, int | list[int] | None]) -> None:
    """Check that the ids by which the backbone starts, ends and pads a text are no words of the tokenizer.

    Otherwise every summary would begin with the word, break off at the word, or be padded with it.

    Args:
        tokenizer: The tokenizer.
        place: Folder or hub name, for messages.
        ids: The ids of the backbone by their names in config.json.

    Raises:
        ValueError: An id is a word.
    """
    for name, value in ids.items():
        for i in value if isinstance(value, (list, tuple)) else [value]:
            if i is not None and _is_word(tokenizer, i):
                own = getattr(tokenizer, "pad_token_id" if name == "decoder_start_token_id" else name)
                raise ValueError(
                    f"{name} of the backbone in {place!r} is {i}, which is the word "
                    f"{tokenizer.convert_ids_to_tokens(i)!r} of its tokenizer. Put the tokenizer there that belongs to "
                    f"the backbone, or set {name} in config.json and generation_config.json (the tokenizer's is {own})."
                )


def _is_word(tokenizer: PreTrainedTokenizerBase, i: int) -> bool:
    """Return whether the tokenizer reads some text as this id."""
    text = str(tokenizer.decode([i], skip_special_tokens=True)).strip() if 0 <= i < len(tokenizer) else ""
    return (
        bool(text)
        and not _UNUSED.fullmatch(text)
        and i in tokenizer(f"{text} {text}{text}", add_special_tokens=False)["input_ids"]
    )


def _check_words(tokenizer: PreTrainedTokenizerBase, vocabulary: dict[str, int], place: str) -> None:
    special = set(tokenizer.all_special_tokens)
    words = sorted(i for token, i in vocabulary.items() if token not in special)
    texts = [tokenizer.decode([i]) for i in words[:: len(words) // _PROBES + 1]]
    read = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    if not any(i != tokenizer.unk_token_id for ids in read for i in ids):
        raise ValueError(
            f"the tokenizer in {place!r}, a {type(tokenizer).__name__} of {len(vocabulary)} tokens, knows no words: it "
            f"makes {tokenizer.unk_token!r} of every text. {_NEEDED_FILES}"
        )
    unknown = set(tokenizer.convert_ids_to_tokens(tokenizer(_RARE, add_special_tokens=False)["input_ids"]))
    wrong = sorted(unknown & (special - {tokenizer.unk_token}))
    if wrong:
        raise ValueError(
            f"the tokenizer in {place!r} writes {', '.join(wrong)} for a word that it does not know, instead of its "
            f"unknown token, {tokenizer.unk_token!r}. A spiece.model must begin with the special tokens of T5: <pad>, "
            "</s>, <unk>. For another order give a tokenizer.json."
        )
