"""The JSON of a run becomes tables, goals and plots; on invented numbers whose ratios are known."""

import json
import sys

import pytest
from errors import raises

from benchmarks import render
from benchmarks.support import goals, plots, results, tables
from benchmarks.support.contenders import BATCHED_STAGES
from benchmarks.support.work import BOTH, DIRECTIONS, FORWARD

RATES = {"mm_gflops": 100.0, "copy_gbps": 10.0}
MACHINE = {"cpu": "a CPU", "threads": 2, "torch": "2", "compiled": {"compiler": "cc"}, "commit": "0"}


def row(group, name, median, kind="form", **more):
    numbers = {"median_ms": median, "q1_ms": median, "q3_ms": median, "min_ms": median, "page_faults_a_call": 0}
    return {"group": group, "name": name, "kind": kind, "flops": 10**8, "bytes": 10**6, **numbers, **more}


def module(*rows, before=RATES):
    return {"machine": MACHINE, "command": "pytest", "before": before, "after": RATES, "rows": list(rows)}


@pytest.fixture
def modules():
    bank = [
        row(goals.BANK_GROUP + direction, name, ms, kind)
        for direction in DIRECTIONS
        for name, ms, kind in (("mop_kernels cpu", 2.0, "ours"), (BATCHED_STAGES, 8.0, "form"))
    ]
    memory = {"name": "mop_kernels cpu", "kind": "ours", "peak_mb": 13.0, "needed_mb": 10.0}
    scaling = [
        row(f"rows = {at}", name, at / 10, "ours", axis="rows", at=at, direction=BOTH)
        for at in (8, 40)
        for name in plots.SCALING_WAYS
    ] + [row("rank = 1", "mop_kernels cpu", 1.0, "ours", axis="rank", at=1, direction=BOTH)]
    return {
        "mop_ffn": module(*bank, before={"mm_gflops": 50.0, "copy_gbps": 10.0}),
        "memory": module({"group": f"peak memory, paper bank: {BOTH}", **memory}),
        "mop_ffn_scaling": module(*scaling),
    }


def test_goals_are_judged(modules):
    lines = goals.as_markdown(goals.CPU_GOALS, results.Results(modules))
    stages = [line for line in lines if "batched, three stages" in line]
    assert [line.split("|")[4:6] for line in stages] == [[" 4.00x ", " **not met** "], [" 4.00x ", " met "]]
    share = next(line for line in lines if "torch.mm" in line)  # 1 ms at the better rate, 2 ms measured
    assert "| 50.00 % | met |" in share
    assert any("1.30x | **not met**" in line for line in lines)  # peak memory
    assert any("not measured" in line for line in lines)


def test_table_has_ratios_and_floors(modules):
    found = modules["mop_ffn"]
    rows = results.groups(found)[goals.BANK_GROUP + FORWARD]
    assert [r["name"] for r in rows] == ["mop_kernels cpu", BATCHED_STAGES]
    shown = tables.cells(rows[1], rows, found)
    assert (shown["times ours"], shown["% of floor"]) == ("4.00", "12")
    text = "\n".join(tables.as_markdown("mop_ffn", found))
    assert "floor: 100 MFLOP" in text
    assert "50 GFLOP/s before, 100 after" in text


def test_the_command(modules, tmp_path, monkeypatch, capsys):
    for name, found in modules.items():
        (tmp_path / f"{name}.a-cpu-2-threads.json").write_text(json.dumps(found))
    options = ["--results", str(tmp_path), "--images", str(tmp_path), "--all", "--plots"]
    monkeypatch.setattr(sys, "argv", ["render", *options])
    render.main()
    readme_row = "pairs | 2.00 / 2.00 | batched torch.matmul | 8.00 / 8.00 | 4.0 / 4.0 |"
    assert readme_row in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.png")} == {"scaling.png", "share_of_floor.png"}
    (tmp_path / "mop_ffn.another-2-threads.json").write_text("{}")
    with raises(SystemExit, "--machine", "a-cpu-2-threads, another-2-threads"):
        render.main()
