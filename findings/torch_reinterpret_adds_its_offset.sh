#!/usr/bin/env bash
# torch 2.13.0. The stable C function aoti_torch__reinterpret_tensor, and torch.ops.inductor._reinterpret_tensor, which it
# calls, take sizes, strides and an argument named storage_offset in the header. Guessed: it is where the result begins in
# the storage, as in aoti_torch_as_strided and torch.as_strided. Seen: it is added to where the given tensor begins. So a
# view of a slice that passes the slice's own offset begins too far on, and no error is raised while it ends in the storage.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import re
from pathlib import Path

import torch
import torch._inductor  # defines torch.ops.inductor

header = Path(torch.__file__).parent / "include/torch/csrc/inductor/aoti_torch/c/shim.h"
declared = re.search(r"aoti_torch__reinterpret_tensor\((.*?)\);", header.read_text(), re.DOTALL)[1]
print("torch", torch.__version__, "the header names:", ", ".join(re.findall(r"(\w+),? *(?:\n|//|$)", declared)))

whole = torch.arange(10)
part = whole[2:]
strided = torch.as_strided(part, (3,), (1,), part.storage_offset())
reinterpreted = torch.ops.inductor._reinterpret_tensor(part, (3,), (1,), part.storage_offset())
print("a slice that begins at 2:", part.tolist())
print("as_strided with offset 2:", strided.tolist())
print("_reinterpret_tensor with offset 2:", reinterpreted.tolist())
assert "storage_offset" in declared and strided.tolist() == [2, 3, 4] and reinterpreted.tolist() == [4, 5, 6], "changed"
PYTHON
