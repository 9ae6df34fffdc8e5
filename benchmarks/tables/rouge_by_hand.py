"""ROUGE computed from its definition, with every choice as a field. It explains the numbers of a package.

A row of the table is explained if `Choice` gives the numbers of the package for all pairs. The difference is measured.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

Units = Callable[[str], list[str]]


@dataclass(frozen=True)
class Choice:
    """What a package counts.

    Args:
        counts: "clipped" (each n-gram as often as both texts have it) or "distinct" (each different n-gram once).
        longest: what ROUGE-L divides: "sequence" (length of the longest common subsequence) or "sentences" (different
            units of the reference that are in a longest common subsequence of any two sentences). "sentences" splits
            the units, joined by spaces, at each ".", which is not counted.
        beta: weight of recall in the F of ROUGE-L.
    """

    counts: str = "clipped"
    longest: str = "sequence"
    beta: float = 1.0

    def scores(self, reference: Sequence[str], candidate: Sequence[str]) -> tuple[float, float, float]:
        """Return the F of ROUGE-1, ROUGE-2 and ROUGE-L of two lists of units."""
        texts: list[Sequence[str]] = [reference, candidate]
        if self.longest == "sequence":
            found, sizes = len(common(*texts)), [len(units) for units in texts]
        else:
            wanted, given = sentences = [list(map(str.split, " ".join(units).split("."))) for units in texts]
            found = len({one[i] for one in wanted for other in given for i, _ in common(one, other)})
            texts = [list(chain.from_iterable(text)) for text in sentences]
            sizes = [len(set(units)) for units in texts]
        return self._overlap(1, *texts), self._overlap(2, *texts), f_score(found, sizes[0], sizes[1], self.beta)

    def _overlap(self, n: int, *texts: Sequence[str]) -> float:
        counts = [Counter(zip(*(units[i:] for i in range(n)))) for units in texts]
        if self.counts == "distinct":
            counts = [Counter(c.keys()) for c in counts]
        return f_score((counts[0] & counts[1]).total(), counts[0].total(), counts[1].total())


def f_score(found: int, reference: int, candidate: int, beta: float = 1.0) -> float:
    """Return the F of found units, with recall weighted by beta squared."""
    if not found:
        return 0.0
    recall, precision = found / reference, found / candidate
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def common(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]]:
    """Return the places of a longest common subsequence, found backwards; where both ways are equal, in `second`."""
    table = [[0] * (len(second) + 1)]
    for one in first:
        row = [0]
        for j, other in enumerate(second):
            row.append(table[-1][j] + 1 if one == other else max(table[-1][j + 1], row[-1]))
        table.append(row)
    places, i, j = [], len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            i, j = i - 1, j - 1
            places.append((i, j))
        elif table[i - 1][j] > table[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return places[::-1]
