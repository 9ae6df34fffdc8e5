"""Rows that teach copying: other values in dialogue and summary alike, and turns to repeat."""

import pytest
from mop_lab.demo.copying import turns_to_repeat, with_other_values
from mop_t5.data import Example, synthetic_corpus
from mop_t5.evaluation.values import Values

DIALOGUE = "用户：我想吃{}，人均{}元。\n客服：好的，在{}号院。"
DISHES = ["水煮鱼", "烤羊背", "松仁玉米", "卤煮火烧", "驴打滚", "炸河虾", "黄焖鸡", "豆汁"]


def rows():
    """Eight rows of one wording, each with a dish, a price and an address of its own; the address is in no summary."""
    return [
        Example("food", DIALOGUE.format(dish, 20 + i, i), f"用户想吃{dish}，人均消费{20 + i}元。", str(i))
        for i, dish in enumerate(DISHES)
    ]


def test_values_are_exchanged_in_dialogue_and_summary_alike():
    given = rows()
    made = with_other_values(given, copies=3)
    assert len(made) == 24
    values = Values(given)
    dishes = {value.text for row in given for value in values.said(row) if value.kind == "name"}
    assert dishes == set(DISHES)
    seen = set()
    for old, new in zip(given * 3, made):
        assert (new.scenario, new.id) == (old.scenario, old.id)
        dish = new.summary.removeprefix("用户想吃").split("，")[0]
        price = new.summary.removesuffix("元。").split("人均消费")[1]
        assert dish in DISHES
        assert price.isdigit()
        assert len(price) == 2
        assert price[0] != "0"
        assert new.dialogue == DIALOGUE.format(dish, price, old.id), "the rest stays"
        seen.add((dish, price))
    assert len(seen) > 15, "each copy has values of its own"
    assert with_other_values(given, 3) == made
    assert with_other_values(given, 3, seed=1) != made
    assert with_other_values(given, 0) == []


def test_exchanged_rows_say_what_their_summaries_say():
    corpus = synthetic_corpus(3, general=1, train=60, valid=1, test=1)["train"]
    values = Values(corpus)
    before = sum(len(values.said(row)) for row in corpus)
    after = sum(len(values.said(row)) for row in with_other_values(corpus, 1))
    assert before > 100
    assert after == pytest.approx(before, rel=0.1), "what was said in both still is"


def test_turns_are_repeated_once_each():
    given = [
        Example("a", "用户：一二三四五\n客服：好", "x", "1"),
        Example("a", "用户：一二三四五\n用户：" + "字" * 60, "y", "2"),
    ]
    made = turns_to_repeat(given)
    assert sorted(row.dialogue for row in made) == sorted(["用户：一二三四五", "客服：好", "用户：" + "字" * 42])
    assert all(row.dialogue == row.summary for row in made)
