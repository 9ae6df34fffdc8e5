"""Put names in the place of numbers, as `datasets.ClassLabel` has them."""

from collections.abc import Mapping
from typing import Any

# column of numbers -> their names, a list; column of objects -> such a mapping of their fields
Labels = Mapping[str, Any]


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
    return names[value]


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
