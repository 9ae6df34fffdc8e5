"""Corpora that are datasets on a hub, which is a server of this test on loopback."""

import io
import json
import os
import subprocess
import sys

import pytest
from errors import says
from hub_server import running_hub

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

# the address of the hub is read when huggingface_hub is imported
ASK = """
import json, sys
from mop_t5.data import read_split, stream_split
from mop_t5.operations.contents import of_rows
for name, split in json.loads(sys.argv[1]):
    try:
        rows = read_split(name, split)
        stored = stream_split(name, split, sys.argv[2])
        assert list(stored) == rows and of_rows(stored) == of_rows(rows)
        answer = [(row.scenario, row.dialogue, row.id) for row in rows]
    except Exception as error:
        answer = [type(error).__name__, str(error)]
    print(json.dumps(answer))
"""


def parquet(count):
    table = pa.table({"task": ["0571"] * count, "input": [f"{n:04}" for n in range(count)], "target": ["x"] * count})
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def test_a_corpus_on_the_hub(tmp_path):
    two_configs = (
        "---\nconfigs:\n- config_name: large\n  data_files: large.jsonl\n- config_name: small\n  data_files:\n"
        "  - {split: train, path: small.jsonl}\n---\n"
    )
    line = b'{"scenario": "taxi", "dialogue": "%s", "summary": "0571"}\n'
    files = {
        "README.md": two_configs.encode(),
        "small.jsonl": line % b"a",
        "large.jsonl": line % b"a" + line % b"b",
    }
    numbers = {"train.csv": b"scenario,dialogue,summary\n0571,a,b\n"}
    wanted = [
        ("hub:owner/calls", "train"),
        ("hub:owner/calls", "valid"),
        ("hub:owner/calls@v1:small", "train"),
        ("hub:owner/calls@v1:large", "train"),
        ("hub:owner/calls", "test"),
        ("hub:owner/calls@v1", "train"),
        ("hub:owner/calls@v2", "train"),
        ("hub:owner/nothing", "train"),
        ("hub:owner/private", "train"),
        ("hub:owner/numbers", "train"),
    ]
    with running_hub() as hub:
        calls = hub.make("owner/calls", {"train.parquet": parquet(3), "validation.parquet": parquet(2)})
        calls.commit("v1", files)
        hub.make("owner/numbers", numbers)
        hub.make("owner/private", {"train.parquet": parquet(1)}, private=True)
        done = subprocess.run(
            [sys.executable, "-c", ASK, json.dumps(wanted), str(tmp_path / "rows")],
            env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, done.stderr
    train, valid, small, large, test, config, revision, nothing, private, typed = map(
        json.loads, done.stdout.splitlines()
    )
    assert train == [["0571", f"{n:04}", f"train-{n + 1}"] for n in range(3)]
    assert valid == [["0571", f"{n:04}", f"valid-{n + 1}"] for n in range(2)]
    assert small == [["taxi", "a", "train-1"]]
    assert large == [["taxi", "a", "train-1"], ["taxi", "b", "train-2"]]
    for answer, kind, *parts in [
        (test, "FileNotFoundError", "hub:owner/calls", "test", "train, validation"),
        (config, "ValueError", "hub:owner/calls@v1", "large", "small"),
        (revision, "OSError", "hub:owner/calls@v2", "v2"),
        (nothing, "OSError", "hub:owner/nothing", "hub:OWNER/NAME@REVISION"),
        (private, "OSError", "hub:owner/private", "hub:OWNER/NAME@REVISION"),
        (typed, "TypeError", "hub:owner/numbers", "`scenario`", "int64"),
    ]:
        assert answer[0] == kind
        says(answer[1], *parts)
