"""Find the values of a text (names, prices, ratings and other numbers) that a summary keeps, omits or invents.

ROUGE hardly changes for a wrong amount or an invented hotel, which matter to a reader. No annotation is needed: numbers
are found by their form, and a name is a run of words that are not wording. Wording is learnt from training rows. A word
is wording if many references of a scenario have it, or if the dialogues of most references with it do not contain it.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from mop_t5.checks import check_number
from mop_t5.data import Example
from mop_t5.evaluation.amounts import Amount, is_label
from mop_t5.evaluation.readings import CHINESE, LATIN, LETTER, Place, Reading, folded, read

KINDS = ("name", "price", "rating", "number")
_LEAST = 5  # references that must have a word before it can be wording
_NAME = re.compile("d?n(?:[nd]|b(?=n))*")  # the words of a name, by their roles (see Values._roles)
_BOUNDS = {"以上", "以下", "以内", "左右"}  # bounds after a number (above, below, within, about), not always said


@dataclass(frozen=True)
class Value:
    """A value in a text.

    Attributes:
        text: The characters of the value, as in the text.
        kind: One of KINDS.
        start: The position of the first character.
        end: The position after the last character.
    """

    text: str
    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class ValueScores:
    """The numbers of values that summaries keep and invent.

    Attributes:
        said: kind -> number of values that both the reference and its dialogue contain.
        kept: kind -> number of these values that the summary also has.
        found: The number of values in the summaries.
        inventions: The number of values in the summaries that neither the dialogue nor a reference has.
    """

    said: dict[str, int]
    kept: dict[str, int]
    found: int
    inventions: int

    @property
    def recall(self) -> float:
        """The share of said values that the summaries keep. NaN if there are none."""
        return _share(sum(self.kept.values()), sum(self.said.values()))

    @property
    def by_kind(self) -> dict[str, float]:
        """Recall of each kind."""
        return {kind: _share(self.kept[kind], self.said[kind]) for kind in KINDS}

    @property
    def invented(self) -> float:
        """The share of the summaries' values that are invented. NaN if there are no values."""
        return _share(self.inventions, self.found)


class Values:
    """A finder of values in texts that are worded like the training references. Case and full-width forms are ignored.

    Args:
        known: The training rows.
        common: A word is wording if more than this share of the references of one scenario have it. Between 0 and 1.

    Raises:
        ValueError: There are no rows, or `common` is not between 0 and 1.
    """

    def __init__(self, known: Sequence[Example], common: float = 0.15):
        if not known:
            raise ValueError("known must hold the training rows, whose references define the wording; got none.")
        check_number("common", common, above=0, below=1)
        self.wording = _wording(known, common)

    def find(self, text: str) -> list[Value]:
        """Return all values of a text, in order and without overlap."""
        reading = read(text)
        runs, numbers = self._parts(reading)
        return _values(text, [reading.place(run) for run in runs], numbers)

    def said(self, example: Example) -> list[Value]:
        """Return the values of a row's summary that its dialogue contains, each once and in order.

        If the dialogue contains only pieces of a name, the longest pieces are returned.
        """
        reading, dialogue = read(example.summary), read(example.dialogue)
        runs, numbers = self._parts(reading)
        pieces = (piece for run in runs for piece in self._pieces(reading, run, [dialogue]))
        names = [reading.place(words) for words, there in pieces if there]
        found = _values(example.summary, names, [number for number in numbers if dialogue.says(number)])
        first = {(value.kind, folded(value.text)): value for value in reversed(found)}
        return sorted(first.values(), key=lambda value: value.start)

    def omitted(self, example: Example, summary: str) -> list[Value]:
        """Return the said values that a summary does not have."""
        return [value for value in self.said(example) if not has(summary, value)]

    def invented(self, example: Example, summary: str) -> list[Value]:
        """Return the values of a summary, in order, that neither the dialogue nor a right answer has.

        If these have half of a name or more, only the other words of the name are returned.
        """
        reading, sources = read(summary), [read(text) for text in (example.dialogue, *example.golds)]
        runs, numbers = self._parts(reading)
        names: list[Place] = []
        for run in runs:
            left = [words for words, there in self._pieces(reading, run, sources) if not there]
            strange = [reading.place(words) for words in left if self._letters(reading, words)]
            mostly = 2 * reading.letters(strange) > reading.letters(run)
            names += [reading.place(run)] if mostly else strange
        return _values(summary, names, [n for n in numbers if not any(source.says(n) for source in sources)])

    def _parts(self, reading: Reading) -> tuple[list[list[Place]], list[Amount]]:
        """Return the words of each name, and the numbers outside names."""
        roles, end = self._roles(reading), 0
        runs: list[list[Place]] = []
        while found := _NAME.search(roles, end):
            start, end = found.span()
            # a bracket belongs to the name before it, even after one word of wording: 全季酒店(东单店)
            end = reading.closed(end) or (roles[end : end + 1] == "w" and reading.closed(end + 1)) or end
            if reading.letters(reading.words[start:end]) > 1:
                runs.append(reading.words[start:end])
        inside = {place for run in runs for place in range(run[0][0], run[-1][1])}
        return runs, [number for number in reading.amounts if number.start not in inside]

    def _roles(self, reading: Reading) -> str:
        """Return the role of each word in a name, one letter each: name, digits, between two words, wording, other."""
        counting = {p for n in reading.amounts if not (n.bare and n.number.isdigit()) for p in range(n.label, n.end)}
        chinese = CHINESE.search(reading.text) is not None
        roles = ""
        for start, end in reading.words:
            word, low = reading.text[start:end], reading.folded[start:end]
            if start in counting:
                roles += "o"
            elif word.isdigit():
                roles += "d"
            elif not LETTER.search(word):
                latin = LATIN.match(reading.folded, start - 1) and LATIN.match(reading.folded, end)
                roles += "b" if word in "·&" or (latin and word in "'-. ") else "o"
            # a name in Latin script has a capital letter, except in Chinese text, such as wifi
            elif is_label(word) or low in self.wording or (word == low and not chinese):
                roles += "w"
            else:
                roles += "n"
        return roles

    def _pieces(
        self, reading: Reading, run: Sequence[Place], sources: Sequence[Reading]
    ) -> Iterator[tuple[Sequence[Place], bool]]:
        """Yield the longest pieces of a name that a source has, with True, and the words around them, with False."""
        start = left = 0
        while start < len(run):
            end = start  # end of the longest piece that a source has letter by letter
            while end < len(run) and any(reading.folded[run[start][0] : run[end][1]] in s.folded for s in sources):
                end += 1
            longest = (run[start:stop] for stop in range(end, start, -1))
            piece = next((piece for piece in longest if self._known(reading, piece, sources)), None)
            if piece is not None:
                yield run[left:start], False
                yield piece, True
                left = start + len(piece)
            start = max(start + 1, left)
        yield run[left:], False

    def _known(self, reading: Reading, piece: Sequence[Place], sources: Sequence[Reading]) -> bool:
        start, end = reading.place(piece)
        return self._letters(reading, piece) > 1 and any(s.names(reading.folded[start:end]) for s in sources)

    def _letters(self, reading: Reading, words: Sequence[Place]) -> int:
        """Return the number of letters in `words` that are not wording."""
        return reading.letters([(a, b) for a, b in words if reading.folded[a:b] not in self.wording])


def has(text: str, value: Value) -> bool:
    """Return whether a text has a value.

    A name must be equal letter by letter. A number must have the same unit, unless one side has no unit.
    """
    reading = read(text)
    if value.kind == "name":
        return reading.names(folded(value.text))
    return any(reading.says(replace(number, kind=value.kind)) for number in read(value.text).amounts)


def value_recall(values: Values, examples: Sequence[Example], summaries: Sequence[str]) -> ValueScores:
    """Count the values that summaries keep and invent, over all rows.

    Raises:
        ValueError: The numbers of examples and of summaries differ.
    """
    if len(examples) != len(summaries):
        raise ValueError(f"got {len(examples)} examples and {len(summaries)} summaries. Pass one summary per example.")
    said: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    found = inventions = 0
    for example, summary in zip(examples, summaries):
        wanted = values.said(example)
        said.update(value.kind for value in wanted)
        kept.update(value.kind for value in wanted if has(summary, value))
        strange = [value.start for value in values.invented(example, summary)]
        mine = values.find(summary)
        found += len(mine)
        inventions += sum(any(value.start <= start < value.end for start in strange) for value in mine)
    return ValueScores({k: said[k] for k in KINDS}, {k: kept[k] for k in KINDS}, found, inventions)


def _wording(known: Sequence[Example], common: float) -> frozenset[str]:
    """Return the folded words that are wording, as defined at the top of this file."""
    references: dict[str, Counter[str]] = {}
    rows = Counter(row.scenario for row in known)
    unsaid: Counter[str] = Counter()
    for row in known:
        reading, dialogue = read(row.summary), read(row.dialogue)
        words = {reading.folded[start:end] for start, end in reading.words}
        references.setdefault(row.scenario, Counter()).update(words)
        unsaid.update(word for word in words if word not in dialogue.folded)
    everywhere = sum(references.values(), Counter())
    often = {w for s, counts in references.items() for w, n in counts.items() if n >= _LEAST and n > common * rows[s]}
    return frozenset(_BOUNDS | often | {w for w, n in everywhere.items() if n >= _LEAST and unsaid[w] > n / 2})


def _values(text: str, names: Iterable[Place], numbers: Iterable[Amount]) -> list[Value]:
    places = [(start, end, "name") for start, end in names] + [(n.start, n.end, n.kind) for n in numbers]
    return [Value(text[start:end], kind, start, end) for start, end, kind in sorted(places)]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
