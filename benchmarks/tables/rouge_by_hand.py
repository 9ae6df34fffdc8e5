"""ROUGE computed from its definition, with every choice as a field. It explains the numbers of a package.

A row of the table is explained if `Choice` gives the numbers of the package for all pairs. The difference is measured.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Units = Callable[[str], list[str]]


@dataclass(frozen=True)
class Choice:
    """What a package counts.

    Args:
        counts: "clipped" (each n-gram as often as both texts have it) or "distinct" (each different n-gram once).
        longest: what ROUGE-L divides: "sequence" (length of the longest common subsequence) or "sentences" (different
            units of the reference that are in a longest common subsequence of any two sentences).
        sentence_end: text at which "sentences" splits the units, joined by spaces. It is not counted.
        beta: weight of recall in the F of ROUGE-L.
    """

    counts: str = "clipped"
    longest: str = "sequence"
    sentence_end: str = "."
    beta: float = 1.0

    def scores(self, reference: Sequence[str], candidate: Sequence[str]) -> tuple[float, float, float]:
        """Return the F of ROUGE-1, ROUGE-2 and ROUGE-L of two lists of units."""
        longest = self._longest(reference, candidate)
        if self.longest != "sequence":  # then the ends of sentences are no units
            reference, candidate = ([u for one in self._sentences(us) for u in one] for us in (reference, candidate))
        return self._overlap(reference, candidate, 1), self._overlap(reference, candidate, 2), longest

    def _overlap(self, reference: Sequence[str], candidate: Sequence[str], n: int) -> float:
        counts = [Counter(zip(*(units[i:] for i in range(n)))) for units in (reference, candidate)]
        if self.counts == "distinct":
            counts = [Counter(c.keys()) for c in counts]
        return f_score((counts[0] & counts[1]).total(), counts[0].total(), counts[1].total())

    def _longest(self, reference: Sequence[str], candidate: Sequence[str]) -> float:
        if self.longest == "sequence":
            return f_score(len(common(reference, candidate)), len(reference), len(candidate), self.beta)
        wanted, given = (self._sentences(units) for units in (reference, candidate))
        units = {one[i] for one in wanted for other in given for i, _ in common(one, other)}
        of_reference, of_candidate = (len({unit for one in texts for unit in one}) for texts in (wanted, given))
        return f_score(len(units), of_reference, of_candidate, self.beta)

    def _sentences(self, units: Sequence[str]) -> list[list[str]]:
        return [part.split() for part in " ".join(units).split(self.sentence_end) if part.strip()]


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
