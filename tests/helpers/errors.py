"""What a test asks of an error: its type, and that its message holds names and figures, in whatever words."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def raises(error: type[Exception], *parts: str) -> Iterator[None]:
    """Assert that the block raises `error`, and that every part stands in its message, in this order."""
    with pytest.raises(error) as caught:
        yield
    message, start = str(caught.value), 0
    for part in parts:
        assert part in message[start:], f"{part!r} is not named, or not in order: {message}"
        start = message.index(part, start) + len(part)
