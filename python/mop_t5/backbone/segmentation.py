"""Cut Chinese text into words by jieba, and provide a base class for tokenizers that do so.

jieba is imported at the first text.
"""

import re
from collections.abc import Iterable
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerFast


def segment(text: str, *, hmm: bool = False) -> list[str]:
    """Return the jieba words of a text. Joined without spaces they are the text.

    Args:
        text: The text.
        hmm: True if jieba also guesses words that its dictionary lacks.

    Raises:
        ImportError: jieba is not installed.
    """
    try:
        import jieba
    except ImportError as error:
        raise ImportError("cutting Chinese text into words needs jieba: pip install jieba") from error
    if not jieba.dt.initialized:
        jieba.setLogLevel("WARNING")  # otherwise jieba announces its dictionary on stderr
    return list(jieba.cut(text, HMM=hmm))


def checked_text(text: object) -> str:
    """Return a text unchanged.

    Raises:
        TypeError: `text` is no string.
    """
    if not isinstance(text, str):
        raise TypeError(f"texts must be strings, got {type(text).__name__}.")
    return text


class SegmentingTokenizer(PreTrainedTokenizerFast):
    """Base of fast tokenizers that cut text into words themselves. Call them with plain text.

    Tokens of `add_tokens` and `add_special_tokens` are found before the text is cut, so each stays whole. The special
    tokens that a tokenizer is made with are not looked for, because a user's text is only text. Offsets are not
    offered, because they would point into the segmented text.

    Attributes:
        ignores_case: True if `separate` changes the case of a text.
    """

    ignores_case = False

    def separate(self, text: str) -> str:
        """Return the words of a text, separated by spaces, for the fast tokenizer below."""
        raise NotImplementedError

    # the base has 18 parameters, which all pass through
    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:  # type: ignore[override]
        name = type(self).__name__
        if text_pair is not None or kwargs.get("is_split_into_words"):
            raise ValueError(f"{name} takes a text or a list of texts, no pairs and no words that are cut already.")
        if kwargs.get("return_offsets_mapping"):
            raise ValueError(f"{name} has no offsets: they would point into the segmented text.")
        split_special = kwargs.get("split_special_tokens")
        added = self._added_tokens(self.split_special_tokens if split_special is None else split_special)
        texts = [text] if isinstance(text, str) else list(text)
        prepared = [self._prepare(checked_text(one), *added) for one in texts]
        return super()._encode_plus(prepared[0] if isinstance(text, str) else prepared, **kwargs)

    def _add_tokens(self, new_tokens: Iterable[Any], special_tokens: bool = False) -> int:
        new_tokens = list(new_tokens)
        spaced = [str(token) for token in new_tokens if re.search(r"\s", str(token))]
        if spaced:
            raise ValueError(
                f"{type(self).__name__} takes no added token with white space in it, because it cuts texts there; got "
                f"{', '.join(map(repr, spaced[:4]))}. Join the words of a token, for example by an underscore."
            )
        return super()._add_tokens(new_tokens, special_tokens=special_tokens)

    def _added_tokens(self, split_special: bool) -> tuple[re.Pattern[str], list[str]]:
        """Return a pattern with one group per added token, and the tokens. Without tokens it matches nothing."""
        in_model = self.backend_tokenizer.model.token_to_id
        made_with = {str(t) for t in self.special_tokens_map.values() if isinstance(t, str) and in_model(t) is not None}
        tokens = [t for t in self.added_tokens_decoder.values() if t.content not in made_with]
        tokens = [t for t in tokens if not (t.special and split_special)]
        tokens.sort(key=lambda token: -len(token.content))
        parts = []
        for token in tokens:
            part = f"({re.escape(token.content)})"
            if token.normalized and self.ignores_case:
                part = f"(?i:{part})"
            if token.single_word:
                part = rf"(?<!\w){part}(?!\w)"
            parts.append((r"\s*" if token.lstrip else "") + part + (r"\s*" if token.rstrip else ""))
        return re.compile("|".join(parts) or "(?!)"), [token.content for token in tokens]

    def _prepare(self, text: str, pattern: re.Pattern[str], tokens: list[str]) -> str:
        """Return the words of a text and its added tokens, separated by spaces."""
        pieces, start = [], 0
        for found in pattern.finditer(text):
            group = found.lastindex or 0  # never 0: each part of the pattern has a group
            pieces += [self.separate(text[start : found.start()]), tokens[group - 1]]
            start = found.end()
        pieces.append(self.separate(text[start:]))
        return " ".join(filter(None, pieces))
