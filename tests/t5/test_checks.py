"""The checks of config fields: types from annotations, bounds, choices."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from mop_t5.checks import LARGEST_INT, check_int, check_least, check_number, check_subset, check_types


@dataclass
class Config:
    whole: int = 1
    real: float = 1.0
    flag: bool = False
    text: str | None = None
    names: tuple[str, ...] = ()
    numbers: dict[str, list[int]] = field(default_factory=dict)
    anything: Any = None
    bare: tuple = (1, 0.5)
    pair: tuple[int, float] = (1, 0.5)
    pairs: tuple[tuple[int, str], ...] = ()
    some: tuple | None = None


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"real": 3},
        {"text": "a"},
        {"names": ["a", "b"]},
        {"numbers": {"a": [1, 2]}},
        {"whole": -LARGEST_INT},
        {"anything": object},
        {"bare": [1, "a"], "pair": [2, 1], "pairs": [[1, "a"], (2, "b")], "some": [1]},
        {"real": 2**40},
    ],
)
def test_values_of_the_annotated_types_pass(given):
    check_types(Config(**given))


@pytest.mark.parametrize(
    ("error", "name", "value", "expected"),
    [
        (TypeError, "whole", True, "an int; got True"),
        (TypeError, "whole", 2.0, "an int; got 2.0"),
        (TypeError, "real", "2", "a number; got '2'"),
        (TypeError, "real", False, "a number; got False"),
        (TypeError, "flag", 1, "True or False; got 1"),
        (TypeError, "text", 3, "a string or None; got 3"),
        (TypeError, "names", "ab", "a list of names; got 'ab'"),
        (TypeError, "names", ["a", 1], "a list of names; got .'a', 1."),
        (TypeError, "numbers", {"a": [1.5]}, "a dict from names to .*; got"),
        (TypeError, "numbers", {1: [1]}, "a dict from names to .*; got"),
        (ValueError, "whole", LARGEST_INT + 1, str(LARGEST_INT)),
        (ValueError, "real", float("nan"), "finite; got nan"),
        (ValueError, "real", float("inf"), "finite; got inf"),
        (ValueError, "real", 10**400, "finite; got 1000"),
        (TypeError, "bare", "ab", "a list; got 'ab'"),
        (TypeError, "pair", [1, 0.5, 2], "a list of values; got .1, 0.5, 2."),
        (TypeError, "pairs", [[1, 2]], "a list of values; got"),
    ],
)
def test_other_values_are_named(error, name, value, expected):
    with pytest.raises(error, match=f"{name} must be .*{expected}"):
        check_types(Config(**{name: value}))


def test_infinite_fields():
    check_types(Config(real=float("inf")), infinite=("real",))


def test_bounds():
    check_least(Config(whole=2, numbers={}), 2, "whole", "text")
    with pytest.raises(ValueError, match="whole must be at least 3; got 2"):
        check_least(Config(whole=2), 3, "whole")
    check_number("x", 0, 0, below=1)
    with pytest.raises(ValueError, match="x must be at least 0 and below 1; got 1"):
        check_number("x", 1, 0, below=1)
    with pytest.raises(ValueError, match="x must be above 0 and finite; got 0"):
        check_number("x", 0, above=0)


def test_numbers_of_numpy_are_numbers():
    check_int("batch_size", np.int64(4), 1)
    check_number("temperature", np.float32(2), above=0)
    with pytest.raises(TypeError, match="batch_size"):
        check_int("batch_size", np.float64(4), 1)
    with pytest.raises(ValueError, match="batch_size"):
        check_int("batch_size", np.int64(0), 1)


def test_subset():
    assert check_subset("names", ["b", "a"], ("a", "b", "c")) == ("a", "b")
    for given, found in ((["d"], "d"), ([], "none")):
        with pytest.raises(ValueError, match=f"names must be .* a, b, c; got {found}"):
            check_subset("names", given, ("a", "b", "c"))
