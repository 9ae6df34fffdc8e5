"""How the rows of a dataset become a text-to-text task: configurations in YAML, such as those of examples/tasks.

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

columns.yaml beside them says by which names the columns of a field go: {task: {field: [column, ...]}}.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from mop_t5.data.corpus import SPLITS
from mop_t5.data.preparations import PREPARATIONS
from mop_t5.data.tasks import TaskMetrics, check_fields, read_yaml
from mop_t5.data.templates import as_text, fields_of

COLUMNS = "columns.yaml"
PUBLISHED = Path(__file__).with_name("published")  # configurations of dialogue corpora, and their columns.yaml
ROLES = ("source", "target")
PROTOCOLS = ("given", "halve", "hold_out", "8:1:1")


@dataclass(frozen=True)
class TaskConfig:
    """One task.

    input: the text that is read: fields in braces, `{task}` for the name of the task. `{turns[-1]}` and `{turns[:-1]}`
        are parts of a list, as in Python. A list is joined by ", " if neither turn nor join says otherwise.
    target: the text that is learnt. Where it is one field that holds a list, the first is learnt and all are right.
    turn: how a turn is written, where a field of input holds a list of turns: a template of the fields of a turn, or
        "{0}: {1}" for pairs, "{}" for turns that are texts. Each turn becomes a line.
    turn_labels: field of a turn -> its values -> the texts that are written in their place.
    join: what is put between the elements of a list. A list in target is then one answer.
    references: columns with further right answers. A row need not have them.
    merge_repeats: rows of the valid and test splits with the same dialogue become one. Their targets are all right.
    chinese_words: texts are words with spaces between them. Those beside Chinese characters are taken out.
    labels: the text for each value of the one field of target; None: the value itself.
    metrics, positive: as in tasks.yaml; None for ROUGE.
    split: "given", all three as they are; "halve", half of the validation rows become the test rows; "hold_out", 1,000
        training rows become validation, and validation becomes test; "8:1:1", shares of one file.
    files: split -> names of its file, without suffix, where they are others than usual.
    rows: the lists that lead to the rows, from the outside, where they lie inside of each other; see `inner_rows`.
    limit: training rows kept, drawn at random. 0: all.
    prepare: name of a function in preparations.py that changes the fields first.
    every_answer: a training row for each right answer, in place of one with the first.
    training: fields of `mop-t5 train` for it.
    epochs: passes over the training rows, by the role of the task: "source" or "target".
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
        for called, lists in (("files and rows", [*self.files.values(), self.rows]), ("references", [self.references])):
            if not all(isinstance(names, list) and all(isinstance(one, str) for one in names) for names in lists):
                raise TypeError(f"{called} must have lists of names; got {lists}.")
        if not set(self.files) <= set(SPLITS):
            raise ValueError(f"files must be named by split, {', '.join(SPLITS)}; got {', '.join(self.files)}.")
        if self.limit < 0:
            raise ValueError(f"limit must be at least 0, got {self.limit}.")
        if not set(self.epochs) <= set(ROLES) or not all(type(n) is int and n > 0 for n in self.epochs.values()):
            raise ValueError(f"epochs must be numbers above 0 by role, {' or '.join(ROLES)}; got {self.epochs}.")
        if self.scored is None and self.positive is not None:
            raise ValueError("positive is the label that the metric f1 is of, and there are no metrics.")

    def _check_turns(self) -> None:
        named = fields_of("" if self.turn is None else self.turn, unnamed=True)
        if self.turn is not None and not named:
            raise ValueError(f"turn must have a field of a turn in braces, or {{}} for the turn; got {self.turn!r}.")
        if not set(self.turn_labels) <= set(named):
            raise ValueError(f"turn_labels must be named by fields of turn, {named}; got {list(self.turn_labels)}.")
        for name, labels in self.turn_labels.items():
            if not isinstance(labels, dict) or not all(isinstance(text, str) for text in labels.values()):
                raise TypeError(f"turn_labels must be texts by value; got {labels!r} for {name}. Put words in quotes.")
        labels = {
            name: {as_text(value): text for value, text in texts.items()} for name, texts in self.turn_labels.items()
        }
        object.__setattr__(self, "turn_labels", labels)

    @property
    def scored(self) -> TaskMetrics | None:
        """What tasks.yaml is to say of it; None for ROUGE."""
        return None if self.metrics is None else TaskMetrics(tuple(self.metrics), self.positive)


_KINDS = {
    "input": str,
    "target": str,
    "turn": str,
    "turn_labels": dict,
    "join": str,
    "references": list,
    "merge_repeats": bool,
    "chinese_words": bool,
    "labels": dict,
    "metrics": list,
    "positive": str,
    "split": str,
    "prepare": str,
    "files": dict,
    "rows": list,
    "limit": int,
    "every_answer": bool,
    "training": dict,
    "epochs": dict,
}
_KIND_NAMES = {str: "a text in quotes", dict: "a mapping", list: "a list", int: "an integer", bool: "true or false"}
_NEEDED = tuple(one.name for one in fields(TaskConfig) if one.default is MISSING and one.default_factory is MISSING)
_POSSIBLE = tuple(one.name for one in fields(TaskConfig) if one.name not in _NEEDED)


def read_task_configs(path: str | Path) -> dict[str, TaskConfig]:
    """The tasks of a YAML file, or of all files of a folder but columns.yaml. Raises ValueError or TypeError that names
    the file, the task and the field."""
    path = Path(path)
    files = sorted(file for file in path.glob("*.yaml") if file.name != COLUMNS) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path} holds no .yaml file of tasks.")
    found: dict[str, TaskConfig] = {}
    for file in files:
        content = read_yaml(file)
        check_fields(content, ("tasks",), ("all",), str(file))
        shared, tasks = content.get("all") or {}, content["tasks"]
        check_fields(shared, (), (*_NEEDED, *_POSSIBLE), f"{file}, all")
        check_fields(tasks, (), tuple(tasks) if isinstance(tasks, dict) else (), f"{file}, tasks")
        for name, own in tasks.items():
            where = f"{file}, task {name!r}"
            if name in found:
                raise ValueError(f"{where}: another file has a task of this name. Rename one.")
            check_fields(own, (), (*_NEEDED, *_POSSIBLE), where)
            both = {**shared, **own, "training": {**shared.get("training", {}), **own.get("training", {})}}
            check_fields(both, _NEEDED, _POSSIBLE, where)
            try:
                found[name] = TaskConfig(**both)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{where}: {error}") from error
    return found


def published_tasks() -> dict[str, TaskConfig]:
    """Return the configurations of published dialogue corpora that come with the package, by name."""
    return read_task_configs(PUBLISHED)


def read_columns(path: str | Path) -> dict[str, dict[str, list[str]]]:
    """Task -> field -> the names that its column may go by, in the order in which they are looked for."""
    columns = read_yaml(path)
    for task, names in columns.items():
        where = f"{path}, task {task!r}"
        check_fields(names, (), tuple(names) if isinstance(names, dict) else (), where)
        for name, candidates in names.items():
            if not isinstance(candidates, list) or not all(isinstance(one, str) for one in candidates):
                raise TypeError(f"{where}: {name} must be a list of columns, got {candidates!r}.")
    return columns
