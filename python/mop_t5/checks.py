"""Check the fields of configurations. The error of a check names the field and its value, or the place of an entry."""

import dataclasses
import math
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Integral, Real
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

LARGEST_INT = 2**31 - 1  # largest int of a field, because torch and the tokenizers count in 32 bits
_WORDS = {bool: "True or False", int: "an int", float: "a number", str: "a string", dict: "a dict"}
_PLURALS = {int: "ints", float: "numbers", str: "names", dict: "dicts"}


@contextmanager
def errors_at(where: str) -> Iterator[None]:
    """Put the place of a row or an entry in front of the message of a TypeError or ValueError of the block."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error


def check_types(config: Any, infinite: Collection[str] = (), hint: str = "") -> None:
    """Check the fields of a dataclass against their annotations.

    An int counts as a float, and a list as a tuple. Numbers must be finite. The functions in `Annotated[...]`, such as
    at_least(1), check a value, or each element of a list, after all types. They do not see None.

    Args:
        config: An instance of a dataclass.
        infinite: Names of the fields that may be infinite.
        hint: End of the message about a wrong type.

    Raises:
        TypeError: A value is not of the annotated type.
        ValueError: An int has more than 31 bits, a number is not finite, or a function in `Annotated` refuses a value.
    """
    try:
        annotations, annotated = get_type_hints(type(config)), get_type_hints(type(config), include_extras=True)
    except NameError:  # an annotation of another package that exists for type checkers only
        return
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    for name, value in values.items():
        check_type(name, value, annotations[name], name in infinite, hint)
    for name, value in values.items():
        for check in getattr(annotated[name], "__metadata__", ()):
            for one in value if isinstance(value, (list, tuple)) else [value]:
                if one is not None:
                    check(name, one)


def at_least(minimum: int) -> Callable[[str, object], None]:
    """Return the check of an int for `Annotated[...]`. See check_types and check_int."""
    return partial(check_int, minimum=minimum)


def within(minimum: float = -math.inf, *, above: float = -math.inf, below: float = math.inf) -> Callable[..., None]:
    """Return the check of a number for `Annotated[...]`. See check_types and check_number."""
    return partial(check_number, minimum=minimum, above=above, below=below)


def one_of(*options: str | None) -> Callable[[str, str | None], None]:
    """Return the check of a name for `Annotated[...]`. See check_types and check_choice."""
    return partial(check_choice, options=options)


def check_type(name: str, value: object, annotation: Any, infinite: bool = False, hint: str = "") -> None:
    """Check a value against an annotation. See check_types."""
    if not _fits(value, annotation):
        raise TypeError(f"{name} must be {_described(annotation)}; got {value!r}.{hint}")
    if isinstance(value, int) and abs(value) > LARGEST_INT and not _fits(0.5, annotation):
        raise ValueError(f"{name} must be at most {LARGEST_INT}; got more.")
    if isinstance(value, (int, float)) and not abs(value) <= sys.float_info.max and not infinite:
        raise ValueError(f"{name} must be finite; got {value}.")


def _fits(value: object, annotation: Any) -> bool:
    origin, inside = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inside)
    if annotation in (list, tuple):
        return isinstance(value, (list, tuple))
    if origin is tuple and inside[-1] is not ...:
        return isinstance(value, (list, tuple)) and len(value) == len(inside) and all(map(_fits, value, inside))
    if origin in (list, tuple):
        return isinstance(value, (list, tuple)) and all(_fits(element, inside[0]) for element in value)
    if origin is dict:
        pair = types.GenericAlias(tuple, inside)
        return isinstance(value, Mapping) and all(_fits(item, pair) for item in value.items())
    if annotation in (int, float):
        return isinstance(value, (int, annotation)) and not isinstance(value, bool)
    return origin is not None or not isinstance(annotation, type) or isinstance(value, annotation)


def _described(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(_described(one) for one in inside)
    if origin in (list, tuple):
        kinds = set(inside) - {...}
        return f"a list of {_PLURALS.get(kinds.pop(), 'values') if len(kinds) == 1 else 'values'}"
    if annotation in (list, tuple):
        return "a list"
    if origin is dict:
        return f"a dict from {_PLURALS.get(inside[0], 'values')} to {_PLURALS.get(inside[1], 'values')}"
    return "None" if annotation is types.NoneType else _WORDS.get(origin or annotation, str(annotation))


def check_least(config: object, minimum: int, *names: str) -> None:
    """Raise ValueError if a field of `config`, or an element of the field, is below `minimum`. None passes."""
    for name in names:
        value = getattr(config, name)
        for number in value if isinstance(value, (list, tuple)) else [] if value is None else [value]:
            check_int(name, number, minimum)


def check_int(name: str, value: object, minimum: int) -> None:
    """Raise TypeError or ValueError unless `value` is an int of at most 31 bits and at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int; got {value!r}.")
    if int(value) < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}.")
    if int(value) > LARGEST_INT:
        raise ValueError(f"{name} must be at most {LARGEST_INT}; got more.")


def check_number(
    name: str, value: object, minimum: float = -math.inf, *, above: float = -math.inf, below: float = math.inf
) -> None:
    """Raise TypeError or ValueError unless `value` is finite, minimum <= value and above < value < below."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number; got {value!r}.")
    number = int(value) if isinstance(value, Integral) else float(value)  # an int of many digits is no float
    if not (minimum <= number < below and above < number and abs(number) <= sys.float_info.max):
        bounds = [f"above {above:g}"] if above > -math.inf else []
        bounds += [f"at least {minimum:g}"] if minimum > -math.inf else []
        bounds.append("finite" if below == math.inf else f"below {below:g}")
        raise ValueError(f"{name} must be {' and '.join(bounds)}; got {value}.")


def check_choice(name: str, value: str | None, options: Collection[str | None]) -> None:
    """Raise ValueError unless `value` is one of `options`."""
    if value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}; got {value!r}.")


def has_half_pair(text: str) -> bool:
    """Return True if a text has half of a surrogate pair, which JSON can escape and no file or tokenizer takes."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def check_names(name: str, value: Sequence[str]) -> tuple[str, ...]:
    """Return a list of names as a tuple.

    Raises:
        TypeError: `value` is not a list of strings.
        ValueError: A name is blank, has half a surrogate pair, or stands twice.
    """
    if not isinstance(value, (list, tuple)) or any(not isinstance(s, str) for s in value):
        raise TypeError(f"{name} must be a list of names; got {value!r}.")
    if unwritable := [s for s in value if not s.strip() or has_half_pair(s)]:
        raise ValueError(f"{name} must be names with text in them, of whole characters; got {unwritable[0]!r}.")
    if repeated := sorted({s for s in value if value.count(s) > 1}):
        raise ValueError(f"{name} must be distinct; got {', '.join(repeated)} more than once.")
    return tuple(value)


def check_subset(name: str, value: Sequence[str], options: Sequence[str], hint: str = "") -> tuple[str, ...]:
    """Return the names in `value` in the order of `options`.

    Raises:
        ValueError: A name is unknown, or there is no name.
    """
    unknown = sorted(set(value) - set(options))
    if unknown or not value:
        raise ValueError(
            f"{name} must be a non-empty subset of {', '.join(options)}; got {', '.join(unknown) or 'none'}.{hint}"
        )
    return tuple(option for option in options if option in value)


def check_some_scenario(scenarios: Sequence[str]) -> None:
    """Raise ValueError for an empty list of scenarios."""
    if not scenarios:
        raise ValueError("scenarios must name at least one scenario; got none. Pass scenarios=[...].")


# annotations of fields, see check_types
Positive = Annotated[int, at_least(1)]
Count = Annotated[int, at_least(0)]
