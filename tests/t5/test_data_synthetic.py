"""The synthetic corpus keeps the promises of its module."""

import re

import pytest
from mop_t5.data.synthetic import PHRASES, SCENARIOS, places, synthetic_corpus


@pytest.fixture(scope="module")
def corpus():
    return synthetic_corpus(3, general=300, train=300, valid=50, test=50)


def test_same_seed_same_corpus_other_seed_another(corpus):
    assert synthetic_corpus(3, general=300, train=300, valid=50, test=50) == corpus
    assert synthetic_corpus(4, general=300, train=300, valid=50, test=50) != corpus


def test_sizes_ids_and_disjoint_splits(corpus):
    assert {split: len(rows) for split, rows in corpus.items()} == {
        "general": 300,
        "train": 300,
        "valid": 50,
        "test": 50,
    }
    rows = [row for split in corpus.values() for row in split]
    assert len({row.id for row in rows}) == len(rows)
    assert len({row.dialogue for row in rows}) == len(rows)
    assert {row.scenario for row in corpus["test"]} == set(SCENARIOS)


def test_every_value_of_a_summary_stands_in_its_dialogue(corpus):
    lists = (PHRASES["goods"], PHRASES["dishes"], PHRASES["shows"], places())
    found = 0
    for row in (row for split in corpus.values() for row in split):
        words = [word for words in lists for word in words if word in row.summary] + re.findall(r"\d+", row.summary)
        # 中山大学 is a value in 中山大学路 only if that is one, so compare what the dialogue says
        assert all(word in row.dialogue for word in words), row
        assert "{" not in row.dialogue + row.summary
        found += len(words)
    assert found > 700


def test_styles_are_fixed_by_the_scenario_except_in_general(corpus):
    starts = {scenario: style.split("{")[0] for scenario, style in zip(SCENARIOS, PHRASES["styles"])}
    for split in ("train", "valid", "test"):
        assert all(row.summary.startswith(starts[row.scenario]) for row in corpus[split])
    share = sum(row.summary.startswith(starts[row.scenario]) for row in corpus["general"]) / 300
    assert 0.1 < share < 0.35
