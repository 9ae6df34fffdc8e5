#!/usr/bin/env bash
# torch 2.13.0, CPU. torch.export.export(strict=True) records the forward of a custom autograd.Function under no_grad and
# forgets its backward. The exported module trains, but everything before the Function gets no gradient, without a word.
# With strict=False the gradients are right.
# Seen: first.weight.grad is None (strict) and equals that of the model (not strict).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x):
        return self.last(Twice.apply(self.first(x)))


torch.manual_seed(0)
model, x = Model(), torch.randn(4, 3)
model(x).sum().backward()
right = model.first.weight.grad.clone()
print("torch", torch.__version__)
found = {}
for strict in (True, False):
    model.zero_grad()
    exported = torch.export.export(model, (x,), strict=strict).module()
    exported(x).sum().backward()
    gradients = {name: p.grad for name, p in exported.named_parameters()}
    found[strict] = gradients["first.weight"]
    print(f"strict={strict}:", {name: None if g is None else round(g.norm().item(), 3) for name, g in gradients.items()})
    assert gradients["last.weight"] is not None
assert found[True] is None and torch.allclose(found[False], right), "changed"
PYTHON
