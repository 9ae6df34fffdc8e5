#!/usr/bin/env bash
# torch 2.13.0, CPU. F.linear_cross_entropy of a batch whose labels are all ignore_index, reduction "mean". The loss is
# NaN, 0 / 0, as F.cross_entropy's. Without options the gradients are zero, as F.cross_entropy's. With
# options=LinearCrossEntropyOptions(), which computes in chunks, all gradients are NaN, so that one optimizer step makes
# every weight NaN.
# Guessed: chunks change the memory, not the gradients. Seen: 0.0 without options, nan with them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import math

import torch
import torch.nn.functional as F

torch.manual_seed(0)
rows, weight = torch.randn(4, 8, requires_grad=True), torch.randn(10, 8, requires_grad=True)
labels = torch.full((4,), -100)


def largest_gradients(loss):
    assert math.isnan(loss.item()), "changed"
    return [gradient.abs().max().item() for gradient in torch.autograd.grad(loss, (rows, weight))]


print("torch", torch.__version__)
options = torch.nn.LinearCrossEntropyOptions()
seen = {
    "F.cross_entropy": largest_gradients(F.cross_entropy(F.linear(rows, weight), labels)),
    "F.linear_cross_entropy": largest_gradients(F.linear_cross_entropy(rows, weight, labels)),
    "F.linear_cross_entropy, in chunks": largest_gradients(F.linear_cross_entropy(rows, weight, labels, options=options)),
}
for name, gradients in seen.items():
    print(f"{name}: largest gradients {gradients}")
chunked = seen.pop("F.linear_cross_entropy, in chunks")
assert all(map(math.isnan, chunked)), "changed"
assert all(gradients == [0.0, 0.0] for gradients in seen.values()), "changed"
PYTHON
