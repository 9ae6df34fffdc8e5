"""Baseline texts, computed without a model.

In a corpus whose references repeat, even a wrong reference scores high. A model that scores below the baseline "nearest
reference" has learnt the form of the summaries and not their content.
"""

import random
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from mop_t5.data import Example, of_scenarios, scenarios_of

_USER_TURN = re.compile(r"^(?:用户|user)\s*[：:].+$", re.IGNORECASE | re.MULTILINE)


def first_user_turn(examples: Sequence[Example]) -> list[str]:
    """Return the first line that starts with 用户： or user:, or the first line of a dialogue that has no such line."""
    found = (_USER_TURN.search(example.dialogue) for example in examples)
    return [match[0] if match else e.dialogue.strip().splitlines()[0] for match, e in zip(found, examples)]


def random_reference(examples: Sequence[Example], train: Sequence[Example], seed: int = 0) -> list[str]:
    """Return, for each example, a training summary of the same scenario, drawn at random."""
    rng, pools = random.Random(seed), _pools(examples, train)
    return [rng.choice(pools[example.scenario]).summary for example in examples]


def nearest_reference(examples: Sequence[Example], train: Sequence[Example]) -> list[str]:
    """Return, for each example, the summary of the most similar training dialogue of the same scenario.

    The similarity of two dialogues is the Jaccard index of their sets of character pairs. Of equally similar dialogues
    the first is taken.
    """
    nearest = {scenario: _finder(rows) for scenario, rows in _pools(examples, train).items()}
    return [nearest[example.scenario](example.dialogue).summary for example in examples]


def _finder(rows: Sequence[Example]) -> Callable[[str], Example]:
    """Return a function that finds the row most similar to a dialogue.

    It uses an index of the rows by character pairs. A corpus has too many pairs of dialogues to compare each pair.
    """
    sets = [_pairs(row.dialogue) for row in rows]
    sizes = np.array([len(one) for one in sets])
    places: defaultdict[str, list[int]] = defaultdict(list)
    for place, one in enumerate(sets):
        for pair in one:
            places[pair].append(place)
    index = {pair: np.array(found) for pair, found in places.items()}

    def nearest(dialogue: str) -> Example:
        mine = _pairs(dialogue)
        shared = np.zeros(len(rows), dtype=np.int64)
        for pair in mine & index.keys():
            shared[index[pair]] += 1
        union = np.maximum(1, len(mine) + sizes - shared)
        return rows[int(np.argmax(shared / union))]

    return nearest


# name -> function of the examples and the training rows, in the order of the tables
BASELINES: dict[str, Callable[[Sequence[Example], Sequence[Example]], list[str]]] = {
    "first user turn": lambda examples, train: first_user_turn(examples),
    "random reference": random_reference,
    "nearest reference": nearest_reference,
}


def baseline_texts(examples: Sequence[Example], train: Sequence[Example]) -> dict[str, list[str]]:
    """Return the texts of each baseline.

    Args:
        examples: The rows to summarise.
        train: The training rows of the same corpus.

    Returns:
        name -> one text per example, in the order of the tables.

    Raises:
        ValueError: A scenario of the examples has no training row.
    """
    return {name: texts_of(examples, train) for name, texts_of in BASELINES.items()}


def _pools(examples: Sequence[Example], train: Sequence[Example]) -> dict[str, list[Example]]:
    """Return scenario -> its training rows, for the scenarios of the examples."""
    if missing := sorted(set(scenarios_of(examples)) - set(scenarios_of(train))):
        raise ValueError(f"no training row is of {', '.join(missing)}, so a baseline has no reference. Add some.")
    return {scenario: of_scenarios(train, [scenario]) for scenario in scenarios_of(examples)}


def _pairs(text: str) -> set[str]:
    return {a + b for a, b in pairwise(text)}
