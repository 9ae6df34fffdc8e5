"""The metrics of a server, in the form of Prometheus."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mop_t5.serving.jobs import Answer
from mop_t5.serving.limits import Limits

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60)


class Metrics:
    """Counts requests, batches and tokens.

    Args:
        limits: The limits of the server. They give the buckets of the batch size.
        waiting: Returns the depth of the queue.
    """

    def __init__(self, limits: Limits, waiting: Callable[[], int]):
        registry = self._registry = CollectorRegistry()
        sizes = sorted({2**power for power in range(limits.batch_size.bit_length())} | {limits.batch_size})
        self._requests = Counter("mop_t5_requests", "Requests for a summary by status", ["status"], registry=registry)
        self._seconds = Histogram(
            "mop_t5_request_seconds", "Seconds per answered request, with waiting", buckets=_SECONDS, registry=registry
        )
        self._sizes = Histogram("mop_t5_batch_size", "Dialogues per batch", buckets=sizes, registry=registry)
        Gauge("mop_t5_queue_depth", "Requests that wait", registry=registry).set_function(waiting)
        names = ["adapter"]
        self._read = Counter("mop_t5_dialogue_tokens", "Tokens read of dialogues", names, registry=registry)
        said = "Steps of the searches of finished summaries"
        self._steps = Counter("mop_t5_generated_tokens", said, names, registry=registry)

    def batch(self, size: int) -> None:
        """Count a batch."""
        self._sizes.observe(size)

    def answer(self, adapter: str, answer: Answer) -> None:
        """Count the tokens of an answer."""
        self._read.labels(adapter).inc(answer.dialogue_tokens)
        self._steps.labels(adapter).inc(answer.steps)

    def request(self, status: int, started: float) -> None:
        """Count a request with its status, and the time of an answered request.

        Args:
            status: The HTTP status. 499 if the client left before.
            started: time.monotonic() at its begin.
        """
        self._requests.labels(str(status)).inc()
        if status == 200:
            self._seconds.observe(time.monotonic() - started)

    def text(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self._registry)
