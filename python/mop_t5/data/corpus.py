"""The corpus format: JSON lines, one dialogue and its summary a line, gzip by suffix, one file a split.

    {"scenario": "taxi", "dialogue": "用户：…\\n客服：…", "summary": "…", "id": "optional"}

`task`, `input` and `target` are accepted for `scenario`, `dialogue` and `summary`. `references`, a list, holds further
right answers, beside the summary that is trained on: each counts when texts are scored. A corpus is a folder that holds
train.jsonl, valid.jsonl and test.jsonl, each of them possibly with `.gz` behind. Reading is strict: whatever is wrong
is reported with its file and line, because a row that is skipped silently changes every number computed later.
Ids are for people: rows with the same id are different rows. Only `analyse cases --ids` refuses such an id.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from mop_t5.files import checksum, whole_folder

SPLITS = ("train", "valid", "test")
_CORPUS_FILES = {f"{split}.jsonl{gz}" for split in SPLITS for gz in ("", ".gz")} | {"tasks.yaml", "train.yaml"}
_KEYS = {"scenario": "task", "dialogue": "input", "summary": "target"}
_OTHER_FILES = {  # by their first bytes
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), "UTF-16. Convert the file with `iconv -f UTF-16 -t UTF-8`"),
    b"\x1f\x8b": "gzip data. Rename the file, with .gz behind",
    b"PK": "a ZIP archive or a workbook of Excel. Unpack it, or save the table as CSV",
    b"PAR1": "Parquet. Write the table as JSON lines",
}
BadRow = Callable[[str, Exception], None]  # what is called with the place and the error of a row that cannot be read


@dataclass(frozen=True)
class Example:
    """One dialogue of one scenario. `summary` is empty only where a file to generate from was read without one."""

    scenario: str
    dialogue: str
    summary: str
    id: str
    references: tuple[str, ...] = ()

    @property
    def golds(self) -> tuple[str, ...]:
        """All texts that count as right: the summary and the other references."""
        return (self.summary, *self.references)

    def row(self) -> dict:
        """As a row of a file: without references where there are none."""
        return {name: value for name, value in asdict(self).items() if value != ()}


def read_examples(path: str | Path, *, need_summary: bool = True) -> list[Example]:
    """All rows of one `.jsonl` or `.jsonl.gz` file, in order.

    Rows without an id get `<file stem>-<line number>`. `need_summary=False` accepts rows without a summary, for
    generation. Raises FileNotFoundError; ValueError for a row or file that cannot be read and for an empty file;
    TypeError for a field that is not a string. Every message names the file, and the line where there is one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no corpus file at {path}. Give the path of a .jsonl or .jsonl.gz file.")
    stem = stem_of(path)
    examples = [
        example_of(json_object(line, where := f"{path}, line {number}"), where, f"{stem}-{number}", need_summary)
        for number, line in lines(path)
        if line.strip()
    ]
    if not examples:
        raise ValueError(f"{path} holds no examples. Write one JSON object a line, or leave the file out.")
    return examples


def stem_of(path: Path) -> str:
    """The name of a file of lines without its suffixes, from which rows without an id get one."""
    return path.name.removesuffix(".gz").removesuffix(".jsonl")


def find_split(folder: str | Path, split: str) -> Path:
    """The file of one split: `<folder>/<split>.jsonl` or `.jsonl.gz`.

    Raises FileNotFoundError where neither is there, ValueError where both are (which one is meant cannot be known).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no corpus folder at {folder}. A corpus is a folder with {_names(SPLITS)}.")
    found = [path for path in (folder / f"{split}.jsonl", folder / f"{split}.jsonl.gz") if path.is_file()]
    if not found:
        raise FileNotFoundError(f"{folder} has no {split} split. Add {split}.jsonl or {split}.jsonl.gz to it.")
    if len(found) == 2:
        raise ValueError(f"{folder} has both {found[0].name} and {found[1].name}. Keep one of them.")
    return found[0]


def read_split(folder: str | Path, split: str) -> list[Example]:
    """`read_examples` of `find_split`."""
    return read_examples(find_split(folder, split))


def read_corpus(folder: str | Path) -> dict[str, list[Example]]:
    """The three splits of a corpus folder, as `{"train": [...], "valid": [...], "test": [...]}`.

    Raises what `read_split` raises, and ValueError if valid or test has a scenario that train has not: no method could
    have learnt it.
    """
    corpus = {split: read_split(folder, split) for split in SPLITS}
    known = set(scenarios_of(corpus["train"]))
    for split in ("valid", "test"):
        unknown = sorted(set(scenarios_of(corpus[split])) - known)
        if unknown:
            raise ValueError(
                f"{find_split(folder, split)} has scenarios that train lacks: {', '.join(unknown)}. "
                "Add training rows for them or take them out."
            )
    return corpus


def write_examples(path: str | Path, examples: Iterable[Example]) -> None:
    """Write rows that `read_examples` reads back equal; gzip if the name ends in `.gz`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        for example in examples:
            file.write(json.dumps(example.row(), ensure_ascii=False) + "\n")


def write_corpus(
    folder: str | Path,
    splits: Mapping[str, Iterable[Example]],
    *,
    files: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Make a corpus folder of these splits, all of it or nothing.

    Args:
        folder: the folder to make.
        splits: the rows of each split, by its name.
        files: texts of further files, by name.
        overwrite: replace a corpus in the folder.

    Raises:
        FileExistsError: the folder has content, and `overwrite` is false or something there is not part of a corpus.
        ValueError: two different rows have the same id.
    """
    splits = {split: list(examples) for split, examples in splits.items()}
    rows: dict[str, Example] = {}
    for example in (example for examples in splits.values() for example in examples):
        if rows.setdefault(example.id, example) != example:
            raise ValueError(f"two rows have the id {example.id!r}. Give the files of the splits other names.")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file. Choose another --output.")
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if present and not overwrite:
        raise FileExistsError(f"{folder} exists and is not empty. Choose another --output or pass --overwrite.")
    strange = [name for name in present if name not in _CORPUS_FILES]
    if strange:
        raise FileExistsError(f"{folder} holds {', '.join(strange)}, so it is not just a corpus. Empty it yourself.")
    with whole_folder(folder, "the corpus") as writing:
        for split, examples in splits.items():
            write_examples(writing / f"{split}.jsonl", examples)
        for name, text in (files or {}).items():
            (writing / name).write_text(text, encoding="utf-8")


def scenarios_of(examples: Iterable[Example]) -> list[str]:
    """The distinct scenarios, sorted, so that scenario ids do not depend on the order of the rows."""
    return sorted({example.scenario for example in examples})


def checksum_of(examples: Iterable[Example]) -> str:
    """Return a checksum of what rows say, in their order: scenario, dialogue, summary and references.

    The format of the file does not enter, and ids do not either: they are for people.
    """
    rows = ([e.scenario, e.dialogue, e.summary, *e.references] for e in examples)
    return checksum("\n".join(map(json.dumps, rows)).encode())


def of_scenarios(examples: Sequence[Example], scenarios: Sequence[str] | None) -> list[Example]:
    """The rows of these scenarios, of all if None. Raises ValueError for a scenario without a row."""
    missing = sorted(set(scenarios or ()) - set(scenarios_of(examples)))
    if missing:
        raise ValueError(
            f"scenarios names {', '.join(missing)}, of which there are no rows; there are "
            f"{', '.join(scenarios_of(examples))}."
        )
    return [example for example in examples if scenarios is None or example.scenario in scenarios]


def refuse(where: str, error: Exception) -> None:
    """Raise the error of a row that cannot be read: the BadRow of a reader that leaves nothing out."""
    raise error


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a UTF-8 file, gzip by suffix. Raises ValueError with the file and line it breaks off at."""
    with open_binary(path) as file:
        for number, raw in numbered(file, path):
            yield number, decoded(raw, number, f"{path}, line {number}")


def open_binary(path: Path) -> BinaryIO:
    """A file of lines, gzip by suffix."""
    return (gzip.open if path.suffix == ".gz" else open)(path, "rb")


def numbered(raw_lines: Iterable[bytes], name: str | Path) -> Iterator[tuple[int, bytes]]:
    """The lines of an open file with their numbers. Raises ValueError where gzip data break off."""
    number = 0
    try:
        for number, raw in enumerate(raw_lines, start=1):
            yield number, raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{name}: broken or truncated gzip data after line {number} ({error}). Copy or compress the file again."
        ) from error


def decoded(raw: bytes, number: int, where: str) -> str:
    """The text of a line. Raises ValueError, after `where`, for one that is not UTF-8."""
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        kind = next((kind for start, kind in _OTHER_FILES.items() if number == 1 and raw.startswith(start)), None)
        if kind is not None:
            raise ValueError(f"{where}: not UTF-8, but {kind}.") from error
        raise ValueError(
            f"{where}: not UTF-8 (byte {error.start} of the line). Convert the file, for example with "
            "`iconv -f GB18030 -t UTF-8`."
        ) from error


def json_object(line: str, where: str, what: str = "one JSON object a line") -> object:
    """What a JSON text says. Raises ValueError, after `where`, for text that is not JSON or has a key twice."""
    try:
        return json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"{where}: not valid JSON ({error.msg}, {line}column {error.colno}). Write {what}.") from error
    except (ValueError, RecursionError) as error:  # a key twice, a number of thousands of digits, brackets as many
        raise ValueError(f"{where}: cannot be read as JSON ({error}). Write {what}.") from error


def example_of(row: object, where: str, default_id: str, need_summary: bool = True) -> Example:
    """What a line of JSON says. Raises ValueError and TypeError, after `where`, for anything but an example."""
    if not isinstance(row, dict):
        raise TypeError(f"{where}: expected a JSON object with {_names(_KEYS)}, got {type(row).__name__}.")
    fields = {key: _field(row, key, where, key != "summary" or need_summary) for key in _KEYS}
    identifier = row.get("id", default_id)
    if not isinstance(identifier, str):
        raise TypeError(f"{where}: `id` must be a string, got {type(identifier).__name__}. Put it in quotes.")
    check_characters(identifier, "id", where)
    return Example(**fields, id=identifier, references=_references(row.get("references", []), where))


def _references(values: object, where: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise TypeError(f"{where}: `references` must be a list of strings, got {values!r}.")
    if not all(value.strip() for value in values):
        raise ValueError(f"{where}: `references` has an empty text. Fill it in or delete it.")
    for value in values:
        check_characters(value, "references", where)
    return tuple(values)


def _field(row: dict, key: str, where: str, needed: bool) -> str:
    present = [name for name in (key, _KEYS[key]) if name in row]
    if len(present) == 2:
        raise ValueError(f"{where}: has both `{key}` and `{_KEYS[key]}`, which mean the same. Keep one of them.")
    if not present:
        if not needed:
            return ""
        raise ValueError(f"{where}: no `{key}` (or `{_KEYS[key]}`). Keys found: {_names(row) or 'none'}. Add it.")
    value = row[present[0]]
    if not isinstance(value, str):
        cure = (
            " Write its turns as one text, one line per turn." if isinstance(value, list) and key == "dialogue" else ""
        )
        raise TypeError(f"{where}: `{present[0]}` must be a string, got {type(value).__name__}.{cure}")
    check_characters(value, present[0], where)
    if needed and not value.strip():
        raise ValueError(f"{where}: `{present[0]}` is empty. Fill it in or delete the row.")
    return value


def _object(pairs: list[tuple[str, object]]) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):
        repeated = sorted({repr(key) for key, _ in pairs if sum(other == key for other, _ in pairs) > 1})
        raise ValueError(f"the key {', '.join(repeated)} stands in it more than once")
    return row


def check_characters(text: str, key: str, where: str = "") -> None:
    """Raise ValueError for half of a surrogate pair. JSON can escape one, which no tokenizer and no file takes."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(
            f"{where}{': ' if where else ''}`{key}` has half of a surrogate pair (an escape \\ud800 to \\udfff that "
            "stands alone). Write the whole character, or delete it."
        )


def _names(names: Sequence[str] | dict) -> str:
    return ", ".join(f"`{name}`" for name in names)
