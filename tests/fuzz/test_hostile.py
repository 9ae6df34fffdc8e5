"""Hostile files: pickles that would act, links, names that lead elsewhere, lies about sizes, pipes."""

import ast
import gzip
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import mop_t5
import pytest
import torch
from errors import raises, says
from fuzzing import bounds
from method_cases import attach_moved
from mop_t5.backbone.tensors import read_tensors
from mop_t5.backbone.tokenizer import load_tokenizer
from mop_t5.cli.main import main
from mop_t5.data import lines, read_examples, read_tasks
from mop_t5.data.crosswoz import read_clone
from mop_t5.data.table_files import read_table
from mop_t5.data.tasks import read_yaml
from mop_t5.files import checksum, new_file, read_json, replace_file
from mop_t5.serving.adapters import load_adapters
from mop_t5.storage import adapter_folder, hub
from mop_t5.training.checkpoints import FILES
from mop_t5.training.zero import check_zero_files
from safetensors.torch import save
from t5_fixtures import make_run, place
from t5_oracle import tiny

__all__ = ["place"]  # a fixture
ROOT = Path(__file__).parents[2]
PACKAGES = ("python/mop_t5", "python/mop_lab", "mop_kernels")

# ---- no code


def _calls():
    """Yield every call in the three packages: file, dotted name of the function, and the call."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
                    yield path.relative_to(ROOT).as_posix(), ast.unparse(node.func), node


def test_no_call_in_the_source_can_run_what_a_file_holds():
    seen = set()
    for path, function, call in _calls():
        asked = ("weights_only", "allow_pickle", "trust_remote_code")
        given = {one.arg: ast.unparse(one.value) for one in call.keywords if one.arg in asked}
        last = function.rpartition(".")[2]
        seen.add(function)
        where = f"{path}, line {call.lineno}: {function}"
        assert function not in ("eval", "exec", "compile", "__import__", "os.system", "os.popen"), where
        assert function.partition(".")[0] not in ("pickle", "dill", "marshal", "joblib", "shelve", "cloudpickle"), where
        if function == "torch.load":
            assert given.get("weights_only") == "True", where
        if function.startswith("yaml.") and last in ("load", "load_all"):
            assert [ast.unparse(one) for one in call.args[1:]] == ["_Strict"], where  # a SafeLoader
        assert last not in ("unsafe_load", "full_load", "load_checkpoint_and_dispatch"), where
        assert given.get("allow_pickle", "False") == "False", where
        assert given.get("trust_remote_code", "False") == "False", where
        if last == "from_pretrained" and function.startswith("Auto"):
            assert given.get("trust_remote_code") == "False", where  # without it, transformers asks on the terminal
        if last in ("load", "loads") and function.startswith("json."):  # else `parse_json`
            own = ("files.py", "tokenizer.py", "tokenizer_files.py", "contents.py", "commands.py", "synthetic.py")
            own += ("run_folder.py", "checkpoints.py", "training_memory.py")
            assert path.startswith("mop_kernels/") or path.endswith(own), f"{where}: use mop_t5.files.parse_json"
    assert {"torch.load", "yaml.load", "AutoConfig.from_pretrained", "json.loads"} <= seen


class Evil:
    """A pickle of it makes the folder `marker` when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def evil(tmp_path):
    """A function that writes the pickle, plain or as torch.save writes it. At the end nothing must have run it."""
    marker = tmp_path / "it-ran"

    def write(path, zipped=True):
        if zipped:
            torch.save({"shared.weight": torch.ones(2), "state": Evil(marker)}, path)
        else:
            path.write_bytes(pickle.dumps(Evil(marker)))

    write(tmp_path / "proof")
    torch.load(tmp_path / "proof", weights_only=False)
    marker.rmdir()  # it works
    yield write
    assert not marker.exists()


@pytest.fixture(scope="module")
def run(place):
    return make_run(place, "prompt_tuning", "--save_every", "1", prefix_length=3)


_PICKLES = ["training_args.bin", "optimizer.pt", "pytorch_model.bin", "adapter_model.bin", "state.pkl", "x.pth"]


def test_a_finished_run_holds_no_pickle_beside_the_states_of_torch(run):
    found = {path.name for path in run.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")}
    assert found <= {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert "optimizer.pt" in found
    for path in run.rglob("*.pt"):
        assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_beside_the_files_of_a_run_are_never_read(run, place, evil, tmp_path, zipped, capsys):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(place / "wide", tmp_path / "wide")
    for folder in (tmp_path / "run", tmp_path / "run" / "adapter", tmp_path / "wide"):
        for name in _PICKLES:
            if folder != tmp_path / "wide" or name != "pytorch_model.bin":  # which is a second checkpoint
                evil(folder / name, zipped)
    given = ["--run", str(tmp_path / "run"), "--backbone", str(tmp_path / "wide")]
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"scenario": "taxi", "dialogue": "x"}\n')
    corpus = str(place / "corpus")
    assert main(["evaluate", *given, "--corpus", corpus, "--split", "valid"]) == 0
    assert main(["generate", *given, "--input", str(rows), "--output", str(tmp_path / "out.jsonl")]) == 0
    assert main(["export", *given, "--output", str(tmp_path / "export")]) == 1  # a prompt has no prefixes
    assert main(["plan", "--backbone", str(tmp_path / "wide"), "--method", "bitfit", "--devices", "1x8GB"]) == 0
    assert main(["push", "--run", str(tmp_path / "run"), "--hub_model_id", "no owner"]) == 1
    assert load_adapters([str(tmp_path / "run")], str(tmp_path / "wide"))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_in_a_checkpoint_does_not_run_at_resume(run, place, evil, tmp_path, name, capsys):
    shutil.copytree(run, tmp_path / "run")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    evil(checkpoint / name)
    listed = json.loads((checkpoint / FILES).read_text())
    listed["files"][name] = checksum(checkpoint / name)
    (checkpoint / FILES).write_text(json.dumps(listed))
    command = [
        "train",
        "--config",
        str(run / "run.json"),
        "--output",
        str(tmp_path / "run"),
        "--resume",
        "--steps",
        "2",
    ]
    assert main(command) == 1
    says(capsys.readouterr().err, str(checkpoint), "holds a file", "Delete")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_in_place_of_weights_is_refused(place, evil, tmp_path, name, zipped):
    folder = shutil.copytree(place / "backbone", tmp_path / "backbone")
    (folder / "model.safetensors").unlink()
    evil(folder / name, zipped)
    with raises(ValueError, str(folder)):
        mop_t5.load_backbone(folder)
    adapter = tmp_path / "adapter"
    mop_t5.save(attach_moved(tiny()), adapter)
    evil(adapter / adapter_folder.WEIGHTS_NAME, zipped)
    with raises(ValueError, str(adapter), "checksum"):
        mop_t5.load(tiny(), adapter)


def test_files_of_deepspeed_hold_only_its_own_objects(evil, tmp_path):
    inside = tmp_path / "checkpoint" / "global_step2"
    inside.mkdir(parents=True)
    (inside.parent / "latest").write_text("global_step2")
    torch.save({"optimizer": {"step": torch.ones(1)}}, inside / "zero_pp_rank_0_optim_states.pt")
    check_zero_files(inside.parent)
    evil(inside / "mp_rank_00_model_states.pt")
    with raises(ValueError, "mp_rank_00_model_states.pt", "mkdir", "DeepSpeed"):
        check_zero_files(inside.parent)
    evil(inside / "mp_rank_00_model_states.pt", zipped=False)
    with raises(ValueError, "mp_rank_00_model_states.pt", "damaged"):
        check_zero_files(inside.parent)
    (inside / "mp_rank_00_model_states.pt").unlink()
    (inside.parent / "latest").write_text("../../elsewhere")
    with raises(ValueError, "latest", "global_stepN", "../../elsewhere"):
        check_zero_files(inside.parent)


@pytest.mark.parametrize("model_type", ["t5", "unknown"])
def test_code_in_the_folder_of_a_backbone_does_not_run(place, tmp_path, model_type):
    folder, marker = shutil.copytree(place / "backbone", tmp_path / "backbone"), tmp_path / "it-ran"
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\nclass C: pass\n")
    names = {"AutoConfig": "evil.C", "AutoModelForSeq2SeqLM": "evil.C", "AutoTokenizer": ["evil.C", "evil.C"]}
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text()) | {"auto_map": names}
        content |= {"model_type": model_type} if name == "config.json" else {}
        (folder / name).write_text(json.dumps(content))
    if model_type == "t5":
        mop_t5.load_backbone(folder)
    else:
        with raises(ValueError, str(folder)):
            mop_t5.load_backbone(folder)
    load_tokenizer(folder)
    assert not marker.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_of_the_hub_is_not_taken(place, tmp_path, key):
    folder = shutil.copytree(place / "backbone", tmp_path / "backbone")
    config = json.loads((folder / "config.json").read_text()) | {key: "somebody/kernel"}
    (folder / "config.json").write_text(json.dumps(config))
    with raises(ValueError, str(folder), "somebody/kernel"):
        mop_t5.load_backbone(folder)


# ---- nothing elsewhere


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "..", "", 3, None, "a/b.safetensors"])
def test_shards_lie_beside_their_index(place, tmp_path, name):
    folder = shutil.copytree(place / "backbone", tmp_path / "backbone")
    (folder / "model.safetensors").rename(tmp_path / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"shared.weight": name}}))
    with raises(ValueError, str(folder), "weight_map", repr(name)):
        mop_t5.load_backbone(folder)


def test_links_that_wait_in_a_folder_are_not_written_through(tmp_path):
    private, folder = tmp_path / "private", tmp_path / "adapter"
    private.write_text("mine")
    model = attach_moved(tiny())
    mop_t5.save(model, folder)
    for name in (*adapter_folder.files(folder), "README.md"):
        (folder / f"{name}.next").symlink_to(private)
    mop_t5.save(model, folder)
    adapter_folder.write_card(folder, licence="mit")
    (folder / "run.json.next").symlink_to(private)
    replace_file(folder / "run.json", b"{}")
    (folder / f".rows.{os.getpid()}.writing").symlink_to(private)
    with new_file(folder / "rows") as file:
        file.write(b"rows")
    assert private.read_text() == "mine"
    assert (folder / "rows").read_bytes() == b"rows"
    mop_t5.load(tiny(), folder)


def test_a_link_is_not_uploaded_as_the_card(tmp_path):
    mop_t5.save(attach_moved(tiny()), tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").unlink()
    (tmp_path / "adapter" / "README.md").symlink_to("/etc/passwd")
    with raises(ValueError, "README.md", "/etc/passwd"):
        hub.upload(tmp_path / "adapter", "owner/name")


def test_the_paths_in_the_options_of_a_saved_adapter_are_not_opened(tmp_path):
    mop_t5.save(attach_moved(tiny(), "prompt_tuning"), tmp_path)
    path = tmp_path / adapter_folder.CONFIG_NAME
    description = json.loads(path.read_text())
    description["config"] |= {"init": "file", "init_file": str(tmp_path / "pipe")}
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    description["sha256"] = adapter_folder._checksum(description, (tmp_path / "model.safetensors").read_bytes())
    path.write_text(json.dumps(description))
    with bounds():
        mop_t5.load(tiny(), tmp_path)


@pytest.mark.parametrize(
    "read",
    [lambda path: read_json(path, ""), read_yaml, read_tensors, read_examples, lambda path: list(read_table(path))],
    ids=["JSON", "YAML", "safetensors", "corpus", "table"],
)
def test_pipes_devices_and_folders_are_no_files(tmp_path, read):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    (tmp_path / "folder.jsonl").mkdir()
    for name in ("pipe.jsonl", "zero.jsonl", "folder.jsonl"):
        with bounds(), raises(OSError, name):
            read(tmp_path / name)


# ---- lies and excess


def _tensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


_ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
LIES = {
    "a header of 2**60 bytes": struct.pack("<Q", 2**60) + b"{}",
    "a header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "an empty file": b"",
    "half a length": b"\x01\x00",
    "offsets behind the end": _tensors({"a": _ONE | {"data_offsets": [0, 8]}}, b"\0" * 4),
    "offsets in the wrong order": _tensors({"a": _ONE | {"data_offsets": [4, 0]}}, b"\0" * 4),
    "offsets below zero": _tensors({"a": _ONE | {"data_offsets": [-4, 0]}}, b"\0" * 4),
    "a shape that is too large": _tensors({"a": _ONE | {"shape": [2**40]}}, b"\0" * 4),
    "a shape whose size overflows": _tensors({"a": _ONE | {"shape": [2**32, 2**32, 2**32]}}, b"\0" * 4),
    "a shape below zero": _tensors({"a": _ONE | {"shape": [-1]}}, b"\0" * 4),
    "tensors that overlap": _tensors({"a": _ONE, "b": _ONE}, b"\0" * 4),
    "a gap": _tensors({"a": _ONE, "b": _ONE | {"data_offsets": [8, 12]}}, b"\0" * 12),
    "an unknown data type": _tensors({"a": _ONE | {"dtype": "X1"}}, b"\0" * 4),
    "a data type that torch lacks": _tensors(
        {"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}, b"\0" * 3
    ),
    "bytes behind the tensors": _tensors({"a": _ONE}, b"\0" * 8),
    "a deep header": _tensors(b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "a header that is a list": _tensors([1]),
    "a header that is no text": _tensors(b"\xff" * 8),
    "no offsets": _tensors({"a": {"dtype": "F32", "shape": [1]}}, b"\0" * 4),
}


@pytest.mark.parametrize("content", LIES.values(), ids=LIES)
def test_safetensors_that_lie(content, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with bounds(), raises(ValueError, "a.safetensors"):
        read_tensors(path)
    with bounds(), raises(ValueError, "a.safetensors"):
        mop_t5.attach(tiny(), "prompt_tuning", init="file", init_file=str(path), prefix_length=1)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.ones(5, 24, dtype=torch.int64), "int64"),
        (torch.ones(5, 24, dtype=torch.complex64), "complex64"),
        (torch.ones(5, 24, dtype=torch.float8_e4m3fn), "float8_e4m3fn"),
        (torch.full((5, 24), float("nan")), "finite"),
        (torch.full((5, 24), float("-inf")), "finite"),
        (torch.full((5, 24), 1e300, dtype=torch.float64), "finite"),  # not in float32
    ],
    ids=str,
)
def test_weights_are_finite_floating_point(tensor, said, tmp_path):
    model = attach_moved(tiny(dtype=torch.float32), "prompt_tuning")
    mop_t5.save(model, tmp_path)
    path = tmp_path / adapter_folder.CONFIG_NAME
    (tmp_path / "model.safetensors").write_bytes(save({"mop.prompt": tensor}))
    description = json.loads(path.read_text())
    description["sha256"] = adapter_folder._checksum(description, (tmp_path / "model.safetensors").read_bytes())
    path.write_text(json.dumps(description))
    with raises(ValueError, "model.safetensors", said):
        mop_t5.load(tiny(dtype=torch.float32), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "p.safetensors")
    with raises(ValueError, "init_file", "p.safetensors", said):
        file = str(tmp_path / "p.safetensors")
        mop_t5.attach(tiny(dtype=torch.float32), "prompt_tuning", init="file", init_file=file, prefix_length=5)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"a": 1, "a": 2}', "'a'"),
        (b'{"x": {"b": 1, "b": 1}}', "'b'"),
        (b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}", "100"),
        (b'{"a": ' * 50_000, "100"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a": 1}\0', "Extra data"),
        (b"\xff\xfe{\0}\0", "utf-8"),
        (b'{"a": ' + b"9" * 5000 + b"}", "4300"),
        (b"[]", "list"),
        (b"", "Expecting value"),
    ],
)
def test_json_is_strict(content, said, tmp_path):
    (tmp_path / "run.json").write_bytes(content)
    with raises(ValueError, "run.json", said):
        read_json(tmp_path / "run.json", "")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{chr(97 + i)}{i}: &{chr(97 + i)} [{', '.join([f'*{chr(96 + i)}'] * 10)}]\n" for i in range(1, 9)
            ),
            "1,000,000",
        ),
        ("a: &a [*a]\n", "1,000,000"),
        ("a: " + "[" * 200 + "]" * 200, "100"),
        ("a: " + "[" * 20_000, "100"),
        ("a: 2001-99-99\n", "month"),
        ("a: !!timestamp x\n", "YAML"),
        ("a: !!int ''\n", "YAML"),
        ("a: !!bool x\n", "YAML"),
        ("a: !!python/object/apply:os.system [id]\n", "python/object/apply"),
        ("a: 1\na: 2\n", "same"),
        ("a: " + "9" * 5000, "4300"),
        ("a: \0\n", "YAML"),
    ],
    ids=range(12),
)
def test_yaml_is_strict(content, said, tmp_path):
    (tmp_path / "tasks.yaml").write_text(content)
    with bounds(), raises(ValueError, "tasks.yaml", said):
        read_tasks(tmp_path)


def test_yaml_with_some_aliases_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}


def test_what_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    for module in ("lines", "json_rows", "crosswoz", "separated_rows"):
        monkeypatch.setattr(f"mop_t5.data.{module}.LONGEST_LINE", 1000)
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(b" " * 5000))
    (tmp_path / "t.json.gz").write_bytes(gzip.compress(b"[\n" + b"1,\n" * 1000))
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b'a\n"' + b"x\n" * 1000))
    with zipfile.ZipFile(tmp_path / "train.json.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.json", b" " * 5000)
    with raises(ValueError, "train.jsonl.gz, line 1", "1,000"):
        read_examples(tmp_path / "train.jsonl.gz")
    with raises(ValueError, "t.json.gz", "1,000"):
        list(read_table(tmp_path / "t.json.gz"))
    with raises(ValueError, "t.csv.gz", "1000"):
        list(read_table(tmp_path / "t.csv.gz"))
    with raises(ValueError, "train.json", "1,000"):
        read_clone(tmp_path, ["train"])
    assert lines.LONGEST_LINE == 1000


@pytest.mark.parametrize(
    "changes",
    [{"d_ff": 2**40}, {"d_model": 2**31}, {"num_layers": 10**9}, {"vocab_size": 2**50}, {"num_decoder_layers": 10**6}]
    + [{"num_heads": 2**40}, {"relative_attention_num_buckets": 2**45}],
    ids=str,
)
def test_sizes_that_a_backbone_only_claims_take_no_memory(changes, place, tmp_path):
    folder = shutil.copytree(place / "backbone", tmp_path / "backbone")
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    with bounds(), raises(ValueError, str(folder)):
        mop_t5.load_backbone(folder)


@pytest.mark.parametrize(
    ("method", "field", "value"),
    [("prompt_tuning", "prefix_length", 2**31 - 1), ("mop", "prefix_length", 2**31 - 1), ("mop", "rank", 2**31 - 1)]
    + [("task_moe", "experts", 2**31 - 1), ("task_moe", "hidden", 2**31 - 1), ("hyper_prefix", "d_hidden", 2**30)],
)
def test_sizes_that_an_adapter_only_claims_take_no_memory(method, field, value, tmp_path):
    mop_t5.save(attach_moved(tiny(d_kv=6), method), tmp_path)
    path = tmp_path / adapter_folder.CONFIG_NAME
    description = json.loads(path.read_text())
    description["config"][field] = value
    description["sha256"] = adapter_folder._checksum(description, (tmp_path / "model.safetensors").read_bytes())
    path.write_text(json.dumps(description))
    with bounds(), raises(ValueError, str(tmp_path)):
        mop_t5.load(tiny(d_kv=6), tmp_path)


def test_names_of_any_kind_stay_inside(tmp_path):
    for name in ("../x", "/x", "a/b", "..", "x\0", "", "x" * 300):
        library = tmp_path / "library"
        library.mkdir(exist_ok=True)
        mop_t5.save(attach_moved(tiny(), "prompt_tuning"), tmp_path / "adapter")
        with raises((ValueError, OSError), "name"):
            mop_t5.storage.prompt_library.add(library, name, tmp_path / "adapter")
        assert list(library.iterdir()) == []
