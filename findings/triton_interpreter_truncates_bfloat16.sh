#!/usr/bin/env bash
# triton 3.6.0 and 3.9.0, CPU. `.to(tl.bfloat16)` of a float32 rounds to the nearest, unless fp_downcast_rounding="rtz".
# Guessed: the interpreter rounds as the compiled kernel does. Seen: the compiled kernel has cvt.rn.bf16.f32, and the
# interpreter cuts the lower bits off, so its errors are twice as large and all towards zero. A conversion to float16 is
# rounded to the nearest in the interpreter, too.
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
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def convert(x, y, size: tl.constexpr):
    places = tl.arange(0, size)
    tl.store(y + places, tl.load(x + places).to(y.dtype.element_ty))


if os.environ["TRITON_INTERPRET"] == "0":
    source = ASTSource(convert, {"x": "*fp32", "y": "*bf16", "size": "constexpr"}, constexprs={(2,): 4})
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    conversions = {line.split()[0] for line in ptx.splitlines() if "cvt" in line}
    print("triton", triton.__version__, "compiled for a GPU:", conversions)
    assert conversions == {"cvt.rn.bf16.f32"}, "changed"
else:
    for dtype, bits, rounds in ((torch.bfloat16, 7, False), (torch.float16, 10, True)):
        step = 2.0**-bits
        x = torch.tensor([1 + 0.75 * step, 1 + 1.5 * step, -1 - 0.75 * step, 1.0])
        y = torch.empty(4, dtype=dtype)
        convert[(1,)](x, y, 4)
        print("interpreted:", y.tolist(), "to the nearest:", x.to(dtype).tolist())
        assert torch.equal(y, x.to(dtype)) == rounds and (rounds or y.tolist() == [1, 1 + step, -1, 1]), "changed"
PYTHON
for version in 3.6.0 3.9.0; do
    "$folder/venv/bin/python" -m pip install --quiet --target "$folder/triton-$version" --no-deps "triton==$version"
    for interpret in 0 1; do
        PYTHONPATH="$folder/triton-$version" TRITON_INTERPRET=$interpret TRITON_CACHE_DIR="$folder/cache" \
            "$folder/venv/bin/python" -W ignore "$folder/kernel.py"
    done
done
