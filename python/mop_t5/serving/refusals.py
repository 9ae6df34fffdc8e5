"""Refuse requests."""

import asyncio
import time
from collections.abc import Awaitable, Mapping
from typing import TypeVar

from fastapi.responses import JSONResponse

T = TypeVar("T")


class Refused(Exception):
    """A request that gets no summary.

    Attributes:
        status: The HTTP status.
        content: The body of the answer.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None):
        super().__init__(sentence)
        self.status, self.content, self._headers = status, {"error": sentence}, headers

    def response(self) -> JSONResponse:
        """Return the answer."""
        return JSONResponse(self.content, self.status, headers=self._headers)


async def before(end: float, awaitable: Awaitable[T], refusal: Refused) -> T:
    """Return a result. Raise `refusal` if the result is not there before `end`, a value of time.monotonic()."""
    try:
        return await asyncio.wait_for(awaitable, max(0.0, end - time.monotonic()))
    except TimeoutError:
        raise refusal from None
