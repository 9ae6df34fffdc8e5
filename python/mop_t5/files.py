"""Files and folders that are complete on disk before they take a name that anyone looks for."""

import errno
import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_REMOVING = ".removing"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how Rust ends the text of an error of the system


def write_durably(path: str | os.PathLike, content: bytes) -> None:
    """Write content and wait until the disk has it. On an error the incomplete file is removed."""
    try:
        with open(path, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        Path(path).unlink(missing_ok=True)
        raise


def replace_file(path: str | os.PathLike, content: bytes) -> None:
    """Make content the file at path, in one step: whoever opens it finds the old content or all of the new."""
    path = Path(path)
    waiting = path.with_name(f"{path.name}.next")
    write_durably(waiting, content)
    os.replace(waiting, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until the disk has a file's content, or a folder's list of names."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder, and needs no such call
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """flush for a folder and all that is in it."""
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


def put_in_place(complete: Path, folder: Path) -> None:
    """Give a folder that is complete on the disk the name `folder`, in place of one that may have it."""
    remove_folder(folder)
    os.replace(complete, folder)
    flush(folder.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there; it loses its name before its content."""
    if folder.exists():
        going = folder.with_name(_REMOVING)
        shutil.rmtree(going, ignore_errors=True)
        os.replace(folder, going)
        shutil.rmtree(going, ignore_errors=True)


@contextmanager
def whole_folder(folder: str | os.PathLike, what: str) -> Iterator[Path]:
    """A new folder to write into. At the end of the block it gets the name `folder`; on an error it is removed, and the
    folder of that name is as it was. what: the content, for the message of an OSError."""
    folder = Path(folder)
    writing = folder.with_name(f".{folder.name}.writing")
    with failure_in_a_sentence(what, folder):
        shutil.rmtree(writing, ignore_errors=True)
        try:
            writing.mkdir(parents=True)
            yield writing
            flush_tree(writing)
            put_in_place(writing, folder)
        finally:
            shutil.rmtree(writing, ignore_errors=True)


def check_writable(folder: str | os.PathLike) -> None:
    """Raise OSError where `folder` could not be made or written into: before the work whose results are to go there."""
    place = Path(folder).absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is a file. Choose another folder than {folder}.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{place} cannot be written into. Get the right to, or choose another folder.")


@contextmanager
def unreadable_in_a_sentence(what: str, place: str | os.PathLike) -> Iterator[None]:
    """Make one sentence of whatever is raised for a folder or hub name that cannot be read.

    The libraries that read such files raise nearly every kind of error for a damaged one.

    Args:
        what: The content, for the message.
        place: The folder or the hub name, for the message.

    Raises:
        OSError, ImportError: For an error of this kind.
        ValueError: For any other.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        kind = next((kind for kind in (OSError, ImportError) if isinstance(error, kind)), ValueError)
        reason = " ".join(str(error).split()).rstrip(".")
        if not isinstance(error, (OSError, ValueError, ImportError, RuntimeError, SafetensorError)):
            reason = f"{type(error).__name__} {reason}".strip()
        cure = "Give a whole folder that save_pretrained wrote, or a name on the model hub."
        if isinstance(error, ImportError):
            cure = "Then try again."
        if not os.path.exists(place):
            a_path = os.path.isabs(place) or str(place).startswith(".")
            reason = "there is no such folder" + ("" if a_path else f", and the hub has none ({reason})")
        raise kind(f"{what} {str(place)!r} cannot be read: {reason}. {cure}") from error


def write_beside(path: str | os.PathLike, content: bytes) -> Path | None:
    """Write a file whole. One of its name with other content is kept: NAME.md is then NAME.1.md, or .2 and so on.
    Returns where the earlier one is, None where there was none or the same."""
    path, earlier = Path(path), None
    if path.is_file() and path.read_bytes() == content:
        return None
    with failure_in_a_sentence(path.name, path.parent):
        if os.path.lexists(path):
            numbers = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(1))
            earlier = next(place for place in numbers if not os.path.lexists(place))
            os.rename(path, earlier)
        replace_file(path, content)
    return earlier


def checksum(content: bytes) -> str:
    """SHA-256, as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


@contextmanager
def failure_in_a_sentence(what: str, folder: str | os.PathLike) -> Iterator[None]:
    """Raise an OSError of the same number that says what could not be written, where and why, and that nothing saved
    before was lost.

    torch reports a full disk as a RuntimeError of its zip writer, safetensors as a SafetensorError, and tokenizers as a
    bare Exception with the number in its text. All are made an OSError.
    """
    try:
        yield
    except Exception as error:
        in_rust = _OS_ERROR.search(str(error))
        if isinstance(error, OSError):
            number, reason = error.errno, error.strerror or str(error)
        elif in_rust is not None:
            number, reason = int(in_rust[1]), str(error)
        elif isinstance(error, SafetensorError):
            number, reason = errno.EIO, str(error)
        elif "inline_container" in str(error) or "PytorchStreamWriter" in str(error):
            number, reason = errno.EIO, "a file could not be written to its end, as on a full disk"
        else:
            raise
        message = (
            f"{what} could not be written to {str(folder)!r}: {reason}. Nothing that was saved before is lost. Make "
            "room there or choose another folder."
        )
        # OSError of a number is made into its subclass, such as PermissionError
        raise (OSError(message) if number is None else OSError(number, message)) from error
