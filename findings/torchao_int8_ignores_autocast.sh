#!/usr/bin/env bash
# torchao 0.18.0, torch 2.13.0, CPU. Linear layers that are quantised to int8 weights in two ways, under autocast.
# Guessed: under torch.autocast a quantised layer computes in bfloat16, as the layer that it replaces. Seen: a layer of
# Int8WeightOnlyConfig ignores autocast and gives float32. A layer of IntxWeightOnlyConfig, with the same int8 weights, gives
# bfloat16. So the residual stream has another dtype for each of the two, and other numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 torchao==0.18.0
"$folder/venv/bin/python" -W ignore - 2>"$folder/log" <<'PYTHON' || { cat "$folder/log"; exit 1; }
import copy

import torch
import torchao
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_

torch.manual_seed(0)
base, x = torch.nn.Sequential(torch.nn.Linear(128, 64)), torch.randn(3, 128)
seen = {}
for config in (None, Int8WeightOnlyConfig(), IntxWeightOnlyConfig(torch.int8)):
    layer = copy.deepcopy(base)
    if config is not None:
        quantize_(layer, config)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    seen[type(config).__name__] = out.dtype
    print("torchao", torchao.__version__, type(config).__name__, out.dtype)
assert list(seen.values()) == [torch.bfloat16, torch.float32, torch.bfloat16], "changed"
PYTHON
