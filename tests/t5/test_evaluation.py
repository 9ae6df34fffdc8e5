"""ROUGE against golden numbers of both packages and against the packages, floors, tables, plots."""

import json
import math
import random
import sys
import warnings
from pathlib import Path

import pytest
from errors import raises, says, warns
from mop_t5.backbone.tokenizer import train_tokenizer
from mop_t5.data import Example, TaskMetrics, synthetic_corpus
from mop_t5.evaluation import (
    AVERAGE,
    BASELINES,
    Rouge,
    Scorer,
    Scores,
    mean_scores,
    number_recall,
    score_table,
    to_markdown,
)
from mop_t5.evaluation.baselines import first_user_turn, nearest_reference, random_reference
from mop_t5.evaluation.scorer import warn_of_lost_characters
from mop_t5.plots.charts import plot_losses
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

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
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("hypothesis", ["", " \n", "\u3000", ".", "..", "...", ". ...\n..", "……", "。"])
def test_an_empty_hypothesis_scores_zero(implementation, unit, hypothesis):
    """jieba makes one unit of several full stops; the package rouge finds no sentence in them."""
    rouge = Rouge(implementation, unit)
    assert rouge(["退款", "", hypothesis], [hypothesis, "退款", "退款"]) == [Scores(0, 0, 0)] * 3


@pytest.mark.parametrize("unit", UNITS)
def test_scores_are_those_of_the_packages(unit):
    """On texts with many equal subsequences, sentences that repeat, and full stops inside units."""
    import rouge
    from rouge_score.rouge_scorer import RougeScorer

    class AtSpaces:
        def tokenize(self, text):
            return text.split()

    packages = rouge.Rouge(), RougeScorer(list(Scores._fields), tokenizer=AtSpaces())
    draw = random.Random(unit)
    compared = 0
    for _ in range(300):
        reference, hypothesis = (
            "".join(draw.choices("你好我要退款，。.. 3.a…", k=draw.randint(1, 30))) for _ in range(2)
        )
        units = [" ".join(Rouge(unit=unit).units(text)) for text in (reference, hypothesis)]
        if not all(text.strip(". ") for text in units):
            continue
        theirs = packages[0].get_scores(units[1], units[0])[0]
        assert Rouge("rouge", unit)([reference], [hypothesis])[0] == tuple(one["f"] for one in theirs.values())
        theirs = packages[1].score(*units)
        assert Rouge("rouge_score", unit)([reference], [hypothesis])[0] == tuple(
            one.fmeasure for one in theirs.values()
        )
        compared += 1
    assert compared > 200


@pytest.mark.parametrize("implementation", PACKAGES)
@pytest.mark.parametrize("separator", ["", "."])
def test_texts_of_many_thousand_characters(implementation, separator):
    """By hand: a quarter of the reference is in the hypothesis, in order, and nothing else. Each unit stands once."""
    shared, one, other = ("".join(chr(start + i) for i in range(4000)) for start in (0x4E00, 0x6000, 0x7000))
    reference = separator.join(shared + one + other + one[::-1])  # 16,000 characters
    score = Rouge(implementation)([reference], [separator.join(shared)])[0]
    stops = {"rouge": 0, "rouge_score": 1}[implementation] if separator else 0
    if implementation == "rouge":  # counts different units
        wanted, given = 12000, 4000
    else:
        wanted, given = 16000 + stops * 15999, 4000 + stops * 3999
    common = 4000 + stops * 3999
    precision, recall = common / given, common / wanted
    assert score.rougeL == pytest.approx(2 * precision * recall / (precision + recall), rel=1e-6)
    assert score.rougeL == pytest.approx(score.rouge1, rel=1e-6)


def test_case_and_white_space_do_not_count():
    assert Rouge()(["VIP 用户"], ["vip用户"]) == [Scores(1, 1, 1)]


def test_what_was_used_is_said():
    assert str(Rouge()) == "ROUGE F1 x 100 by rouge_score 0.1.2 on characters"
    assert str(Rouge("rouge", "jieba")) == "ROUGE F1 x 100 by rouge 1.0.1 on jieba words (HMM off)"
    said = "ROUGE F1 x 100 by rouge_score 0.1.2 on characters, texts normalised to NFKC"
    assert str(Rouge(normalise="nfkc")) == said
    assert said in str(Scorer(Rouge(normalise="nfkc"), {"cola": TaskMetrics(("accuracy",))}))


CHINESE_MODULE = """
class Rouge:  # as rouge-chinese 1.0.3 counts: "." is a unit
    def __init__(self, metrics=None, stats=None): pass
    def get_scores(self, hypothesis, reference):
        given, wanted = set(hypothesis.split()), set(reference.split())
        return [{"rouge-1": {"f": 2 * len(given & wanted) / (len(given) + len(wanted))}}]
"""


@pytest.mark.parametrize(
    "source",
    [CHINESE_MODULE, "class Rouge:\n    def __init__(self, metrics=None, max_n=None): pass", "def rouge_n(): pass"],
    ids=["rouge-chinese", "py-rouge", "easy-rouge"],
)
def test_a_module_rouge_of_another_package_is_refused(source, tmp_path, monkeypatch):
    """They are installed over the files of the package rouge, whose version stays as it is."""
    (tmp_path / "rouge.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "rouge"]:
        monkeypatch.delitem(sys.modules, name)
    with raises(ImportError, "'rouge'", "rouge.py", "rouge-chinese", "rouge==1.0.1"):
        Rouge("rouge")
    del sys.modules["rouge"]
    assert Rouge("rouge_score")(["退款"], ["退款"]) == [Scores(1, 1, 1)]


def test_wrong_arguments():
    with raises(ValueError, "implementation", "'bleu'"):
        Rouge("bleu")
    with raises(ValueError, "unit", "'word'"):
        Rouge(unit="word")
    with raises(ValueError, "normalise", "'NFKC'"):
        Rouge(normalise="NFKC")
    with raises(ValueError, "1 references", "2 hypotheses"):
        Rouge()(["a"], ["a", "b"])
    with raises(ValueError, "scores"):
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
    assert number_recall(["花了３５元，24小时，007号"], ["35元，２４小时，7号"]) == pytest.approx(2 / 3)
    assert math.isnan(number_recall(["没有"], ["9"]))


WIDE, NARROW = "评分４．５分，人均１２０元：好！", "评分4.5分,人均120元:好!"


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("implementation", PACKAGES)
def test_both_sides_are_normalised_where_that_is_asked_for(implementation, unit):
    for pair in ([WIDE], [NARROW]), ([NARROW], [WIDE]):
        assert Rouge(implementation, unit)(*pair)[0].rouge1 < 0.9
        assert Rouge(implementation, unit, "nfkc")(*pair)[0] == pytest.approx((1, 1, 1))


@pytest.mark.parametrize(
    ("metric", "gold", "text"),
    [
        ("accuracy", "Ａ类（一）", "a类(一)"),
        ("f1_macro", "Ａ类（一）", "A类(一)"),
        ("f1", "是！", "是!"),
        ("exact_match", "北京，上海", "北京,上海"),
        ("token_f1", "北京～上海", "北京~上海"),
        ("pearson", "３．５", "3.5"),
    ],
)
def test_other_metrics_are_normalised_with_rouge(metric, gold, text):
    tasks = {"t": TaskMetrics((metric,), gold if metric == "f1" else None)}
    rows = [Example("t", "", gold, "1"), Example("t", "", "7" if metric == "pearson" else "否", "2")]
    texts = [text, rows[1].summary]
    if metric == "pearson":
        rows[1] = Example("t", "", "７", "2")
    plain, form = (Scorer(Rouge(normalise=how), tasks) for how in ("none", "nfkc"))
    assert form(rows, texts)["t"].mean == pytest.approx(1)
    assert form.remarks(rows, {"mop": texts}) == []
    if metric in ("accuracy", "f1_macro"):
        assert plain(rows, texts)["t"].mean < 1
        assert len(plain.remarks(rows, {"mop": texts})) == 1


def narrowing(*, lower=False, known="评分人均元好,.:!0123456789"):
    """A tokenizer of single characters that writes NFKC, as mT5's does."""
    backend = Tokenizer(models.WordLevel({t: i for i, t in enumerate(["<pad>", "</s>", "<unk>", *known])}, "<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), *([normalizers.Lowercase()] if lower else [])])
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def test_a_tokenizer_that_cannot_write_the_references_is_warned_of():
    rows = [Example("taxi", "", text, "") for text in (WIDE, NARROW, "好" * 8)]
    with warns(UserWarning, "1 of 3 references", "valid split") as said:
        notes = warn_of_lost_characters(narrowing(), rows, Scorer(), "valid")
    assert notes == [str(said[0].message)]
    # of the 16 characters of WIDE the 7 that have one width come back
    best = "/".join(f"{100 * value:.1f}" for value in mean_scores([*Rouge()([WIDE], [NARROW]), *[Scores(1, 1, 1)] * 2]))
    says(notes[0], "perfect model", best, "R-1/R-2/R-L")
    assert best.startswith("81.")
    says(notes[0], "--normalise nfkc", "NFKC")
    says(notes[0], "lost characters", "４ ． ５ ，")


@pytest.mark.parametrize(
    ("tokenizer", "summary", "form", "cures"),
    [
        (narrowing(), WIDE, "nfkc", []),
        (narrowing(lower=True, known="vip好"), "VIP 好", "none", []),  # case and white space do not count
        (narrowing(known="人均"), "人均好", "none", ["Choose a backbone"]),  # as T5's own, which has no Chinese
        (narrowing(known="人均"), "人均好", "nfkc", ["Choose a backbone"]),
        (train_tokenizer([NARROW], 300), WIDE, "none", []),  # a character that it lacks becomes its bytes
    ],
)
def test_what_is_warned_of_lost_characters(tokenizer, summary, form, cures):
    rows = [Example("taxi", "", summary, "")]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        notes = warn_of_lost_characters(tokenizer, rows, Scorer(Rouge(normalise=form)), "test")
    assert notes == [str(one.message) for one in said]
    assert [cure in note for cure, note in zip(cures, notes, strict=True)] == [True] * len(cures)


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
    assert [len(floor(TEST, TRAIN)) for floor in BASELINES.values()] == [2, 2, 2]


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
