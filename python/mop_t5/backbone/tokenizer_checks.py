"""What a tokenizer of any origin needs to serve a T5, checked when it is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from mop_t5.backbone.tokenizer_files import WHAT_IS_NEEDED

_T5_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_SENTINEL = "<extra_id_"
_UNUSED = re.compile(r"\W?(?:extra|extra_id_|unused)\d+\W?")  # entries of a vocabulary that no text holds
_PROBES = 64
_RARE = "\U00010380"  # a letter that hardly any vocabulary has


def fit_for_t5(tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Give a tokenizer the names that a T5 needs, in place.

    Its end token becomes the token that stands behind every text, whatever the tokenizer called it: with that token
    training learns to end. Its batches hold what a T5 takes, in `forward` and in `generate`: no token types.

    Args:
        tokenizer: Any tokenizer of transformers.
        place: Where it comes from, for messages.

    Raises:
        ValueError: The tokenizer knows no words, writes a special token in the place of an unknown word, has no
            padding token, or puts no end behind a text.
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
    """Raise ValueError if the tokenizer has tokens that a backbone of `vocab_size` embeddings has none for.

    Sentinels may exceed: T5Tokenizer adds them behind any vocabulary, and texts do not hold them.
    """
    vocabulary = tokenizer.get_vocab()
    if vocab_size is None:
        return
    beyond = [t for t, i in sorted(vocabulary.items(), key=lambda item: item[1]) if i >= vocab_size]
    beyond = [token for token in beyond if _SENTINEL not in token]
    if beyond:
        raise ValueError(
            f"the tokenizer in {place!r} has {len(vocabulary)} tokens, but the backbone has {vocab_size} embeddings "
            f"(vocab_size of config.json): none for {', '.join(map(repr, beyond[:4]))}{', ...' if beyond[4:] else ''}. "
            "Put the tokenizer there that belongs to the backbone. If you added tokens, call "
            "resize_token_embeddings(len(tokenizer)) and save the backbone, too."
        )


def check_ids(tokenizer: PreTrainedTokenizerBase, place: str, ids: Mapping[str, int | list[int] | None]) -> None:
    """Raise ValueError if an id by which the backbone starts, ends or fills a text is a word of the tokenizer.

    Every summary would then begin with this word, break off at it, or be filled up with it.

    Args:
        tokenizer: The tokenizer.
        place: Where it comes from, for messages.
        ids: The backbone's ids by their names in config.json.
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
    """Return whether a text is read as this id."""
    text = tokenizer.decode([i], skip_special_tokens=True).strip() if 0 <= i < len(tokenizer) else ""
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
            f"makes {tokenizer.unk_token!r} of every text. {WHAT_IS_NEEDED}"
        )
    unknown = {tokenizer.convert_ids_to_tokens(i) for i in tokenizer(_RARE, add_special_tokens=False)["input_ids"]}
    wrong = sorted(unknown & (special - {tokenizer.unk_token}))
    if wrong:
        raise ValueError(
            f"the tokenizer in {place!r} writes {', '.join(wrong)} where it does not know a word, and not its unknown "
            f"token, {tokenizer.unk_token!r}. A spiece.model must begin with the special tokens of T5: <pad>, </s>, "
            "<unk>. For another order give a tokenizer.json."
        )
