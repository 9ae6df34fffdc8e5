"""Read configurations in YAML that make a text-to-text task of the rows of a dataset, such as examples/tasks.

    all:                                 # optional: fields of every task of the file
      training: {max_source: 256}
    tasks:
      rte:
        input: "{task} sentence1: {sentence1} sentence2: {sentence2}"
        target: "{label}"
        labels: {0: entailment, 1: not_entailment}
        metrics: [accuracy]
        split: halve
        epochs: {target: 20}

columns.yaml beside them names the possible columns of a field: {task: {field: [column, ...]}}.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from mop_t5.data.corpus import SPLITS
from mop_t5.data.preparations import PREPARATIONS
from mop_t5.data.tasks import TaskMetrics, check_fields, read_yaml
from mop_t5.data.templates import as_text, fields_of
from mop_t5.files import StrPath

COLUMNS = "columns.yaml"
PUBLISHED = Path(__file__).with_name("published")  # configurations of dialogue corpora, and their columns.yaml
ROLES = ("source", "target")
PROTOCOLS = ("given", "halve", "hold_out", "8:1:1")


@dataclass(frozen=True)
class TaskConfig:
    """Configuration of one task.

    Attributes:
        input: Template of the text to read: fields in braces, `{task}` for the name of the task. `{turns[-1]}` and
            `{turns[:-1]}` are parts of a list, as in Python. A list is joined by ", " if neither turn nor join is set.
        target: Template of the text to learn. If it is one field with a list, the first element is learnt, and all are
            right answers.
        turn: Template of a turn, if a field of input holds a list of turns: fields of a turn, "{0}: {1}" for pairs, or
            "{}" for turns that are texts. Each turn becomes a line.
        turn_labels: Field of a turn -> its values -> the texts to write for them.
        join: Text between the elements of a list. A list in target is then one answer.
        references: Columns with further right answers. A row need not have them.
        merge_repeats: Whether rows of the valid and test splits with the same dialogue become one row. All their
            targets are right answers.
        chinese_words: Whether texts are words with spaces between them. Spaces beside Chinese characters are removed.
        labels: Text for each value of the single field of target. None for the value itself.
        metrics: Metrics as in tasks.yaml. None for ROUGE.
        positive: The label that the metric f1 counts, as in tasks.yaml.
        split: "given" takes all three splits as they are. "halve" makes half of the validation rows the test rows.
            "hold_out" takes 1,000 training rows for validation, and validation for test. "8:1:1" splits one file.
        files: Split -> names of its file without suffix, if they are not the usual names.
        rows: Names of the nested lists that hold the rows, from the outside; see `inner_rows`.
        limit: Number of training rows to keep, drawn at random. 0 for all.
        prepare: Name of a function in preparations.py that changes the fields first.
        every_answer: Whether there is one training row per right answer, instead of one with the first answer.
        training: Fields of `mop-t5 train` for the task.
        epochs: Passes over the training rows by the role of the task, "source" or "target".
    """

    input: str
    target: str
    turn: str | None = None
    turn_labels: dict[str, dict[str, str]] = field(default_factory=dict)
    join: str | None = None
    references: list[str] = field(default_factory=list)
    merge_repeats: bool = False
    chinese_words: bool = False
    labels: dict[str, str] | None = None
    metrics: list[str] | None = None
    positive: str | None = None
    split: str = "given"
    files: dict[str, list[str]] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)
    limit: int = 0
    prepare: str | None = None
    every_answer: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
                raise TypeError(f"{name} must be {_KIND_NAMES[kind]}, got {value!r}.")
        for name in ("input", "target"):
            fields_of(getattr(self, name))
        self._check_turns()
        if self.labels is not None:
            if len(fields_of(self.target)) != 1 or self.target != "{" + fields_of(self.target)[0] + "}":
                raise ValueError(f"target must be one field, such as '{{label}}', to have labels; got {self.target!r}.")
            if not all(isinstance(word, str) and word.strip() for word in self.labels.values()):
                raise TypeError(f"labels must be texts by value; got {self.labels}. Put words such as true in quotes.")
            object.__setattr__(self, "labels", {as_text(value).lower(): word for value, word in self.labels.items()})
        if self.split not in PROTOCOLS:
            raise ValueError(f"split must be one of {', '.join(PROTOCOLS)}, got {self.split!r}.")
        if self.prepare is not None and self.prepare not in PREPARATIONS:
            raise ValueError(f"prepare must be one of {', '.join(PREPARATIONS)}, got {self.prepare!r}.")
        for name, lists in (("files and rows", [*self.files.values(), self.rows]), ("references", [self.references])):
            if not all(isinstance(names, list) and all(isinstance(one, str) for one in names) for names in lists):
                raise TypeError(f"{name} must have lists of names; got {lists}.")
        if not set(self.files) <= set(SPLITS):
            raise ValueError(f"files must be named by split, {', '.join(SPLITS)}; got {', '.join(self.files)}.")
        if self.limit < 0:
            raise ValueError(f"limit must be at least 0, got {self.limit}.")
        if not set(self.epochs) <= set(ROLES) or not all(type(n) is int and n > 0 for n in self.epochs.values()):
            raise ValueError(f"epochs must be numbers above 0 by role, {' or '.join(ROLES)}; got {self.epochs}.")
        if self.scored is None and self.positive is not None:
            raise ValueError("positive is the label that the metric f1 counts, and there are no metrics.")

    def _check_turns(self) -> None:
        named = fields_of("" if self.turn is None else self.turn, unnamed=True)
        if self.turn is not None and not named:
            raise ValueError(f"turn must have a field of a turn in braces, or {{}} for the turn; got {self.turn!r}.")
        if not set(self.turn_labels) <= set(named):
            raise ValueError(f"turn_labels must be named by fields of turn, {named}; got {list(self.turn_labels)}.")
        labels = {}
        for name, texts in self.turn_labels.items():
            if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
                raise TypeError(f"turn_labels must be texts by value; got {texts!r} for {name}. Put words in quotes.")
            labels[name] = {as_text(value): text for value, text in texts.items()}
        object.__setattr__(self, "turn_labels", labels)

    @property
    def scored(self) -> TaskMetrics | None:
        """Entry of the task in tasks.yaml. None for ROUGE."""
        return None if self.metrics is None else TaskMetrics(tuple(self.metrics), self.positive)


def _kind(hint: Any) -> type:
    """Return the class of the values of a field: list for `list[str] | None`."""
    (hint,) = [one for one in get_args(hint) if one is not NoneType] if NoneType in get_args(hint) else [hint]
    return get_origin(hint) or hint


_KINDS = {name: _kind(hint) for name, hint in get_type_hints(TaskConfig).items()}
_KIND_NAMES = {str: "a text in quotes", dict: "a mapping", list: "a list", int: "an integer", bool: "true or false"}
_FIELDS = tuple(_KINDS)


def read_task_configs(path: StrPath) -> dict[str, TaskConfig]:
    """Return the tasks of a YAML file, or of all YAML files of a folder except columns.yaml, by name.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError, ValueError: A field is wrong. The message names the file, the task and the field.
    """
    path = Path(path)
    files = sorted(file for file in path.glob("*.yaml") if file.name != COLUMNS) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path} holds no .yaml file of tasks.")
    found: dict[str, TaskConfig] = {}
    for file in files:
        content = read_yaml(file)
        check_fields(content, str(file), ["tasks"], ["all"])
        shared, tasks = content.get("all") or {}, content["tasks"]
        check_fields(shared, f"{file}, all", (), _FIELDS)
        check_fields(tasks, f"{file}, tasks")
        for name, own in tasks.items():
            where = f"{file}, task {name!r}"
            if name in found:
                raise ValueError(f"{where}: another file has a task of this name. Rename one.")
            check_fields(own, where, (), _FIELDS)
            both = {**shared, **own, "training": {**shared.get("training", {}), **own.get("training", {})}}
            check_fields(both, where, ["input", "target"], _FIELDS)
            try:
                found[name] = TaskConfig(**both)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{where}: {error}") from error
    return found


def published_tasks() -> dict[str, TaskConfig]:
    """Return the configurations of published dialogue corpora that come with the package, by name."""
    return read_task_configs(PUBLISHED)


def read_columns(path: StrPath) -> dict[str, dict[str, list[str]]]:
    """Return task -> field -> possible names of its column, in the order of preference.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError, ValueError: The file is wrong. The message names the file and the task.
    """
    columns = read_yaml(path)
    for task, names in columns.items():
        where = f"{path}, task {task!r}"
        check_fields(names, where)
        for name, candidates in names.items():
            if not isinstance(candidates, list) or not all(isinstance(one, str) for one in candidates):
                raise TypeError(f"{where}: {name} must be a list of columns, got {candidates!r}.")
    return columns
