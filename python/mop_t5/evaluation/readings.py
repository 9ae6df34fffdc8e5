"""A text in the form in which its values are compared: plain characters, words, and amounts."""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from mop_t5.backbone.tokenizer import segment
from mop_t5.evaluation.amounts import Amount, amounts

Place = tuple[int, int]  # start and end in a text
_BRACKETS = re.compile(r"\([^()，。、,;:\n]{0,23}\)")  # brackets that belong to a name, such as the branch of a shop
# full-width forms as ASCII, one character each so that places stay; not the comma, which ends a clause
_ASCII = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if code != 0xFF0C} | {0x3000: " ", 0xFFE5: "¥"}
_ASCII |= dict.fromkeys(map(ord, "–—−"), "-")
LETTER, CHINESE, LATIN = re.compile(r"[^\W\d_]"), re.compile(r"[\u3400-\u9fff]"), re.compile(r"[a-z\d]")
_EDGES = "()·&'-. "  # characters inside a name, but not at its ends


@dataclass(frozen=True)
class Reading:
    """A text that has been read.

    Attributes:
        text: The text in plain form.
        folded: The text in plain form, in lower case.
        words: The place of each word.
        amounts: The numbers.
    """

    text: str
    folded: str
    words: list[Place]
    amounts: list[Amount]

    def place(self, words: Sequence[Place]) -> Place:
        """Return the place from the first of `words` to the last, without marks at the ends."""
        end = words[-1][1]
        start = end - len(self.text[words[0][0] : end].lstrip(_EDGES))
        while start < end and self.text[end - 1] in _EDGES:
            if self.text[end - 1] == ")" and "(" in self.text[start:end]:
                break
            end -= 1
        return start, end

    def letters(self, words: Sequence[Place]) -> int:
        """Return the number of letters in `words`."""
        return sum(len(LETTER.findall(self.text[start:end])) for start, end in words)

    def closed(self, word: int) -> int | None:
        """Return the word after the brackets that `word` opens. None if it opens no brackets, or long brackets."""
        found = _BRACKETS.match(self.text, self.words[word][0]) if word < len(self.words) else None
        return None if found is None else bisect_left(self.words, (found.end(), 0))

    def names(self, name: str) -> bool:
        """Return whether the text has a name, given in plain form, and not inside a longer Latin word or number."""
        if name not in self.folded:
            return False
        before = r"(?<![a-z\d])" if LATIN.match(name) else ""
        behind = r"(?![a-z\d])" if LATIN.match(name, len(name) - 1) else ""
        return re.search(f"{before}{re.escape(name)}{behind}", self.folded) is not None

    def says(self, number: Amount) -> bool:
        """Return whether the text has a number of the same meaning."""
        return number.free_in(self.text) or any(number.agrees(own) for own in self.amounts)


@lru_cache(maxsize=4096)  # dialogues and references are read for every system
def read(text: str) -> Reading:
    """Return a text in the form in which values are compared."""
    plain = text.translate(_ASCII)
    words, end = [], 0
    for word in segment(plain):
        words.append((end, end + len(word)))
        end += len(word)
    return Reading(plain, folded(plain), words, amounts(plain, words))


def folded(text: str) -> str:
    """Return the plain text in lower case, of the same length. lower() makes two characters of a dotted capital I."""
    return "".join(low if len(low := character.lower()) == 1 else character for character in text.translate(_ASCII))
