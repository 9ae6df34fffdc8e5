"""The settings of a server."""

from dataclasses import dataclass

from mop_t5.checks import check_least, check_number, check_types


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

    batch_size: int = 8
    max_wait: float = 5.0
    max_queue: int = 64
    max_body: int = 2**20
    max_connections: int = 512
    timeout: float = 60.0
    max_new_tokens: int | None = None
    max_beams: int = 4

    def __post_init__(self):
        check_types(self)
        check_least(self, 1, "batch_size", "max_queue", "max_body", "max_connections", "max_beams", "max_new_tokens")
        check_number("max_wait", self.max_wait, minimum=0)
        check_number("timeout", self.timeout, above=0)
