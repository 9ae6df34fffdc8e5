"""ROUGE against golden numbers of both packages, floors, tables, plots."""

import json
import math
from pathlib import Path

import pytest
from mop_t5.data import Example, synthetic_corpus
from mop_t5.evaluation import (
    AVERAGE,
    FLOORS,
    Rouge,
    Scorer,
    Scores,
    first_user_turn,
    mean_scores,
    nearest_reference,
    number_recall,
    plot_losses,
    random_reference,
    score_table,
    to_markdown,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rouge_examples.json").read_text(encoding="utf-8"))
UNITS = {"char": "char", "jieba": "jieba_hmm0", "jieba_hmm": "jieba_hmm1"}
PACKAGES = {"rouge": "rouge_pkg_1.0.1", "rouge_score": "rouge_score_0.1.2"}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("implementation", PACKAGES)
def test_golden_scores_and_units(implementation, unit):
    rouge = Rouge(implementation, unit)
    scores = rouge([pair["reference"] for pair in GOLDEN], [pair["hypothesis"] for pair in GOLDEN])
    for pair, score in zip(GOLDEN, scores, strict=True):
        for side in ("reference", "hypothesis"):
            assert rouge.units(pair[side]) == pair["tokens"][UNITS[unit]][side]
        golden = pair["scores"][UNITS[unit]][PACKAGES[implementation]]
        assert tuple(score) == pytest.approx(tuple(golden.values()), rel=1e-12)


@pytest.mark.parametrize("implementation", PACKAGES)
@pytest.mark.parametrize("hypothesis", ["", " \n", ".", "..", "。"])
def test_an_empty_hypothesis_scores_zero(implementation, hypothesis):
    assert Rouge(implementation)(["退款", ""], [hypothesis, "退款"]) == [Scores(0, 0, 0)] * 2


def test_case_and_white_space_do_not_count():
    assert Rouge()(["VIP 用户"], ["vip用户"]) == [Scores(1, 1, 1)]


def test_what_was_used_is_said():
    assert str(Rouge()) == "ROUGE F1 x 100 by rouge_score 0.1.2 on characters"
    assert str(Rouge("rouge", "jieba")) == "ROUGE F1 x 100 by rouge 1.0.1 on jieba words (HMM off)"


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"implementation must be one of .* got 'bleu'"):
        Rouge("bleu")
    with pytest.raises(ValueError, match=r"unit must be one of .* got 'word'"):
        Rouge(unit="word")
    with pytest.raises(ValueError, match="got 1 references and 2 hypotheses"):
        Rouge()(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="no scores to average"):
        mean_scores([])


def test_the_average_is_over_scenarios_not_rows():
    scores = {"a": Scores(1, 1, 1), "b": Scores(0, 0, 0), "c": Scores(0.2, 0.4, 0.6)}
    rows = [Example(scenario, "", text, "") for scenario, text in (("taxi", "a"), ("taxi", "b"), ("food", "c"))]
    means = Scorer(lambda references, texts: [scores[text] for text in texts])(rows, ["a", "b", "c"])
    assert list(means) == ["food", "taxi", AVERAGE]
    assert means["taxi"] == Scores(0.5, 0.5, 0.5)
    assert means[AVERAGE] == pytest.approx((0.35, 0.45, 0.55))
    assert means[AVERAGE].mean == pytest.approx(0.45)


def test_numbers_kept():
    assert number_recall(["花了35元，24小时", "没有"], ["35元，2小时", "9"]) == 0.5
    assert math.isnan(number_recall(["没有"], ["9"]))


TRAIN = [
    Example("taxi", "客服：您好\n用户：我要打车去机场", "打车去机场", "1"),
    Example("taxi", "用户：司机绕路了", "司机绕路", "2"),
    Example("food", "用户：我要打车去医院吃饭", "吃饭", "3"),
]
TEST = [
    Example("taxi", "客服：您好\n用户：我要打车去医院\n用户：谢谢", "打车去医院", "4"),
    Example("food", "没有说话人", "无", "5"),
]


def test_floors():
    assert first_user_turn(TEST) == ["用户：我要打车去医院", "没有说话人"]
    assert nearest_reference(TEST, TRAIN) == ["打车去机场", "吃饭"]  # row 3 is nearer to the first, but of food
    drawn = {random_reference(TEST, TRAIN, seed=seed)[0] for seed in range(20)}
    assert drawn == {"打车去机场", "司机绕路"}
    assert random_reference(TEST, TRAIN, seed=1) == random_reference(TEST, TRAIN, seed=1)
    assert [len(floor(TEST, TRAIN)) for floor in FLOORS.values()] == [2, 2, 2]


def test_the_nearest_reference_is_that_of_a_comparison_with_every_row():
    corpus = synthetic_corpus(3, general=1, train=80, valid=1, test=20)
    train, test = corpus["train"], corpus["test"]

    def likeness(a, b):
        a, b = ({text[i : i + 2] for i in range(len(text) - 1)} for text in (a, b))
        return len(a & b) / len(a | b)

    expected = [
        max((r for r in train if r.scenario == e.scenario), key=lambda r: likeness(e.dialogue, r.dialogue)).summary
        for e in test
    ]
    assert nearest_reference(test, train) == expected


def test_a_table_in_markdown():
    means = {"mop": {"taxi": Scores(0.5, 0.25, 0.4), AVERAGE: Scores(0.5, 0.25, 0.4)}}
    table = score_table("ROUGE", means | {"floor": means["mop"]}, {"parameters": {"mop": "12"}})
    lines = to_markdown(table).splitlines()
    assert lines[0] == "ROUGE"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[0] == ["scenario", "mop", "floor"]
    assert cells[2] == ["taxi", "50.0/25.0/40.0", "50.0/25.0/40.0"]
    assert cells[-1] == ["parameters", "12", ""]


def test_the_plot_is_a_png_with_one_panel_a_stage(tmp_path):
    curves = {"mop": [(10, 8.0), (20, 0.5)]}
    plot_losses(tmp_path / "one.png", {"tuning": curves})
    plot_losses(tmp_path / "two.png", {"backbone": curves, "tuning": curves})
    sizes = []
    for name in ("one.png", "two.png"):
        header = (tmp_path / name).read_bytes()[:24]
        assert header.startswith(b"\x89PNG")
        sizes.append((int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")))
    assert sizes[1] == (2 * sizes[0][0], sizes[0][1])
