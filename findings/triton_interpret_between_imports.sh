#!/usr/bin/env bash
# triton 3.6.0 and 3.9.0, CPU. TRITON_INTERPRET is read each time that a function is decorated. Functions of triton.language
# such as cdiv are decorated while triton is imported, kernels of one's own later. With the variable set in between, the
# kernel is interpreted and the functions that it calls are not: a kernel without them runs, the same with tl.cdiv raises.
# Seen: "Cannot call @triton.jit'd outside of the scope of a kernel".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
cat >"$folder/kernel.py" <<'PYTHON'
import os

import torch
import triton
import triton.language as tl

os.environ["TRITON_INTERPRET"] = "1"  # too late for triton's own functions


@triton.jit
def plain(x, n):
    tl.store(x, (n + 1) // 2)


@triton.jit
def with_cdiv(x, n):
    tl.store(x, tl.cdiv(n, 2))


x = torch.zeros(1, dtype=torch.int32)
plain[(1,)](x, 7)
try:
    with_cdiv[(1,)](x, 7)
    raised = ""
except Exception as error:
    raised = str(error)
print("triton", triton.__version__, "own kernel:", x.item(), "with tl.cdiv:", raised.strip().splitlines()[-1:])
assert x.item() == 4 and "outside of the scope of a kernel" in raised, "changed"
PYTHON
for version in 3.6.0 3.9.0; do
    "$folder/venv/bin/python" -m pip install --quiet --target "$folder/triton-$version" --no-deps "triton==$version"
    PYTHONPATH="$folder/triton-$version" env -u TRITON_INTERPRET "$folder/venv/bin/python" "$folder/kernel.py"
done
