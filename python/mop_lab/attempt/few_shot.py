"""Few-shot learning: systems trained on a few rows of each task, drawn several times.

OUTPUT/k-K/draw-D/corpus     the rows that were drawn, for every system the same
OUTPUT/k-K/draw-D/runs       the runs, as those of a suite; every system is trained once a task, on it alone
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from mop_t5.data import SPLITS, TASKS, Example, of_scenarios, read_examples, read_split, scenarios_of, write_examples
from mop_t5.data.corpus import checksum_of
from mop_t5.evaluation import AVERAGE, Table
from mop_t5.training import TrainingConfig

from mop_lab.suites.score_rows import Repetitions, average_of, score_rows
from mop_lab.suites.suite import Suite, SuiteConfig
from mop_lab.suites.systems import System


@dataclass(frozen=True)
class Draws:
    """Which rows a few-shot run learns from.

    Args:
        shots: rows of each task, such as '[4, 16, 32]'; one table row a system and number.
        draws: seeds. With each, rows are drawn and everything trained once; the table has the mean over them.
    """

    shots: list[int] = field(default_factory=lambda: [4, 16, 32])
    draws: list[int] = field(default_factory=lambda: [0, 1, 2])

    def __post_init__(self):
        for name, least in (("shots", 1), ("draws", 0)):
            given = getattr(self, name)
            if not given or len(set(given)) != len(given) or min(given) < least:
                raise ValueError(f"{name} must be different integers of at least {least}, one or more; got {given}.")


def draw(examples: Sequence[Example], shots: int, seed: int) -> list[Example]:
    """`shots` rows of each scenario, or all where it has fewer. They depend on the rows of this scenario, the number
    and the seed alone; with a larger number the same rows are among them."""
    chosen = []
    for scenario in scenarios_of(examples):
        rows = of_scenarios(examples, [scenario])
        random.Random(f"{seed} {scenario}").shuffle(rows)
        chosen += rows[:shots]
    return chosen


def write_draw(
    corpus: str | Path, folder: Path, tasks: Sequence[str] | None, shots: int, seed: int, split: str
) -> None:
    """Make `folder` a corpus of drawn rows: `shots` of each task out of train and as many out of valid, if there is
    one; all of `split`, which is scored. Where `split` changed since, its rows are replaced, to be scored again.

    Raises:
        ValueError: A task has fewer rows in train, or the folder holds other rows to train or to validate on.
    """
    train = of_scenarios(read_split(corpus, "train"), tasks)
    few = [task for task in scenarios_of(train) if len(of_scenarios(train, [task])) < shots]
    if few:
        raise ValueError(f"shots must be at most the training rows of a task; {', '.join(few)} has fewer than {shots}.")
    rows = {"train": draw(train, shots, seed)}
    for name in SPLITS[1:]:
        there = any((Path(corpus) / f"{name}.jsonl{z}").is_file() for z in ("", ".gz"))
        if name == split or there:
            found = of_scenarios(read_split(corpus, name), tasks)
            rows[name] = found if name == split else draw(found, shots, seed)
    kept = {name: read_examples(path) for name in SPLITS if (path := folder / f"{name}.jsonl").is_file()}
    for name, there in kept.items():
        if name != split and checksum_of(there) != checksum_of(rows.get(name, ())):
            path = folder / f"{name}.jsonl"
            raise ValueError(f"{path} holds other rows than would be drawn now. Choose another --output.")
    for name, drawn in rows.items():
        if kept.get(name) != drawn:
            path = folder / f"{name}.jsonl"
            waiting = path.with_name(f".{path.name}")
            write_examples(waiting, drawn)
            os.replace(waiting, path)  # whole or not there
    if (Path(corpus) / TASKS).is_file():
        (folder / TASKS).write_bytes((Path(corpus) / TASKS).read_bytes())
    else:
        (folder / TASKS).unlink(missing_ok=True)


def few_shot_suites(
    config: SuiteConfig, training: TrainingConfig, draws: Draws, default: Sequence[str], known: Mapping[str, System]
) -> dict[tuple[int, int], Suite]:
    """A suite for every number of rows and draw. The drawn rows are written. default, known: as a Suite takes them."""
    alone = {label: replace(system, separate=True) for label, system in known.items()}
    suites = {}
    for shots in draws.shots:
        for seed in draws.draws:
            folder = Path(config.output) / f"k-{shots}" / f"draw-{seed}"
            write_draw(config.corpus, folder / "corpus", config.scenarios, shots, seed, config.split)
            one = replace(config, corpus=str(folder / "corpus"), output=str(folder), seeds=[seed], scenarios=None)
            suites[shots, seed] = Suite(one, training, default, alone)
    return suites


def few_shot_results(suites: Mapping[tuple[int, int], Suite]) -> dict[str, dict[int, Repetitions]]:
    """Do what is left to do: system -> rows a task -> one result a draw."""
    results: dict[str, dict[int, list]] = {}
    for (shots, seed), suite in suites.items():
        print(f"{shots} rows a task, draw {seed}", flush=True)
        runs = suite.plan()
        suite.run(runs)
        for label, (scores,) in suite.results(runs).items():
            results.setdefault(label, {}).setdefault(shots, []).append(scores)
    return results


def few_shot_table(title: str, results: Mapping[str, Mapping[int, Repetitions]], notes: Sequence[str]) -> Table:
    """Rows: systems and numbers of rows. Columns: the tasks and their average."""
    columns = list(next(iter(next(iter(results.values())).values()))[0])
    rows = []
    for label, by_shots in results.items():
        for shots, repetitions in by_shots.items():
            rows += score_rows([label, shots], repetitions, columns)
    return Table(title, ["system", "rows", "quantity", *columns], rows, dict.fromkeys(columns, ".2f"), notes, labels=3)


def few_shot_curves(results: Mapping[str, Mapping[int, Repetitions]]) -> dict[str, list[tuple[float, float]]]:
    """System -> (rows a task, average), for a plot."""
    return {
        label: [(shots, average_of(repetitions, AVERAGE)) for shots, repetitions in by_shots.items()]
        for label, by_shots in results.items()
    }
