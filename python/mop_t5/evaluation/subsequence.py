"""The longest common subsequence of two texts. One row of the table is one integer, and each cell is one bit.

rouge_score and rouge fill a table of Python objects, and some packages recurse along it. Texts of some hundred units
then reach the recursion limit. Texts of some ten thousand units need gigabytes and minutes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two sequences of units."""
    for row in _rows(first, second):
        last = row
    return len(second) - last.bit_count()


def common_units(first: Sequence[str], second: Sequence[str]) -> set[str]:
    """Return the distinct units of the longest common subsequence that the package rouge finds.

    The package goes backwards from the ends of both sequences. It skips a unit of `second` if the rest has a
    subsequence of the same length without this unit.
    """
    rows, found = list(_rows(first, second)), set()
    i, j = len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            found.add(first[i - 1])
            i, j = i - 1, j - 1
        elif (rows[i] >> (j - 1)) & 1:
            j -= 1
        else:
            i -= 1
    return found


def _rows(first: Sequence[str], second: Sequence[str]) -> Iterator[int]:
    """Yield the rows of the table of lengths (Crochemore, Iliopoulos, Pinzon and Reid 2001).

    Bit j of row i is 0 if the length for first[:i] grows from second[:j] to second[:j + 1], and 1 if it does not.
    """
    places: dict[str, int] = {}
    for j, unit in enumerate(second):
        places[unit] = places.get(unit, 0) | (1 << j)
    row = every = (1 << len(second)) - 1
    yield row
    for unit in first:
        both = row & places.get(unit, 0)
        row = ((row + both) | (row - both)) & every
        yield row
