"""A Compacter layer of adapters beside its accelerated copy: time of forward + backward.

adapters 1.3 needs transformers 4, so it stands in a folder of its own:

    make test-adapters
    PYTHONPATH=build/adapters pytest --benchmark benchmarks/bench_accelerate_compacter.py
"""

import pytest
import torch
from torch import nn

from benchmarks.support.acceleration import OURS, Layer, compare

ROWS, SIZES = 2048, (768, 24)
SMALL_ROWS, SMALL_SIZES = 5, (32, 8)


@pytest.mark.parametrize("name", ["adapters", OURS])
def test_layer(name, full_size, timed):
    pytest.importorskip("adapters")
    from adapters import CompacterConfig
    from adapters.methods.modeling import PHMLayer

    torch.manual_seed(0)
    width, hidden = SIZES if full_size else SMALL_SIZES
    config = CompacterConfig(reduction_factor=width // hidden, shared_phm_rule=False)
    down, up = PHMLayer("task", width, hidden, "down", config), PHMLayer("task", hidden, width, "up", config)
    layers = nn.Sequential(down, nn.GELU(), up)
    with torch.no_grad():
        for parameter in layers.parameters():
            parameter.normal_(0, 0.3)
    group = f"Compacter {SIZES[0]} -> {SIZES[1]} -> {SIZES[0]}, 4 terms, {ROWS} rows: forward + backward"
    compare(timed, group, name, Layer(layers, nn.Module.__call__, width), ROWS if full_size else SMALL_ROWS)
