"""What the routes of a task-level mixture of experts say: which experts go with a feature of tasks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from mop_t5.data.tasks import read_yaml
from mop_t5.evaluation import Table
from mop_t5.methods.task_moe.method import TaskMoE

Expert = tuple[int, int]  # (layer among those with experts, expert)
_ROUTES = "routes.jsonl"


def method_of(model) -> TaskMoE:
    """The attached task_moe. Raises ValueError for another model."""
    method = getattr(model, "mop", None)
    if not isinstance(method, TaskMoE):
        name = "a plain backbone" if method is None else f"the method {method.name!r}"
        raise ValueError(f"run holds {name}, which has no routes. Give one of `task_moe`.")
    return method


def experts_of(method: TaskMoE) -> dict[Expert, str]:
    """A name of every expert of every layer, in the order of the columns of route_matrix."""
    return {
        (index, expert): f"{stack} {layer}, expert {expert}"
        for index, (stack, layer) in enumerate(method.expert_places)
        for expert in range(method.config.experts)
    }


def route_matrix(method: TaskMoE, temperature: float | None = None) -> torch.Tensor:
    """(tasks, layers * experts) on the CPU: the weights of evaluation."""
    return method.route_weights(temperature).transpose(0, 1).flatten(1).double().cpu()


def read_features(path: str | Path, tasks: Sequence[str]) -> dict[str, list[int]]:
    """Feature -> 0 or 1 for each task, out of a YAML file {task: {feature: 0 or 1}}. A feature that a task does not
    name is 0. Raises ValueError for another content and for a task that is missing or not known."""
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
    feature: str
    expert: Expert
    r: float
    p: float


def correlations(
    routes: torch.Tensor, experts: Sequence[Expert], features: Mapping[str, Sequence[int]]
) -> list[Correlation]:
    """Pearson's r of every feature with the weights of every expert over the tasks, and its two-sided p, the strongest
    first. routes: of route_matrix. Features and weights that are alike in all tasks have none and are left out."""
    from scipy.stats import pearsonr

    found = []
    for feature, values in features.items():
        for expert, weights in zip(experts, routes.T.tolist()):
            if len(set(values)) > 1 and max(weights) - min(weights) > 1e-6:  # less is rounding
                r, p = pearsonr(values, weights)
                found.append(Correlation(feature, expert, float(r), float(p)))
    return sorted(found, key=lambda one: -abs(one.r))


def correlation_table(found: Sequence[Correlation], names: Mapping[Expert, str], tasks: int, level: float) -> Table:
    """Those with p below level."""
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
    """The lines of routes.jsonl, which training wrote; empty where there is none."""
    path = Path(run) / _ROUTES
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
