#!/usr/bin/env bash
# triton 3.6.0 and 3.9.0, compiled for sm_90 without a GPU. do_not_specialize=["n"] keeps an integer argument from being
# compiled again for 1, for multiples of 16 and for the rest. If the argument is a tuple, its integers are specialised all
# the same, without a word: a loop over batches of other sizes compiles again where the option says that it does not.
# Seen, for 1, 16 and 17: one machine code for the integer, three for the tuple, in both releases.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
export TRITON_CACHE_DIR="$folder/cache"
cat > "$folder/program.py" <<'PYTHON'
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import MockTensor


class NoGpu:
    """Says which GPU to compile for."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


driver.set_active(NoGpu())


@triton.jit(do_not_specialize=["n"])
def of_integer(x, n):
    tl.store(x, n)


@triton.jit(do_not_specialize=["n"])
def of_tuple(x, n):
    tl.store(x, n[0])


def compiled(kernel, wrap):
    x = MockTensor(torch.int32)
    return len({kernel.warmup(x, wrap(n), grid=(1,)).hash for n in (1, 16, 17)})


counts = compiled(of_integer, lambda n: n), compiled(of_tuple, lambda n: (n,))
print(f"triton {triton.__version__}: integer {counts[0]}, tuple {counts[1]}")
assert counts == (1, 3), "changed"
PYTHON
for release in 3.6.0 3.9.0; do
  "$folder/venv/bin/python" -m pip install --quiet --no-deps --target "$folder/$release" "triton==$release"
  PYTHONPATH="$folder/$release" "$folder/venv/bin/python" -W ignore "$folder/program.py"
done
