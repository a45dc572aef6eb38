"""Requests that arrive together are searched together: a thread owns the model, the others wait in a bounded queue.

While the model works, requests gather; then the oldest one and those that ask in the same way form the next batch. So
nothing waits for a batch to fill, and a batch grows with the load. A model in an engine is asked by several threads:
the engine itself works on all that it is asked at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from genrec.serving.patience import Patience, with_patience
from genrec.serving.problems import Problem
from genrec.serving.telemetry import Metrics

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """One history to be searched. key: only jobs with equal keys share a batch; deadline: by ``time.monotonic``.

    rows: what it costs, in identifiers kept per step. gone: set when nobody waits for the answer any more.
    """

    query: Any
    key: Hashable
    deadline: float
    rows: int = 1
    future: Future[Any] = field(default_factory=Future)
    gone: threading.Event = field(default_factory=threading.Event)
    arrived: float = field(default_factory=time.monotonic)

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for the answer."""
        return not self.gone.is_set() and self.deadline > time.monotonic()


class Batcher:
    """Answers jobs in batches, first come, first served by key (internal).

    answer: from the queries of a batch, all of one key, to their answers in order; an exception among the answers is
    that of its query alone. A batch has ``max_batch`` jobs and ``max_rows`` rows at most, or is one job. A job whose
    future was cancelled, or whose deadline has passed, is not searched; a search whose last user gives up is ended by
    :func:`genrec.serving.patience.look_of_thread`. searches: batches at a time, each in a thread
    of its own.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Any]], Sequence[Any]],
        *,
        max_batch: int,
        max_rows: int,
        max_waiting: int,
        metrics: Metrics,
        searches: int = 1,
    ) -> None:
        self._max_rows = max_rows
        self._answer, self._max_batch, self._max_waiting, self._metrics = answer, max_batch, max_waiting, metrics
        self._jobs: deque[Job] = deque()
        self._ready = threading.Condition()
        self._closing = False
        self._seconds = 0.05  # of a job, a moving mean
        self._threads = [
            threading.Thread(target=self._work, name="genrec-search", daemon=True) for _ in range(searches)
        ]
        for each in self._threads:
            each.start()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all of them or none. Raises Problem 429 where too many wait, 503 where the server ends."""
        with self._ready:
            if self._closing:
                raise Problem(503, "the server is shutting down", code="shutting_down", retry_after=1)
            if len(self._jobs) + len(jobs) > self._max_waiting:
                self._drop_dead()
            if len(self._jobs) + len(jobs) > self._max_waiting:
                self._metrics.shed.inc(len(jobs))
                wait = len(self._jobs) * self._seconds / len(self._threads)
                raise Problem(429, "too many requests wait", code="overloaded", retry_after=wait)
            self._jobs.extend(jobs)
            self._metrics.waiting.set(len(self._jobs))
            self._ready.notify(len(jobs))

    def close(self, timeout: float | None = None) -> None:
        """Answer what waits, then end the threads."""
        with self._ready:
            self._closing = True
            self._ready.notify_all()
        until = None if timeout is None else time.monotonic() + timeout
        for each in self._threads:
            each.join(None if until is None else max(0.0, until - time.monotonic()))

    def _drop_dead(self) -> None:
        """Free the places of those whom nobody waits for."""
        alive = [job for job in self._jobs if not job.future.cancelled() and job.deadline > time.monotonic()]
        self._metrics.expired.inc(len(self._jobs) - len(alive))
        self._jobs = deque(alive)

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            if batch:
                self._run(batch)

    def _next(self) -> list[Job] | None:
        """The oldest job and those like it; None at the end. Jobs of other keys keep their places."""
        with self._ready:
            while not self._jobs:
                if self._closing:
                    return None
                self._ready.wait()
            batch: list[Job] = []
            now, left, rows = time.monotonic(), deque[Job](), 0
            while self._jobs and len(batch) < self._max_batch:
                job = self._jobs.popleft()
                if job.future.cancelled() or job.deadline <= now:
                    self._metrics.expired.inc()
                    job.future.cancel()
                elif batch and (job.key != batch[0].key or rows + job.rows > self._max_rows):
                    left.append(job)
                else:
                    batch.append(job)
                    rows += job.rows
            self._jobs.extendleft(reversed(left))
            self._metrics.waiting.set(len(self._jobs))
        return [job for job in batch if job.future.set_running_or_notify_cancel()]

    def _run(self, batch: list[Job]) -> None:
        started = time.monotonic()
        self._metrics.batch.observe(len(batch))
        self._metrics.running.inc(len(batch))
        for job in batch:
            self._metrics.stages.labels("queue").observe(started - job.arrived)
        answers: Sequence[Any]
        waits = Patience(max(job.deadline for job in batch), lambda: any(job.wanted for job in batch))
        try:
            with with_patience(waits):
                answers = self._answer([job.query for job in batch])
        except Problem as problem:
            if not any(job.wanted for job in batch):
                self._metrics.expired.inc(len(batch))
            answers = [problem] * len(batch)
        except Exception as error:
            log.exception("a batch of %d failed", len(batch))
            answers = [error] * len(batch)
        self._seconds += 0.1 * ((time.monotonic() - started) / len(batch) - self._seconds)
        self._metrics.running.dec(len(batch))
        for job, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                job.future.set_exception(answer)
            else:
                job.future.set_result(answer)
