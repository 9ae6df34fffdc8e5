#!/usr/bin/env bash
# torch 2.13.0, CPU. Under `python -O`, which only removes assert statements, torch.func.hessian of a function with a
# softmax raises NotImplementedError: forward mode finds no derivative of _softmax_backward_data. Without -O the same
# program prints the Hessian. The Jacobian, and the Hessian by reverse mode twice, work in both.
# Seen: "hessian ok, jacrev twice ok" without -O; "hessian NotImplementedError, jacrev twice ok" with it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/program.py" <<'PYTHON'
import torch
from torch.func import hessian, jacrev


def loss(x):
    return (torch.softmax(x, 0) * torch.arange(3.0)).sum()


def outcome(derivative):
    try:
        found = derivative(loss)(torch.ones(3))
    except NotImplementedError:
        return "NotImplementedError"
    return "ok" if found.shape == (3, 3) else "wrong"


print(f"hessian {outcome(hessian)}, jacrev twice {outcome(lambda f: jacrev(jacrev(f)))}")
PYTHON
with=$("$folder/venv/bin/python" "$folder/program.py")
without=$("$folder/venv/bin/python" -O "$folder/program.py")
echo "torch 2.13.0: $with; under python -O: $without"
[ "$with" = "hessian ok, jacrev twice ok" ]
[ "$without" = "hessian NotImplementedError, jacrev twice ok" ]
