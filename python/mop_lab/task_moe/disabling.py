"""The loss of score of a task-level mixture of experts without the experts of a feature, and without random ones."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean, stdev

from mop_t5.evaluation import Table
from mop_t5.methods.task_moe.method import TaskMoE

from mop_lab.task_moe.routes import Correlation, Expert, experts_of

Means = Mapping[str, float]  # task -> score


def strongest(found: Sequence[Correlation], feature: str, count: int, experts: int) -> list[Expert]:
    """Return the experts whose weights rise most with a feature.

    Args:
        found: The correlations.
        feature: The feature.
        count: The number of experts to return.
        experts: Experts per layer. A layer keeps at least one of them.

    Raises:
        ValueError: The weights of fewer experts rise with the feature.
    """
    rising = sorted((one for one in found if one.feature == feature and one.r > 0), key=lambda one: -one.r)
    chosen = _first((one.expert for one in rising), count, experts)
    if len(chosen) < count:
        raise ValueError(
            f"top must be at most {len(chosen)} for {feature!r}, the experts whose weights rise with it; got {count}."
        )
    return chosen


def _first(candidates: Iterable[Expert], count: int, experts: int) -> list[Expert]:
    chosen: list[Expert] = []
    for layer, expert in candidates:
        if len(chosen) < count and sum(layer == other for other, _ in chosen) < experts - 1:
            chosen.append((layer, expert))
    return chosen


def without(
    method: TaskMoE, experts: Sequence[Expert], score: Callable[[], Means], draws: int, seed: int
) -> tuple[Means, list[Means]]:
    """Score the tasks without some experts, and without as many random experts. All experts are enabled afterwards.

    Args:
        method: The attached method.
        experts: The experts to disable.
        score: Returns the scores of the model with its present experts.
        draws: How many sets of random experts are drawn.
        seed: The seed of the draws.

    Returns:
        The scores without the experts, and the scores without each random set.
    """
    everything, generator = list(experts_of(method)), random.Random(seed)
    try:
        method.disable(experts)
        chosen, others = score(), []
        for _ in range(draws):
            shuffled = generator.sample(everything, len(everything))
            method.disable(_first(shuffled, len(experts), method.config.experts))
            others.append(score())
    finally:
        method.disable([])
    return chosen, others


def disabling_table(
    what: str,
    features: Mapping[str, Sequence[int]],
    tasks: Sequence[str],
    whole: Means,
    disabled: Mapping[str, tuple[Sequence[str], Means, Sequence[Means]]],
) -> Table:
    """Return a table of the loss in points, on the tasks with a feature and on the other tasks.

    Args:
        what: How the tasks were scored, for the title.
        features: feature -> 0 or 1 for each task.
        tasks: The tasks.
        whole: The scores with all experts.
        disabled: feature -> names of its experts, the scores without them, the scores without each random set.
    """
    rows: list[list[object]] = []
    for feature, (_, chosen, others) in disabled.items():
        for group, value in (("with it", 1), ("without it", 0)):
            of_group = [task for task, has in zip(tasks, features[feature]) if has == value]
            drop, *drops = (100 * mean(whole[t] - scores[t] for t in of_group) for scores in (chosen, *others))
            spread = stdev(drops) if len(drops) > 1 else None
            score = 100 * mean(whole[task] for task in of_group)
            rows.append([feature, f"{len(of_group)} tasks {group}", score, drop, mean(drops), spread])
    columns = ["feature", "on", "all experts", "drop without its experts", "without random ones", "deviation"]
    formats = dict.fromkeys(columns[2:], ".2f")
    notes = [f"{feature}: without {', '.join(names)}" for feature, (names, _, _) in disabled.items()]
    return Table(f"Experts disabled. {what}", columns, rows, formats, notes, labels=2)
