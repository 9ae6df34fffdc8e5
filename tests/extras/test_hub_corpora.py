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


def ask(hub, folder, wanted, **variables):
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "0"} | variables
    command = [sys.executable, "-c", ASK, json.dumps(wanted), str(folder / "rows")]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


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
        train, valid, small, large, test, config, revision, nothing, private, typed = ask(hub, tmp_path, wanted)
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


def test_the_cache_stands_in_for_the_same_commit_only(tmp_path):
    """The library would give the rows that it read last, of any revision."""
    main, old, new, commit = ("hub:owner/calls", "hub:owner/calls@v1", "hub:owner/calls@v2", "hub:owner/calls@{}")
    with running_hub() as hub:
        calls = hub.make("owner/calls", {"README.md": b"", "train.parquet": parquet(3)})
        calls.commit("v1", {"README.md": b"1", "train.parquet": parquet(1)})
        calls.commit("v2", {"README.md": b"2", "train.parquet": parquet(2)})
        commit = commit.format(calls.branches["v1"])
        known = ask(hub, tmp_path, [(main, "train"), (old, "train")])
        assert [len(rows) for rows in known] == [3, 1]
        calls.private = True
        assert ask(hub, tmp_path, [(main, "train")], HF_TOKEN="other")[:1] == known[:1]
    *answers, unknown = ask(hub, tmp_path, [(name, "train") for name in (main, old, commit, new)], HF_HUB_OFFLINE="1")
    assert answers == [*known, known[1]]
    assert unknown[0] == "OSError"
    says(unknown[1], new, calls.branches["v1"])
