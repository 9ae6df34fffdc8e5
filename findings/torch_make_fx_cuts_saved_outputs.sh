#!/usr/bin/env bash
# torch 2.13.0, CPU. make_fx records what autograd.grad does inside a function. An operation that saves its own output for
# backward (exp, tanh, sigmoid, softmax) is recorded with a detached copy of that output. The graph gives the right values,
# but its derivative misses everything that goes through the copy; in a sum with other terms nothing says so.
# Seen: the second derivative of x^3 + exp(x) at 0.3 is 3.15 by autograd and 1.80, that of x^3 alone, by the graph.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.fx.experimental.proxy_tensor import make_fx

x = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)


def slope(x):
    return torch.autograd.grad((x**3 + x.exp()).sum(), x, create_graph=True)[0]


graph = make_fx(slope)(x)
print("torch", torch.__version__)
print("slopes:", slope(x).item(), graph(x).item())
right, found = (torch.autograd.grad(f(x).sum(), x)[0].item() for f in (slope, graph))
print("second derivatives: by autograd", right, "by the recorded graph", found)
print("recorded detach nodes:", [n.name for n in graph.graph.nodes if "detach" in str(n.target)])
assert abs(right - (1.8 + 2.718281828459045**0.3)) < 1e-12 and abs(found - 1.8) < 1e-12, "changed"
PYTHON
