"""Values that the summaries of finished systems keep and invent, beside their ROUGE, and those of floors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from mop_t5.data import TASKS, Example, TaskMetrics, read_split
from mop_t5.evaluation import (
    AVERAGE,
    Rouge,
    Scorer,
    Table,
    TaskScores,
    Values,
    ValueScores,
    baseline_texts,
    mean_scores,
    metric_names,
    value_recall,
)
from mop_t5.evaluation.values import KINDS

from mop_lab.finished_runs import FinishedRun, FinishedSystem

Predictions = list[tuple[Example, str]]


def training_corpus(systems: Sequence[FinishedSystem]) -> str:
    """The corpus folder that all runs were trained on. Raises ValueError where they do not say one."""
    found = sorted({run.settings.get("corpus") or "" for run in _runs(systems)})
    if len(found) != 1 or not found[0]:
        named = ", ".join(filter(None, found)) or "none"
        raise ValueError(f"the runs do not name one corpus that all were trained on (found: {named}). Pass --corpus.")
    return found[0]


def same_rows(predictions: Sequence[tuple[str, Predictions]]) -> list[Example]:
    """The rows that all of these are of, in order. predictions: each behind what an error calls it. Raises ValueError
    if some are of others."""
    (first, theirs), *others = predictions
    rows = [example for example, _ in theirs]
    for name, mine in others:
        if [example for example, _ in mine] != rows:
            raise ValueError(
                f"{first} and {name} were not evaluated on the same rows ({len(rows)} and {len(mine)}), so they cannot "
                "be compared. Give runs on one corpus, split and choice of scenarios."
            )
    return rows


def scorer_of(systems: Sequence[FinishedSystem]) -> Scorer:
    """Return what scored all runs. Raises ValueError if they were scored in different ways.

    The metrics of tasks are those of the evaluations: tasks.yaml of the corpus may have changed since.
    """
    found = [run.scoring for run in _runs(systems)]
    ways = {tuple(one[name] for name in ("implementation", "unit", "normalise")) for one in found}
    if len(ways) > 1:
        named = (" on ".join(way[:2]) + ("" if way[2] == "none" else f" in {way[2].upper()}") for way in sorted(ways))
        raise ValueError(
            f"the runs were scored in different ways ({', '.join(named)}). Evaluate them again with one "
            "implementation, unit and normalise."
        )
    metrics = found[0].get("metrics", {})
    if any(one.get("metrics", {}) != metrics for one in found):
        raise ValueError(f"the runs were scored by different metrics of {TASKS}. Evaluate them again on one corpus.")
    return Scorer(Rouge(*ways.pop()), {name: TaskMetrics(**task) for name, task in metrics.items()})


def value_table(systems: Sequence[FinishedSystem], corpus: str) -> Table:
    """A row a system, means over its seeds, and a row a floor. corpus: the folder with the training rows."""
    known, scorer = read_split(corpus, "train"), scorer_of(systems)
    values = Values(known)
    predictions = [[(f"{s.label}, seed {seed}", s.predictions(seed)) for seed in s.seeds] for s in systems]
    examples = same_rows([one for seeds in predictions for one in seeds])
    rows = []
    for system, seeds in zip(systems, predictions):
        scores = mean_scores([means[AVERAGE] for means in system.scores().values()])
        kept = [value_recall(values, examples, [text for _, text in mine]) for _, mine in seeds]
        rows.append(_row(system.label, scores, kept))
    evaluated = set(examples)
    in_file = [row for row in read_split(corpus, _runs(systems)[0].split) if row in evaluated]
    if len(in_file) == len(examples):
        examples = in_file  # random references are drawn row by row, so they are those of other tables in this order
    for name, texts in baseline_texts(examples, known).items():
        floor = value_recall(values, examples, texts)
        rows.append(_row(name, scorer(examples, texts)[AVERAGE], [floor], floor=True))
    shares = ["values kept", "deviation", *(f"{kind}s" for kind in KINDS), "invented"]
    scored = f"average: {metric_names(rows[0][2])}"
    return Table(
        f"Values kept and invented, and {scorer}, on {len(examples)} rows",
        ["system", "seeds", scored, *shares],
        rows,
        dict.fromkeys(shares, ".1f"),
        [
            f"Values kept: % of the {sum(floor.said.values())} values which a reference and its dialogue both say ("
            + ", ".join(f"{floor.said[kind]} {kind}s" for kind in KINDS)
            + ") that stand in the summary, over all rows; then by kind.",
            "Invented: % of the values in the summaries that neither dialogue nor reference has.",
            "Means over seeds, with the deviation (n - 1) of the values kept. Values are found without annotation.",
        ],
    )


def _runs(systems: Sequence[FinishedSystem]) -> list[FinishedRun]:
    return [run for system in systems for runs in system.seeds.values() for run in runs]


def _row(name: str, scores: TaskScores, kept: Sequence[ValueScores], *, floor: bool = False) -> list[object]:
    recalls = [100 * one.recall for one in kept]
    by_kind = [_mean([one.by_kind[kind] for one in kept]) for kind in KINDS]
    deviation = stdev(recalls) if len(recalls) > 1 and not math.isnan(recalls[0]) else None
    cells = [_mean([one.recall for one in kept]), deviation, *by_kind, _mean([one.invented for one in kept])]
    return [name, None if floor else len(kept), scores, *cells]


def _mean(shares: Sequence[float]) -> float | None:
    """In %, of those that are there: a seed whose summaries hold no value has invented no share of them."""
    there = [share for share in shares if not math.isnan(share)]
    return 100 * fmean(there) if there else None
