"""Make rows that teach a small T5 to copy from a dialogue.

A backbone that is trained from random weights on few pairs learns their values by heart instead: a summary names a
hotel, and the corpus has only a hundred hotels.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mop_t5.data import Example
from mop_t5.evaluation.values import Value, Values

_DIGIT = re.compile(r"\d")
_SHORTEST, _LONGEST = 4, 45  # characters of a turn to repeat


def with_other_values(examples: Sequence[Example], copies: int, seed: int = 0) -> list[Example]:
    """Return copies of rows with other values in place of the values that are in both dialogue and summary.

    Names are replaced by names of other rows, and the digits of numbers by other digits. A row without such a value
    stays as it is.

    Args:
        examples: The training rows. `Values` learns from them what a value is.
        copies: Copies of each row.
        seed: The seed of the draws.
    """
    if not copies:
        return []
    values, generator = Values(examples), random.Random(seed)
    said = [values.said(example) for example in examples]
    names = sorted({value.text for row in said for value in row if value.kind == "name"})
    copied = list(zip(examples, said)) * copies
    return [_exchanged(example, {v.text: _other(v, names, generator) for v in row}) for example, row in copied]


def turns_to_repeat(examples: Sequence[Example], seed: int = 0) -> list[Example]:
    """Return one row per different turn of the dialogues, in a random order. The turn is its own summary.

    Turns are cut to 45 characters. Shorter turns than 4 characters are left out.

    Args:
        examples: The rows with the dialogues.
        seed: The seed of the order.
    """
    turns = {turn[:_LONGEST].strip(): e for e in examples for turn in e.dialogue.splitlines()}
    rows = [replace(e, dialogue=turn, summary=turn) for turn, e in turns.items() if len(turn) >= _SHORTEST]
    random.Random(seed).shuffle(rows)
    return rows


def _other(value: Value, names: Sequence[str], generator: random.Random) -> str:
    if value.kind == "name":
        return generator.choice(names)
    return _DIGIT.sub(lambda digit: generator.choice("123456789" if digit.start() == 0 else "0123456789"), value.text)


def _exchanged(example: Example, others: Mapping[str, str]) -> Example:
    if not others:
        return example
    pattern = re.compile("|".join(re.escape(text) for text in sorted(others, key=len, reverse=True)))
    dialogue, summary = (pattern.sub(lambda m: others[m[0]], t) for t in (example.dialogue, example.summary))
    return replace(example, dialogue=dialogue, summary=summary)
