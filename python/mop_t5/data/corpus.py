r"""Read and write corpora: JSON lines, one dialogue and its summary per line, one file per split.

    {"scenario": "taxi", "dialogue": "用户：…\n客服：…", "summary": "…", "id": "optional"}

`task`, `input` and `target` are accepted for `scenario`, `dialogue` and `summary`. `references` is a list of further
right answers beside the summary. Training uses the summary, and scoring uses all of them. A corpus is a folder with
train.jsonl, valid.jsonl and test.jsonl, each possibly with `.gz` behind.

Reading is strict. Every error names its file and line, because a row that is left out without a message changes every
later number. Ids are for people. Rows with the same id are different rows, and only `analyse cases --ids` refuses such
an id.
"""

import gzip
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mop_t5.checks import has_half_pair
from mop_t5.data.lines import find_file, json_value, lines, stem_of
from mop_t5.files import StrPath, checksum, content_to_replace, json_lines, whole_folder

SPLITS = ("train", "valid", "test")
_CORPUS_FILES = {f"{split}.jsonl{gz}" for split in SPLITS for gz in ("", ".gz")} | {"tasks.yaml", "train.yaml"}
_KEYS = {"scenario": "task", "dialogue": "input", "summary": "target"}


@dataclass(frozen=True)
class Example:
    """One dialogue of one scenario.

    Attributes:
        summary: The text to learn. Empty only in a row that was read for generation.
        references: Further right answers.
    """

    scenario: str
    dialogue: str
    summary: str
    id: str
    references: tuple[str, ...] = ()

    @property
    def golds(self) -> tuple[str, ...]:
        """All right answers: the summary and the references."""
        return (self.summary, *self.references)

    def row(self) -> dict[str, Any]:
        """Return the example as a row of a file. A row without references has no such key."""
        return {name: value for name, value in asdict(self).items() if value != ()}


def read_examples(path: StrPath, *, need_summary: bool = True) -> list[Example]:
    """Return all rows of one `.jsonl` or `.jsonl.gz` file in order.

    A row without an id gets the id `<file stem>-<line number>`.

    Args:
        path: The file.
        need_summary: True if each row must have a summary. False for generation.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: A field is not a string.
        ValueError: A row or the file cannot be read, or the file is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no corpus file at {path}. Give the path of a .jsonl or .jsonl.gz file.")
    stem = stem_of(path)
    examples = [
        example_of(json_value(line, where := f"{path}, line {number}"), where, f"{stem}-{number}", need_summary)
        for number, line in lines(path)
        if line.strip()
    ]
    if not examples:
        raise ValueError(f"{path} holds no examples. Write one JSON object per line, or leave the file out.")
    return examples


def find_split(folder: StrPath, split: str) -> Path:
    """Return the file of one split: `<folder>/<split>.jsonl` or `.jsonl.gz`.

    Raises:
        FileNotFoundError: There is no such folder or file.
        ValueError: Both files exist.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no corpus folder at {folder}. A corpus is a folder with {_names(SPLITS)}.")
    found = find_file(folder, [split], [".jsonl"])
    if found is None:
        raise FileNotFoundError(f"{folder} has no {split} split. Add {split}.jsonl or {split}.jsonl.gz to it.")
    return found


def read_split(folder: StrPath, split: str) -> list[Example]:
    """Return all rows of one split of a corpus folder. Raise the errors of `find_split` and `read_examples`."""
    return read_examples(find_split(folder, split))


def read_corpus(folder: StrPath) -> dict[str, list[Example]]:
    """Return the splits train, valid and test of a corpus folder.

    Raises:
        FileNotFoundError: A file is missing.
        TypeError: A field is not a string.
        ValueError: A file cannot be read, or valid or test has a scenario that train lacks, which no method could
            learn.
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


def write_examples(path: StrPath, examples: Iterable[Example]) -> None:
    """Write rows that `read_examples` reads back equal. Use gzip if the name ends in `.gz`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json_lines(example.row() for example in examples)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_corpus(
    folder: StrPath,
    splits: Mapping[str, Iterable[Example]],
    *,
    files: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a corpus folder. An error leaves all of the corpus or nothing of it.

    Args:
        folder: The folder to make.
        splits: The rows of each split by its name.
        files: Texts of further files by file name.
        overwrite: True if a corpus in the folder is replaced.

    Raises:
        FileExistsError: The folder has content, and `overwrite` is false or some content is not part of a corpus.
        ValueError: Two different rows have the same id.
    """
    splits = {split: list(examples) for split, examples in splits.items()}
    rows: dict[str, Example] = {}
    for example in itertools.chain.from_iterable(splits.values()):
        if rows.setdefault(example.id, example) != example:
            raise ValueError(f"two rows have the id {example.id!r}. Give the files of the splits other names.")
    strange = [name for name in content_to_replace(folder, overwrite) if name not in _CORPUS_FILES]
    if strange:
        raise FileExistsError(f"{folder} holds {', '.join(strange)}, so it is not just a corpus. Empty it yourself.")
    with whole_folder(folder, "the corpus") as writing:
        for split, examples in splits.items():
            write_examples(writing / f"{split}.jsonl", examples)
        for name, text in (files or {}).items():
            (writing / name).write_text(text, encoding="utf-8")


def scenarios_of(examples: Iterable[Example]) -> list[str]:
    """Return the distinct scenarios, sorted. Therefore scenario ids do not depend on the order of the rows."""
    return sorted({example.scenario for example in examples})


def checksum_of(examples: Iterable[Example]) -> str:
    """Return a checksum of scenario, dialogue, summary and references of rows in their order.

    Neither the format of the file nor the ids count, because ids are for people.
    """
    rows = ([e.scenario, e.dialogue, e.summary, *e.references] for e in examples)
    return checksum("\n".join(map(json.dumps, rows)).encode())


def of_scenarios(examples: Sequence[Example], scenarios: Sequence[str] | None) -> list[Example]:
    """Return the rows of some scenarios.

    Args:
        examples: The rows.
        scenarios: Names of the scenarios. None for all rows.

    Raises:
        ValueError: A scenario has no row.
    """
    missing = sorted(set(scenarios or ()) - set(scenarios_of(examples)))
    if missing:
        raise ValueError(
            f"scenarios names {', '.join(missing)}, which have no rows; scenarios with rows are "
            f"{', '.join(scenarios_of(examples))}."
        )
    return [example for example in examples if scenarios is None or example.scenario in scenarios]


def example_of(row: object, where: str, default_id: str, need_summary: bool = True) -> Example:
    """Return the example that a row of JSON describes.

    Args:
        row: The value of the JSON text.
        where: Place of the row, for messages.
        default_id: Id of a row without an id.
        need_summary: True if the row must have a summary.

    Raises:
        TypeError: The row is no object, or a field has a wrong type.
        ValueError: A field is missing, empty or given twice.
    """
    if not isinstance(row, dict):
        raise TypeError(f"{where}: expected a JSON object with {_names(_KEYS)}, got {type(row).__name__}.")
    fields = {key: _field(row, key, where, key != "summary" or need_summary) for key in _KEYS}
    identifier, references = row.get("id", default_id), row.get("references", [])
    if not isinstance(identifier, str):
        raise TypeError(f"{where}: `id` must be a string, got {type(identifier).__name__}. Put it in quotes.")
    if not isinstance(references, list) or not all(isinstance(text, str) for text in references):
        raise TypeError(f"{where}: `references` must be a list of strings, got {references!r}.")
    if not all(map(str.strip, references)):
        raise ValueError(f"{where}: `references` has an empty text. Fill it in or delete it.")
    for key, texts in {"id": [identifier], "references": references}.items():
        check_characters("".join(texts), key, where)
    return Example(**fields, id=identifier, references=tuple(references))


def _field(row: dict[str, object], key: str, where: str, needed: bool) -> str:
    present = [name for name in (key, _KEYS[key]) if name in row]
    if len(present) == 2:
        raise ValueError(f"{where}: has both `{key}` and `{_KEYS[key]}`, which mean the same. Keep one of them.")
    if not (present or needed):
        return ""
    if not present:
        raise ValueError(f"{where}: no `{key}` (or `{_KEYS[key]}`). Keys found: {_names(row) or 'none'}. Add it.")
    value = row[present[0]]
    if not isinstance(value, str):
        is_turns = isinstance(value, list) and key == "dialogue"
        cure = " Write its turns as one text, one line per turn." if is_turns else ""
        raise TypeError(f"{where}: `{present[0]}` must be a string, got {type(value).__name__}.{cure}")
    check_characters(value, present[0], where)
    if needed and not value.strip():
        raise ValueError(f"{where}: `{present[0]}` is empty. Fill it in or delete the row.")
    return value


def check_characters(text: str, key: str, where: str = "") -> None:
    """Check that a text has no half of a surrogate pair. JSON can escape a half, but no tokenizer or file takes it.

    Args:
        text: The text.
        key: Name of the field, for messages.
        where: Place of the row, for messages.

    Raises:
        ValueError: The text has a half.
    """
    if has_half_pair(text):
        raise ValueError(
            f"{where}{': ' if where else ''}`{key}` has half of a surrogate pair (an escape \\ud800 to \\udfff that "
            "stands alone). Write the whole character, or delete it."
        )


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
