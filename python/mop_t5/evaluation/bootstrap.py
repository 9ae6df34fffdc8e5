"""Whether one system is better than another on the rows of a test split, or only on those that were drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

_AT_ONCE = 1000  # resamples; bounds the memory


class Difference(NamedTuple):
    """mean: of the scores of one system minus another's, averaged over scenarios. low, high: the 95 % interval of it.
    p: two-sided, of a difference as large where there is none."""

    mean: float
    low: float
    high: float
    p: float


def paired_bootstrap(differences: Mapping[str, Sequence[float]], resamples: int = 10_000, seed: int = 0) -> Difference:
    """The paired bootstrap (Efron and Tibshirani 1993, chapter 16; Koehn 2004) of a mean over scenarios.

    Rows are drawn with replacement within each scenario, so that every resample has the sizes of the split; the value
    of a resample is the mean over scenarios of the means of its rows, as the average of every table here. The interval
    is that of the percentiles. p is twice the share of resamples on the other side of zero from the mean, at least
    2 / resamples.

    Args:
        differences: scenario -> score of one system minus that of the other, a number a row.
        resamples: how many.
        seed: of the draws.

    Raises ValueError for no scenario, one without rows, and resamples below 1.
    """
    if not differences or not all(len(rows) for rows in differences.values()):
        raise ValueError("differences must have at least one scenario, each with at least one row.")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    generator = np.random.default_rng(seed)
    means = np.zeros(resamples)
    for name in sorted(differences):
        rows = np.asarray(differences[name], dtype=float)
        for start in range(0, resamples, _AT_ONCE):
            count = min(_AT_ONCE, resamples - start)
            drawn = generator.integers(len(rows), size=(count, len(rows)))
            means[start : start + count] += rows[drawn].mean(axis=1) / len(differences)
    mean = float(np.mean([np.mean(rows) for rows in differences.values()]))
    low, high = np.percentile(means, [2.5, 97.5])
    other_side = np.mean(means <= 0) if mean > 0 else np.mean(means >= 0)
    return Difference(mean, float(low), float(high), float(min(1.0, max(2 * other_side, 2 / resamples))))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """The p values of several comparisons, corrected for their number (Holm 1979); in the order that they came in."""
    corrected, largest = {}, 0.0
    for position, name in enumerate(sorted(p, key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - position) * p[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p}
