"""Files and folders that are complete on disk before they take a name that anyone looks for."""

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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


def checksum(content: bytes) -> str:
    """SHA-256, as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


@contextmanager
def failure_in_a_sentence(what: str, folder: str | os.PathLike) -> Iterator[None]:
    """An OSError of the same kind and number that says what could not be written, where and why, and that nothing
    saved before was lost. torch reports a full disk as a RuntimeError of its zip writer, which is made an OSError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError):
            if "inline_container" not in str(error) and "PytorchStreamWriter" not in str(error):
                raise
            number, reason = errno.EIO, "the file could not be written to its end, as on a full disk"
        else:
            number, reason = error.errno, error.strerror or str(error)
        message = (
            f"{what} could not be written to {str(folder)!r}: {reason}. Nothing that was saved before is lost. Make "
            "room there or choose another folder."
        )
        # OSError of a number is made into its subclass, such as PermissionError
        raise (OSError(message) if number is None else OSError(number, message)) from error
