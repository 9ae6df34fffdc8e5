"""Values of texts: what is found, kept, omitted and invented, on rows whose answers are written by hand."""

import math

import pytest
from errors import raises
from mop_t5.data import Example, synthetic, synthetic_corpus
from mop_t5.evaluation.values import KINDS, Values, has, value_recall
from visits import NAMES, visit


@pytest.fixture(scope="module")
def values():
    return Values([visit(name, number=number) for name in NAMES for number in range(3)])


@pytest.fixture(scope="module")
def english():
    people, cities = ("Amanda", "Jerry", "Tom", "Hannah", "Ann", "Bob"), ("Vienna", "Oslo", "Graz")
    return Values(
        [
            Example("chat", f"{a}: let us meet in {b} at 5, for $20.", f"{a} will go to {b} and pay $20.", f"{a}{b}")
            for a in people
            for b in cities
        ]
    )


def found(values, text):
    return [(value.kind, value.text) for value in values.find(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("希望景点的票价是50-100元的", [("price", "50-100元")]),
        ("票价是５０－１００元，评分４．５分", [("price", "５０－１００元"), ("rating", "４．５分")]),
        ("人均消费50", [("price", "50")]),
        ("票价是￥30，票价是$40.50", [("price", "￥30"), ("price", "$40.50")]),
        ("票价是免费的，票价是不免费的", [("price", "免费"), ("price", "不免费")]),
        ("评分略低为3.5", [("rating", "3.5")]),
        ("评分是5星，评分在4分以上", [("rating", "5星"), ("rating", "4分")]),
        ("景点2小时-4小时", [("number", "2小时-4小时")]),
        ("08:00-22:00", [("number", "08:00-22:00")]),
        ("景点010-65132131", [("number", "010-65132131")]),
        ("10分钟，3天，共1,234,567元", [("number", "10分钟"), ("number", "3天"), ("price", "1,234,567元")]),
        ("去名叫798故宫的景点", [("name", "798故宫")]),
        ("去名叫故宫天坛的景点", [("name", "故宫天坛")]),
        ("去İİ故宫的", [("name", "İİ故宫")]),
        ("去全聚德(前门店)的", [("name", "全聚德(前门店)")]),
        ("用户要去景点游玩，门票", []),
        ("", []),
    ],
)
def test_values_are_found_by_kind_and_place(values, text, expected):
    assert found(values, text) == expected
    for value in values.find(text):
        assert text[value.start : value.end] == value.text
        assert value.kind in KINDS


def test_a_summary_keeps_omits_and_invents(values):
    row = visit("静之湖", "50-100元", "4.5分")
    assert [(v.kind, v.text) for v in values.said(row)] == [
        ("name", "静之湖"),
        ("price", "50-100元"),
        ("rating", "4.5分"),
    ]
    summary = "希望景点的评分是5分以上，希望景点的票价是50-100元的，用户要去名叫明城墙的景点游玩。"
    assert [v.text for v in values.omitted(row, summary)] == ["静之湖", "4.5分"]
    assert [(v.kind, v.text) for v in values.invented(row, summary)] == [("rating", "5分"), ("name", "明城墙")]
    for value in values.invented(row, summary):
        assert summary[value.start : value.end] == value.text
    assert values.omitted(row, row.summary) == values.invented(row, row.summary) == []
    turned = "希望景点的评分是4.5分以上，票价是50-100元的，去名叫静之湖的景点。"
    assert values.omitted(row, turned) == values.invented(row, turned) == []
    assert values.omitted(row, "") == values.said(row)
    assert values.invented(row, "") == []


def test_what_the_dialogue_says_is_not_invented_and_what_it_does_not_is_not_said(values):
    row = Example("attraction", "用户：去天坛。", "用户要去名叫故宫的景点游玩，电话是12345。", "x", ("票价是8元。",))
    assert values.said(row) == []
    assert values.invented(row, "用户要去名叫天坛的景点游玩，票价是8元，电话是12345。") == []
    assert [v.text for v in values.invented(row, "票价是18元。")] == ["18元"]


@pytest.mark.parametrize(
    ("one", "text", "there"),
    [
        ("5分", "评分4.5分", False),
        ("5分", "评分是5分", True),
        ("5元", "价格1005元", False),
        ("50元", "50-100元", False),
        ("2小时-4小时", "能玩2-4个小时", True),
        ("2小时-4小时", "2－4小时", True),
        ("50-100元", "人均消费50-100之间", True),
        ("50-100元", "50至100元", True),
        ("24小时", "24元", False),
        ("24小时", "24", True),
        ("4.50元", "4.5元", True),
        ("1,000元", "1000块", True),
        ("3日", "3号", True),
        ("10分", "10分钟", False),
        ("免费", "我找免费的景点", True),
        ("免费", "我找不免费的景点", False),
        ("A1口", "地铁站A11口", False),
        ("全聚德(前门店)", "全聚德（前门店）很近", True),
        ("WIFI", "提供wifi", True),
    ],
)
def test_a_value_is_kept_whole(values, one, text, there):
    (value,) = values.find(one)
    assert has(text, value) is there


def test_names_that_overlap(values):
    """A longer name is no shorter one, and pieces that the dialogue says apart are kept apart."""
    row = Example(
        "attraction", "用户：天坛公园和天坛都好，要去全聚德，在前门。", "去名叫全聚德前门的景点和天坛公园。", "x"
    )
    assert [v.text for v in values.said(row)] == ["全聚德", "前门", "天坛公园"]
    assert [v.text for v in values.omitted(row, "去名叫天坛的景点和全聚德。")] == ["前门", "天坛公园"]
    assert [v.text for v in values.invented(row, "去名叫全聚德西单的景点。")] == ["西单"]
    assert [v.text for v in values.invented(row, "去名叫明城墙前门的景点。")] == ["明城墙前门"]
    twice = Example("attraction", "用户：去天坛，票价5元。", "去名叫天坛的景点，名叫天坛，票价是5元，票价是5元。", "x")
    assert [v.text for v in values.said(twice)] == ["天坛", "5元"]


def test_english(english):
    dialogue = "Zoe: let us see Grand Rapids at 5, for 30 dollars."
    row = Example("chat", dialogue, "Zoe will go to Grand Rapids and pay $30.", "x")
    assert [(v.kind, v.text) for v in english.said(row)] == [
        ("name", "Zoe"),
        ("name", "Grand Rapids"),
        ("price", "$30"),
    ]
    summary = "Zoe will go to Rapid City and pay $300."
    assert [v.text for v in english.omitted(row, summary)] == ["Grand Rapids", "$30"]
    assert [v.text for v in english.invented(row, summary)] == ["Rapid City", "$300"]
    assert found(english, "she will go and pay") == []


def test_wording_is_what_is_common_or_what_no_dialogue_says(values):
    assert {"用户", "景点", "希望", "的"} <= values.wording
    assert not values.wording & set(NAMES)


def test_all_values_of_the_synthetic_corpus_are_found_and_nothing_else():
    """Its summaries are made of lists of names, of digits, and of phrases."""
    corpus = synthetic_corpus(general=1, train=1500, valid=1, test=100)
    values = Values(corpus["train"])
    known = {*(name for kind in ("goods", "dishes", "shows") for name in synthetic.PHRASES[kind]), *synthetic.places()}
    for row in corpus["test"]:
        left = row.summary
        for value in reversed(values.find(row.summary)):
            if value.kind == "name":  # a road is cut off, since that word stands in the phrases, too
                assert value.text in known or f"{value.text}路" in known, value
            left = f"{left[: value.start]}<>{left[value.end :]}"
        assert not any(name in left for name in known), left
        assert not any(character.isdigit() for character in left), left
        assert left.count("<>") >= 2  # a problem and its outcome have one each
        assert values.invented(row, row.summary) == []
        assert [v.text for v in values.said(row)] == list(dict.fromkeys(v.text for v in values.find(row.summary)))
    assert values.wording == Values(corpus["train"][::-1]).wording


def test_recall_by_hand(values):
    rows = [visit("静之湖", "30元", "4.5分"), visit("明城墙", "80元", "5分")]
    summaries = ["用户要去名叫静之湖的景点，票价是30元，评分是5分。", ""]
    scores = value_recall(values, rows, summaries)
    assert scores.said == {"name": 2, "price": 2, "rating": 2, "number": 0}
    assert scores.kept == {"name": 1, "price": 1, "rating": 0, "number": 0}
    assert (scores.found, scores.inventions) == (3, 1)
    assert scores.recall == pytest.approx(2 / 6)
    assert scores.invented == pytest.approx(1 / 3)
    assert [scores.by_kind[kind] for kind in ("name", "price", "rating")] == [0.5, 0.5, 0]
    assert math.isnan(scores.by_kind["number"])
    nothing = value_recall(values, [Example("attraction", "用户：好。", "用户要去。", "x")], [""])
    assert math.isnan(nothing.recall)
    assert math.isnan(nothing.invented)
    assert value_recall(values, rows, [row.summary for row in rows]).recall == 1


def test_errors(values):
    with raises(ValueError, "known", "training rows"):
        Values([])
    with raises(ValueError, "common", "0", "1", "15"):
        Values([visit("故宫")], common=15)
    with raises(ValueError, "1 examples", "2 summaries"):
        value_recall(values, [visit("故宫")], ["", ""])
