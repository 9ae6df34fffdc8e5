"""The settings of a server."""

from dataclasses import dataclass
from typing import Annotated

from mop_t5.checks import Positive, at_least, check_types, within


@dataclass(frozen=True)
class Limits:
    """Limits of a server. A request beyond a limit is refused with an HTTP status and one sentence.

    Args:
        batch_size: dialogues that are summarised together at most.
        max_wait: milliseconds that a request waits for others that can share its batch.
        max_queue: requests that may wait. Further requests are refused with status 429.
        max_body: bytes per request. A longer request is refused with status 413.
        max_connections: clients that may be connected at the same time. Further clients get status 503 for any address.
        timeout: seconds per request, from its first byte to its answer. After them the answer is status 504.
        max_new_tokens: tokens per summary that a request may ask for. None is the max_target of its run.
        max_beams: beams that a request may ask for.
    """

    batch_size: Positive = 8
    max_wait: Annotated[float, within(0)] = 5.0
    max_queue: Positive = 64
    max_body: Positive = 2**20
    max_connections: Positive = 512
    timeout: Annotated[float, within(above=0)] = 60.0
    max_new_tokens: Annotated[int | None, at_least(1)] = None
    max_beams: Positive = 4

    def __post_init__(self):
        check_types(self)
