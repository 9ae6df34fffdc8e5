"""Checks of config fields: each raises TypeError or ValueError that names the field and its value."""

import math

LARGEST_INT = 2**31 - 1  # of a field; what torch and the tokenizers count with


def check_scenarios(value, argument: str = "scenarios") -> tuple[str, ...]:
    """value as a tuple of distinct names, with something in each that can be written as UTF-8."""
    if isinstance(value, str) or not isinstance(value, (list, tuple)) or any(not isinstance(s, str) for s in value):
        raise TypeError(f"{argument} must be a list of names; got {value!r}.")
    unwritable = [s for s in value if not s.strip() or any("\ud800" <= c <= "\udfff" for c in s)]
    if unwritable:
        raise ValueError(f"{argument} must be names with text in them, of whole characters; got {unwritable[0]!r}.")
    repeated = sorted({s for s in value if value.count(s) > 1})
    if repeated:
        raise ValueError(f"{argument} must be distinct; got {', '.join(repeated)} more than once.")
    return tuple(value)


def check_int(name: str, value, minimum: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int; got {value!r}.")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}.")
    if value > LARGEST_INT:
        raise ValueError(f"{name} must be at most {LARGEST_INT}; got more.")


def check_bool(name: str, value) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}.")


def check_choice(name: str, value, options) -> None:
    """value must be one of options, which are strings or None."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{name} must be a string; got {value!r}.")
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}; got {value!r}.")


def check_probability(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {value!r}.")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1; got {value}.")


def check_positive(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {value!r}.")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0 and finite; got {value}.")


def check_number(name: str, value, minimum: float = -math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number; got {value!r}.")
    if not math.isfinite(value) or value < minimum:
        least = "" if minimum == -math.inf else f"at least {minimum:g} and "
        raise ValueError(f"{name} must be {least}finite; got {value}.")


def check_some_scenario(scenarios: tuple[str, ...]) -> None:
    if not scenarios:
        raise ValueError("scenarios must name at least one scenario; got none. Pass scenarios=[...].")
