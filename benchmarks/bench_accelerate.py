"""LoKr layers of PEFT and LyCORIS beside their accelerated copies: time and peak memory of forward + backward.

    pip install peft lycoris-lora

The adapter part is the layer without the product of its base. bench_accelerate_compacter.py has the layers of adapters,
which needs another transformers.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from mop_lab.attempt.memory import ENVIRONMENT, RESET, growth
from torch import Tensor, nn

from benchmarks.support.acceleration import OURS, Layer, accelerated, prove, rows_of, step
from benchmarks.support.results import ROOT

FACTORS: dict[str, dict[str, Any]] = {  # options of LoKr: r is the rank of w2, or None for a whole w2
    "factor 8, w2 full": {"factor": 8, "r": None},
    "factor 16, rank 8": {"factor": 16, "r": 8},
}
ROWS, WIDTH = 4096, 1280
SMALL_ROWS, SMALL_WIDTH = 5, 64


def peft_layer(factor: int, r: int | None, width: int, *, part: bool) -> Layer:
    """Return a LoKr layer of PEFT, whole or its adapter part."""
    from peft import LoKrConfig, get_peft_model

    torch.manual_seed(0)
    r = width if r is None else min(r, width // factor // 4)  # from half the side on, PEFT keeps w2 whole
    options: dict[str, Any] = {"r": r, "alpha": r, "decompose_factor": factor, "init_weights": False}
    model = get_peft_model(nn.Sequential(nn.Linear(width, width)), LoKrConfig(target_modules=["0"], **options))

    def adapter(module: Any, x: Tensor) -> Tensor:
        return module._get_delta_activations("default", x)

    layer = model.base_model.model[0]
    return Layer(layer, adapter if part else nn.Module.__call__, width)


def lycoris_layer(factor: int, r: int | None, width: int, *, bypass: bool) -> Layer:
    """Return the adapter part of a LoKr module of LyCORIS."""
    from lycoris import LokrModule

    torch.manual_seed(0)
    rank = 1 if r is None else min(r, width // factor // 4)
    base = nn.Linear(width, width).requires_grad_(False)
    lora = LokrModule("", base, lora_dim=rank, alpha=rank, factor=factor, full_matrix=r is None, bypass_mode=bypass)
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.normal_(0, 0.05)

    def adapter(pair: Any, x: Tensor) -> Tensor:
        if bypass:
            return pair[0].bypass_forward_diff(x, pair[0].multiplier)
        pair[0].org_forward = lambda x: x.new_zeros(())  # without the product of the base
        return pair[0]._rebuild_forward(x)

    return Layer(nn.ModuleList([lora, base]), adapter, width)  # with the base, whose dtype weight mode takes


LIBRARIES: dict[str, tuple[str, Callable[..., Layer]]] = {
    "PEFT": ("peft", lambda factor, r, width: peft_layer(factor, r, width, part=True)),
    "LyCORIS, bypass mode": ("lycoris", lambda factor, r, width: lycoris_layer(factor, r, width, bypass=True)),
    "LyCORIS, weight mode": ("lycoris", lambda factor, r, width: lycoris_layer(factor, r, width, bypass=False)),
}


def compare(timed: Any, group: str, name: str, plain: Layer, rows: int) -> None:
    """Prove the accelerated copy of a layer, then time both."""
    ours = accelerated(plain)
    prove(plain, ours, rows)
    layer, kind = (ours, "ours") if name == OURS else (plain, "form")
    x = rows_of(layer, rows)
    timed(lambda: step(layer, x), group, name, kind=kind)


def sizes(full_size: bool) -> tuple[int, int]:
    """Return rows and width."""
    return (ROWS, WIDTH) if full_size else (SMALL_ROWS, SMALL_WIDTH)


@pytest.mark.parametrize("name", [*LIBRARIES, OURS])
@pytest.mark.parametrize("factors", FACTORS)
def test_adapter_part(factors, name, full_size, timed):
    package, layer = LIBRARIES["PEFT" if name == OURS else name]
    pytest.importorskip(package)
    rows, width = sizes(full_size)
    group = f"LoKr {WIDTH} -> {WIDTH}, {factors}, {ROWS} rows, adapter part: forward + backward"
    compare(timed, group, name, layer(width=width, **FACTORS[factors]), rows)


@pytest.mark.parametrize("name", ["PEFT", OURS, "the frozen base alone"])
@pytest.mark.parametrize("factors", FACTORS)
def test_whole_layer(factors, name, full_size, timed):
    pytest.importorskip("peft")
    rows, width = sizes(full_size)
    group = f"LoKr {WIDTH} -> {WIDTH}, {factors}, {ROWS} rows, whole layer, base frozen: forward + backward"
    layer = peft_layer(width=width, part=False, **FACTORS[factors])
    if name in ("PEFT", OURS):
        compare(timed, group, name, layer, rows)
        return
    frozen: Any = layer.module
    base = Layer(frozen.get_base_layer(), nn.Module.__call__, width)
    x = rows_of(base, rows)
    timed(lambda: step(base, x), group, name, kind="form")


@pytest.mark.skipif(not RESET.exists(), reason="needs Linux's /proc/self/clear_refs")
@pytest.mark.parametrize("name", [*LIBRARIES, OURS])
@pytest.mark.parametrize("factors", FACTORS)
def test_peak_memory(factors, name, full_size, record):
    pytest.importorskip(LIBRARIES["PEFT" if name == OURS else name][0])
    if not full_size and name != OURS:
        pytest.skip("one process is enough to see that the probe works")
    command = [sys.executable, "-m", "benchmarks.bench_accelerate", factors, name, *map(str, sizes(full_size))]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout.splitlines()[-1])
    assert row["peak_mb"] >= 0.9 * row["needed_mb"] or not full_size, "less than what is held at the end"
    if record is not None:
        group = f"LoKr {WIDTH} -> {WIDTH}, {factors}, {ROWS} rows, adapter part: peak memory"
        record["rows"].append({"group": group, "name": name, "kind": "ours" if name == OURS else "form", **row})


def measure(factors: str, name: str, rows: int, width: int) -> dict[str, float]:
    """Return the peak memory of a step beyond its inputs, and the size of its results, in MB."""
    layer = LIBRARIES["PEFT" if name == OURS else name][1](width=width, **FACTORS[factors])
    layer = accelerated(layer) if name == OURS else layer
    step(layer, rows_of(layer, 8))  # load code and start threads
    x = rows_of(layer, rows)
    grad = torch.ones(rows, width)
    needed = sum(t.nbytes for t in step(layer, x, grad))
    return {"peak_mb": growth(lambda: step(layer, x, grad)) / 1e6, "needed_mb": needed / 1e6}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
