"""The routes of a task-level mixture of experts, and their correlations with features of tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from mop_t5.data.tasks import read_yaml
from mop_t5.evaluation import Table
from mop_t5.files import damage_in_a_sentence, split_json_lines
from mop_t5.methods.task_moe.method import TaskMoE
from mop_t5.plots.charts import plot_points
from transformers import PreTrainedModel

from mop_lab.finished_runs import method_of_run

Expert = tuple[int, int]  # (layer among those with experts, expert)
_ROUTES = "routes.jsonl"


def method_of(model: PreTrainedModel) -> TaskMoE:
    """Return the attached method task_moe. Raise ValueError for a model without it."""
    return method_of_run(model, TaskMoE, "no routes")


def experts_of(method: TaskMoE) -> dict[Expert, str]:
    """Return the name of every expert of every layer, in the order of the columns of route_matrix."""
    return {
        (index, expert): f"{stack} {layer}, expert {expert}"
        for index, (stack, layer) in enumerate(method.expert_places)
        for expert in range(method.config.experts)
    }


def route_matrix(method: TaskMoE, temperature: float | None = None) -> torch.Tensor:
    """Return the route weights of evaluation, on the CPU.

    Args:
        method: The method.
        temperature: Temperature of the routes. None takes the last temperature of the training.

    Returns:
        (tasks, layers * experts).
    """
    return method.route_weights(temperature).transpose(0, 1).flatten(1).double().cpu()


def route_table(method: TaskMoE, matrix: torch.Tensor, temperature: float | None = None) -> Table:
    """Return a table with one row per task and one column per expert. matrix: the result of route_matrix."""
    names = experts_of(method)
    shown = method.temperature.item() if temperature is None else temperature
    rows = [[task, *weights] for task, weights in zip(method.scenarios, matrix.tolist())]
    title = f"Weights of the experts, temperature {shown:g}"
    return Table(title, ["task", *names.values()], rows, dict.fromkeys(names.values(), ".3f"))


def read_features(path: str | Path, tasks: Sequence[str]) -> dict[str, list[int]]:
    """Read the features of tasks from a YAML file {task: {feature: 0 or 1}}.

    Args:
        path: The file. A feature that a task does not name is 0.
        tasks: The tasks of the mixture of experts.

    Returns:
        feature -> 0 or 1 for each task.

    Raises:
        ValueError: The file has another content, or a task is missing or unknown.
    """
    given = read_yaml(path)
    if any(not isinstance(own, dict) for own in given.values()):
        raise ValueError(f"{path} must hold {{task: {{feature: 0 or 1}}}}.")
    if set(given) != set(tasks):
        raise ValueError(f"{path} must have the tasks {', '.join(tasks)}; got {', '.join(map(str, given))}.")
    for task, own in given.items():
        for feature, value in own.items():
            if not isinstance(feature, str) or value not in (0, 1):
                raise ValueError(f"{path}: {feature!r} of {task!r} must be 0 or 1; got {value!r}.")
    names = dict.fromkeys(feature for task in tasks for feature in given[task])
    return {name: [int(given[task].get(name, 0)) for task in tasks] for name in names}


class Correlation(NamedTuple):
    """Pearson's r of a feature with the weights of an expert over the tasks, and its two-sided p."""

    feature: str
    expert: Expert
    r: float
    p: float


def correlations(
    routes: torch.Tensor, experts: Sequence[Expert], features: Mapping[str, Sequence[int]]
) -> list[Correlation]:
    """Return the correlations of every feature with the weights of every expert, the strongest first.

    Features and weights that are equal in all tasks have no correlation and are left out.

    Args:
        routes: The result of route_matrix.
        experts: The experts, one per column of the routes.
        features: feature -> 0 or 1 for each task.
    """
    from scipy.stats import pearsonr

    found = []
    for feature, values in features.items():
        for expert, weights in zip(experts, routes.T.tolist()):
            if len(set(values)) > 1 and max(weights) - min(weights) > 1e-6:  # a smaller difference is rounding
                r, p = pearsonr(values, weights)
                found.append(Correlation(feature, expert, float(r), float(p)))
    return sorted(found, key=lambda one: -abs(one.r))


def correlation_table(found: Sequence[Correlation], names: Mapping[Expert, str], tasks: int, level: float) -> Table:
    """Return a table of the correlations with p below a level."""
    kept = [one for one in found if one.p < level]
    rows = [[one.feature, names[one.expert], one.r, one.p] for one in kept]
    notes = [
        f"{len(kept)} of {len(found)} pairs have p < {level:g}; {level * len(found):.1f} would by chance, were all "
        "features and experts unrelated."
    ]
    if tasks < 8:
        notes.append(f"With {tasks} tasks a correlation must be nearly 1 to be told from chance.")
    title = f"Features of tasks and the weights of experts, over {tasks} tasks"
    return Table(title, ["feature", "expert", "r", "p"], rows, {"r": "+.3f", "p": ".2g"}, notes, labels=2)


def route_history(run: str | Path) -> list[dict]:
    """Return the lines of routes.jsonl, which the training wrote. Empty if the file does not exist.

    Raises:
        ValueError: The file is damaged.
    """
    path = Path(run) / _ROUTES
    with damage_in_a_sentence(path, "Copy it again, or train anew."):
        return split_json_lines(path.read_text(encoding="utf-8")) if path.is_file() else []


def plot_entropy(path: Path, history: Sequence[Mapping[str, float]]) -> list[Path]:
    """Plot the mean entropy of the routes against the steps. Return the files. history: the result of route_history."""
    curves = {"at the temperature of the step": "entropy", "at temperature 1": "entropy_at_1"}
    series = {name: [(line["step"], line[key]) for line in history if key in line] for name, key in curves.items()}
    shown = {name: points for name, points in series.items() if points}
    return plot_points(path, shown, "Mean entropy of the routes", x_label="step", y_label="nats")
