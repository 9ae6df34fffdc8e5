#!/usr/bin/env bash
# pyarrow 26.0.1. ParquetFile.iter_batches reads a file in batches. With pre_buffer=True, its default, each column chunk
# that was read is kept until the end, although no batch is kept: the memory grows to the size of the file.
# pre_buffer=False frees them. A file of one row group also needs buffer_size: without it a whole column chunk is read.
# Guessed: the memory of a loop over the batches is that of a few batches. Seen: that of the file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pyarrow==26.0.1
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import os
import random
import sys

import pyarrow as pa
import pyarrow.parquet as pq

print("pyarrow", pa.__version__)
drawn = random.Random(0)
texts = [drawn.randbytes(500).hex() for _ in range(40_000)]  # they do not compress well


def peak(path, **settings):
    """Return the most that pyarrow holds during the loop, as a share of the file."""
    before = pa.total_allocated_bytes()
    held = 0
    for _ in pq.ParquetFile(path, **settings).iter_batches(1000):
        held = max(held, pa.total_allocated_bytes() - before)
    return held / os.path.getsize(path)


for rows in (500, 40_000):
    path = os.path.join(sys.argv[1], f"{rows}.parquet")
    pq.write_table(pa.table({"text": texts}), path, row_group_size=rows, use_dictionary=False)
    default = peak(path)
    unbuffered = peak(path, pre_buffer=False)
    small = peak(path, pre_buffer=False, buffer_size=2**20)
    print(f"row groups of {rows}: default {default:.2f}, pre_buffer=False {unbuffered:.2f}, also buffer_size {small:.2f}")
    assert default > 0.9, "changed"
    assert (unbuffered > 0.9) == (rows == 40_000), "changed"
    assert small < 0.3, "changed"
PYTHON
