#!/usr/bin/env bash
# torch 2.13.0, CPU. SGD(fused=True) on bfloat16 and float16 parameters.
# Guessed: fused=True changes the speed and the rounding of the last bit. Seen: vectors of 16 elements and more are left as
# they are, without an error. Of 40 elements the last 8 are updated, which do not fill a vector. float32 parameters, and
# Adam, AdamW and Adagrad with fused=True, are updated as without it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch


def updated(optimizer, dtype, size, fused):
    """The number of elements that one step with a gradient of ones changes."""
    weight = torch.nn.Parameter(torch.zeros(size, dtype=dtype))
    weight.grad = torch.ones_like(weight)
    getattr(torch.optim, optimizer)([weight], lr=1.0, fused=fused).step()
    return weight.count_nonzero().item()


for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for size in (8, 16, 40, 512):
        plain, fused = (updated("SGD", dtype, size, value) for value in (False, True))
        print(f"SGD, {dtype}, {size} elements: {plain} updated, with fused=True {fused}")
        skipped = dtype != torch.float32 and size >= 16
        assert plain == size and fused == ({40: 8}.get(size, 0) if skipped else size), "changed"
assert all(updated(name, torch.bfloat16, 512, True) == 512 for name in ("Adam", "AdamW", "Adagrad")), "changed"
PYTHON
