"""Adapters go to a model hub and come back, and every refusal of the hub is one sentence."""

import os
import socket
import subprocess
import sys
import warnings

import huggingface_hub
import mop_t5
import pytest
import torch
from errors import raises, says, warns
from hub_server import address
from huggingface_hub import constants
from mop_t5.storage import hub as storage
from t5_oracle import tiny

FIELDS = {"scenarios": ["taxi", "ticket"], "prefix_length": 2, "d_mid": 4, "terms_down": 2, "terms_up": 2}
NAME = "me/adapter"


def attached(method="mop", **fields):
    torch.manual_seed(1)
    return mop_t5.attach(tiny(dtype=torch.float32), method, **{**FIELDS, **fields} if method == "mop" else fields)


def fresh():
    return tiny(dtype=torch.float32)


def same(first, second):
    one, two = first.mop.state_dict(), second.mop.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def nowhere(monkeypatch):
    """Call it to take the hub away: its address becomes a port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield lambda: address(monkeypatch, f"http://127.0.0.1:{taken.getsockname()[1]}")


@pytest.fixture
def pushed(hub):
    """A hub with one adapter, which nobody has downloaded."""
    mop_t5.push_to_hub(attached(), NAME)
    return hub


def test_round_trip(hub):
    model = attached()
    commit = mop_t5.push_to_hub(model, NAME, licence="mit", commit_message="The first")
    files = hub.repositories[NAME].files()
    assert set(files) == {".gitattributes", "README.md", "model.safetensors", "mop_config.json"}
    assert hub.repositories[NAME].messages[1:] == ["The first"]  # one commit, after the hub's own
    assert not hub.repositories[NAME].private
    loaded = mop_t5.load(fresh(), NAME)
    assert same(loaded, model)
    assert loaded.mop.config == model.mop.config
    assert loaded.hub_commit == commit == hub.repositories[NAME].branches["main"]
    assert huggingface_hub.ModelCard.load(NAME).data.license == "mit"
    # nothing has changed: no commit; something has: a second one, and the first is still there
    assert mop_t5.push_to_hub(model, NAME, licence="mit") == commit
    with torch.no_grad():
        model.mop.input.add_(1)
    second = mop_t5.push_to_hub(model, NAME)
    assert second != commit
    assert same(mop_t5.load(fresh(), NAME), model)
    assert not same(mop_t5.load(fresh(), NAME, revision=commit), model)


def test_a_branch_has_an_adapter_of_its_own(pushed):
    other = attached(prefix_length=3)
    commit = mop_t5.push_to_hub(other, NAME, revision="longer")
    assert commit == mop_t5.push_to_hub(other, NAME, revision="longer")
    assert same(mop_t5.load(fresh(), NAME, revision="longer"), other)
    assert same(mop_t5.load(fresh(), NAME), attached())


def test_a_folder_comes_before_the_hub(pushed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = attached(prefix_length=3)
    mop_t5.save(other, NAME)
    pushed.log.clear()
    local = mop_t5.load(fresh(), NAME)
    assert same(local, other)
    assert local.hub_commit is None
    assert pushed.log == []
    with raises(ValueError, "revision", "'main'", repr(NAME)):
        mop_t5.load(fresh(), NAME, revision="main")


def test_only_two_files_are_fetched_and_only_once(pushed):
    mop_t5.load(fresh(), NAME)
    fetched = [path.rpartition("/")[2] for method, path, _ in pushed.log if method == "GET" and "/resolve/" in path]
    assert sorted(fetched) == ["model.safetensors", "mop_config.json"]
    pushed.log.clear()
    commit = mop_t5.load(fresh(), NAME).hub_commit
    assert [path for method, path, _ in pushed.log if method == "GET"] == [f"/api/models/{NAME}"]
    pushed.log.clear()
    mop_t5.load(fresh(), NAME, revision=commit)  # a commit never changes
    assert pushed.log == []


def test_a_download_that_breaks_is_resumed(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    model = attached("prompt_tuning", prefix_length=200_000, scenarios=[])  # 19 MB
    mop_t5.push_to_hub(model, NAME)
    hub.cut_at = 15_000_000
    hub.log.clear()
    assert same(mop_t5.load(fresh(), NAME), model)
    assert hub.cut_at is None
    weights = [begin for method, path, begin in hub.log if method == "GET" and path.endswith(".safetensors")]
    assert weights == [None, f"bytes={10 * 2**20}-"]  # huggingface_hub keeps whole pieces of 10 MiB


def test_a_token_that_the_hub_does_not_know(pushed, tmp_path):
    mop_t5.load(fresh(), NAME)
    # with and without the adapter in the cache: a wrong token is never overlooked
    for call in (
        lambda: mop_t5.load(fresh(), NAME, token="wrong"),
        lambda: mop_t5.load(fresh(), "me/other", token="wrong"),
        lambda: mop_t5.push_to_hub(attached(), NAME, token="wrong"),
    ):
        with raises(PermissionError, "401", "HF_TOKEN"):
            call()
    with raises(ValueError, "token", "white space") as caught:
        mop_t5.load(fresh(), NAME, token="sec ret\n")
    assert "ret" not in str(caught.value).replace("letters", "")
    with raises(TypeError, "token", "int"):
        mop_t5.load(fresh(), NAME, token=5)


def test_a_private_repository(hub):
    model = attached()
    mop_t5.push_to_hub(model, NAME, private=True)
    assert hub.repositories[NAME].private
    assert same(mop_t5.load(fresh(), NAME), model)
    for token in (False, "other"):  # no token, and that of somebody else; the cache does not open the door
        with raises(FileNotFoundError, NAME, "private", "HF_TOKEN"):
            mop_t5.load(fresh(), NAME, token=token)


def test_private_is_not_lost_on_a_public_repository(pushed):
    before = dict(pushed.repositories[NAME].branches)
    with raises(ValueError, NAME, "public", "private"):
        mop_t5.push_to_hub(attached(prefix_length=3), NAME, private=True)
    assert pushed.repositories[NAME].branches == before


@pytest.mark.parametrize(
    ("token", "name", "error", "words"),
    [
        ("reader", NAME, PermissionError, ("token", "read", NAME)),
        ("other", NAME, PermissionError, (NAME, "403")),
        ("secret", "nobody/adapter", PermissionError, ("nobody/adapter", "'me'", "'nobody'", "'team'")),
    ],
)
def test_a_token_that_may_not_write(pushed, token, name, error, words):
    before = dict(pushed.repositories[NAME].branches)
    with raises(error, *words):
        mop_t5.push_to_hub(attached(prefix_length=3), name, token=token)
    assert pushed.repositories[NAME].branches == before
    assert set(pushed.repositories) == {NAME}


def test_no_token(pushed, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with raises(PermissionError, "no token", "HF_TOKEN"):
        mop_t5.push_to_hub(attached(), NAME)
    assert same(mop_t5.load(fresh(), NAME), attached())  # a public adapter needs none


def test_an_organisation(hub):
    mop_t5.push_to_hub(attached(), "team/adapter")
    assert set(hub.repositories) == {"team/adapter"}


def test_an_unknown_revision_and_an_unknown_repository(pushed):
    mop_t5.load(fresh(), NAME)
    with raises(FileNotFoundError, NAME, "revision", "'v9'"):
        mop_t5.load(fresh(), NAME, revision="v9")
    with raises(FileNotFoundError, "me/adaptor", "folder"):
        mop_t5.load(fresh(), "me/adaptor")


@pytest.mark.parametrize("name", ["me", "a/b/c", "me/a--b", "me/.a", "me/a b", "/me/a", "me/", "./me", "me/a.git"])
def test_a_malformed_name(hub, name):
    with raises(FileNotFoundError, "mop_config.json"):  # no name of the hub, so it can only be a folder
        mop_t5.load(fresh(), name)
    with raises(ValueError, "hub_model_id", "owner/name", repr(name)):
        mop_t5.push_to_hub(attached(), name)
    assert hub.log == []


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": b"{}", "model.safetensors": b""}, ("mop_config.json", "whole model", "load_backbone")),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, ("mop_config.json", "PEFT")),
        ({"mop_config.json": b"{}", "weights.bin": b""}, ("model.safetensors", "weights.bin", "code")),
        ({}, ("mop_config.json", "something else")),
    ],
)
def test_a_repository_of_something_else_is_not_loaded(hub, files, words):
    hub.make(NAME, files)
    with raises(ValueError, NAME, *words):
        mop_t5.load(fresh(), NAME)
    assert not [path for _, path, _ in hub.log if "/resolve/" in path]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("config.json", ("whole model",)),
        ("adapter_config.json", ("PEFT",)),
        ("old/pytorch_model.bin", ("old/pytorch_model.bin", "code")),
        (".gitignore", (".gitignore",)),
        ("model.safetensors", ("model.safetensors", "something else")),
    ],
)
def test_a_repository_of_something_else_takes_no_adapter(hub, file, words):
    repository = hub.make(NAME, {file: b"mine"})
    with raises(ValueError, NAME, *words):
        mop_t5.push_to_hub(attached(), NAME)
    assert set(repository.files()) == {".gitattributes", file}


def test_another_backbone_is_named_and_the_model_stays_plain(pushed):
    model = tiny(dtype=torch.float32, seed=5)
    with raises(ValueError, NAME, "another backbone"):
        mop_t5.load(model, NAME)
    assert not mop_t5.is_attached(model)


@pytest.mark.parametrize("broken", ["down", "overloaded", "failing"])
def test_a_hub_that_does_not_answer(pushed, broken, nowhere, monkeypatch):
    """The cache serves, with a warning that names the commit. What it does not hold is an error."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    commit = mop_t5.load(fresh(), NAME).hub_commit
    if broken == "down":
        nowhere()
    else:
        pushed.status = {"overloaded": 429, "failing": 503}[broken]
    with warns(UserWarning, commit, NAME, "cache"):
        found = mop_t5.load(fresh(), NAME)
    assert found.hub_commit == commit
    assert same(found, attached())
    with raises(ConnectionError, "cache", "me/other"):
        mop_t5.load(fresh(), "me/other")
    with raises(ConnectionError, "cache", NAME, "'v9'"):
        mop_t5.load(fresh(), NAME, revision="v9")
    with raises(ConnectionError, "hub"):
        mop_t5.push_to_hub(attached(), NAME)


def test_a_transfer_of_hf_xet_that_fails(pushed, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("Data processing error:\n reset by peer")

    monkeypatch.setattr(storage, "hf_hub_download", broken)
    with raises(ConnectionError, NAME, "reset by peer", "cache"):
        mop_t5.load(fresh(), NAME)


def test_a_branch_that_moves_during_a_download(pushed, monkeypatch):
    """Both files are of one commit, whatever is pushed between them."""
    old, repository, download = attached(), pushed.repositories[NAME], storage.hf_hub_download
    newer = dict.fromkeys(("mop_config.json", "model.safetensors"), b"newer")

    def moving(*args, **kwargs):
        if "moved" not in repository.messages:
            repository.commit("main", newer, "moved")
        return download(*args, **kwargs)

    monkeypatch.setattr(storage, "hf_hub_download", moving)
    assert same(mop_t5.load(fresh(), NAME), old)
    with raises(ValueError, "mop_config.json", "damaged"):
        mop_t5.load(fresh(), NAME)


def test_a_cache_without_the_weights_is_no_adapter(pushed, nowhere, monkeypatch):
    huggingface_hub.hf_hub_download(NAME, "mop_config.json")
    nowhere()
    with raises(ConnectionError, "cache", NAME):
        mop_t5.load(fresh(), NAME)


def test_offline_with_a_cache(pushed, nowhere, monkeypatch):
    commit = mop_t5.load(fresh(), NAME).hub_commit
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    pushed.log.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # who asks for this mode needs no warning
        for revision in (None, "main", commit):
            assert same(mop_t5.load(fresh(), NAME, revision=revision), attached())
    with raises(ConnectionError, "HF_HUB_OFFLINE", "me/other"):
        mop_t5.load(fresh(), "me/other")
    with raises(ConnectionError, "HF_HUB_OFFLINE"):
        mop_t5.push_to_hub(attached(), NAME)
    assert pushed.log == []


def test_the_environment_of_another_process(pushed, tmp_path):
    """The settings as a user gives them: HF_ENDPOINT and HF_HUB_CACHE, then HF_HUB_OFFLINE."""
    code = f"from mop_t5.storage import hub; print(hub.download({NAME!r}).name)"
    places = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_ENDPOINT": pushed.url}
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        pushed.log.clear()
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | places | more, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == pushed.repositories[NAME].branches["main"]
        assert bool(pushed.log) == (not more)


def test_damage_in_the_cache_is_noticed(pushed, tmp_path):
    mop_t5.load(fresh(), NAME)
    (weights,) = (tmp_path / "cache").glob("*/snapshots/*/model.safetensors")
    weights.resolve().write_bytes(weights.read_bytes()[:-4])
    with raises(ValueError, "snapshots", "damaged"):
        mop_t5.load(fresh(), NAME)


def test_an_adapter_whose_saving_was_killed_is_uploaded_whole(hub, tmp_path):
    model, other = attached(), attached(d_mid=8)
    mop_t5.save(other, tmp_path / "new")
    for first in (model, None):  # a folder with an older adapter, and a new folder
        folder = tmp_path / f"killed-{first is None}"
        folder.mkdir()
        if first is not None:
            mop_t5.save(first, folder)
        (folder / "model.safetensors").write_bytes((tmp_path / "new" / "model.safetensors").read_bytes())
        (folder / "mop_config.json.next").write_bytes((tmp_path / "new" / "mop_config.json").read_bytes())
        storage.upload(folder, NAME)
        assert same(mop_t5.load(fresh(), NAME), other)


def test_a_licence_that_the_hub_does_not_know(hub):
    with raises(ValueError, "model card", "license", "licence"):
        mop_t5.push_to_hub(attached(), NAME, licence="my-own")
    with raises(ValueError, "licence", "'Apache 2'"):
        mop_t5.push_to_hub(attached(), NAME, licence="Apache 2")
    assert "mop_config.json" not in hub.repositories[NAME].files()


def test_paths_of_this_machine_are_not_published_in_silence(hub, tmp_path):
    mop_t5.save(attached("prompt_tuning", prefix_length=2, scenarios=[]), tmp_path / "prompt")
    model = attached("prompt_tuning", prefix_length=2, scenarios=[], init="file", init_file=str(tmp_path / "prompt"))
    with warns(UserWarning, "mop_config.json", "init_file"):
        mop_t5.push_to_hub(model, NAME)
    assert str(tmp_path) not in hub.repositories[NAME].files()["README.md"].decode()


def test_the_ways_of_transformers_name_the_right_one():
    model = attached()
    with raises(ValueError, "mop_t5.push_to_hub"):
        model.push_to_hub(NAME)
    with raises(RuntimeError, "no method attached"):
        mop_t5.push_to_hub(fresh(), NAME)


def test_names_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    (tmp_path / "me" / "file").write_text("a file is a place on this machine, too")
    assert storage.is_hub_name(NAME)
    assert not storage.is_hub_name("me/file")
    assert not storage.is_hub_name(tmp_path / "me" / "new")
    says(NAME, "me/adapter")
