"""Adapter folders that are damaged, and saving that fails or is killed: an error in a sentence, nothing lost."""

import errno
import os
import resource
import signal
import subprocess

import mop_t5
import pytest
import torch
from errors import raises
from mop_t5.files import failure_in_a_sentence
from mop_t5.storage import adapter_folder
from t5_oracle import tiny

NAMES = ("model.safetensors", "mop_config.json")
FIELDS = {"scenarios": ["taxi", "ticket"], "d_mid": 4, "terms_down": 2, "terms_up": 2, "layers": [0]}


def attached(prefix_length=2):
    torch.manual_seed(prefix_length)
    return mop_t5.attach(tiny(dtype=torch.float32), "mop", prefix_length=prefix_length, **FIELDS)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def same(folder, model):
    """Whether folder holds the method of model."""
    _, tensors = adapter_folder.read(folder)
    own = {n: p for n, p in model.state_dict().items() if n.startswith("mop.")}
    return tensors.keys() == own.keys() and all(torch.equal(tensors[n], own[n]) for n in own)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    mop_t5.save(attached(), folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_every_damage_is_noticed(name, saved, tmp_path):
    """Cut off or with a bit flipped at every 3rd byte of the description, every 11th of the header of the weights and
    every 97th of their values: an error, or a description that says the same (a line break that became a space)."""
    for other in NAMES:
        (tmp_path / other).write_bytes((saved / other).read_bytes())
    whole, expected = (saved / name).read_bytes(), adapter_folder.read(saved)[0]
    positions = [*range(0, len(whole), 3), len(whole) - 1]
    if name == "model.safetensors":
        header = 8 + int.from_bytes(whole[:8], "little")
        positions = [*range(0, header, 11), *range(header, len(whole), 97)]

    def is_noticed(content):
        (tmp_path / name).write_bytes(content)
        try:
            description, _ = adapter_folder.read(tmp_path)
        except ValueError as error:
            return str(tmp_path) in str(error)
        assert description == expected, "damage that changes what is said must not pass"
        return False

    def flipped(position):
        return whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :]

    # the description may lose its last line break, and have another white space
    cut = [position for position in positions if not is_noticed(whole[:position])]
    assert cut in ([], [len(whole) - 1])
    unnoticed = [position for position in positions if not is_noticed(flipped(position))]
    assert all(name == "mop_config.json" and whole[position : position + 1].isspace() for position in unnoticed)
    assert len(positions) > 250


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "garbage"])
def test_a_damaged_folder_leaves_the_model_alone(name, how, saved, tmp_path):
    for other in NAMES:
        (tmp_path / other).write_bytes((saved / other).read_bytes())
    whole = (saved / name).read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    damaged = {"truncated": whole[:middle], "flipped": flipped, "empty": b"", "garbage": os.urandom(middle)}[how]
    (tmp_path / name).write_bytes(damaged)
    model = tiny(dtype=torch.float32)
    before, attributes = {n: p.clone() for n, p in model.state_dict().items()}, dict(vars(model))
    with raises(ValueError, "damaged"):
        mop_t5.load(model, tmp_path)
    assert not mop_t5.is_attached(model)
    assert vars(model) == attributes
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())
    assert model.decoder.config._attn_implementation == "sdpa"
    mop_t5.load(model, saved)  # and it can still be used


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB, where this process may mount one; else a limit on the size of files."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode == 0:
        yield tmp_path
        subprocess.run(["umount", "-l", tmp_path], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    yield tmp_path
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_said_and_loses_nothing(small_disk):
    model = attached()
    mop_t5.save(model, small_disk / "adapter")
    before = contents(small_disk / "adapter")
    with raises(OSError, "method", "adapter'", "Nothing", "lost") as caught:
        mop_t5.save(attached(prefix_length=2000), small_disk / "adapter")
    assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert contents(small_disk / "adapter") == before
    assert same(small_disk / "adapter", model)
    with raises(OSError, "written"):
        mop_t5.save(attached(prefix_length=2000), small_disk / "new")
    with raises(FileNotFoundError, "mop_config.json"):
        mop_t5.load(tiny(dtype=torch.float32), small_disk / "new")
    mop_t5.save(attached(prefix_length=3), small_disk / "adapter")  # there is room for this one
    assert same(small_disk / "adapter", attached(prefix_length=3))


def test_a_read_only_folder_is_said(tmp_path):
    model = attached()
    mop_t5.save(model, tmp_path)
    as_root = os.geteuid() == 0
    if as_root:  # permissions do not bind root, a mount does
        steps = [["--bind", tmp_path, tmp_path], ["-o", "remount,ro,bind", tmp_path]]
        if any(subprocess.run(["mount", *step], capture_output=True).returncode for step in steps):
            pytest.skip("root, and no right to mount")
    else:
        tmp_path.chmod(0o500)
    try:
        with raises(OSError, "method", str(tmp_path)) as caught:
            mop_t5.save(attached(prefix_length=3), tmp_path)
        assert caught.value.errno in (errno.EROFS, errno.EACCES)
        assert same(tmp_path, model)
    finally:
        if as_root:
            subprocess.run(["umount", "-l", tmp_path], check=True)
        else:
            tmp_path.chmod(0o700)


def killed_while_saving(model, folder, moment):
    """Save in a process of its own that kills itself before the given call of those that touch the disk."""
    child = os.fork()
    if not child:
        calls = iter(range(99))

        def counted(real):
            def call(*arguments):
                if next(calls) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments)

            return call

        for name in ("fsync", "replace"):
            setattr(os, name, counted(getattr(os, name)))
        mop_t5.save(model, folder)
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_killed_at_any_moment_a_folder_is_old_or_new(tmp_path):
    """Three files are flushed, three take their names, the folder is flushed: seven moments, then none."""
    old, new = attached(), attached(prefix_length=3)
    seen = []
    for moment in range(8):
        folder = tmp_path / str(moment)
        mop_t5.save(old, folder)
        assert killed_while_saving(new, folder, moment) == (moment < 7)
        loaded = mop_t5.load(tiny(dtype=torch.float32), folder)
        seen.append(loaded.mop.config.prefix_length)
        assert same(folder, old if seen[-1] == 2 else new)
        mop_t5.save(old, folder)  # what was left over is in nobody's way
        assert sorted(contents(folder)) == ["README.md", *NAMES]
        assert same(folder, old)
    assert seen == [2, 2, 2, 2, 3, 3, 3, 3]


def test_a_first_save_that_is_killed_is_no_adapter(tmp_path):
    for moment in range(4):
        assert killed_while_saving(attached(), tmp_path / str(moment), moment)
        with raises(FileNotFoundError, "folder", "mop_t5.save"):
            mop_t5.load(tiny(dtype=torch.float32), tmp_path / str(moment))


def test_other_files_of_a_folder_stay(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    mop_t5.save(attached(), tmp_path)
    mop_t5.save(attached(prefix_length=3), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["README.md", "checkpoint-3", *NAMES, "notes.txt"]


def test_only_failed_writes_are_made_os_errors(tmp_path):
    with pytest.raises(RuntimeError, match=r"^no matter of the disk$"), failure_in_a_sentence("x", tmp_path):
        raise RuntimeError("no matter of the disk")


def test_a_model_without_values_is_not_saved(tmp_path):
    model = mop_t5.attach(mop_t5.build_backbone("t5-small", device="meta"), "prefix_tuning", prefix_length=2)
    with raises(ValueError, "model", "'meta'"):
        mop_t5.save(model, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_not_loaded(value, tmp_path):
    model = attached()
    name, parameter = next(iter(model.mop.named_parameters()))
    with torch.no_grad():
        parameter.view(-1)[-1] = value
    mop_t5.save(model, tmp_path)
    plain = mop_t5.detach(model)
    with raises(ValueError, "not finite", f"mop.{name}"):
        mop_t5.load(plain, tmp_path)
    assert not mop_t5.is_attached(plain)
