"""Count the values that the summaries of finished systems keep and invent, beside their ROUGE and the baselines."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from mop_t5.data import TASKS, read_split
from mop_t5.evaluation import AVERAGE, Scorer, Table, baseline_texts, mean_scores, metric_names
from mop_t5.evaluation.values import KINDS, Values, ValueScores, value_recall

from mop_lab.analysis.comparability import WAYS_OF_TEXTS, common_rows, scored_differently
from mop_lab.finished_runs import FinishedSystem


def training_corpus(systems: Sequence[FinishedSystem]) -> str:
    """Return the corpus folder on which all runs were trained. Raise ValueError if the runs do not name exactly one."""
    found = sorted({run.settings.get("corpus") or "" for system in systems for run in system.runs})
    if len(found) != 1 or not found[0]:
        named = ", ".join(filter(None, found)) or "none"
        raise ValueError(f"the runs do not name one corpus that all were trained on (found: {named}). Pass --corpus.")
    return found[0]


def value_table(systems: Sequence[FinishedSystem], corpus: str) -> Table:
    """Return a table with one row per system, means over its seeds, and one row per baseline.

    Args:
        systems: Systems that were evaluated on the same rows.
        corpus: The corpus folder with the training rows.

    Raises:
        FileNotFoundError: The corpus, or the predictions of a run, do not exist.
        ValueError: The systems were scored in different ways or on different rows.
    """
    known, scorer = read_split(corpus, "train"), _scorer(systems)
    values = Values(known)
    examples, texts = common_rows([(system, seed) for system in systems for seed in system.seeds])
    averages = [mean_scores([means[AVERAGE] for means in system.scores.values()]) for system in systems]
    rows: list[list[object]] = []
    for system, average in zip(systems, averages):
        kept = [value_recall(values, examples, texts[system.label, seed]) for seed in system.seeds]
        rows.append([system.label, len(kept), average, *_shares(kept)])
    evaluated = set(examples)
    in_file = [row for row in read_split(corpus, systems[0].runs[0].split) if row in evaluated]
    if len(in_file) == len(examples):
        examples = in_file  # in this order, other tables draw the same random references
    for name, given in baseline_texts(examples, known).items():
        baseline = value_recall(values, examples, given)
        rows.append([name, None, scorer(examples, given)[AVERAGE], *_shares([baseline])])
    shares = ["values kept", "deviation", *(f"{kind}s" for kind in KINDS), "invented"]
    return Table(
        f"Values kept and invented, and {scorer}, on {len(examples)} rows",
        ["system", "seeds", f"average: {metric_names(averages[0])}", *shares],
        rows,
        dict.fromkeys(shares, ".1f"),
        [
            f"Values kept: % of the {sum(baseline.said.values())} values that a reference and its dialogue contain ("
            + ", ".join(f"{baseline.said[kind]} {kind}s" for kind in KINDS)
            + ") that stand in the summary, over all rows; then by kind.",
            "Invented: % of the values in the summaries that neither dialogue nor reference has.",
            "Means over seeds, with the deviation (n - 1) of the values kept. Values are found without annotation.",
        ],
    )


def _scorer(systems: Sequence[FinishedSystem]) -> Scorer:
    """Return the scorer of all runs. Raise ValueError if texts were scored in different ways."""
    if reasons := scored_differently(systems, WAYS_OF_TEXTS):
        raise ValueError(f"{reasons[0]} Evaluate the runs again with one implementation, unit, normalise and {TASKS}.")
    return systems[0].runs[0].scorer


def _shares(kept: Sequence[ValueScores]) -> list[float | None]:
    """Return, in %, the values kept, their deviation over seeds, the values kept of each kind, and the invented."""
    recalls = [one.recall for one in kept]
    deviation = stdev(100 * recall for recall in recalls) if len(recalls) > 1 and not math.isnan(recalls[0]) else None
    by_kind = [_mean([one.by_kind[kind] for one in kept]) for kind in KINDS]
    return [_mean(recalls), deviation, *by_kind, _mean([one.invented for one in kept])]


def _mean(shares: Sequence[float]) -> float | None:
    """Return the mean in % of the shares that are numbers. A seed without values in its summaries has no share."""
    there = [share for share in shares if not math.isnan(share)]
    return 100 * fmean(there) if there else None
