#!/usr/bin/env bash
# pyarrow 26.0.1, polars 2.1.0. The filters of pyarrow.parquet.read_table on a column with a null.
# Guessed: ("label", "!=", 2) and ("label", "not in", [2]) read the same rows. Seen: `!=` drops the row with the null, as
# SQL does; `not in` keeps it. polars drops it in both forms, pandas keeps it in both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pyarrow==26.0.1 polars==2.1.0 pandas==3.1.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import pandas
import polars
import pyarrow
import pyarrow.parquet as parquet

parquet.write_table(pyarrow.table({"label": [1, 2, None, 4]}), "rows.parquet")
column, frame = polars.col("label"), pandas.read_parquet("rows.parquet")["label"]
lazy = polars.scan_parquet("rows.parquet")
rows = {
    "pyarrow !=": parquet.read_table("rows.parquet", filters=[("label", "!=", 2)])["label"].to_pylist(),
    "pyarrow not in": parquet.read_table("rows.parquet", filters=[("label", "not in", [2])])["label"].to_pylist(),
    "polars !=": lazy.filter(column != 2).collect()["label"].to_list(),
    "polars not in": lazy.filter(~column.is_in([2])).collect()["label"].to_list(),
    "pandas !=": frame[frame != 2].tolist(),
    "pandas not in": frame[~frame.isin([2])].tolist(),
}
for name, values in rows.items():
    print(f"{name}: {values}")
assert {name: len(values) for name, values in rows.items()} == dict(zip(rows, (2, 3, 2, 2, 3, 3))), "changed"
PYTHON
