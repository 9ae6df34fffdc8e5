#!/usr/bin/env bash
# bitsandbytes 0.50.2, torch 2.13.0, CPU. A Linear4bit without compute_dtype. It takes the dtype of its first input for
# all of its matrix products. Guessed: a float32 input is computed in float32, whatever came before. Seen: after one input in
# bfloat16, even of one row, float32 inputs are rounded to bfloat16 and the output is cast back to float32: other numbers in
# the same dtype, without a warning. So a check in bfloat16 before a run in float32 changes the run.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 bitsandbytes==0.50.2
"$folder/venv/bin/python" -W error - <<'PYTHON'
import torch
from bitsandbytes.nn import Linear4bit


def layer():
    torch.manual_seed(0)
    made = Linear4bit(128, 64, bias=False, quant_type="nf4").to("cpu").requires_grad_(False)  # quantises
    made.support_avx512bf16_for_cpu = False  # no repacking, which changes numbers by itself
    return made


torch.manual_seed(1)
x = torch.randn(3, 128)
wanted = layer()(x)
for first in (torch.float32, torch.bfloat16):
    made = layer()
    made(x[:1].to(first))
    out = made(x)
    error = ((out - wanted).abs().max() / wanted.abs().max()).item()
    print(f"after an input in {first}: output in {out.dtype}, relative error {error:.1e}, compute_dtype", made.compute_dtype)
    assert out.dtype == torch.float32 and (error > 1e-4) == (first == torch.bfloat16), "changed"
PYTHON
