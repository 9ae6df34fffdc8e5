#!/usr/bin/env bash
# datasets 5.2.0, torch 2.13.0. map(with_indices=True) of an IterableDataset, for example to number the rows.
# Guessed: the index is the row's place in the dataset, so it is unique. Seen: each DataLoader worker counts its own shards
# from 0, so two rows get the index 0. split_dataset_by_node counts per rank if the shards divide by the ranks, and over the
# whole dataset if they do not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 numpy==2.4.6 datasets==5.2.0
HF_HOME="$folder/cache" "$folder/venv/bin/python" - <<'PYTHON'
import datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

print("datasets", datasets.__version__)
rows = datasets.Dataset.from_dict({"row": list(range(6))}).to_iterable_dataset(num_shards=3)
rows = rows.map(lambda row, index: {"index": index}, with_indices=True)


def indices(loaded):
    return [index for _, index in sorted((int(row["row"]), int(row["index"])) for row in loaded)]


def of_ranks(ranks):
    return indices(row for rank in range(ranks) for row in split_dataset_by_node(rows, rank, ranks))


seen = {f"{workers} workers": indices(DataLoader(rows, batch_size=None, num_workers=workers)) for workers in (0, 2, 3)}
seen |= {f"{ranks} ranks": of_ranks(ranks) for ranks in (2, 3)}
for name, values in seen.items():
    print(f"indices of the rows 0 to 5, {name}: {values}")
counted = [0, 1, 0, 1, 0, 1]
wanted = {"0 workers": list(range(6)), "2 workers": [0, 1, 0, 1, 2, 3], "3 workers": counted}
assert seen == wanted | {"2 ranks": list(range(6)), "3 ranks": counted}, "changed"
PYTHON
