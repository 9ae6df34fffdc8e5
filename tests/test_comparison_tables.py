"""The pages of comparisons show the committed results, and the project's own rows still hold."""

import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
from benchmarks.tables import kronecker, prefixes, render, rouge, rouge_packages, run
from benchmarks.tables.kronecker_libraries import LIBRARIES
from benchmarks.tables.prefix_libraries import mop_t5
from benchmarks.tables.record import CLOSE

ROOT = Path(__file__).parents[1]
FOLDERS = ROOT / "benchmarks" / "tables" / "environments"
RESULTS = {path.stem: render.load(path.stem) for path in render.RESULTS.glob("*.json")}


def command(folder, script, arguments):
    before = [f"PYTHONPATH={folder}"] if folder else []
    return " ".join([*before, "python -m", f"benchmarks.tables.{script}", *arguments])


@pytest.mark.parametrize("page", render.PAGES, ids=lambda page: page.name)
def test_the_page_shows_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert render.rendered(text) == text
    assert len(render.MARKED.findall(text)) == text.count("<!-- table: ") > 0


def test_every_table_stands_on_a_page():
    found = [name for page in render.PAGES for _, name, _ in render.MARKED.findall(page.read_text(encoding="utf-8"))]
    assert sorted(found) == sorted(render.TABLES)


def test_every_result_has_its_command_and_every_folder_its_packages():
    assert sorted(found["command"] for found in RESULTS.values()) == sorted(command(*each) for each in run.RUNS)
    used = {folder.removeprefix("build/tables/") for folder, *_ in run.RUNS if folder.startswith("build/tables/")}
    assert used == {path.stem for path in FOLDERS.glob("*.txt")}


def test_the_versions_are_those_that_make_installs():
    installed = dict(
        line.split("==")
        for path in [*FOLDERS.glob("*.txt"), ROOT / "tests/extras/adapters.txt"]
        for line in path.read_text(encoding="utf-8").splitlines()
        if "==" in line and not path.stem.startswith("transformers-")
    )
    measured = {name: number for found in RESULTS.values() for name, number in found["versions"].items()}
    own = {name: number for name, number in installed.items() if name in measured and name not in NOT_FOR_ALL}
    assert len(own) > 10
    assert own == {name: measured[name] for name in own}


NOT_FOR_ALL = {"transformers", "tokenizers", "huggingface_hub", "huggingface-hub"}  # one release per folder


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_our_prefixes_are_those_of_the_table(kind):
    cells = prefixes.column(mop_t5(kind))
    committed = RESULTS["prefixes.mop_t5"]["columns"][kind]
    assert cells.keys() == committed.keys()
    for key, _, text in render.PREFIX_ROWS:
        assert text(cells[key]) == text(committed[key]), key
    assert cells["acts"] is True
    assert cells["parameters with a gradient"] == cells["reported parameters"]


def test_our_kronecker_layer_is_that_of_the_table():
    library = LIBRARIES["mop_kernels PHMLinear"]
    committed = RESULTS["kronecker"]["columns"]["mop_kernels PHMLinear"]
    assert kronecker.formula(library) == committed["formula"] == "sum_i kron(rule_i, local_i)"
    assert kronecker.scale(library.make) == committed["scale"] == 1
    assert kronecker.new_layer(library) == committed["new layer"]
    assert kronecker.sum_of_ones(library.make) == committed["bfloat16 ones"] == 1
    assert kronecker.rounding(library.make) == pytest.approx(1, abs=0.05)
    assert kronecker.merged(library.make, kronecker.torch.float32) < CLOSE


@pytest.mark.parametrize("order", kronecker.ORDERS)
def test_an_order_of_factors_is_recognised(order):
    """A layer of every order, so that no order of the table can be a default."""
    a, b = kronecker.torch.empty(4, 4), kronecker.torch.empty(*((12, 8) if "^T" in order else (8, 12)))

    def make(sizes):
        return kronecker.Made(lambda x: 2.5 * x @ kronecker.ORDERS[order](a, b), [a, b], lambda: [(a, b)])

    assert kronecker.order_and_scale(make) == (order, 2.5)


def f_scores(pair):
    return [float(number) for number in pair.split()]


INSTALLED = ("mop-kernels", "rouge", "rouge-score")  # with the project; the vocabulary of word pieces is not
OURS = [row for row in rouge_packages.ROWS[""] if row.package in INSTALLED and row.unit != "word pieces"]


@pytest.mark.parametrize("row", OURS, ids=lambda row: f"{row.package} {row.call} {row.unit}")
def test_rouge_is_that_of_the_table(row):
    committed = RESULTS["rouge"]["columns"][f"{row.package}, {row.call}, {row.unit}"]["scores"]
    found = rouge.scores(row)
    assert found["mean"] == pytest.approx(committed["mean"], abs=0.01)
    assert [f_scores(pair) for pair in found["pairs"]] == [
        pytest.approx(f_scores(pair), abs=0.01) for pair in committed["pairs"]
    ]
    assert found["difference by hand"] < CLOSE


def test_commands_are_run_in_their_folders(monkeypatch):
    """Each script gets its folder first on PYTHONPATH; then the pages are written."""
    seen = []
    monkeypatch.setattr(
        run.subprocess, "run", lambda command, check, env: seen.append((command[2:], env["PYTHONPATH"]))
    )
    monkeypatch.setattr(run.render, "main", lambda: seen.append("rendered"))
    monkeypatch.setattr(sys, "argv", ["run", "prefixes"])
    monkeypatch.setenv("PYTHONPATH", "python")
    run.main()
    assert seen == [
        (["benchmarks.tables.prefixes", "--library", "peft"], "build/tables/libraries:python"),
        (["benchmarks.tables.prefixes", "--library", "adapters"], "build/adapters:python"),
        (["benchmarks.tables.prefixes", "--library", "mop_t5"], "python"),
        "rendered",
    ]
