"""Test whether the difference between two systems is significant, by the paired bootstrap."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mop_t5.checks import check_int

_AT_ONCE = 1000  # resamples that are computed at once; this bounds the memory


class Difference(NamedTuple):
    """The difference between the scores of two systems.

    Attributes:
        mean: The mean difference, averaged over scenarios.
        low: The lower end of the 95 % confidence interval.
        high: The upper end of the 95 % confidence interval.
        p: The two-sided p value.
    """

    mean: float
    low: float
    high: float
    p: float


def paired_bootstrap(differences: Mapping[str, Sequence[float]], resamples: int = 10_000, seed: int = 0) -> Difference:
    """Return the paired bootstrap of a mean over scenarios (Efron and Tibshirani 1993, chapter 16; Koehn 2004).

    Rows are drawn with replacement within each scenario, so every resample has the sizes of the split. The value of a
    resample is the mean over scenarios of the means of its rows, like the average of every table. The confidence
    interval is the percentile interval. p is twice the share of resamples on the other side of zero from the mean, and
    at least 2 / resamples.

    Args:
        differences: scenario -> one number per row, the score of the first system minus the score of the second.
        resamples: The number of resamples.
        seed: The seed of the draws.

    Raises:
        ValueError: There is no scenario, a scenario has no rows, or `resamples` is below 1.
    """
    if not differences or not all(len(rows) for rows in differences.values()):
        raise ValueError("differences must have at least one scenario, each with at least one row.")
    check_int("resamples", resamples, 1)
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
    other_side = float(np.mean(means <= 0 if mean > 0 else means >= 0))
    return Difference(mean, float(low), float(high), min(1.0, max(2 * other_side, 2 / resamples)))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Return the p values of several comparisons, corrected for their number (Holm 1979), in the given order."""
    corrected, largest = {}, 0.0
    for position, name in enumerate(sorted(p, key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - position) * p[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p}
