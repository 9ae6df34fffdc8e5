"""Metrics by hand and against scikit-learn and scipy; tasks.yaml; the scores of a split with tasks of several kinds."""

import random

import numpy as np
import pytest
from errors import raises
from mop_t5.data import Example, TaskMetrics, read_examples, read_tasks, tasks_yaml, write_examples
from mop_t5.data.tasks import METRICS
from mop_t5.evaluation import (
    AVERAGE,
    MetricScores,
    Rouge,
    Scorer,
    Scores,
    combined,
    mean_scores,
    metric_names,
    read_scores,
    score_table,
    to_csv,
    to_markdown,
    write_scores,
)
from mop_t5.evaluation.metrics import FUNCTIONS, f1, strays
from scipy import stats
from sklearn import metrics as sklearn


def golds(*texts):
    return [(text,) for text in texts]


def test_every_metric_that_can_be_named_has_a_function():
    assert set(METRICS) == {*FUNCTIONS, *Scores._fields}


@pytest.mark.parametrize(
    ("name", "right", "texts", "expected"),
    [
        ("accuracy", golds("yes", "no", "no", "yes"), ["Yes ", "no", "yes", "?"], 1 / 2),
        ("accuracy", [("a", "b"), ("a",)], ["B", "b"], 1 / 2),
        # class a: 1 of 1 found, 1 of 2 right; b: 1 of 2 found, all right; c: none
        ("f1_macro", golds("a", "b", "b", "c"), ["a", "a", "b", "?"], (2 / 3 + 2 / 3 + 0) / 3),
        # 2 true and 1 false positive, 2 true and 1 false negative: (2*2 - 1*1) / 3*3
        ("matthews", golds("1", "1", "1", "0", "0", "0"), ["1", "1", "0", "0", "0", "1"], 3 / 9),
        ("matthews", golds("1", "0"), ["1", "1"], 0),
        ("pearson", golds("1", "2", "3"), ["2", "4", "6"], 1),
        ("pearson", golds("1", "2", "3"), ["3", "1", "2"], -1 / 2),
        ("pearson", golds("1", "2"), ["3", "3"], 0),
        ("pearson", golds("1"), ["3"], 0),
        # "?" counts as 1 - 1 = 0, and so do nan and inf
        ("pearson", golds("1", "2", "3"), ["?", "1", "2"], 1),
        ("pearson", golds("1", "2", "3"), ["nan", "1", "inf"], 0),
        ("spearman", golds("1", "2", "3"), ["1", "10", "1000"], 1),
        ("exact_match", [("The Eiffel Tower!", "Eiffel"), ("ten",)], ["a eiffel  tower", "10"], 1 / 2),
        # "eiffel tower paris" against "eiffel tower": 2 of 3 and 2 of 2
        ("token_f1", [("Eiffel", "the Eiffel Tower"), ("ten",)], ["Eiffel tower, Paris", "10"], 0.8 / 2),
        ("token_f1", [("The",), ("x",)], ["an", ""], 1 / 2),
        ("token_f1", golds("a b b"), ["b b b c"], 2 * 2 / (2 + 4)),  # the article a does not count
    ],
)
def test_by_hand(name, right, texts, expected):
    assert FUNCTIONS[name](right, texts) == pytest.approx(expected, abs=1e-12)


def test_f1_by_hand():
    right = golds("no", "yes", "yes", "no", "no")
    assert f1(right, ["no", "yes", "no", "yes", "no"], "yes") == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert f1(right, ["no", "yes", "no", "yes", "no"], "no") == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    # no label is wrong on either side: a false positive where the answer is no, a false negative where it is yes
    assert f1(right, ["?", "yes", "?", "no", "no"], "yes") == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert f1(golds("no"), ["no"], "yes") == 0


def test_random_labels_and_numbers_against_the_libraries():
    rng = random.Random(3)
    a, b = ([rng.choice("xyz") for _ in range(200)] for _ in range(2))
    both = golds(*a), b
    assert FUNCTIONS["accuracy"](*both) == pytest.approx(sklearn.accuracy_score(a, b))
    assert FUNCTIONS["f1_macro"](*both) == pytest.approx(sklearn.f1_score(a, b, average="macro"))
    assert FUNCTIONS["matthews"](*both) == pytest.approx(sklearn.matthews_corrcoef(a, b))
    two = [letter == "x" for letter in a], [letter == "x" for letter in b]
    assert f1(golds(*map(str, two[0])), list(map(str, two[1])), "True") == pytest.approx(sklearn.f1_score(*two))
    p, q = np.random.default_rng(0).normal(size=(2, 100))
    numbers = golds(*map(repr, p.tolist())), list(map(repr, q.tolist()))
    assert FUNCTIONS["pearson"](*numbers) == pytest.approx(np.corrcoef(p, q)[0, 1])
    assert FUNCTIONS["spearman"](*numbers) == pytest.approx(stats.spearmanr(p, q).statistic)


def test_texts_that_are_no_label_or_number_are_counted():
    assert strays(["accuracy"], golds("a", "b"), ["A", "c"]) == ("label", 1)
    assert strays(["pearson", "spearman"], golds("1", "2", "3"), ["4", "x", "nan"]) == ("number", 2)
    assert strays(["exact_match"], golds("a"), ["?"]) is None


def test_a_right_answer_that_is_no_number_is_an_error():
    with raises(ValueError, "task 'sts'", "pearson", "spearman", "'x'"):
        Scorer(tasks={"sts": TaskMetrics(("pearson",))})([Example("sts", "", "x", "1")], ["1"])


# a split of several tasks

TASKS = {
    "cola": TaskMetrics(("accuracy", "f1"), "yes"),
    "squad": TaskMetrics(("token_f1", "exact_match")),
    "xsum": TaskMetrics(("rougeL", "exact_match")),
}
ROWS = [
    Example("cola", "", "yes", "1"),
    Example("news", "", "ab", "2", ("cd",)),
    Example("squad", "", "one two", "3", ("two",)),
    Example("cola", "", "no", "4"),
    Example("xsum", "", "ab", "5"),
]
TEXTS = ["yes", "cx", "two", "?", "ac"]


def test_each_task_by_its_metrics_and_the_mean_of_their_means():
    scores = Scorer(tasks=TASKS)(ROWS, TEXTS)
    assert list(scores) == ["cola", "news", "squad", "xsum", AVERAGE]
    assert scores["cola"] == pytest.approx({"accuracy": 1 / 2, "f1": 2 / 3})
    assert scores["squad"] == {"token_f1": 1, "exact_match": 1}
    assert scores["news"] == pytest.approx((1 / 2, 0, 1 / 2))  # the better of the two references, "cd"
    assert scores["xsum"] == {"rougeL": 1 / 2, "exact_match": 0}
    means = [(1 / 2 + 2 / 3) / 2, 1 / 3, 1, 1 / 4]
    assert [scores[task].mean for task in scores][:-1] == pytest.approx(means)
    assert scores[AVERAGE] == pytest.approx({"mean": sum(means) / 4})
    assert scores[AVERAGE].mean == pytest.approx(sum(means) / 4)


def test_without_tasks_the_scores_are_those_of_rouge():
    scorer = Scorer(Rouge("rouge", "jieba"))
    assert str(scorer) == f"{scorer.rouge}: R-1/R-2/R-L"
    rows = [Example("b", "", "客服退款", "1"), Example("a", "", "用户投诉", "2"), Example("b", "", "好", "3")]
    texts = ["客服不退款", "用户没投诉", "好"]
    each = scorer.rouge([row.summary for row in rows], texts)
    expected = {"a": each[1], "b": mean_scores([each[0], each[2]])}
    assert scorer(rows, texts) == expected | {AVERAGE: mean_scores(list(expected.values()))}
    assert scorer.remarks(rows, {"mop": texts}) == []
    with raises(ValueError, "3 examples", "1 texts"):
        scorer(rows, ["a"])


def test_remarks_name_task_and_system():
    tasks = TASKS | {"squad": TaskMetrics(("pearson",))}
    assert Scorer(tasks=tasks).remarks(ROWS, {"mop": TEXTS, "floor": ["yes", "", "2", "no", ""]}) == [
        "cola: 1 of 2 texts of mop are no label and count as wrong.",
        "squad: 1 of 1 texts of mop are no number and count as wrong.",
    ]


def test_scores_of_both_kinds_are_combined_shown_and_read_back(tmp_path):
    one, two = MetricScores(a=0.5, b=1.0), MetricScores(a=0.25, b=0.0)
    assert combined(max, [one, two]) == {"a": 0.5, "b": 1.0}
    assert combined(min, [one, Scores(0.25, 0.25, 0.25)]) == {"mean": 0.25}
    assert isinstance(combined(sum, [Scores(0, 0, 1), Scores(1, 0, 1)]), Scores)
    assert metric_names(one) == "a/b"
    means = {"mop": {"t": one, "s": Scores(0.1, 0.2, 0.3), AVERAGE: MetricScores(mean=0.475)}}
    write_scores(tmp_path, means)
    assert read_scores(tmp_path) == means
    assert isinstance(read_scores(tmp_path)["mop"]["s"], Scores)
    table = score_table("scores", means, {"parameters": {"mop": "12"}}, ["a note"])
    lines = to_markdown(table).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert cells[0] == ["scenario", "metric", "mop"]
    assert cells[2:5] == [
        ["t", "a/b", "50.0/100.0"],
        ["s", "R-1/R-2/R-L", "10.0/20.0/30.0"],
        [AVERAGE, "mean", "47.5"],
    ]
    assert lines[-1] == "- a note"
    assert to_csv([table]).splitlines() == [
        "scenario,metric,mop a,mop b,mop R-1,mop R-2,mop R-L,mop mean",
        "t,a/b,50.0,100.0,,,,",
        "s,R-1/R-2/R-L,,,10.0,20.0,30.0,",
        "average,mean,,,,,,47.5",
        "parameters,,12,12,12,12,12,12",
    ]


# tasks.yaml, and rows with several right answers


def test_tasks_are_read_back_and_a_corpus_without_the_file_has_none(tmp_path):
    assert read_tasks(tmp_path) == {}
    (tmp_path / "tasks.yaml").write_text(tasks_yaml(TASKS))
    assert read_tasks(tmp_path) == TASKS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cola: {metrics: [bleu]}", ("task 'cola'", "metrics", "accuracy, f1", "bleu")),
        ("cola: {metrics: [f1_macro, f1_macro]}", ("task 'cola'", "metrics", "distinct", "f1_macro")),
        ("cola: {metrics: []}", ("task 'cola'", "metrics", "none")),
        ("cola: {metrics: accuracy}", ("task 'cola'", "metrics", "list", "'accuracy'")),
        ("cola: {metrics: [f1]}", ("task 'cola'", "positive", "label", "f1")),
        ("cola: {metrics: [accuracy], positive: a}", ("task 'cola'", "positive", "label", "f1")),
        (
            "cola: {metrics: [f1], positive: true}",
            ("task 'cola'", "positive", "string", "True", "quotes"),
        ),
        ("cola: {metric: [f1]}", ("task 'cola'", "field: metric", "metrics, positive")),
        ("cola: {positive: a}", ("task 'cola'", "metrics", "missing")),
        ("cola: accuracy", ("task 'cola'", "mapping", "`name: ...`", "'accuracy'")),
        ("cola: [", ("line 1", "YAML")),
        ("- cola", ("mapping",)),
    ],
)
def test_a_wrong_tasks_file_says_where(text, message, tmp_path):
    (tmp_path / "tasks.yaml").write_text(text)
    with raises((ValueError, TypeError), "tasks.yaml", *message):
        read_tasks(tmp_path)


def test_further_right_answers_are_read_back(tmp_path):
    rows = [Example("a", "x", "y", "1", ("z", "w")), Example("a", "x", "y", "2")]
    write_examples(tmp_path / "train.jsonl", rows)
    assert "references" not in (tmp_path / "train.jsonl").read_text().splitlines()[1]
    assert read_examples(tmp_path / "train.jsonl") == rows
    (tmp_path / "train.jsonl").write_text('{"task": "a", "input": "x", "target": "y", "references": "z"}')
    with raises(TypeError, "train.jsonl, line 1", "`references`", "'z'"):
        read_examples(tmp_path / "train.jsonl")
