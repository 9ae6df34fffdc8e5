"""What a test asks of a message: that it holds names, figures and the cure, in whatever words."""

import re
from contextlib import AbstractContextManager

import pytest


def _whole(part: str) -> str:
    """Return the pattern of `part` as whole words and whole figures: 1 stands neither in 12 nor in 1.5."""
    before = r"(?<!\w)(?<!\d\.)" if part[0].isdigit() else r"(?<!\w)" if part[0].isalpha() else ""
    after = r"(?!\w|\.\d)" if part[-1].isdigit() else r"(?!\w)" if part[-1].isalpha() else ""
    return before + re.escape(part) + after


def _in_order(parts: tuple[str, ...]) -> str:
    """Return the pattern of a line that holds all parts, in this order."""
    return ".*".join(map(_whole, parts))


def raises(error: type[BaseException] | tuple[type[BaseException], ...], *parts: str) -> AbstractContextManager:
    """Assert that the block raises `error`, and that every part stands in its message, in this order, on one line."""
    return pytest.raises(error, match=_in_order(parts))


def warns(category: type[Warning], *parts: str) -> AbstractContextManager:
    """Assert that the block warns of `category`, and that every part stands in the warning, in this order."""
    return pytest.warns(category, match=_in_order(parts))


def says(text: object, *parts: str) -> None:
    """Assert that every part stands in `text`, in this order, on one line."""
    assert re.search(_in_order(parts), str(text)), f"no line names {', '.join(map(repr, parts))} in this order:\n{text}"
