"""The rows of a split, in memory or on the disk: their scenarios, their checksum, and the rows of some scenarios.

A corpus that is larger than the memory lies in an Arrow file, which is mapped into memory: a row is read when it is
asked for. Only the scenario of each row is kept, 4 bytes per row. So mixing, batches, resume and checksums are the same
as for rows in memory.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast, overload

import numpy as np

from mop_t5.data.arrow_tables import package, unreadable
from mop_t5.data.examples import Example
from mop_t5.files import StrPath, checksum, damage_in_a_sentence, failure_in_a_sentence, new_file, read_json

_BATCH = 1000  # rows of a batch in the file
_CURE = "Delete this file and the file beside it. They are made again."


class StoredExamples(Sequence[Example]):
    """The rows of a split in a file that `store_examples` wrote. A row is read when it is asked for.

    Args:
        path: The file.
        rows: Numbers of the rows in the file that this object holds. None for all rows.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: The file is damaged.
    """

    def __init__(self, path: StrPath, rows: "np.ndarray[Any, np.dtype[np.int64]] | None" = None):
        self.path, self._rows = Path(path), rows
        description = read_json(_description(self.path), _CURE)
        with unreadable(self.path, _CURE):
            pyarrow = package("pyarrow")
            self._file = pyarrow.ipc.open_file(pyarrow.memory_map(str(self.path)))
            batches = range(self._file.num_record_batches)
            numbers = [self._file.get_batch(number).column(0).to_numpy() for number in batches]
        with damage_in_a_sentence(self.path, _CURE):
            self._names: list[str] = description["scenarios"]
            self._sum: str = description["sha256"]
            stored = np.concatenate(numbers)
            if len(stored) != description["rows"] or any(len(one) != _BATCH for one in numbers[:-1]):
                raise ValueError(f"{len(stored)} rows in place of {description['rows']}")
            if stored.min() < 0 or stored.max() >= len(self._names):
                raise ValueError(f"a row has a scenario that is none of {self._names}")
        self._numbers = stored if rows is None else stored[rows]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self._rows)  # a worker of a DataLoader opens the file itself

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # raises IndexError
        row = place if self._rows is None else int(self._rows[place])
        return self._read(self._file.get_batch(row // _BATCH), row % _BATCH)

    def __iter__(self) -> Iterator[Example]:
        rows = range(len(self)) if self._rows is None else self._rows.tolist()
        for number, of_batch in itertools.groupby(rows, lambda row: row // _BATCH):
            batch = self._file.get_batch(number)
            yield from (self._read(batch, row % _BATCH) for row in of_batch)

    def _read(self, batch: Any, place: int) -> Example:
        number, dialogue, summary, identifier, references = (column[place].as_py() for column in batch.columns)
        return Example(self._names[number], dialogue, summary, identifier, tuple(references))

    @cached_property
    def scenarios(self) -> list[str]:
        """The distinct scenarios, sorted."""
        return sorted(self._names[number] for number in np.unique(self._numbers))

    @cached_property
    def checksum(self) -> str:
        """The checksum of the rows, as `checksum_of` gives it. It is stored beside the file."""
        return self._sum if self._rows is None else checksum_of(iter(self))

    def of_scenarios(self, scenarios: Sequence[str]) -> "StoredExamples":
        """Return the rows of some scenarios."""
        chosen = np.isin(self._numbers, [n for n, name in enumerate(self._names) if name in scenarios])
        if chosen.all():
            return self
        return StoredExamples(self.path, np.flatnonzero(chosen) if self._rows is None else self._rows[chosen])

    def positions(self, scenarios: Sequence[str]) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """Return the position of every row's scenario in `scenarios`. -1 for a scenario that is not in it."""
        known = {name: position for position, name in enumerate(scenarios)}
        return np.array([known.get(name, -1) for name in self._names], np.int64)[self._numbers]


def store_examples(examples: Iterable[Example], path: StrPath) -> StoredExamples:
    """Write rows to a file one after another, and return them. The memory holds 1,000 rows at a time.

    A second file NAME.json has the number of rows, the scenarios and the checksum. It is written last: its presence
    means that both files are complete.

    Args:
        examples: The rows.
        path: The file. It is replaced if it exists.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: The file cannot be written.
        ValueError: There are no rows.
    """
    pyarrow, path = package("pyarrow"), Path(path)
    text = pyarrow.large_string()
    columns = {"scenario": pyarrow.int32(), "dialogue": text, "summary": text, "id": text}
    schema = pyarrow.schema(columns | {"references": pyarrow.large_list(text)})
    names: dict[str, int] = {}
    count = 0
    unread: list[OSError] = []

    def read() -> Iterator[Example]:
        try:
            yield from examples
        except OSError as error:
            unread.append(error)
            raise

    def written(writer: Any) -> Iterator[Example]:
        nonlocal count
        reading = read()
        while rows := list(itertools.islice(reading, _BATCH)):
            numbers = [names.setdefault(row.scenario, len(names)) for row in rows]
            texts = [[getattr(row, column) for row in rows] for column in schema.names[1:]]
            writer.write_batch(pyarrow.record_batch([numbers, *texts], schema=schema))
            count += len(rows)
            yield from rows

    try:
        with failure_in_a_sentence("the rows of the corpus", path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(path) as file:
                with pyarrow.ipc.new_file(file, schema) as writer:
                    digest = checksum_of(written(writer))
                if not count:
                    raise ValueError(f"there are no rows to write to {path}.")
            description = {"rows": count, "scenarios": list(names), "sha256": digest}
            with new_file(_description(path)) as file:
                file.write((json.dumps(description, ensure_ascii=False, indent=2) + "\n").encode())
    except OSError:
        if unread:  # the rows could not be read, which is another sentence
            raise unread[0] from None
        raise
    return StoredExamples(path)


def is_stored(path: Path) -> bool:
    """Return whether a file and its description are complete."""
    return path.is_file() and _description(path).is_file()


def _description(path: Path) -> Path:
    return path.with_suffix(".json")


def scenarios_of(examples: Iterable[Example]) -> list[str]:
    """Return the distinct scenarios, sorted. Therefore scenario ids do not depend on the order of the rows."""
    if isinstance(examples, StoredExamples):
        return examples.scenarios
    return sorted({example.scenario for example in examples})


def checksum_of(examples: Iterable[Example]) -> str:
    """Return a checksum of scenario, dialogue, summary and references of rows in their order.

    Neither the format of the file nor the ids count, because ids are for people.
    """
    if isinstance(examples, StoredExamples):
        return examples.checksum
    rows = ([e.scenario, e.dialogue, e.summary, *e.references] for e in examples)
    return checksum((("\n" if number else "") + json.dumps(row)).encode() for number, row in enumerate(rows))


@overload
def of_scenarios(examples: StoredExamples, scenarios: Sequence[str] | None) -> StoredExamples: ...  # type: ignore[overload-overlap]
@overload
def of_scenarios(examples: Sequence[Example], scenarios: Sequence[str] | None) -> list[Example]: ...
def of_scenarios(examples: Sequence[Example], scenarios: Sequence[str] | None) -> Sequence[Example]:
    """Return the rows of some scenarios: a list, or StoredExamples of StoredExamples.

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
    if isinstance(examples, StoredExamples):
        return examples if scenarios is None else examples.of_scenarios(scenarios)
    return [example for example in examples if scenarios is None or example.scenario in scenarios]


def scenario_ids_of(examples: Sequence[Example], scenarios: Sequence[str]) -> Sequence[int]:
    """Return the position of every example's scenario in `scenarios`. An array of int64 for StoredExamples.

    Raises:
        ValueError: A scenario is not in `scenarios`.
    """
    check_scenarios(examples, scenarios)
    if isinstance(examples, StoredExamples):
        return cast(Sequence[int], examples.positions(scenarios))
    position = {name: i for i, name in enumerate(scenarios)}
    return [position[example.scenario] for example in examples]


def check_scenarios(examples: Sequence[Example], scenarios: Sequence[str]) -> None:
    """Raise ValueError if an example has a scenario that is not in `scenarios`."""
    if unknown := set(scenarios_of(examples)) - set(scenarios):
        example = next(example for example in examples if example.scenario in unknown)
        raise ValueError(
            f"example {example.id!r} is of scenario {example.scenario!r}; known are {', '.join(scenarios)}. "
            "Train with this scenario in the corpus, or take the row out."
        )
