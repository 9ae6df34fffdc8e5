"""What finished suites say about size: scores against trained parameters, and against the size of the backbone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from mop_t5.evaluation import AVERAGE, SCORES, Table, TaskScores, read_scores, with_average
from mop_t5.experiments.suite import SYSTEM


class Measured(NamedTuple):
    """A system of a suite. trained, backbone: parameters. scores: the averages of its seeds, times 100."""

    suite: str
    system: str
    trained: int
    backbone: int
    scores: list[float]


def measured(suite: str | Path, split: str = "test") -> list[Measured]:
    """The systems of a suite's output folder of which a seed is finished. Raises FileNotFoundError where there is
    none."""
    found = []
    for path in sorted(Path(suite).glob(f"runs/*/{SYSTEM}")):
        system = json.loads(path.read_text(encoding="utf-8"))
        scores = []
        for seed in sorted(path.parent.glob("seed-*")):
            files = sorted(seed.glob(f"**/evaluation-{split}/{SCORES}"))
            tasks: dict[str, TaskScores] = {}
            for file in files:
                for means in read_scores(file.parent).values():
                    tasks |= means
            if len(files) == system["runs"]:
                scores.append(100 * with_average(tasks)[AVERAGE].mean)
        if scores:
            found.append(Measured(str(suite), system["label"], system["trained"], system["backbone"], scores))
    if not found:
        raise FileNotFoundError(
            f"{str(suite)!r} has no finished run that was scored on the {split} split. Give the output folder of "
            "`mop-t5 table 2`, `mop-t5 attempt ablations` or `mop-t5 attempt modularity`."
        )
    return sorted(found, key=lambda one: (one.trained, one.system))


def scale_table(title: str, systems: Sequence[Measured]) -> Table:
    """A row a suite and system."""
    rows = []
    for one in sorted(systems, key=lambda one: (one.backbone, one.suite, one.trained)):
        deviation = stdev(one.scores) if len(one.scores) > 1 else None
        share = 100 * one.trained / one.backbone
        rows.append([one.suite, one.system, one.backbone, one.trained, share, mean(one.scores), deviation])
    formats = {"backbone": ",d", "trained": ",d", "trained, %": ".4f", "score": ".2f", "deviation (n - 1)": ".2f"}
    return Table(title, ["suite", "system", *formats], rows, formats, labels=2)


def against_trained(systems: Sequence[Measured]) -> dict[str, list[tuple[float, float]]]:
    """System -> (trained parameters, score), of one suite."""
    return {one.system: [(one.trained, mean(one.scores))] for one in systems if one.trained}


def against_backbone(systems: Sequence[Measured]) -> tuple[dict, dict]:
    """System -> (parameters of the backbone, score), and system -> (parameters of the backbone, trained ones)."""
    scores: dict[str, list[tuple[float, float]]] = {}
    trained: dict[str, list[tuple[float, float]]] = {}
    for one in systems:
        scores.setdefault(one.system, []).append((one.backbone, mean(one.scores)))
        if one.trained:
            trained.setdefault(one.system, []).append((one.backbone, one.trained))
    return scores, trained
