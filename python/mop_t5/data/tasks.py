"""Read tasks.yaml, which names the metrics of each task of a corpus. A task without an entry is scored by ROUGE.

    cola:
      metrics: [matthews]
    mrpc:
      metrics: [f1, accuracy]
      positive: equivalent        # the label that f1 counts

The file stands beside the splits of the corpus.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mop_t5.checks import check_names, check_subset, check_types, errors_at
from mop_t5.files import DEEPEST_JSON, StrPath, read_text

IN_QUOTES = " Put words such as true in quotes."  # end of messages about values of YAML
TASKS = "tasks.yaml"
_MOST_VALUES = 1_000_000  # in a YAML file, with each alias counted as what it stands for
_ROUGE = ("rouge1", "rouge2", "rougeL")
METRICS = ("accuracy", "f1", "f1_macro", "matthews", "pearson", "spearman", "exact_match", "token_f1", *_ROUGE)


@dataclass(frozen=True)
class TaskMetrics:
    """Metrics of a task.

    Attributes:
        metrics: Names from METRICS.
        positive: The label that "f1" counts. None without "f1".
    """

    metrics: tuple[str, ...]
    positive: str | None = None

    def __post_init__(self):
        check_types(self, hint=IN_QUOTES)
        object.__setattr__(self, "metrics", check_names("metrics", self.metrics))
        check_subset("metrics", self.metrics, METRICS)
        if ("f1" in self.metrics) != (self.positive is not None):
            raise ValueError(
                f"positive must be the label that f1 counts, and be left out without f1; got {self.positive!r} with "
                f"metrics {list(self.metrics)}."
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of tasks.yaml."""
        return {"metrics": list(self.metrics)} | ({} if self.positive is None else {"positive": self.positive})


def read_tasks(folder: StrPath, scenarios: Sequence[str] | None = None) -> dict[str, TaskMetrics]:
    """Return the metrics in the tasks.yaml of a corpus folder by task. Empty if there is no such file.

    Args:
        folder: The corpus folder.
        scenarios: The scenarios of the corpus. None if any task is allowed.

    Raises:
        TypeError, ValueError: An entry is wrong, or a task is no scenario. The message names the file and the task.
    """
    path = Path(folder) / TASKS
    if not path.is_file():
        return {}
    tasks = {}
    for name, fields in read_yaml(path).items():
        where = f"{path}, task {name!r}"
        if scenarios is not None and name not in scenarios:
            raise ValueError(f"{where}: the corpus has no such scenario; it has {', '.join(scenarios)}.")
        check_fields(fields, where, ("metrics",), ("positive",))
        with errors_at(where):
            tasks[name] = TaskMetrics(**fields)
    return tasks


def tasks_yaml(tasks: Mapping[str, TaskMetrics]) -> str:
    """Return the text of a tasks.yaml that `read_tasks` reads back equal."""
    content = {name: task.to_dict() for name, task in tasks.items()}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)


def read_yaml(path: StrPath) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: The file holds no mapping of string keys.
        ValueError: The file is not YAML, or a mapping has a key twice.
    """
    try:
        content = yaml.load(read_text(path), _Strict)
        _check_aliases(content)
    except FileNotFoundError:
        raise FileNotFoundError(f"no file at {path}. Give the path of a YAML file.") from None
    except yaml.MarkedYAMLError as error:
        place = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ValueError(f"{path}{place}: not valid YAML ({error.problem}). Correct it.") from error
    except RecursionError:
        raise ValueError(
            f"{path}: cannot be read as YAML (more than {DEEPEST_JSON} values inside each other). Correct it."
        ) from None
    # a tag or a form of YAML that its value does not have: PyYAML raises nearly every kind of error
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"{path}: cannot be read as YAML ({error}). Correct it.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise TypeError(f"{path} must hold a mapping of names, `name: ...`; got {repr(content)[:80]}.")
    return content


def _check_aliases(content: object) -> None:
    """Raise ValueError if aliases make a small file very large, `a: &a [1, 1]`, `b: &b [*a, *a]`, or it is too deep."""
    sizes: dict[int, int] = {}

    def size(value: object, depth: int = 1) -> int:
        if depth > DEEPEST_JSON:
            raise RecursionError
        if not isinstance(value, (dict, list, tuple, set)):
            return 1
        if id(value) not in sizes:
            sizes[id(value)] = _MOST_VALUES  # until it is known: a value that holds itself is endless
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            sizes[id(value)] = 1 + sum(size(one, depth + 1) for one in inner)
        return sizes[id(value)]

    if size(content) >= _MOST_VALUES:
        raise ValueError(f"its aliases stand for {_MOST_VALUES:,} values or more")


def check_fields(fields: object, where: str, needed: Sequence[str] = (), possible: Sequence[str] | None = None) -> None:
    """Check that a value is a mapping with the right fields.

    Args:
        fields: The value.
        where: Place of the value, for messages.
        needed: Fields that must be there.
        possible: Further fields that may be there. None if any field may be there.

    Raises:
        TypeError: The value is no mapping.
        ValueError: A field is missing or unknown.
    """
    if not isinstance(fields, dict):
        raise TypeError(f"{where}: expected a mapping, `name: ...`, got {fields!r}.")
    known = [*needed, *(fields if possible is None else possible)]
    unknown = sorted(str(name) for name in fields if name not in known)
    if unknown:
        raise ValueError(f"{where}: no such field: {', '.join(unknown)}. Known fields: {', '.join(known)}.")
    missing = [name for name in needed if name not in fields]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} is missing. Add it.")


class _Strict(yaml.SafeLoader):
    """Loader for which a repeated key is an error. SafeLoader takes the second value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node. Raise ConstructorError for a repeated key."""
        made = super().construct_mapping(node, deep)
        if len(made) < len(node.value):  # 0 and false are equal keys, too
            keys = ", ".join(str(key.value) for key, _ in node.value)
            problem = f"two of the keys {keys} are the same; put words such as true in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return made
