"""Put names in the place of numbers, as `datasets.ClassLabel` has them."""

from collections.abc import Mapping, Sequence
from typing import Any

# column of numbers -> their names, a list; column of objects -> such a mapping of their fields
Labels = Mapping[str, Any]


class LabelName(str):
    """The name of a label.

    Attributes:
        number: The number of the label.
        names: The names of all labels.
    """

    number: int
    names: Sequence[str]

    def __new__(cls, names: Sequence[str], number: int) -> "LabelName":
        """Make the name of the label `number`."""
        name = super().__new__(cls, names[number])
        name.number, name.names = number, names
        return name


def label_key(value: Any, texts: Mapping[str, str]) -> Any:
    """Return the key of a label in `texts`: its number if all numbers are keys, and else its name.

    Args:
        value: A value of a row. What is no label is returned unchanged. The labels in a list are replaced.
        texts: Number or name of a label -> text to write for it. Its keys may be in small letters.

    Raises:
        ValueError: Numbers and names are keys, and stand for different texts.
    """
    if isinstance(value, list):
        return [label_key(one, texts) for one in value]
    if not isinstance(value, LabelName):
        return value
    by_number = [texts.get(str(number)) for number in range(len(value.names))]
    by_name = [texts.get(name, texts.get(name.lower())) for name in value.names]
    if None in by_number:
        return value
    if None not in by_name and by_name != by_number:
        raise ValueError(
            f"the labels {', '.join(value.names)} have the numbers 0 to {len(value.names) - 1}, and both are keys of "
            "labels, with different texts. Name either the numbers or the names"
        )
    return str(value.number)


def named(row: dict[str, Any], labels: Labels, where: str) -> dict[str, Any]:
    """Return a row with the names of numbers in their place, as `datasets.ClassLabel` has them.

    Raises:
        ValueError: A number has no name.
    """
    if not labels:
        return row
    return {column: _named(value, labels.get(column), column, where) for column, value in row.items()}


def _named(value: Any, names: Any, column: str, where: str) -> Any:
    if not names:
        return value
    if isinstance(value, list):
        return [_named(one, names, column, where) for one in value]
    if isinstance(names, Mapping):
        inner = value.items() if isinstance(value, Mapping) else ()
        return {key: _named(one, names.get(key), f"{column}.{key}", where) for key, one in inner} or value
    if not isinstance(value, int) or isinstance(value, bool):  # another program changed the values
        return value
    if not 0 <= value < len(names):
        raise ValueError(
            f"{where}: `{column}` is label {value}, and the labels are 0 to {len(names) - 1}. Fill it in or delete the "
            "row."
        )
    return LabelName(names, value)


def labels_of(features: Mapping[str, Any]) -> Labels:
    """Return the names of numbers in `datasets.Features`, given as their JSON form. Lists do not count as a level."""

    def names(feature: Any) -> Any:
        if isinstance(feature, list):
            return names(feature[0])
        if not isinstance(feature, Mapping):
            return None
        if isinstance(kind := feature.get("_type"), str):
            return feature["names"] if kind == "ClassLabel" else names(feature.get("feature"))
        return {name: found for name, one in feature.items() if (found := names(one))}

    return names(features) or {}
