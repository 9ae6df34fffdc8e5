"""tasks.yaml beside the splits of a corpus: by which metrics each task is scored. Without it all are scored by ROUGE.

cola:
  metrics: [matthews]
mrpc:
  metrics: [f1, accuracy]
  positive: equivalent        # the label that f1 is of
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TASKS = "tasks.yaml"
METRICS = (
    "accuracy",
    "f1",
    "f1_macro",
    "matthews",
    "pearson",
    "spearman",
    "exact_match",
    "token_f1",
    "rouge1",
    "rouge2",
    "rougeL",
)


@dataclass(frozen=True)
class TaskMetrics:
    """How a task is scored.

    metrics: names out of METRICS. positive: the label that "f1" is of; None without "f1".
    """

    metrics: tuple[str, ...]
    positive: str | None = None

    def __post_init__(self):
        if isinstance(self.metrics, str) or not isinstance(self.metrics, (list, tuple)):
            raise TypeError(f"metrics must be a list of names, got {self.metrics!r}.")
        unknown = [repr(name) for name in self.metrics if name not in METRICS]
        if unknown:
            raise ValueError(f"metrics names {', '.join(unknown)}; known are {', '.join(METRICS)}.")
        if not self.metrics or len(set(self.metrics)) != len(self.metrics):
            raise ValueError(f"metrics must name at least one metric, each once; got {list(self.metrics)}.")
        if self.positive is not None and not isinstance(self.positive, str):
            raise TypeError(f"positive must be a string, got {self.positive!r}. Put it in quotes.")
        if ("f1" in self.metrics) != (self.positive is not None):
            raise ValueError(
                f"positive must be the label that f1 is of, and be left out without f1; got {self.positive!r} with "
                f"metrics {list(self.metrics)}."
            )
        object.__setattr__(self, "metrics", tuple(self.metrics))

    def to_dict(self) -> dict[str, Any]:
        """As in tasks.yaml."""
        return {"metrics": list(self.metrics)} | ({} if self.positive is None else {"positive": self.positive})


def read_tasks(folder: str | Path, scenarios: Sequence[str] | None = None) -> dict[str, TaskMetrics]:
    """What tasks.yaml of a corpus folder says, by task; empty where there is none. Raises ValueError or TypeError, with
    the file and the task, for what it must not say, which is any task but these scenarios if they are given."""
    path = Path(folder) / TASKS
    if not path.is_file():
        return {}
    tasks = {}
    for name, fields in read_yaml(path).items():
        where = f"{path}, task {name!r}"
        if scenarios is not None and name not in scenarios:
            raise ValueError(f"{where}: the corpus has no such scenario; it has {', '.join(scenarios)}.")
        check_fields(fields, ("metrics",), ("positive",), where)
        try:
            tasks[name] = TaskMetrics(**fields)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {error}") from error
    return tasks


def tasks_yaml(tasks: Mapping[str, TaskMetrics]) -> str:
    """The text of a tasks.yaml that `read_tasks` reads back equal."""
    content = {name: task.to_dict() for name, task in tasks.items()}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file whose keys are strings. A key that stands in it twice is an error."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Strict)
    except FileNotFoundError:
        raise FileNotFoundError(f"no file at {path}. Give the path of a YAML file.") from None
    except yaml.MarkedYAMLError as error:
        place = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise ValueError(f"{path}{place}: not valid YAML ({error.problem}). Correct it.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as YAML ({error}). Correct it.") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise TypeError(f"{path} must hold names and what belongs to each, `name: ...`; got {content!r}.")
    return content


def check_fields(fields: object, needed: tuple[str, ...], possible: tuple[str, ...], where: str) -> None:
    """Raise TypeError or ValueError unless `fields` is a mapping with the fields `needed` and none but `possible`."""
    if not isinstance(fields, dict):
        raise TypeError(f"{where}: expected a mapping, `name: ...`, got {fields!r}.")
    unknown = sorted(set(map(str, fields)) - {*needed, *possible})
    if unknown:
        raise ValueError(f"{where}: no such field: {', '.join(unknown)}. There are {', '.join((*needed, *possible))}.")
    missing = [name for name in needed if name not in fields]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} is missing. Add it.")


class _Strict(yaml.SafeLoader):
    """A key twice is an error, not the second one."""

    def construct_mapping(self, node, deep=False):
        made = super().construct_mapping(node, deep)
        if len(made) < len(node.value):  # 0 and false are equal, too
            keys = ", ".join(str(key.value) for key, _ in node.value)
            problem = f"two of the keys {keys} are the same; put words such as true in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return made
