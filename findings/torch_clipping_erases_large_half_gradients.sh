#!/usr/bin/env bash
# torch 2.13.0, CPU. clip_grad_norm_ on float16 gradients that are far from the largest float16.
# Guessed: the norm is computed in float32, as the sum of squares in it is. Seen: the norm is returned in float16, where
# more than 65504 is infinite. Then the gradients are multiplied by max_norm / inf: all become zero, without an error, and
# the step moves nothing. A million gradients of 66 have such a norm, in one tensor or in ten. float32 and bfloat16
# gradients are clipped to the asked norm.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch


def clipped(dtype, value, size=1_000_000, parts=1):
    """The norm that is reported, and the norm of what is left, for gradients of one value."""
    parameters = [torch.nn.Parameter(torch.zeros(size // parts, dtype=dtype)) for _ in range(parts)]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, value)
    reported = torch.nn.utils.clip_grad_norm_(parameters, max_norm=1.0)
    left = torch.cat([parameter.grad.double() for parameter in parameters]).norm()
    return reported.item(), left.item()


for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for value, parts in ((60.0, 1), (70.0, 1), (70.0, 10)):
        reported, left = clipped(dtype, value, parts=parts)
        print(f"{dtype}, {parts} x {1_000_000 // parts} gradients of {value:g}: norm {reported:g}, clipped to {left:.3f}")
        if dtype == torch.float16 and value == 70:
            assert reported == float("inf") and left == 0, "changed"
        else:
            assert abs(reported / (1000 * value) - 1) < 0.01 and abs(left - 1) < 0.02, "changed"
PYTHON
