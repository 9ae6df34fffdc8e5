"""Read datasets of the library `datasets`: objects, folders of `save_to_disk`, and names on the hub."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from mop_t5.data.arrow_tables import ArrowTable, check_stream_end, examples_of_table, fields_of, package, unreadable
from mop_t5.data.examples import Example, example_of, quoted
from mop_t5.data.labels import labels_of, named
from mop_t5.files import StrPath, in_a_line

HUB = "hub:"
_STATE = "state.json"  # a folder of save_to_disk has it
SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation"), "test": ("test",)}
_BATCH = 1000  # rows
_BRANCH = "main"  # the revision of a repository if none is named
_NAME = re.compile(rf"{HUB}([^/@:]+/[^/@:]+)(?:@([^:]+))?(?::(.+))?", re.DOTALL)
_FORM = "hub:OWNER/NAME, hub:OWNER/NAME@REVISION or hub:OWNER/NAME@REVISION:CONFIG"


class HubSplit:
    """One split of a dataset on the hub. The library `datasets` keeps its files in its own cache.

    Args:
        corpus: Name of the dataset, "hub:OWNER/NAME[@REVISION][:CONFIG]".
        name: Name of the split.

    Attributes:
        dataset: The split as a `datasets.Dataset`.

    Raises:
        FileNotFoundError: The dataset has no such split.
        ImportError: datasets is not installed.
        OSError: The hub cannot be reached or has no such dataset, and the cache does not hold it.
        ValueError: `corpus` has another form, a folder has its name, or the dataset cannot be read.
    """

    def __init__(self, corpus: str, name: str):
        parts = _NAME.fullmatch(corpus)
        if parts is None:
            raise ValueError(f"corpus must have the form {_FORM}; got {corpus!r}.")
        self.name, self._corpus, (self._repo, self._revision, self._config) = name, corpus, parts.groups()
        if Path(self._repo).exists():
            raise ValueError(
                f"corpus must be {self._repo} without {HUB} for the folder {self._repo} that is here; got {corpus!r}. "
                "The library datasets would read the folder. For the dataset on the hub start the command in another "
                "folder."
            )
        self.dataset = self._load()

    def __str__(self) -> str:
        return self._corpus

    def _load(self) -> Any:
        load = package("datasets").load_dataset_builder
        with self._failure_in_a_sentence():
            builder = load(self._repo, self._config, revision=self._revision)
        if type(builder).__name__ == "Cache":  # the hub did not serve it: these are the newest files of any revision
            builder = self._in_cache(builder)
        with self._failure_in_a_sentence():
            builder.download_and_prepare()
            found = builder.as_dataset()
        possible = [name for name in SPLIT_NAMES[self.name] if name in found]
        if len(possible) != 1:
            raise FileNotFoundError(
                f"{self} has no {self.name} split. Its splits: {', '.join(found)}. Write "
                f"{' or '.join(SPLIT_NAMES[self.name])} to it, or download it and use `mop-t5 corpus convert`."
            )
        return found[possible[0]]

    @contextmanager
    def _failure_in_a_sentence(self) -> Iterator[None]:
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # the library, and those below it, raise nearly every kind of error
            reason = in_a_line(f"{type(error).__name__}: {error}")
            kind = ValueError if isinstance(error, ValueError) else OSError
            raise kind(f"the dataset {self} cannot be loaded ({reason}). Correct it, {_FORM}, or try again.") from error

    def _in_cache(self, newest: Any) -> Any:
        """Return the builder of the commit that is asked for.

        Args:
            newest: The builder of the newest commit in the cache.

        Raises:
            OSError: The cache does not hold this commit, or does not know which commit it is.
        """
        revision = self._revision or _BRANCH
        refs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self._repo, repo_type="dataset") / "refs"
        known = refs / revision  # the library huggingface_hub notes there which commit a revision was
        commit = known.read_text().strip() if known.is_file() else revision
        if commit == newest.hash:
            return newest
        *_, config, version, _ = Path(newest.cache_dir).parts
        if (Path(newest.cache_dir).parent / commit).is_dir():
            return type(newest)(
                repo_id=self._repo, dataset_name=newest.dataset_name, config_name=config, version=version, hash=commit
            )
        raise OSError(
            f"the hub does not serve the dataset {self} now, and the cache does not hold it: its newest commit is "
            f"{newest.hash}. Try again when the hub can be reached, or name a commit that the cache holds."
        )


def is_hub(corpus: object) -> bool:
    """Return whether a corpus is a dataset on the hub. A folder of such a name is written with ./ in front."""
    return isinstance(corpus, str) and corpus.startswith(HUB)


def place_of(corpus: StrPath) -> str:
    """Return how settings name a corpus: by the absolute path of its folder, or by its name on the hub."""
    return str(corpus) if is_hub(corpus) else str(Path(corpus).resolve())


def is_saved(path: Path) -> bool:
    """Return whether a path is a folder that `save_to_disk` of a `datasets.Dataset` wrote."""
    return (path / _STATE).is_file()


def load_saved(path: Path) -> Any:
    """Return the `datasets.Dataset` in a folder of `save_to_disk`. It is not read into memory.

    Raises:
        ImportError: datasets is not installed.
        ValueError: The folder is damaged.
    """
    datasets = package("datasets")
    for file in sorted(path.glob("*.arrow")):
        check_stream_end(file)
    with unreadable(path, others=(ValueError, KeyError, TypeError, OSError)):
        return datasets.load_from_disk(str(path))


def table_of_dataset(dataset: Any, name: str) -> ArrowTable:
    """Return a `datasets.Dataset` as a table.

    Args:
        dataset: The dataset.
        name: Its name, for messages.
    """

    def batches(columns: Any) -> Iterator[Any]:
        arrow = dataset.with_format("arrow")
        with unreadable(name):
            for batch in (arrow if columns is None else arrow.select_columns(list(columns))).iter(_BATCH):
                batch.validate(full=True)
                yield batch

    schema = dataset.features.arrow_schema
    return ArrowTable(name, dict(zip(schema.names, schema.types)), labels_of(dataset.features.to_dict()), batches)


def examples_of(
    dataset: Any, *, scenario: str | None = None, dialogue: str | None = None, summary: str | None = None
) -> list[Example]:
    """Return all rows of a dataset of the library `datasets` in order.

    The columns are those of a corpus in JSON lines: `scenario` or `task`, `dialogue` or `input`, `summary` or `target`,
    and, if the dataset has them, `id` and `references`. A row without an id gets the id `row-<number>`. The names of a
    `ClassLabel` are read in place of its numbers.

    Args:
        dataset: A `Dataset` or an `IterableDataset`, which is one split. An IterableDataset is read once, into memory.
        scenario: Column of the scenario, if it has another name.
        dialogue: Column of the dialogue, if it has another name.
        summary: Column of the summary, if it has another name.

    Raises:
        ImportError: datasets is not installed.
        TypeError: `dataset` is something else, or a field is not a string.
        ValueError: A column is missing, a field is empty, or the dataset has a transform or no rows.
    """
    datasets = package("datasets")
    given = {"scenario": scenario, "dialogue": dialogue, "summary": summary}
    names = {key: column for key, column in given.items() if column is not None}
    if isinstance(dataset, datasets.Dataset):
        if dataset.format["type"] == "custom":
            raise ValueError(
                "dataset has a transform, which is not applied to the rows that are read here. Apply it by "
                "`dataset.map`, or take it away by `dataset.reset_format()`."
            )
        rows = list(examples_of_table(table_of_dataset(dataset, "dataset"), "row", names=names))
    elif isinstance(dataset, datasets.IterableDataset):
        rows = list(_streamed(dataset, names))
    else:
        cure = ""
        if isinstance(dataset, Mapping):
            cure = f" Give one of its splits: {', '.join(map(str, dataset)) or 'it has none'}."
        raise TypeError(f"dataset must be a datasets.Dataset or IterableDataset; got {type(dataset).__name__}.{cure}")
    if not rows:
        raise ValueError("dataset has no rows. Give a split that has some.")
    return rows


def _streamed(dataset: Any, names: Mapping[str, str]) -> Iterator[Example]:
    """Yield the examples of an IterableDataset, which need not know its columns."""
    labels = labels_of(dataset.features.to_dict() if dataset.features else {})
    for number, row in enumerate(dataset.with_format(None), start=1):
        where = f"dataset, row {number}"
        if missing := [column for column in names.values() if column not in row]:
            raise ValueError(f"{where}: no column {quoted(missing)}. Its columns: {quoted(row)}.")
        yield example_of(fields_of(named(row, labels, where), names), where, f"row-{number}")
