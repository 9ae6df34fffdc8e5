"""Read and write files and folders. A file or folder is complete on the disk before it takes its final name."""

import errno
import hashlib
import itertools
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError

_REMOVING = ".removing"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # end of the text of an operating-system error in Rust
DEEPEST_JSON = 100  # most JSON values inside each other: far below the depth at which Python itself gives up

StrPath = str | os.PathLike[str]


def replace_file(path: StrPath, content: bytes) -> None:
    """Replace the file at `path` in one step. A reader finds either the old content or all of the new content."""
    replace_files({Path(path): content})


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """Replace files, each in one step and in their order. The disk has all contents before the first is replaced.

    On an error while they are written, no file changes. Each content waits in a file with the suffix ".next".

    This file is always a new one. A link of its name in a folder from elsewhere would lead to another file, which would
    be overwritten, and a pipe would never take the content.
    """
    waiting = {path: path.with_name(f"{path.name}.next") for path in contents}
    try:
        for path, content in contents.items():
            waiting[path].unlink(missing_ok=True)
            with open(waiting[path], "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
    except OSError:
        for path in waiting.values():
            path.unlink(missing_ok=True)
        raise
    for path, complete in waiting.items():
        os.replace(complete, path)
    for folder in {path.parent for path in contents}:
        flush(folder)


@contextmanager
def new_file(path: StrPath) -> Iterator[BinaryIO]:
    """Yield an open file, and rename it to `path` at the end of the block. Remove it on an error.

    The file has a name of its own until then, so that several processes may write the same path.
    """
    path = Path(path)
    writing = path.with_name(f".{path.name}.{os.getpid()}.writing")
    writing.unlink(missing_ok=True)  # see replace_files
    try:
        with open(writing, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(writing, path)
        flush(path.parent)
    finally:
        writing.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until the disk has the content of a file, or the list of names of a folder."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder, and needs no such call
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Wait until the disk has a folder and everything in it."""
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


def put_in_place(complete: Path, folder: Path) -> None:
    """Rename the folder `complete` to `folder`. Remove an earlier folder of this name first."""
    remove_folder(folder)
    os.replace(complete, folder)
    flush(folder.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder if it exists. The folder loses its name first and its content afterwards."""
    if folder.exists():
        going = folder.with_name(_REMOVING)
        shutil.rmtree(going, ignore_errors=True)
        os.replace(folder, going)
        shutil.rmtree(going, ignore_errors=True)


@contextmanager
def whole_folder(folder: StrPath, what: str) -> Iterator[Path]:
    """Yield a new folder to write into, and rename it to `folder` at the end of the block.

    On an error the new folder is removed, and an earlier `folder` stays as it was.

    Args:
        folder: Final name of the folder.
        what: Content of the folder, for messages.

    Raises:
        OSError: The folder cannot be written.
    """
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


def check_writable(folder: StrPath) -> None:
    """Check, before work starts, that its results can be written to `folder`.

    Raises:
        OSError: `folder` cannot be made or cannot be written into.
    """
    path = Path(folder).absolute()
    place = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is a file. Choose another folder than {folder}.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(f"{place} cannot be written into. Change its permissions, or choose another folder.")


def content_to_replace(
    output: StrPath,
    overwrite: bool,
    *,
    is_folder: bool = True,
    cure: str = "Choose another --output or pass --overwrite.",
) -> list[str]:
    """Return the names of the content that a new result at `output` will replace.

    Args:
        output: File or folder of the result.
        overwrite: True if existing content may be replaced.
        is_folder: True if the result is a folder. If not, it is a file.
        cure: End of the message: what to do about existing content.

    Returns:
        The sorted names of the entries of a folder, or the name of a file. Empty for a new result and an empty folder.

    Raises:
        FileExistsError: There is content and `overwrite` is false, or `output` is a file instead of a folder or a
            folder instead of a file.
    """
    output = Path(output)
    if output.exists() and output.is_dir() != is_folder:
        raise FileExistsError(f"{output} is a {'file' if is_folder else 'folder'}. Choose another --output.")
    names = sorted(os.listdir(output)) if output.is_dir() else [output.name] * output.exists()
    if names and not overwrite:
        raise FileExistsError(f"{output} exists{' and is not empty' if is_folder else ''}. {cure}")
    return names


def in_a_line(text: object) -> str:
    """Return a text on one line, without the full stop at its end."""
    return " ".join(str(text).split()).rstrip(".")


@contextmanager
def unreadable_in_a_sentence(what: str, place: StrPath) -> Iterator[None]:
    """Raise one error with one sentence if the block cannot read a folder or hub name.

    The libraries that read these files raise nearly every kind of error for a damaged file.

    Args:
        what: The content, for the message.
        place: The folder or the hub name, for the message.

    Raises:
        OSError, ImportError: The block raised an error of this kind.
        ValueError: The block raised any other error.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        kind = next((kind for kind in (OSError, ImportError) if isinstance(error, kind)), ValueError)
        reason = in_a_line(error)
        if not isinstance(error, (OSError, ValueError, ImportError, RuntimeError, SafetensorError)):
            reason = f"{type(error).__name__} {reason}".strip()
        cure = "Give a complete folder that save_pretrained wrote, or a name on the model hub."
        if kind is ImportError:
            cure = "Then try again."
        if not os.path.exists(place):
            a_path = os.path.isabs(place) or str(place).startswith(".")
            reason = "there is no such folder" + ("" if a_path else f", and the hub has none ({reason})")
        raise kind(f"{what} {str(place)!r} cannot be read: {reason}. {cure}") from error


def write_beside(path: StrPath, content: bytes) -> Path | None:
    """Write a file, and keep an earlier file of the same name under a new name.

    An earlier NAME.md becomes NAME.1.md, or NAME.2.md, and so on.

    Returns:
        The new path of the earlier file. None if there was no earlier file, or if it has the same content.
    """
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


def write_json(path: StrPath, content: object) -> None:
    """Write `content` as indented JSON. A reader finds either the old file or all of the new file."""
    path = Path(path)
    with failure_in_a_sentence(path.name, path.parent):
        replace_file(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def json_lines(rows: Iterable[object]) -> bytes:
    """Return the bytes of a file that holds one JSON value per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def read_text(path: StrPath) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The path is a folder, a pipe or a device. A pipe could wait, and a device send, for ever.
        ValueError: The file is not UTF-8.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no file, but a folder, a pipe or a device. Give the path of a file.")
    return path.read_text(encoding="utf-8")


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text. Every JSON text of a user is read by this function.

    Raises:
        ValueError: The text is not JSON, has a key twice, or has more than 100 values inside each other.
    """
    with suppress(RecursionError):
        level = [json.loads(text, object_pairs_hook=_without_repeats)]
        content = level[0]
        for _ in range(DEEPEST_JSON):
            inner = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list)))
            level = [value for values in inner for value in values]
            if not level:
                return content
    raise ValueError(f"it has more than {DEEPEST_JSON} brackets inside each other")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        repeated = sorted(repr(key) for key, count in counts.items() if count > 1)
        raise ValueError(f"the key {', '.join(repeated)} stands in it more than once")
    return row


def read_json(path: StrPath, cure: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: The file.
        cure: End of the message: what to do about a damaged file. Empty if the caller adds it.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The path is a folder, a pipe or a device.
        ValueError: The file does not hold a JSON object, or an object in it has a key twice.
    """
    with damage_in_a_sentence(path, cure):
        content = parse_json(read_text(path))
        if not isinstance(content, dict):
            raise ValueError(f"expected a JSON object, got {type(content).__name__}")
        return content


def split_json_lines(text: str) -> list[Any]:
    """Return the values of a text that `json_lines` wrote.

    Only a line feed ends a line. JSON leaves other line separators, such as U+2028 and U+0085, inside its strings.

    Raises:
        ValueError: A line is not JSON. See parse_json.
    """
    return [parse_json(line) for line in text.removesuffix("\n").split("\n")] if text else []


@contextmanager
def damage_in_a_sentence(path: StrPath, cure: str) -> Iterator[None]:
    """Raise a ValueError with one sentence if the block finds that the content of a file is damaged.

    Args:
        path: The file, for the message.
        cure: End of the message: what to do about a damaged file. Empty if the caller adds it.

    Raises:
        ValueError: The block raised an error that wrong JSON, or JSON of another form, causes.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is damaged ({said}). {cure}".rstrip()) from error


def checksum(source: bytes | Path | Iterable[bytes]) -> str:
    """Return the SHA-256 of bytes, of their parts in order, or of the content of a file, as hexadecimal digits."""
    if isinstance(source, Path):
        with open(source, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for part in [source] if isinstance(source, bytes) else source:
        digest.update(part)
    return digest.hexdigest()


@contextmanager
def failure_in_a_sentence(what: str, folder: StrPath) -> Iterator[None]:
    """Raise an OSError with one sentence if the block cannot write.

    The sentence names the content, the folder and the reason, and states that earlier files are kept. torch reports a
    full disk as a RuntimeError of its zip writer, safetensors reports it as a SafetensorError, and tokenizers reports
    it as a plain Exception with the error number in its text. All these errors become an OSError.

    Args:
        what: The content, for the message.
        folder: The folder of the file, for the message.

    Raises:
        OSError: The block could not write. The number of the error is kept.
    """
    try:
        yield
    except Exception as error:
        in_rust = _OS_ERROR.search(str(error))
        number: int | None
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
        # OSError with a number becomes its subclass, such as PermissionError
        raise (OSError(message) if number is None else OSError(number, message)) from error
