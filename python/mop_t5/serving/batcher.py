"""A queue of jobs, and the thread that answers them in batches."""

import logging
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import InvalidStateError
from contextlib import suppress

from mop_t5.serving.jobs import Job, summarise
from mop_t5.serving.limits import Limits
from mop_t5.serving.metrics import Metrics
from mop_t5.serving.refusals import Refused

_LOG = logging.getLogger("uvicorn.error")  # the log of the server


class Batcher:
    """Answers jobs in one thread. Jobs of the same kind that wait at the same time share a batch.

    Args:
        limits: Batch size, waiting time and length of the queue.

    Attributes:
        limits: The same limits.
        metrics: The metrics of the server. The batches and the queue are in them.
        is_closed: Whether `close` was called.
    """

    def __init__(self, limits: Limits):
        self.limits, self.metrics = limits, Metrics(limits, lambda: self.waiting)
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        self.is_closed = False
        self._seconds = 1.0  # of the last batch
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of jobs that wait."""
        return len(self._waiting)

    @property
    def has_ended(self) -> bool:
        """Whether the thread has ended: after `close`, when the last job is answered."""
        return not self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Put a job into the queue. A job leaves the queue at once if its answer is cancelled.

        Raises:
            Refused: The queue is full (429), or `close` was called (503).
        """
        with self._changed:
            if self.is_closed or self.has_ended:
                raise Refused(503, "the server is stopping and takes no further requests. Ask another one.")
            if self.waiting >= self.limits.max_queue:
                seconds = math.ceil(self.waiting / self.limits.batch_size * self._seconds)
                wait = {"Retry-After": str(max(1, seconds))}
                raise Refused(429, "the server is busy: its queue is full. Try again later.", wait)
            self._waiting.append(job)
            self._changed.notify()
        job.answer.add_done_callback(lambda _: self._forget(job))

    def close(self) -> None:
        """Take no further jobs. The jobs in the queue are still answered."""
        with self._changed:
            self.is_closed = True
            self._changed.notify()

    def _forget(self, job: Job) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def _work(self) -> None:
        while jobs := self._next_batch():
            started = time.monotonic()
            self.metrics.batch(len(jobs))
            self._answer(jobs)
            self._seconds = time.monotonic() - started

    def _next_batch(self) -> list[Job]:
        """Wait for jobs, and take a batch from the queue. Return no job after `close`, when the queue is empty."""
        size, patience = self.limits.batch_size, self.limits.max_wait / 1000
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self.is_closed)
                if not self._waiting:
                    return []
                first = self._waiting[0]
                jobs = [job for job in self._waiting if job.kind == first.kind][:size]
                left = first.since + patience - time.monotonic()
                if len(jobs) == size or left <= 0 or self.is_closed:
                    self._waiting = [job for job in self._waiting if job not in jobs]
                    return jobs
                self._changed.wait(left)

    def _answer(self, jobs: Sequence[Job]) -> None:
        """Answer a batch. If it fails, answer each of its jobs alone, so that only the faulty jobs fail."""
        jobs = [job for job in jobs if not job.answer.cancelled()]
        if not jobs:
            return
        try:
            answers = summarise(jobs)
        except Exception as error:
            if len(jobs) > 1:
                _LOG.warning("a batch of %d failed (%s); each dialogue is tried alone", len(jobs), error)
                for job in jobs:
                    self._answer([job])
                return
            _LOG.exception("a dialogue for the adapter %r could not be summarised", jobs[0].adapter.name)
            with suppress(InvalidStateError):  # the job was cancelled meanwhile
                jobs[0].answer.set_exception(error)
            return
        for job, answer in zip(jobs, answers, strict=True):
            with suppress(InvalidStateError):
                job.answer.set_result(answer)
