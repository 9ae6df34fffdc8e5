"""Chinese text cut into words by jieba, and the base of the tokenizers that do so.

jieba is imported at the first text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast


def segment(text: str, *, hmm: bool = False) -> list[str]:
    """Return the jieba words of a text; joined again they are the text. `hmm`: also guess unlisted words."""
    try:
        import jieba
    except ImportError as error:
        raise ImportError("cutting Chinese text into words needs jieba: pip install jieba") from error
    jieba.setLogLevel("WARNING")  # it announces its dictionary on stderr otherwise
    return list(jieba.cut(text, HMM=hmm))


def checked_text(text) -> str:
    """Return a text unchanged. Raises TypeError for anything else."""
    if not isinstance(text, str):
        raise TypeError(f"texts must be strings, got {type(text).__name__}.")
    return text


class SegmentingTokenizer(PreTrainedTokenizerFast):
    """Base of fast tokenizers that cut text into words themselves: call them with plain text.

    Tokens of `add_tokens` and `add_special_tokens` are found in the text before it is cut, so each stays whole. The
    special tokens that a tokenizer is made with are not: what a user types is text. Offsets are not offered, since
    they would point into the segmented text.
    """

    ignores_case = False  # whether `separate` changes the case of a text

    def separate(self, text: str) -> str:
        """Return the words of a text with a space between each two, as the fast tokenizer below expects it."""
        raise NotImplementedError

    def _encode_plus(self, text, text_pair=None, **kwargs):
        name = type(self).__name__
        if text_pair is not None or kwargs.get("is_split_into_words"):
            raise ValueError(f"{name} takes a text or a list of texts, no pairs and no words cut beforehand.")
        if kwargs.get("return_offsets_mapping"):
            raise ValueError(f"{name} has no offsets: they would point into the segmented text.")
        split_special = kwargs.get("split_special_tokens")
        added = self._added_tokens(self.split_special_tokens if split_special is None else split_special)
        texts = [text] if isinstance(text, str) else list(text)
        prepared = [self._prepare(checked_text(one), added) for one in texts]
        return super()._encode_plus(prepared[0] if isinstance(text, str) else prepared, **kwargs)

    def _add_tokens(self, new_tokens: Iterable, special_tokens: bool = False) -> int:
        new_tokens = list(new_tokens)
        spaced = [str(token) for token in new_tokens if re.search(r"\s", str(token))]
        if spaced:
            raise ValueError(
                f"{type(self).__name__} takes no added token with white space in it, since it cuts texts there; got "
                f"{', '.join(map(repr, spaced[:4]))}. Join the words of a token, for example by an underscore."
            )
        return super()._add_tokens(new_tokens, special_tokens=special_tokens)

    def _added_tokens(self, split_special: bool) -> tuple[re.Pattern, list[str]] | None:
        """Return a pattern with one group per added token, and the tokens. None without an added token."""
        in_model = self.backend_tokenizer.model.token_to_id
        made_with = {str(t) for t in self.special_tokens_map.values() if isinstance(t, str) and in_model(t) is not None}
        tokens = [t for t in self.added_tokens_decoder.values() if t.content not in made_with]
        tokens = [t for t in tokens if not (t.special and split_special)]
        if not tokens:
            return None
        tokens.sort(key=lambda token: -len(token.content))
        parts = []
        for token in tokens:
            part = f"({re.escape(token.content)})"
            if token.normalized and self.ignores_case:
                part = f"(?i:{part})"
            if token.single_word:
                part = rf"(?<!\w){part}(?!\w)"
            parts.append((r"\s*" if token.lstrip else "") + part + (r"\s*" if token.rstrip else ""))
        return re.compile("|".join(parts)), [token.content for token in tokens]

    def _prepare(self, text: str, added: tuple[re.Pattern, list[str]] | None) -> str:
        """Return the words of a text and the added tokens in it, with a space between each two."""
        if added is None:
            return self.separate(text)
        pattern, tokens = added
        pieces, start = [], 0
        for found in pattern.finditer(text):
            pieces += [self.separate(text[start : found.start()]), tokens[found.lastindex - 1]]
            start = found.end()
        pieces.append(self.separate(text[start:]))
        return " ".join(filter(None, pieces))
