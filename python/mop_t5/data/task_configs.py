"""Read YAML configurations of tasks. A configuration describes how rows of a dataset become texts; see examples/tasks.

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

columns.yaml beside the configurations names the possible columns of a field: {task: {field: [column, ...]}}.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from mop_t5.checks import at_least, check_names, check_types, errors_at, one_of
from mop_t5.data.corpus import SPLITS
from mop_t5.data.preparations import PREPARATIONS
from mop_t5.data.table_files import PROTOCOLS
from mop_t5.data.tasks import IN_QUOTES, TaskMetrics, check_fields, read_yaml
from mop_t5.data.templates import as_text, fields_of
from mop_t5.files import StrPath

COLUMNS = "columns.yaml"
PUBLISHED = Path(__file__).with_name("published")  # configurations of dialogue corpora, and their columns.yaml
ROLES = ("source", "target")


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
        merge_repeats: True if rows of the valid and test splits with the same dialogue become one row. All targets of
            these rows are right answers.
        chinese_words: True if texts are words with spaces between them. Spaces beside Chinese characters are removed.
        labels: Value of the single field of target -> the text to learn for it. None to learn the value itself.
        metrics: Metrics as in tasks.yaml. None for ROUGE.
        positive: The label that the metric f1 counts, as in tasks.yaml.
        split: "given" takes all three splits as they are. "halve" makes half of the validation rows the test rows.
            "hold_out" takes 1,000 training rows for validation, and validation for test. "8:1:1" splits one file.
        files: Split -> names of its file without suffix, if they are not the usual names.
        rows: Names of the nested lists that hold the rows, from the outside; see `inner_rows`.
        limit: Number of training rows to keep, drawn at random. 0 for all.
        prepare: Name of a function in preparations.py that changes the fields first.
        every_answer: True if each right answer has a training row. If not, only the first answer has one.
        training: Fields of `mop-t5 train` for the task.
        epochs: Role of the task, "source" or "target" -> number of passes over the training rows.
    """

    input: str
    target: str
    turn: str | None = None
    turn_labels: dict[str, dict[Any, str]] = field(default_factory=dict)
    join: str | None = None
    references: list[str] = field(default_factory=list)
    merge_repeats: bool = False
    chinese_words: bool = False
    labels: dict[Any, str] | None = None
    metrics: list[str] | None = None
    positive: str | None = None
    split: Annotated[str, one_of(*PROTOCOLS)] = "given"
    files: dict[str, list[str]] = field(default_factory=dict)
    rows: list[str] = field(default_factory=list)
    limit: Annotated[int, at_least(0)] = 0
    prepare: Annotated[str | None, one_of(None, *PREPARATIONS)] = None
    every_answer: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)

    def __post_init__(self):
        check_types(self, hint=IN_QUOTES)
        fields_of(self.input)
        target, in_turn = fields_of(self.target), fields_of(self.turn or "", unnamed=True)
        if self.turn is not None and not in_turn:
            raise ValueError(f"turn must have a field of a turn in braces, or {{}} for the turn; got {self.turn!r}.")
        if not set(self.turn_labels) <= set(in_turn):
            raise ValueError(f"turn_labels must be named by fields of turn, {in_turn}; got {list(self.turn_labels)}.")
        turn_labels = {
            name: {as_text(v): text for v, text in texts.items()} for name, texts in self.turn_labels.items()
        }
        object.__setattr__(self, "turn_labels", turn_labels)
        if self.labels is not None:
            if self.target not in {f"{{{name}}}" for name in target}:
                raise ValueError(f"target must be one field, such as '{{label}}', to have labels; got {self.target!r}.")
            if not all(map(str.strip, self.labels.values())):
                raise ValueError(f"labels must have text in them; got {self.labels}.")
            object.__setattr__(self, "labels", {as_text(value).lower(): word for value, word in self.labels.items()})
        if not set(self.files) <= set(SPLITS):
            raise ValueError(f"files must be named by split, {', '.join(SPLITS)}; got {', '.join(self.files)}.")
        if not set(self.epochs) <= set(ROLES) or min(self.epochs.values(), default=1) < 1:
            raise ValueError(f"epochs must be numbers above 0 by role, {' or '.join(ROLES)}; got {self.epochs}.")
        if self.scored is None and self.positive is not None:
            raise ValueError("positive is the label that the metric f1 counts, and there are no metrics.")

    @property
    def scored(self) -> TaskMetrics | None:
        """Entry of the task in tasks.yaml. None for ROUGE."""
        return None if self.metrics is None else TaskMetrics(tuple(self.metrics), self.positive)


_FIELDS = tuple(TaskConfig.__dataclass_fields__)


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
            with errors_at(where):
                found[name] = TaskConfig(**both)
    return found


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
        with errors_at(where):
            for name, candidates in names.items():
                check_names(name, candidates)
    return columns
