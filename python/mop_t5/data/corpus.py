r"""Read and write corpora: one dialogue and its summary per row, one file per split.

    {"scenario": "taxi", "dialogue": "用户：…\n客服：…", "summary": "…", "id": "optional"}

`task`, `input` and `target` are accepted for `scenario`, `dialogue` and `summary`. `references` is a list of further
right answers beside the summary. Training uses the summary, and scoring uses all of them. A corpus is a folder with
the splits train, valid and test. A split is a file of JSON lines, train.jsonl, possibly with `.gz` behind, a table with
these columns, train.parquet or train.arrow, or a folder `train` that `save_to_disk` of the library `datasets` wrote.
"hub:OWNER/NAME" in place of the folder is a dataset on the hub.

Reading is strict. Every error names its file and row, because a row that is left out without a message changes every
later number. Ids are for people. Rows with the same id are different rows, and only `analyse cases --ids` refuses such
an id.
"""

import gzip
import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from mop_t5.data.arrow_tables import ARROW_SUFFIXES, examples_of_table
from mop_t5.data.dataset_objects import HUB, SPLIT_NAMES, HubSplit, is_hub, is_saved
from mop_t5.data.examples import Example, example_of, quoted
from mop_t5.data.lines import json_value, lines, stem_of
from mop_t5.data.rows import StoredExamples, checksum_of, is_stored, scenarios_of, store_examples
from mop_t5.data.table_files import dataset_at, find_place, table_at
from mop_t5.files import StrPath, checksum, content_to_replace, json_lines, whole_folder

SPLITS = ("train", "valid", "test")
_SUFFIXES = (".jsonl", *ARROW_SUFFIXES)
_CORPUS_FILES = {f"{split}.jsonl{gz}" for split in SPLITS for gz in ("", ".gz")} | {"tasks.yaml", "train.yaml"}
_FORMAT = 1  # of the rows that `stream_split` keeps; a change of their ids or of the files needs another number


def read_examples(path: StrPath, *, need_summary: bool = True) -> list[Example]:
    """Return all rows of a split in order.

    A row without an id gets the id `<file stem>-<line number>`.

    Args:
        path: A file of JSON lines (`.jsonl` or `.jsonl.gz`), a `.parquet` or `.arrow` file, or a folder of
            `save_to_disk`.
        need_summary: True if each row must have a summary. False for generation.

    Raises:
        FileNotFoundError: There is no such file.
        ImportError: A package that reads the file is not installed.
        TypeError: A field is not a string.
        ValueError: A row or the file cannot be read, or the file is empty.
    """
    return list(_examples_in(Path(path), need_summary))


def find_split(corpus: StrPath, split: str) -> Path | HubSplit:
    """Return the place of one split: `<folder>/<split>.jsonl`, for example. The split valid may be called validation.

    Raises:
        FileNotFoundError: There is no such folder or file.
        ValueError: The split is there twice.
    """
    if is_hub(corpus):
        return HubSplit(str(corpus), split)
    folder = Path(corpus)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no corpus folder at {corpus}. A corpus is a folder with {quoted(SPLITS)}, or {HUB}OWNER/NAME."
        )
    place = find_place(folder, SPLIT_NAMES[split], (".jsonl", ".jsonl.gz", *ARROW_SUFFIXES))
    if place is None:
        one = " The folder is a single dataset of save_to_disk. Name it train, and give the folder that holds it."
        raise FileNotFoundError(
            f"{corpus} has no {split} split. Add {split}.jsonl or {split}.jsonl.gz to it (or {split}.parquet or "
            f"{split}.arrow).{one if is_saved(folder) else ''}"
        )
    return place


def splits_in(corpus: StrPath) -> list[str]:
    """Return the splits that a corpus has. Raise the errors of `find_split` for a split that is there twice."""
    present = []
    for split in SPLITS:
        with suppress(FileNotFoundError):
            find_split(corpus, split)
            present.append(split)
    return present


def read_split(corpus: StrPath, split: str) -> list[Example]:
    """Return all rows of one split of a corpus.

    Args:
        corpus: The folder, or "hub:OWNER/NAME[@REVISION][:CONFIG]".
        split: "train", "valid" or "test".

    Raises:
        OSError: The hub cannot be reached. See also `find_split` and `read_examples`.
    """
    return list(_examples_in(find_split(corpus, split)))


def stream_split(corpus: StrPath, split: str, folder: StrPath) -> StoredExamples:
    """Return all rows of one split of a corpus, which stay on the disk.

    The first call reads and checks all rows, and writes them to a file in `folder`. Later calls use the file if the
    content of the split is the same. They read the content once for its checksum.

    Args:
        corpus: The folder, or "hub:OWNER/NAME[@REVISION][:CONFIG]".
        split: "train", "valid" or "test".
        folder: The folder of the rows. Several corpora may share it.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: The rows cannot be written, or the hub cannot be reached. See also `find_split` and `read_examples`.
        ValueError: A row or the file cannot be read, or the split is empty.
    """
    place = find_split(corpus, split)
    dataset = dataset_at(place)
    files = [str(place)] if dataset is None else [file["filename"] for file in dataset.cache_files]
    # a dataset of the library may lie in memory, by a setting of the library
    sums = [checksum(Path(file)) for file in files] or [checksum_of(_examples_in(place))]
    features = None if dataset is None else dataset.features
    key = checksum(f"{part}\n".encode() for part in (_FORMAT, stem_of(place.name, _SUFFIXES), features, *sums))
    path = Path(folder) / f"{split}-{key[:24]}.arrow"
    return StoredExamples(path) if is_stored(path) else store_examples(_examples_in(place), path)


def read_corpus(corpus: StrPath) -> dict[str, list[Example]]:
    """Return the splits train, valid and test of a corpus.

    Args:
        corpus: The folder, or "hub:OWNER/NAME[@REVISION][:CONFIG]".

    Raises:
        FileNotFoundError: A file is missing.
        TypeError: A field is not a string.
        ValueError: A file cannot be read, or valid or test has a scenario that train lacks, which no method could
            learn.
    """
    rows = {split: read_split(corpus, split) for split in SPLITS}
    known = set(scenarios_of(rows["train"]))
    for split in ("valid", "test"):
        unknown = sorted(set(scenarios_of(rows[split])) - known)
        if unknown:
            raise ValueError(
                f"{find_split(corpus, split)} has scenarios that train lacks: {', '.join(unknown)}. "
                "Add training rows for them or take them out."
            )
    return rows


def _examples_in(place: Path | HubSplit, need_summary: bool = True) -> Iterator[Example]:
    """Yield the rows at the place of a split. Raise the errors of `read_examples`."""
    if isinstance(place, Path) and not (place.is_file() or is_saved(place)):
        raise FileNotFoundError(
            f"no corpus file at {place}. Give the path of a .jsonl, .jsonl.gz, .parquet or .arrow file."
        )
    stem, table = stem_of(place.name, _SUFFIXES), table_at(place)
    if table is not None:
        examples = examples_of_table(table, stem, need_summary)
    else:
        assert isinstance(place, Path)
        examples = (
            example_of(json_value(line, where := f"{place}, line {number}"), where, f"{stem}-{number}", need_summary)
            for number, line in lines(place)
            if line.strip()
        )
    first = next(examples, None)
    if first is None:
        raise ValueError(f"{place} holds no examples. Write one row per dialogue, or leave the file out.")
    yield first
    yield from examples


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
