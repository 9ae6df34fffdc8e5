"""Convert the files of a dataset to the splits of a corpus, as a `TaskConfig` specifies."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from mop_t5.checks import errors_at
from mop_t5.data.corpus import SPLITS
from mop_t5.data.dataset_objects import HubSplit
from mop_t5.data.examples import Example, check_characters
from mop_t5.data.labels import label_key
from mop_t5.data.lines import stem_of
from mop_t5.data.preparations import PREPARATIONS
from mop_t5.data.table_files import SUFFIXES, dataset_files, inner_rows, read_table, value_at
from mop_t5.data.task_configs import TaskConfig
from mop_t5.data.templates import as_text, as_turns, fields_of, filled, suggested_turn, turns_in, turns_of
from mop_t5.files import StrPath

HELD_OUT = 1000  # training rows that become validation rows in the protocol of ATTEMPT
_SHOWN = 20  # largest number of columns in a message
# Chinese characters, and the punctuation and wide forms that stand between them without a space
_CHINESE = (
    "\u2014\u2018-\u201d\u2026\u3000-\u303f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
)
_SPACE_BESIDE_CHINESE = re.compile(f"(?<=[{_CHINESE}])[ \\t]+|[ \\t]+(?=[{_CHINESE}])")


@dataclass
class Converter:
    """Converter of the files of one task.

    Attributes:
        config: Configuration of the task.
        scenario: Scenario of the rows: the name of the task, or a template.
        columns: Field -> possible names of its column. A field without an entry is a column of the same name. Dots lead
            into an object (`answers.text`).
        header: Names of the columns, for files without a line of names.
        skip: True if rows that cannot be converted are left out. If not, the first such row raises its error.
        skipped: Place and reason of each row that was left out.
        unseen: Columns of `config.references` that no row has had so far.
    """

    config: TaskConfig
    scenario: str
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    header: Sequence[str] | None = None
    skip: bool = False
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        fields_of(self.scenario)  # raises if the template is wrong
        self.unseen = set(self.config.references)

    def splits(self, source: StrPath, seed: int = 42) -> dict[str, list[Example]]:
        """Return the splits that `config.split` makes of the files of a dataset.

        Rows are drawn by `torch.randperm` and keep their order.

        Args:
            source: See `dataset_files`.
            seed: Seed of the draws.

        Raises:
            FileNotFoundError: A file is missing.
            TypeError, ValueError: A row cannot be converted (the message has file and line), or a split is empty.
        """
        config = self.config
        files = dataset_files(source, config.split, config.files)
        rows = {split: self.rows(path) for split, path in files.items()}
        if config.merge_repeats:
            rows |= {split: _merged(rows[split]) for split in ("valid", "test") if split in rows}
        train, valid = rows.get("train", []), rows.get("valid", [])
        if config.split == "halve":
            rows["valid"], rows["test"] = _drawn(valid, len(valid) // 2, seed)
        elif config.split == "hold_out":
            if len(train) <= HELD_OUT:
                raise ValueError(f"{source} has {len(train)} training rows; split 'hold_out' takes {HELD_OUT} of them.")
            rows["test"] = valid
            rows["valid"], rows["train"] = _drawn(train, HELD_OUT, seed)
        elif config.split == "8:1:1":
            rows["test"], rest = _drawn(train, len(train) // 10, seed)
            rows["valid"], rows["train"] = _drawn(rest, len(train) // 10, seed)
        if config.limit:
            rows["train"], _ = _drawn(rows["train"], config.limit, seed)
        if config.every_answer:
            rows["train"] = [
                replace(one, summary=gold, references=(), id=f"{one.id}-{number}")
                for one in rows["train"]
                for number, gold in enumerate(one.golds, start=1)
            ]
        empty = [split for split, examples in rows.items() if not examples]
        if empty:
            left_out = f" ({len(self.skipped)} were left out: {self.skipped[0][1]})" if self.skipped else ""
            raise ValueError(
                f"{source} gives no rows for {', '.join(empty)}{left_out}. Add some, or choose another split."
            )
        return {split: rows[split] for split in SPLITS if split in rows}

    def rows(self, path: Path | HubSplit) -> list[Example]:
        """Return the converted rows of a file or dataset in order. Raise the errors of `read_table` and `example`."""
        outer_rows = read_table(path, self.header, self._bad_row)
        table = ((where, row) for where, outer in outer_rows for row in inner_rows(outer, self.config.rows))
        examples, stem = [], stem_of(path.name, SUFFIXES)
        for number, (where, row) in enumerate(table, start=1):
            try:
                examples.append(self.example(row, where, f"{stem}-{number}"))
            except (ValueError, TypeError) as error:
                self._bad_row(where, error)
        return examples

    def _bad_row(self, where: str, error: Exception) -> None:
        if not self.skip:
            raise error
        self.skipped.append((where, str(error)))

    def example(self, row: Mapping[str, object], where: str, number: str) -> Example:
        """Return the example of one row.

        Args:
            row: The row.
            where: Place of the row, for messages.
            number: End of the id of the example.

        Raises:
            TypeError, ValueError: The row cannot be converted.
        """
        config = self.config
        with errors_at(where):
            needed = [*fields_of(self.scenario), *fields_of(config.input), *fields_of(config.target)]
            values: dict[str, object] = {} if fields_of(self.scenario) else {"task": self.scenario}
            if config.prepare is not None:
                prepare = PREPARATIONS[config.prepare]
                read = [*inspect.signature(prepare).parameters]
                given = [self._text(name, self._value(row, name)) for name in read]
                with errors_at(config.prepare):
                    values[read[0]] = prepare(*given)
            values |= {name: self._value(row, name) for name in needed if name not in values}
            scenario = filled(self.scenario, lambda name: self._text(name, values[name])).strip()
            inputs = self._turns({name: values[name] for name in fields_of(config.input)})
            source = filled(config.input, lambda name: self._input(name, inputs[name])).strip()
            target, *others = self._answers(values, row)
            for name, text in {"scenario": scenario, "input": source, "target": target}.items():
                if not text:
                    raise ValueError(f"{name} is empty. Fill its columns in, or delete the row.")
                check_characters(text, name)
        return Example(scenario, source, target, f"{scenario}-{number}", tuple(others))

    def _turns(self, values: Mapping[str, object]) -> dict[str, object]:
        """Return the fields of the input. A field that holds turns becomes a list.

        Raises:
            TypeError: The fields do not fit `config.turn`, or lists do not show how their elements belong together.
        """
        config, called = self.config, " and ".join(map(self._called, values))
        if config.turn is not None and config.input in {f"{{{name}}}" for name in values}:
            values = {name: turns_in(value) for name, value in values.items()}
        lists = {name: turns for name, value in values.items() if (turns := turns_of(value)) is not None}
        if config.turn is not None and not lists:
            for name, value in values.items():
                self._text(name, value)  # raises if the value is not even a text
            raise TypeError(f"{called} holds no list of turns, but `turn` says how each is written. Leave `turn` out.")
        parents = [name.rpartition(".")[0] for name in lists]
        of_one = [parent for parent in parents if parent and parents.count(parent) > 1]
        if of_one:
            raise TypeError(
                f"{called} hold a list for each field of the turns in {of_one[0]}. Write '{{{of_one[0]}}}' in their "
                f"place, and say how each turn is written by --turn."
            )
        if config.turn is None and config.join is None and len(lists) > 1 and len({*map(len, lists.values())}) == 1:
            raise TypeError(
                f"{' and '.join(map(self._called, lists))} hold lists of one length. If these belong together turn by "
                "turn, make one list of objects of them. If not, say what is put between the elements by --join."
            )
        return {**values, **lists}

    def _input(self, name: str, value: object) -> str:
        """Return the text of a field of the input. With `config.turn` a list of turns becomes lines."""
        config = self.config
        if not isinstance(value, list):
            return self._text(name, value)
        if config.turn is not None:
            try:
                return as_turns(value, config.turn, config.turn_labels, self._plain)
            except (ValueError, TypeError) as error:
                raise type(error)(f"{self._called(name)} {error}. Correct the row, or `turn`.") from error
        if any(value and all(isinstance(one, kind) for one in value) for kind in (Mapping, list)):
            is_list = isinstance(value[0], list)
            content = "lists" if is_list else f"objects with the fields {', '.join(map(str, value[0]))}"
            raise TypeError(
                f"{self._called(name)} holds a list of {content}. If these are turns, say how each is written: --turn "
                f"'{suggested_turn(value)}'."
            )
        if config.join is None and config.input == f"{{{name}}}":
            raise TypeError(
                f"{self._called(name)} holds a list. If these are turns, write one line per turn by --turn '{{}}'. If "
                "not, say what is put between its elements by --join."
            )
        return self._text(name, value)

    def _answers(self, values: Mapping[str, object], row: Mapping[str, object]) -> list[str]:
        """Return the target and the other right answers, each once."""
        config = self.config
        first, *_ = [*fields_of(config.target), "target"]
        if config.labels is not None:
            values = {**values, first: label_key(values[first], config.labels)}
        value = values[first] if config.target == f"{{{first}}}" else None
        if isinstance(value, list) and config.join is None:
            if not value:
                raise ValueError(f"{self._called(first)} is an empty list; a row needs an answer.")
            answers = [self._text(first, one, join=None) for one in value]
        else:
            answers = [filled(config.target, lambda name: self._text(name, values[name]))]
        for name in config.references:
            found = label_key(value_at(row, name), config.labels or {})
            if found is not None:
                self.unseen.discard(name)
                texts = [self._text(name, one, join=None) for one in (found if isinstance(found, list) else [found])]
                answers += filter(str.strip, texts)
        answers = [text.strip() for text in answers]
        if config.labels is not None:
            for text in answers:
                if text.lower() not in config.labels:
                    raise ValueError(
                        f"{self._called(first)} is {text!r}, which is none of the labels {', '.join(config.labels)}. "
                        "Add it to labels, or take a split that is labelled."
                    )
            answers = [config.labels[text.lower()] for text in answers]
        if "" in answers[1:]:
            raise ValueError(f"{self._called(first)} has an empty answer. Fill it in, or delete it.")
        check_characters("".join(answers), "target")
        return list(dict.fromkeys(answers))

    def _text(self, name: str, value: object, join: str | None = ", ") -> str:
        """Return the text of a value.

        Args:
            name: Name of the field, for messages.
            value: The value.
            join: Text between the elements of a list, if `config.join` is not set. None if a list is not allowed.
        """
        if join is not None and self.config.join is not None:
            join = self.config.join
        try:
            return self._plain(value, join)
        except TypeError as error:
            raise TypeError(f"{self._called(name)} {error}. Name a column of texts, or delete the row.") from error

    def _plain(self, value: object, join: str | None = None) -> str:
        text = as_text(value, join)
        return without_spaces(text) if self.config.chinese_words else text

    def _value(self, row: Mapping[str, object], name: str) -> object:
        for column in self._names(name):
            if (value := value_at(row, column)) is not None:
                return value
        empty = [column for column in self._names(name) if column in row]
        if empty:
            raise ValueError(f"no value for {name!r}: {empty[0]} holds null. Fill it in, or delete the row.")
        more = f" and {len(row) - _SHOWN} more" if len(row) > _SHOWN else ""
        raise ValueError(
            f"no value for {name!r} (column {self._called(name)}). The columns are "
            f"{', '.join(map(str, list(row)[:_SHOWN]))}{more}."
        )

    def _called(self, name: str) -> str:
        return " or ".join(self._names(name))

    def _names(self, name: str) -> Sequence[str]:
        """Return the possible columns of a field. Each column ends with the part of a list that the field names."""
        base, bracket, part = name.partition("[")
        return self.columns.get(name, [column + bracket + part for column in self.columns.get(base, [base])])


def without_spaces(text: str) -> str:
    """Return a text of separated words without the spaces beside Chinese characters."""
    return _SPACE_BESIDE_CHINESE.sub("", text)


def _drawn(rows: list[Example], count: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Return `count` rows drawn at random, and all other rows, both in order."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    return [rows[i] for i in sorted(order[:count])], [rows[i] for i in sorted(order[count:])]


def _merged(rows: list[Example]) -> list[Example]:
    """Merge rows of the same dialogue and scenario into the first of them, which gets all answers."""
    found: dict[tuple[str, str], Example] = {}
    for row in rows:
        first = found.setdefault((row.scenario, row.dialogue), row)
        golds = dict.fromkeys((*first.golds, *row.golds))
        found[row.scenario, row.dialogue] = replace(first, references=tuple(golds)[1:])
    return list(found.values())
