"""Write the values of rows as texts by templates with columns in braces, also for lists of turns."""

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from string import Formatter
from typing import Any

from mop_t5.data.labels import label_key
from mop_t5.data.table_files import value_at
from mop_t5.files import parse_json


def fields_of(template: str, *, unnamed: bool = False) -> list[str]:
    """Return the distinct fields in braces.

    Args:
        template: The template.
        unnamed: True if `{}`, which stands for the value itself, is allowed.

    Raises:
        ValueError: Braces are not closed, or empty, or hold more than a name.
    """
    try:
        parts = [(name, form, how) for _, name, form, how in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"the template {template!r} is wrong: {error}. Write a brace of the text twice.") from error
    for name, form, conversion in parts:
        if not (name or unnamed) or form or conversion:
            raise ValueError(f"the template {template!r} must have the name of a field, and nothing else, in braces.")
    return list(dict.fromkeys(name for name, _, _ in parts))


def filled(template: str, write: Callable[[str], str]) -> str:
    """Return the template with a text for each field.

    Args:
        template: The template. Names of fields may hold dots and spaces, as columns do.
        write: Returns the text of a field by its name.
    """
    parts = Formatter().parse(template)
    return "".join(text + ("" if name is None else write(name)) for text, name, _, _ in parts)


def as_text(value: object, join: str | None = None) -> str:
    r"""Return a value of a row as text. Every line end becomes `\n`. true and false are written as in JSON.

    Args:
        value: A text, a number, true or false, or a list of them.
        join: Text between the elements of a list. None if a list is not allowed.

    Raises:
        TypeError: The value is something else, or a text that Python made of a list or an object. The message continues
            the name of the value: "holds null, ...".
    """
    if isinstance(value, str):
        if _is_python(value):
            raise TypeError("holds a list or an object as Python prints it (write the file as JSON lines instead)")
        return str(value).replace("\r\n", "\n").replace("\r", "\n")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if isinstance(value, list) and join is not None:
        return join.join(map(as_text, value))
    raise TypeError(f"holds {_described(value)}, which is no text")


def turns_of(value: object) -> list[Any] | None:
    """Return a value as a list of turns. None if it is no list.

    An object of lists of the same length becomes a list of objects, because the library `datasets` writes a sequence of
    objects in this form.
    """
    if isinstance(value, Mapping) and value and all(isinstance(one, list) for one in value.values()):
        places = {len(one) for one in value.values()}
        return [dict(zip(value, turn)) for turn in zip(*value.values())] if len(places) == 1 else None
    return value if isinstance(value, list) else None


def turns_in(text: object) -> object:
    """Return the list or object in a JSON text, as in a cell of a CSV file. Return any other value as it is."""
    if not isinstance(text, str) or not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return parse_json(text)
    except ValueError:
        return text


def as_turns(
    turns: Sequence[object], turn: str, labels: Mapping[str, Mapping[str, str]], write: Callable[[object], str]
) -> str:
    """Return turns as text, one line per turn.

    Args:
        turns: Objects, lists or texts.
        turn: Template of a turn. Braces hold a field of the object or a place in the list. `{}` is a turn that is a
            text.
        labels: Field -> value -> text to write for this value. Another value of the field is an error.
        write: Returns the text of a value.

    Raises:
        TypeError, ValueError: A turn does not fit. The message continues the name of the list.
    """

    def text_of(one: object, number: int, name: str) -> str:
        value = _part(one, name)
        if value is None:
            if isinstance(one, Mapping) and name in one:
                raise ValueError(f"has null for {name!r} in turn {number}")
            raise ValueError(f"has no {name!r} in turn {number}, which is {_described(one)}")
        try:
            text = write(label_key(value, labels.get(name, {})))
        except TypeError as error:
            raise TypeError(f"{error} (turn {number})") from error
        if name not in labels:
            return text
        if text not in labels[name]:
            raise ValueError(f"has the {name} {text!r} in turn {number}, which is none of {', '.join(labels[name])}")
        return labels[name][text]

    return "\n".join(filled(turn, partial(text_of, one, number)) for number, one in enumerate(turns, start=1))


def suggested_turn(turns: Sequence[Any]) -> str:
    """Return a template that may fit turns. The turns are objects, or lists such as pairs."""
    if isinstance(turns[0], list):
        return ": ".join(f"{{{place}}}" for place in range(min(2, len(turns[0])))) or "{0}"
    texts = [name for name, value in turns[0].items() if isinstance(value, str)][:2]
    return ": ".join(f"{{{name}}}" for name in texts or turns[0])


def _part(turn: object, name: str) -> object:
    """Return a field of a turn. An empty name means the turn itself, a number a place in a list. None if missing."""
    if name == "" or turn is None:
        return turn
    if isinstance(turn, Mapping):
        return value_at(turn, name)
    return turn[int(name)] if isinstance(turn, list) and name.isdecimal() and int(name) < len(turn) else None


def _is_python(text: str) -> bool:
    """Return whether a text is a list or an object in Python's notation and not in JSON's."""
    if not text.lstrip().startswith(("[", "{")) or "'" not in text or turns_in(text) is not text:
        return False
    try:
        return isinstance(ast.literal_eval(text.strip()), (list, dict))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def _described(value: object) -> str:
    if isinstance(value, Mapping):
        return f"an object with the fields {', '.join(map(str, value))}"
    if isinstance(value, list):
        return "a list inside of a list"
    names = {type(None): "null", float: str(value), str: "a text"}
    return names.get(type(value), f"a value of the type {type(value).__name__}")
