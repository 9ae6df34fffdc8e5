"""What a summary scores that no model made: floors to read a model's ROUGE against.

In a corpus whose references repeat, even a wrong reference scores high. A model that does not pass the nearest training
dialogue's reference has learnt the form of the summaries and not the content.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from mop_t5.data import Example

_USER_TURN = re.compile(r"^(?:用户|user)\s*[：:].+$", re.IGNORECASE | re.MULTILINE)


def first_user_turn(examples: Sequence[Example]) -> list[str]:
    """The first line that starts with 用户： or user:, as it stands; else the first line of the dialogue."""
    found = (_USER_TURN.search(example.dialogue) for example in examples)
    return [match[0] if match else e.dialogue.strip().splitlines()[0] for match, e in zip(found, examples)]


def random_reference(examples: Sequence[Example], train: Sequence[Example], seed: int = 0) -> list[str]:
    """For each example a training summary of its scenario, drawn at random."""
    rng = random.Random(seed)
    pools = _by_scenario(train)
    _check_known(examples, pools)
    return [rng.choice(pools[example.scenario]).summary for example in examples]


def nearest_reference(examples: Sequence[Example], train: Sequence[Example]) -> list[str]:
    """For each example the summary of the training dialogue of its scenario that is most like its dialogue.

    Likeness is the share of distinct character pairs that two dialogues have in common (Jaccard); of equals, the first.
    """
    pools = {scenario: _Pool(rows) for scenario, rows in _by_scenario(train).items()}
    _check_known(examples, pools)
    return [pools[example.scenario].nearest(example.dialogue) for example in examples]


class _Pool:
    """Training rows, indexed by their character pairs: a corpus has too many pairs of dialogues to compare each."""

    def __init__(self, rows: Sequence[Example]):
        self._rows = rows
        pairs = [_pairs(row.dialogue) for row in rows]
        self._sizes = np.array([len(mine) for mine in pairs])
        places: dict[str, list[int]] = {}
        for place, mine in enumerate(pairs):
            for pair in mine:
                places.setdefault(pair, []).append(place)
        self._places = {pair: np.array(found) for pair, found in places.items()}

    def nearest(self, dialogue: str) -> str:
        mine = _pairs(dialogue)
        shared = np.zeros(len(self._rows), dtype=np.int64)
        for pair in mine:
            if pair in self._places:
                shared[self._places[pair]] += 1
        union = np.maximum(1, len(mine) + self._sizes - shared)
        return self._rows[int(np.argmax(shared / union))].summary


# name -> summaries(examples, train), in the order in which tables show them
FLOORS: dict[str, Callable[[Sequence[Example], Sequence[Example]], list[str]]] = {
    "first user turn": lambda examples, train: first_user_turn(examples),
    "random reference": random_reference,
    "nearest reference": nearest_reference,
}


def _by_scenario(rows: Sequence[Example]) -> dict[str, list[Example]]:
    groups: dict[str, list[Example]] = {}
    for row in rows:
        groups.setdefault(row.scenario, []).append(row)
    return groups


def _check_known(examples: Sequence[Example], pools: Mapping[str, object]) -> None:
    missing = sorted({example.scenario for example in examples} - set(pools))
    if missing:
        raise ValueError(f"no training row is of {', '.join(missing)}, so none can serve as a floor. Add some.")


def _pairs(text: str) -> set[str]:
    return {a + b for a, b in pairwise(text)}
