"""Every reader of a file or folder that a user names, with a valid sample, and mutations of the sample.

The rule for a damaged or hostile file: the reader returns, or raises a ValueError, TypeError or OSError that names the
folder, in a few seconds and within 2 GiB. CI tries some hundred mutations with fixed seeds (test_readers.py).
`make fuzz SECONDS=600` searches on, guided by coverage where atheris is installed (search.py).
"""

import gzip
import importlib.util
import json
import random
import resource
import shutil
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import mop_t5
import torch
from method_cases import SCENARIOS, attach_moved
from mop_lab.finished_runs import finished_systems, read_system
from mop_lab.report.predictions import KnownValues, predictions
from mop_lab.task_moe.routes import read_features, route_history
from mop_t5.backbone.tokenizer import load_tokenizer, train_tokenizer
from mop_t5.checks import errors_at
from mop_t5.data import Example, read_examples, read_tasks, synthetic_corpus
from mop_t5.data.crosswoz import crosswoz_corpus, read_clone
from mop_t5.data.table_files import read_table
from mop_t5.data.task_configs import PUBLISHED, read_columns, read_task_configs
from mop_t5.evaluation.requests import requests_in
from mop_t5.evaluation.scores import Scores, read_predictions, read_scores, write_predictions, write_scores
from mop_t5.files import checksum, json_lines
from mop_t5.operations.contents import read_contents
from mop_t5.operations.run_card import write_run_card
from mop_t5.operations.run_folder import read_history, read_settings, settings_of_trained
from mop_t5.storage import adapter_folder, prompt_library, task_vectors
from mop_t5.storage.encodings import StoredEncodings, text_of, write_encodings
from mop_t5.training import TrainingConfig
from mop_t5.training.checkpoints import FILES, _check_files, check_step
from t5_oracle import tiny
from transformers import PreTrainedModel, T5Config

SECONDS, MEMORY = 20, 2**31  # of one reading
ROWS = [Example(name, f"用户：{name}\n客服：好", "好", f"{name}-1", ("行",)) for name in SCENARIOS]
HAS_ARROW = importlib.util.find_spec("pyarrow") is not None


class Reader(NamedTuple):
    """A reader of a folder.

    Attributes:
        files: The files that are mutated.
        write: Writes the valid folder.
        read: Reads the folder.
        seal: Makes the checksums fit again after a mutation, as the writer of a hostile file would.
        is_slow: True if one reading takes more than some milliseconds.
    """

    files: tuple[str, ...]
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    seal: Callable[[Path], object] = lambda folder: None
    is_slow: bool = False


def _seal_adapter(folder: Path) -> None:
    path = folder / adapter_folder.CONFIG_NAME
    try:
        description = json.loads(path.read_text())
        description["sha256"] = adapter_folder._checksum(
            description, (folder / adapter_folder.WEIGHTS_NAME).read_bytes()
        )
        path.write_text(json.dumps(description))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return


def _write_adapter(folder: Path, name: str, **fields: Any) -> None:
    mop_t5.save(attach_moved(tiny(dtype=torch.float32), name, **fields), folder)


def _adapter(name: str, **fields: Any) -> Reader:
    files = (adapter_folder.CONFIG_NAME, adapter_folder.WEIGHTS_NAME)
    return Reader(files, lambda folder: _write_adapter(folder, name, **fields), _read_adapter, _seal_adapter, True)


@cache
def _backbone() -> PreTrainedModel:
    return tiny(dtype=torch.float32)


def _read_adapter(folder: Path) -> None:
    mop_t5.detach(mop_t5.load(_backbone(), folder))


def _write_export(folder: Path) -> None:
    mop_t5.export(attach_moved(tiny(dtype=torch.float32)), folder)


def _file(name: str, content: bytes, read: Callable[[Path], object]) -> Reader:
    return Reader((name,), lambda folder: (folder / name).write_bytes(content), lambda folder: read(folder / name))


def _all(iterable: Iterator[Any]) -> list[Any]:
    return list(iterable)


def _write_run(folder: Path) -> None:
    _write_adapter(folder / "adapter", "prompt_tuning")
    training = {"method": "prompt_tuning", "seed": 3, "backbone": "b", "corpus": "c", "dtype": None, "steps": 2}
    files: dict[str, object] = {
        "run.json": training | {"max_source": 8, "max_target": 4, "seeds": None, "options": {"prefix_length": 5}},
        "contents.json": {"train": {"rows": 3, "sha256": "0" * 64}},
        "card.json": {"corpus": {"train": {"taxi": [3, 20, 4]}, "valid": {"taxi": [1, 7, 1]}}, "versions": {"a": "1"}},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "loss.jsonl").write_bytes(json_lines([{"step": 1, "loss": 0.5, "eval_mean": 2.0}, {"step": 2}]))
    (folder / "routes.jsonl").write_bytes(json_lines([{"step": 1, "entropy": 0.5}]))
    evaluation = folder / "evaluation-test"
    evaluation.mkdir()
    scoring = {"corpus": "c", "split": "test", "num_beams": 1, "unit": "char", "normalise": "none"}
    (evaluation / "run.json").write_text(
        json.dumps(scoring | {"implementation": "rouge_score", "method": "prompt_tuning"})
    )
    write_predictions(evaluation, ROWS, {"prompt_tuning": ["好"] * len(ROWS)})
    write_scores(evaluation, {"prompt_tuning": {name: Scores(0.5, 0.25, 0.5) for name in [*SCENARIOS, "average"]}})


def _read_run(folder: Path) -> None:
    settings = settings_of_trained(folder)
    read_contents(folder), read_history(folder), route_history(folder), read_settings(folder)
    write_run_card(folder)
    read_scores(folder / "evaluation-test"), read_predictions(folder / "evaluation-test")
    TrainingConfig(**{name: settings[name] for name in ("max_source", "max_target", "steps") if settings.get(name)})


def _read_report(folder: Path) -> None:
    predictions(finished_systems([folder]), KnownValues())


def _write_backbone(folder: Path, sharded: bool = False) -> None:
    rows = synthetic_corpus(2, general=20, train=5, valid=5, test=5)["general"]
    tokenizer = train_tokenizer([row.dialogue for row in rows], 300)
    config = T5Config(vocab_size=len(tokenizer), d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    model = mop_t5.build_backbone(config)
    model.save_pretrained(folder, max_shard_size=3000 if sharded else "1GB")
    tokenizer.save_pretrained(folder)


def _write_checkpoint(folder: Path) -> None:
    (folder / "rng_state.pth").write_bytes(b"x")
    listed = {"files": {"rng_state.pth": checksum(b"x")}, "batches_per_step": 1, "engine": None}
    (folder / FILES).write_text(json.dumps(listed))


def _read_checkpoint(folder: Path) -> None:
    _check_files(folder)
    check_step(folder, TrainingConfig(), 1)


_ENCODINGS = {"of": "a test"}


def _write_encodings(folder: Path) -> None:
    texts, encodings = [text_of([1, 2]), text_of([3])], [torch.ones(2, 3), torch.zeros(1, 3)]
    write_encodings(folder, _ENCODINGS, texts, encodings, 3, torch.float32).rename(folder / "found.safetensors")


def _read_encodings(folder: Path) -> list[torch.Tensor]:
    name = write_encodings(folder / "other", _ENCODINGS, [text_of([1])], [torch.ones(1, 3)], 3, torch.float32).name
    shutil.copy(folder / "found.safetensors", folder / name)
    shutil.rmtree(folder / "other")
    return list(StoredEncodings(folder, _ENCODINGS).values())


def _state_dict(folder: Path) -> None:
    _write_backbone(folder)
    weights = mop_t5.load_backbone(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")


def _crosswoz() -> bytes:
    said = {"role": "usr", "content": "找酒店", "dialog_act": [["Inform", "酒店", "x", "y"]]}
    messages = [
        said | {"user_state": [[1, "酒店", "名称", "", True]]},
        {"role": "sys", "content": "如家", "dialog_act": []},
    ]
    goal = [[1, "酒店", "名称", "", False]]
    final = [[1, "酒店", "名称", "如家", True]]
    content = {"goal": goal, "final_goal": final, "task description": ["你想知道酒店的名称。"], "messages": messages}
    return json.dumps({"7": content}, ensure_ascii=False).encode()


def _read_requests(path: Path) -> None:
    errors = [one.error for one in requests_in(path.open("rb"), str(path), "r", SCENARIOS) if one.error is not None]
    if errors:
        raise ValueError(errors[0])


def _read_crosswoz(path: Path) -> None:
    with errors_at(str(path)):  # a message names the dialogue
        crosswoz_corpus(read_clone(path.parent, ["train"]))


def _read_prompt(folder: Path) -> None:
    fields = {"init": "file", "init_file": str(folder / "p.safetensors"), "prefix_length": 5}
    mop_t5.detach(mop_t5.attach(_backbone(), "prompt_tuning", scenarios=SCENARIOS, **fields))


def _write_prompt(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"prompt": torch.ones(5, 24)}, folder / "p.safetensors")


def _yaml(path: Path) -> bytes:
    return path.read_bytes()


_LINES = json_lines([{**row.row(), "references": list(row.references)} for row in ROWS])
_TASKS = b"mrpc:\n  metrics: [f1, accuracy]\n  positive: yes it is\ncola: {metrics: [matthews]}\n"
READERS: dict[str, Reader] = {
    "adapter of mop": _adapter("mop"),
    "adapter of prompt_tuning": _adapter("prompt_tuning"),
    "adapter of task_moe": _adapter("task_moe"),
    "adapter of attempt": _adapter("attempt"),
    "adapter of hyperformer": _adapter("hyperformer"),
    "export": Reader(
        (adapter_folder.CONFIG_NAME, adapter_folder.WEIGHTS_NAME), _write_export, _read_adapter, _seal_adapter, True
    ),
    "prompt of a library": Reader(
        (adapter_folder.CONFIG_NAME, adapter_folder.WEIGHTS_NAME),
        lambda folder: _write_adapter(folder, "prompt_tuning"),
        lambda folder: prompt_library.read(folder.parent, folder.name),
        _seal_adapter,
    ),
    "init_file": Reader(("p.safetensors",), _write_prompt, _read_prompt),
    "task vectors": Reader(
        ("v.safetensors",),
        lambda folder: task_vectors.write(folder / "v.safetensors", ["a", "b"], torch.ones(2, 4), {"by": "x"}),
        lambda folder: task_vectors.read(folder / "v.safetensors", ["a", "b"]),
    ),
    "encodings": Reader(("found.safetensors",), _write_encodings, _read_encodings),
    "jsonl": _file("train.jsonl", _LINES, read_examples),
    "jsonl.gz": _file("train.jsonl.gz", gzip.compress(_LINES, mtime=0), read_examples),
    "table.json": _file("t.json", json.dumps([row.row() for row in ROWS]).encode(), lambda p: _all(read_table(p))),
    "table.csv": _file("t.csv", b'a,b\n"x, ""y""",2\nz,"1\n2"\n', lambda p: _all(read_table(p))),
    "table.tsv": _file("t.tsv", b"a\tb\nx\t2\n", lambda p: _all(read_table(p))),
    "requests": _file("r.jsonl", _LINES, _read_requests),
    "tasks.yaml": _file("tasks.yaml", _TASKS, lambda p: read_tasks(p.parent)),
    "task configs": _file("a.yaml", _yaml(sorted(PUBLISHED.glob("d*.yaml"))[0]), read_task_configs),
    "columns.yaml": _file("columns.yaml", _yaml(PUBLISHED / "columns.yaml"), read_columns),
    "features": _file("f.yaml", b"taxi: {a: 1, b: 0}\nfood: {a: 0}\n", lambda p: read_features(p, ["taxi", "food"])),
    "system.json": _file("system.json", b'{"label": "MOP", "runs": 2}', lambda p: read_system(p.parent)),
    "crosswoz": _file("train.json", _crosswoz(), _read_crosswoz),
    "run": Reader(
        ("run.json", "contents.json", "card.json", "loss.jsonl", "routes.jsonl", "evaluation-test/scores.json")
        + ("evaluation-test/predictions.jsonl", "adapter/mop_config.json"),
        _write_run,
        _read_run,
        lambda folder: _seal_adapter(folder / "adapter"),
        is_slow=True,
    ),
    "report": Reader(
        ("run.json", "evaluation-test/run.json", "evaluation-test/scores.json", "evaluation-test/predictions.jsonl"),
        _write_run,
        _read_report,
        is_slow=True,
    ),
    "checkpoint": Reader((FILES,), _write_checkpoint, _read_checkpoint),
    "backbone": Reader(
        ("config.json", "generation_config.json", "model.safetensors"),
        _write_backbone,
        mop_t5.load_backbone,
        is_slow=True,
    ),
    "sharded backbone": Reader(
        ("model.safetensors.index.json",),
        lambda folder: _write_backbone(folder, sharded=True),
        mop_t5.load_backbone,
        is_slow=True,
    ),
    "pytorch_model.bin": Reader(("pytorch_model.bin",), _state_dict, mop_t5.load_backbone, is_slow=True),
    "tokenizer": Reader(
        ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"),
        _write_backbone,
        load_tokenizer,
        is_slow=True,
    ),
}

# ---- mutations

_PIECES = [
    *(
        b"NaN",
        b"-Infinity",
        b"1e999",
        b"-1",
        b"0",
        b"2147483647",
        b"9" * 30,
        b"9" * 5000,
        b"null",
        b"true",
        b"[]",
        b"{}",
    ),
    *(
        b'"',
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"\n",
        b"\r",
        b"\t",
        b"\0",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\x1f\x8b",
        b"PK",
    ),
    *(b'"\\ud800"', b'"../../x"', b'"/etc/passwd"', b"\xe2\x80\xa8", b"[" * 2000, b'{"a":' * 2000, b"&a [*a]", b"*a"),
    *(
        b"!!python/name:os.system",
        b"!!binary x",
        b"!!timestamp x",
        b"!!int ''",
        b"<<: 1",
        b"? [1]",
        b"2001-99-99",
        b"---",
    ),
]
_DEEP: Any = []
for _ in range(60):
    _DEEP = [_DEEP]
_VALUES = [
    *(None, True, False, 0, 1, -1, 3, 2**31 - 1, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", " ", "a", "3", "\0", "\ud800", "..", "../../x", "/etc/passwd", "a/b", "x" * 5000),
    *(
        [],
        {},
        [None],
        [[]],
        ["a"],
        ["a", "a"],
        [1, 2],
        {"a": 1},
        {"": None},
        _DEEP,
        "F16",
        "C64",
        "F8_E4M3",
        "I64",
        "BOOL",
    ),
]


def _mutated_value(value: Any, chance: random.Random) -> Any:
    """Return a JSON value with one change somewhere inside."""
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    if not inner or chance.random() < 0.1:
        return chance.choice(_VALUES)
    place = chance.randrange(len(inner))
    key, one = inner[place]
    kind = chance.random()
    if kind < 0.75:
        inner[place] = (key, _mutated_value(one, chance))
    elif kind < 0.85:
        del inner[place]
    elif kind < 0.93 and isinstance(value, dict):
        inner[place] = (chance.choice(["", "a", "..", "\0", f"{key} "]), one)
    else:
        inner.append((f"{key}2" if isinstance(value, dict) else len(inner), one))
    return dict(inner) if isinstance(value, dict) else [one for _, one in inner]


def _mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        start = chance.randrange(len(content) + 1)
        end = min(len(content), start + chance.choice([0, 1, 1, 4, 50]))
        new = chance.choice([b"", bytes([chance.randrange(256)]), content[start:end] * 2, chance.choice(_PIECES)])
        content = content[:start] + new + content[end:]
    return content[: chance.randrange(len(content) + 1)] if chance.random() < 0.1 else content


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return the content of a file with some changes. JSON and the JSON header of safetensors mostly stay JSON."""
    if chance.random() < 0.3:
        return _mutated_bytes(content, chance)
    if content.startswith(b"\x1f\x8b") and chance.random() < 0.7:
        try:
            return gzip.compress(mutated(gzip.decompress(content), chance), mtime=0)
        except (OSError, EOFError, zlib.error):
            return _mutated_bytes(content, chance)
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size] if 0 < size <= len(content) else b""
    text = header if header.startswith(b"{") else content
    lines = text.split(b"\n") if text is content else [text]
    place = chance.randrange(len(lines))
    for start, part in ((None, text), (place, lines[place])):
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        changed = json.dumps(_mutated_value(value, chance), ensure_ascii=chance.random() < 0.5).encode(
            "utf-8", "replace"
        )
        if text is header:
            return struct.pack("<Q", len(changed)) + changed + content[8 + size :]
        return changed if start is None else b"\n".join([*lines[:place], changed, *lines[place + 1 :]])
    return _mutated_bytes(content, chance)


# ---- the rule


@contextmanager
def bounds() -> Iterator[None]:
    """Raise TimeoutError after SECONDS, and let a request of more than MEMORY bytes fail."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not read in {SECONDS} seconds")

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def check(reader: Reader, folder: Path) -> str:
    """Read a folder, and check the rule. Return the message of the error, or an empty text."""
    try:
        with bounds():
            reader.read(folder)
    except (ValueError, TypeError, OSError) as error:
        raw = isinstance(error, (UnicodeError, TimeoutError, json.JSONDecodeError))
        if raw or str(folder) not in str(error):
            raise AssertionError(f"an error that names no place in the folder: {error!r}") from error
        return str(error)
    return ""


def try_content(reader: Reader, valid: Path, folder: Path, file: str, content: bytes) -> str:
    """Put a content into one file of a copy of a valid folder, and check the rule on the copy."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(valid, folder)
    (folder / file).write_bytes(content)
    reader.seal(folder)
    return check(reader, folder)
