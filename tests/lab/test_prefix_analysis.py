"""`mop-t5 analyse prefixes`: which vectors are taken, one PCA of all runs, spread by hand, plots, errors."""

import json

import mop_t5
import numpy as np
import pytest
import t5_oracle
import torch
from command_results import csv_rows
from errors import raises
from mop_lab.analysis.prefixes import (
    Prefixes,
    distance_between_scenarios,
    first_share,
    joint_pca,
    mean_distance,
    prefixes_of,
    read_prefixes,
)
from mop_t5.cli.main import main

SCENARIOS = ["景点", "酒店", "出租"]
MOP = {"prefix_length": 4, "d_mid": 8, "terms_down": 2, "terms_up": 2}


def attached(method, d_kv=8, **fields):
    return mop_t5.attach(t5_oracle.tiny(d_kv=d_kv), method, scenarios=SCENARIOS, **fields)


@pytest.fixture(scope="module")
def runs(place):
    """Run folders: two seeds of mop, one of prefix_tuning in a suite, one of prompt_tuning, and all weights."""
    base = ["train", "--corpus", str(place / "corpus"), "--backbone", str(place / "backbone"), "--steps", "1"]
    base += ["--batch_size", "2", "--max_target", "4"]
    for folder, method, fields in (
        ("mop", "mop", {"options": MOP, "seeds": [0, 1]}),
        ("prefix_tuning/seed-0", "prefix_tuning", {"options": {"prefix_length": 5, "d_mid": 8}}),
        ("prompt", "prompt_tuning", {"options": {"prefix_length": 2}}),
    ):
        more = [word for name, value in fields.items() for word in (f"--{name}", json.dumps(value))]
        assert main([*base, "--method", method, *more, "--output", str(place / folder)]) == 0
    assert main([*base, "--output", str(place / "full")]) == 0
    (place / "prefix_tuning" / "system.json").write_text('{"label": "prefix-tuning"}')
    return place


def analyse(output, *folders, more=()):
    return main(["analyse", "prefixes", *map(str, folders), "--output", str(output), *more])


def test_the_points_are_the_rows_of_every_layer_and_scenario():
    model = attached("mop", **MOP)
    found = prefixes_of(model, "decoder_self", "MOP")
    assert found.vectors["keys"].shape == found.vectors["values"].shape == (3 * 3 * 4, 4 * 8)  # E L N, heads * d_kv
    with torch.no_grad():
        pairs = model.mop.additions().prefixes["decoder_self"]
    for index in (0, 17, 35):
        layer, scenario, place = found.layer[index], found.scenario[index], found.place[index]
        for kind, tensor in zip(("keys", "values"), pairs[layer]):
            np.testing.assert_array_equal(found.vectors[kind][index], tensor[scenario, :, place].flatten().numpy())
    assert len({*zip(found.layer, found.scenario, found.place)}) == 36
    shared = prefixes_of(attached("prefix_tuning", prefix_length=5, d_mid=8), "encoder_self", "MLP")
    assert shared.vectors["keys"].shape == (2 * 5, 32)  # L N
    assert set(shared.scenario) == {-1}
    assert [name for name, _ in shared.parts()] == ["layer 1", "layer 2"]
    routed = prefixes_of(attached("mop", d_kv=6, **MOP, preset="xmoe_top2"), "decoder_self", "MOP")
    assert len(routed.layer) == 3 * 4  # gates mix the experts: one prefix for all
    assert len(prefixes_of(attached("hyper_prefix", prefix_length=2), "cross", "H").layer) == 3 * 3 * 2


def known(label, vectors, layer, scenario, place, scenarios=("a", "b")):
    arrays = [np.array(numbers) for numbers in (layer, scenario, place)]
    vectors = np.array(vectors, dtype=float)
    return Prefixes(label, scenarios, {"keys": vectors, "values": -vectors}, *arrays)


def test_one_pca_is_fitted_to_all_runs():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(30, 6)), 3 + generator.normal(size=(12, 6)) * [5, 1, 1, 1, 1, 1]
    runs = [known(str(n), rows, *np.zeros((3, len(rows)), int)) for n, rows in enumerate((first, second))]
    fitted, places = joint_pca(runs, "keys")
    together = np.concatenate([first, second])
    _, singular, axes = np.linalg.svd(together - together.mean(0), full_matrices=False)
    np.testing.assert_allclose(fitted.explained_variance_ratio_, (singular**2 / (singular**2).sum())[:2])
    for rows, place in zip((first, second), places):
        np.testing.assert_allclose(np.abs(place), np.abs((rows - together.mean(0)) @ axes[:2].T))
    own = np.linalg.svd(second - second.mean(0), compute_uv=False) ** 2
    assert first_share(second) == pytest.approx(own[0] / own.sum())


def test_spread_by_hand(monkeypatch):
    square = np.array([[0, 0], [3, 0], [0, 4], [3, 4.0]])
    assert mean_distance(square) == pytest.approx((3 + 4 + 5 + 5 + 4 + 3) / 6)
    monkeypatch.setattr("mop_lab.analysis.prefixes._BLOCK", 3)
    assert mean_distance(square) == pytest.approx(4)
    assert first_share(square) == pytest.approx(16 / (9 + 16))
    assert mean_distance(square[:1]) is None
    assert first_share(np.ones((3, 2))) is None
    # two layers and two scenarios: 3 between them in layer 0, 5 in layer 1
    four = known("x", [[0, 0], [3, 0], [9, 9], [12, 13]], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0])
    assert distance_between_scenarios(four, "keys") == pytest.approx(4)
    assert distance_between_scenarios(four, "values", four.layer == 1) == pytest.approx(5)
    assert distance_between_scenarios(four, "keys", four.scenario == 1) is None
    assert distance_between_scenarios(known("x", square, [0] * 4, [-1] * 4, range(4)), "keys") is None


def test_tables_and_plots_of_several_runs(runs, tmp_path, capsys):
    folders = [runs / "mop" / "seed-0", runs / "mop" / "seed-1", runs / "prefix_tuning" / "seed-0"]
    assert analyse(tmp_path, *folders) == 0
    rows = {(row["run"], row["kind"]): row for row in csv_rows(tmp_path / "prefixes.csv")}
    assert [label for label, kind in rows if kind == "keys"] == ["mop, seed 0", "mop, seed 1", "prefix-tuning"]
    assert int(rows["mop, seed 1", "values"]["vectors"]) == 3 * 2 * 4
    assert int(rows["prefix-tuning", "keys"]["vectors"]) == 2 * 5
    assert rows["prefix-tuning", "keys"]["between scenarios"] == ""
    (one,) = read_prefixes(folders[:1], "decoder_self")
    row, vectors = rows["mop, seed 0", "keys"], one.vectors["keys"]
    pairs = [np.linalg.norm(x - y) for n, x in enumerate(vectors) for y in vectors[:n]]
    assert float(row["mean distance"]) == pytest.approx(np.mean(pairs))
    assert float(row["mean norm"]) == pytest.approx(np.linalg.norm(vectors, axis=1).mean())
    parts = {(row["run"], row["kind"], row["of"]): row for row in csv_rows(tmp_path / "prefixes-parts.csv")}
    assert int(parts["mop, seed 0", "keys", "layer 2"]["vectors"]) == 3 * 4
    chosen = vectors[one.scenario == one.scenarios.index("taxi")]
    assert float(parts["mop, seed 0", "keys", "scenario taxi"]["mean distance"]) == pytest.approx(mean_distance(chosen))
    share = joint_pca(read_prefixes(folders, "decoder_self"), "values")[0].explained_variance_ratio_
    svg = (tmp_path / "prefixes-values.svg").read_text()
    assert f"component 1 ({100 * share[0]:.1f} % of variance)" in svg
    for text in ("mop, seed 1: by layer", "prefix-tuning: by scenario", "taxi", "all scenarios share it"):
        assert text in svg
    assert (tmp_path / "prefixes-keys.png").is_file()


def test_runs_without_prefixes(runs, tmp_path, capsys):
    for folder, more, message in (
        ("prompt", (), "'prompt_tuning', which generates no prefixes for decoder_self"),
        ("full", (), "full trained all weights"),
        ("mop", (), "seed-0, seed-1"),
        ("mop/seed-0", ("--attention", "encoder"), "attention must be"),
    ):
        assert analyse(tmp_path / "out", runs / "mop" / "seed-0", runs / folder, more=more) == 1
        assert message in capsys.readouterr().err
    with raises(ValueError, "runs"):
        read_prefixes([], "decoder_self")
    assert not (tmp_path / "out").exists()
