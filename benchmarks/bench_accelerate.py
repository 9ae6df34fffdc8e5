"""LoKr layers of PEFT and LyCORIS beside their accelerated copies: time and peak memory of forward + backward.

    pip install peft lycoris-lora

The adapter part is the layer without the product of its base. bench_accelerate_compacter.py has the layers of adapters,
which needs another transformers.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from mop_lab.attempt.memory import growth
from torch import Tensor, nn

from benchmarks.support import peak_memory
from benchmarks.support.acceleration import OURS, Layer, accelerated, compare, rows_of, step

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
    "PEFT": ("peft", partial(peft_layer, part=True)),
    "LyCORIS, bypass mode": ("lycoris", partial(lycoris_layer, bypass=True)),
    "LyCORIS, weight mode": ("lycoris", partial(lycoris_layer, bypass=False)),
    OURS: ("peft", partial(peft_layer, part=True)),  # accelerated
}


def sizes(full_size: bool) -> tuple[int, int]:
    """Return rows and width."""
    return (ROWS, WIDTH) if full_size else (SMALL_ROWS, SMALL_WIDTH)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("factors", FACTORS)
def test_adapter_part(factors, name, full_size, timed):
    package, layer = LIBRARIES[name]
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
    if name != "the frozen base alone":
        return compare(timed, group, name, layer, rows)
    frozen: Any = layer.module
    base = layer._replace(module=frozen.get_base_layer())
    x = rows_of(base, rows)
    timed(lambda: step(base, x), group, name, kind="form")


@peak_memory.ON_LINUX
@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("factors", FACTORS)
def test_peak_memory(factors, name, full_size, record):
    pytest.importorskip(LIBRARIES[name][0])
    if not full_size and name != OURS:
        pytest.skip("one process is enough to see that the probe works")
    row = peak_memory.of_process("bench_accelerate", factors, name, *map(str, sizes(full_size)))
    group = f"LoKr {WIDTH} -> {WIDTH}, {factors}, {ROWS} rows, adapter part: peak memory"
    peak_memory.keep(record, full_size, row, group=group, name=name, kind="ours" if name == OURS else "form")


def measure(factors: str, name: str, rows: int, width: int) -> dict[str, float]:
    """Return the peak memory of a step beyond its inputs, and the size of its results, in MB."""
    layer = LIBRARIES[name][1](width=width, **FACTORS[factors])
    layer = accelerated(layer) if name == OURS else layer
    step(layer, rows_of(layer, 8))  # load code and start threads
    x = rows_of(layer, rows)
    grad = torch.ones(rows, width)
    needed = sum(t.nbytes for t in step(layer, x, grad))
    return {"peak_mb": growth(lambda: step(layer, x, grad)) / 1e6, "needed_mb": needed / 1e6}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
