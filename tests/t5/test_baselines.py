"""`mop-t5 corpus floors`: what texts score that no model made."""

import csv

import pytest
from errors import raises, says
from mop_t5.cli.main import main
from mop_t5.data import synthetic_corpus, write_examples
from mop_t5.evaluation import BASELINES, Rouge, Scorer
from mop_t5.evaluation.baselines import nearest_reference, random_reference


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rows = synthetic_corpus(3, general=1, train=60, valid=10, test=10)
    for split in ("train", "valid", "test"):
        write_examples(folder / f"{split}.jsonl", rows[split])
    return folder, rows


def test_the_table_is_what_the_floors_score(corpus, tmp_path, capsys):
    folder, rows = corpus
    command = ["corpus", "floors", "--corpus", str(folder), "--split", "valid", "--unit", "jieba"]
    assert main([*command, "--output", str(tmp_path)]) == 0
    says(capsys.readouterr().out, "jieba words (HMM off)", "R-1/R-2/R-L", "10 valid rows")
    written = {row["scenario"]: row for row in csv.DictReader((tmp_path / "floors.csv").open(encoding="utf-8"))}
    scorer = Scorer(Rouge(unit="jieba"))
    for name, make in BASELINES.items():
        for scenario, scores in scorer(rows["valid"], make(rows["valid"], rows["train"])).items():
            for metric, value in zip(("R-1", "R-2", "R-L"), scores, strict=True):
                assert float(written[scenario][f"{name} {metric}"]) == pytest.approx(100 * value, abs=1e-6)
    assert main([*command, "--scenarios", "[taxi]"]) == 0
    assert "food" not in capsys.readouterr().out


def test_errors(corpus, capsys):
    folder, rows = corpus
    assert main(["corpus", "floors", "--corpus", str(folder), "--split", "train"]) == 1
    says(capsys.readouterr().err, "split", "'test', 'valid'", "'train'")
    few = [row for row in rows["train"] if row.scenario != "taxi"]
    for floor in (random_reference, nearest_reference):
        with raises(ValueError, "training", "taxi"):
            floor(rows["test"], few)
