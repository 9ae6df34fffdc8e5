"""The checks of config fields: types from annotations, bounds, choices."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from errors import raises
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
        (TypeError, "whole", True, ("int", "True")),
        (TypeError, "whole", 2.0, ("int", "2.0")),
        (TypeError, "real", "2", ("number", "'2'")),
        (TypeError, "real", False, ("number", "False")),
        (TypeError, "flag", 1, ("True or False", "1")),
        (TypeError, "text", 3, ("string", "3")),
        (TypeError, "names", "ab", ("list", "'ab'")),
        (TypeError, "names", ["a", 1], ("list", "['a', 1]")),
        (TypeError, "numbers", {"a": [1.5]}, ("dict",)),
        (TypeError, "numbers", {1: [1]}, ("dict",)),
        (ValueError, "whole", LARGEST_INT + 1, (str(LARGEST_INT),)),
        (ValueError, "real", float("nan"), ("finite", "nan")),
        (ValueError, "real", float("inf"), ("finite", "inf")),
        (ValueError, "real", 10**400, ("finite", str(10**400))),
        (TypeError, "bare", "ab", ("list", "'ab'")),
        (TypeError, "pair", [1, 0.5, 2], ("list", "[1, 0.5, 2]")),
        (TypeError, "pairs", [[1, 2]], ("list", "[1, 2]")),
    ],
)
def test_other_values_are_named(error, name, value, expected):
    with raises(error, name, *expected):
        check_types(Config(**{name: value}))


def test_infinite_fields():
    check_types(Config(real=float("inf")), infinite=("real",))


def test_bounds():
    check_least(Config(whole=2, numbers={}), 2, "whole", "text")
    with raises(ValueError, "whole", "3", "2"):
        check_least(Config(whole=2), 3, "whole")
    check_number("x", 0, 0, below=1)
    with raises(ValueError, "x", "0", "1", "1"):
        check_number("x", 1, 0, below=1)
    with raises(ValueError, "x", "0", "0"):
        check_number("x", 0, above=0)


def test_numbers_of_numpy_are_numbers():
    check_int("batch_size", np.int64(4), 1)
    check_number("temperature", np.float32(2), above=0)
    check_number("number", 10**30)
    for huge in (10**400, -(10**400), np.float64("inf")):
        with raises(ValueError, "number", "finite"):
            check_number("number", huge)
    with raises(TypeError, "batch_size"):
        check_int("batch_size", np.float64(4), 1)
    with raises(ValueError, "batch_size"):
        check_int("batch_size", np.int64(0), 1)


def test_subset():
    assert check_subset("names", ["b", "a"], ("a", "b", "c")) == ("a", "b")
    for given, found in ((["d"], "d"), ([], "none")):
        with raises(ValueError, "names", "a, b, c", found):
            check_subset("names", given, ("a", "b", "c"))
