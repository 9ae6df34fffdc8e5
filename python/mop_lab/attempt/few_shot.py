"""Few-shot learning: systems trained on a few rows of each task, drawn several times.

OUTPUT/k-K/draw-D/corpus     the drawn rows, the same for every system
OUTPUT/k-K/draw-D/runs       the runs of a suite; every system is trained once per task, on this task alone
"""

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mop_t5.data import SPLITS, TASKS, Example, of_scenarios, read_examples, read_split, scenarios_of, write_examples
from mop_t5.data.corpus import splits_in
from mop_t5.data.rows import checksum_of
from mop_t5.evaluation import TaskScores
from mop_t5.plots.charts import plot_points
from mop_t5.training import TrainingConfig

from mop_lab.suites.score_rows import Repetitions, average_of
from mop_lab.suites.suite import Suite, trials_of
from mop_lab.suites.suite_config import SuiteConfig
from mop_lab.suites.systems import System

Results = Mapping[tuple[str, int], Repetitions]  # system and rows per task -> one result per draw


@dataclass(frozen=True)
class Draws:
    """The rows that a few-shot run learns from.

    Args:
        shots: rows of each task, such as '[4, 16, 32]'. The table has one row per system and number.
        draws: seeds. With each seed, rows are drawn and everything is trained once. The table has the mean over them.
    """

    shots: list[int] = field(default_factory=lambda: [4, 16, 32])
    draws: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self):
        for name, least in (("shots", 1), ("draws", 0)):
            given = getattr(self, name)
            if not given or len(set(given)) != len(given) or min(given) < least:
                raise ValueError(f"{name} must be different integers of at least {least}, one or more; got {given}.")


def draw(examples: Sequence[Example], shots: int, seed: int) -> list[Example]:
    """Draw some rows of each scenario, or all rows of a scenario that has fewer.

    The drawn rows depend only on the rows of their scenario, the number and the seed. A larger number includes the
    rows of a smaller number.

    Args:
        examples: The rows.
        shots: The number of rows per scenario.
        seed: The seed of the draw.
    """
    chosen = []
    for scenario in scenarios_of(examples):
        rows = of_scenarios(examples, [scenario])
        random.Random(f"{seed} {scenario}").shuffle(rows)
        chosen += rows[:shots]
    return chosen


def write_draw(
    corpus: str | Path, folder: Path, tasks: Sequence[str] | None, shots: int, seed: int, split: str
) -> None:
    """Make a folder a corpus of drawn rows.

    Args:
        corpus: The folder of the whole corpus.
        folder: The folder to write into. Rows of `split` that have changed since are replaced, to be scored again.
        tasks: The tasks to draw from. None takes all.
        shots: Rows per task, drawn from train and, if it exists, from valid.
        seed: The seed of the draw.
        split: The split that is scored. All its rows are taken.

    Raises:
        ValueError: A task has fewer rows in train, or the folder holds other rows to train or to validate on.
    """
    train = of_scenarios(read_split(corpus, "train"), tasks)
    if few := [task for task in scenarios_of(train) if len(of_scenarios(train, [task])) < shots]:
        raise ValueError(f"shots must be at most the training rows of a task; {', '.join(few)} has fewer than {shots}.")
    rows = {"train": draw(train, shots, seed)}
    splits = splits_in(corpus)
    for name in SPLITS[1:]:
        if name == split or name in splits:
            found = of_scenarios(read_split(corpus, name), tasks)
            rows[name] = found if name == split else draw(found, shots, seed)
    paths = {name: folder / f"{name}.jsonl" for name in SPLITS}
    kept = {name: read_examples(path) for name, path in paths.items() if path.is_file()}
    for name, present in kept.items():
        if name != split and checksum_of(present) != checksum_of(rows.get(name, ())):
            raise ValueError(f"{paths[name]} holds other rows than would be drawn now. Choose another --output.")
    for name, drawn in rows.items():
        if kept.get(name) != drawn:
            waiting = folder / f".{name}.jsonl"
            write_examples(waiting, drawn)
            os.replace(waiting, paths[name])  # the file is complete, or it is absent
    if (Path(corpus) / TASKS).is_file():
        (folder / TASKS).write_bytes((Path(corpus) / TASKS).read_bytes())
    else:
        (folder / TASKS).unlink(missing_ok=True)


def few_shot_suites(
    config: SuiteConfig, training: TrainingConfig, draws: Draws, systems: Sequence[System]
) -> dict[tuple[int, int], Suite]:
    """Write the drawn rows, and return the trials: (rows per task, draw) -> trials. Each trial trains on one task."""
    alone = [replace(system, separate=True) for system in systems]
    suites = {}
    for shots in draws.shots:
        for seed in draws.draws:
            folder = Path(config.output) / f"k-{shots}" / f"draw-{seed}"
            write_draw(config.corpus, folder / "corpus", config.scenarios, shots, seed, config.split)
            one = replace(config, corpus=str(folder / "corpus"), output=str(folder), seeds=[seed], scenarios=None)
            suites[shots, seed] = Suite(trials_of(alone, one, training))
    return suites


def few_shot_results(suites: Mapping[tuple[int, int], Suite]) -> Results:
    """Return the scores of finished trials, by the systems and then by the rows per task."""
    results: dict[tuple[str, int], list[Mapping[str, TaskScores]]] = {}
    for (shots, _), suite in suites.items():
        for label, (scores,) in suite.results().items():
            results.setdefault((label, shots), []).append(scores)
    labels = [label for label, _ in results]
    return dict(sorted(results.items(), key=lambda item: labels.index(item[0][0])))


def plot_few_shot(path: Path, results: Results, draws: Draws) -> list[Path]:
    """Plot the average over the tasks of each system against the rows per task. Return the files."""
    series: dict[str, list[tuple[float, float]]] = {}
    for (label, shots), repetitions in results.items():
        series.setdefault(label, []).append((shots, average_of(repetitions)))
    return plot_points(
        path,
        series,
        f"few-shot, average over tasks, mean of {len(draws.draws)} draw(s)",
        x_label="training rows per task",
        y_label="score x 100",
        log_x=True,
        x_ticks=[(shots, str(shots)) for shots in draws.shots],
    )
