#!/usr/bin/env bash
# torch 2.13.0 on glibc. A loop allocates and frees tensors of 6 MB. MALLOC_TRIM_THRESHOLD_ is the size of free memory from
# which glibc returns it to the system. Guessed: a threshold of 1 GB keeps the memory. Seen: every tensor is fresh memory in
# every round, some 1,500 page faults each, where the default has none. A threshold that is set ends the growth of the other
# threshold, from which a tensor has a mapping of its own: it stays at 128 KB. Both thresholds together keep the memory.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6
cat >"$folder/faults.py" <<'PYTHON'
import os
import platform
import resource

import torch

torch.set_num_threads(1)


def allocate(rounds):
    for _ in range(rounds):
        tensors = [torch.ones(2048, 768) for _ in range(3)]
        del tensors


allocate(5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
allocate(50)
faults = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 150
settings = " ".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_"))
print("torch", torch.__version__, *platform.libc_ver(), settings or "default", f"{faults:.0f} page faults a tensor")
few, many = faults < 10, faults > 1000
assert many if settings == "MALLOC_TRIM_THRESHOLD_=1000000000" else few, "changed"
PYTHON
unset MALLOC_TRIM_THRESHOLD_ MALLOC_MMAP_THRESHOLD_
"$folder/venv/bin/python" "$folder/faults.py"
MALLOC_TRIM_THRESHOLD_=1000000000 "$folder/venv/bin/python" "$folder/faults.py"
MALLOC_MMAP_THRESHOLD_=1000000000 "$folder/venv/bin/python" "$folder/faults.py"
MALLOC_TRIM_THRESHOLD_=1000000000 MALLOC_MMAP_THRESHOLD_=1000000000 "$folder/venv/bin/python" "$folder/faults.py"
