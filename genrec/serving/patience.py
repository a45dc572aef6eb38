"""How long a search may go on: it ends, and what it asks of an engine is let go of, when nobody waits any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from genrec.serving.problems import Problem

T = TypeVar("T")
TICK = 0.05
"""Seconds between two looks whether somebody waits."""


@dataclass(frozen=True)
class Patience:
    """deadline: by ``time.monotonic``. wanted: whether anybody still waits. Internal."""

    deadline: float
    wanted: Callable[[], bool] = lambda: True

    @property
    def left(self) -> float:
        """Seconds left, 0 at least."""
        return max(0.0, self.deadline - time.monotonic())

    def check(self) -> None:
        """Raise Problem 504 where the time is up, or nobody waits any more."""
        if not self.left or not self.wanted():
            raise Problem(504, "no answer in time", code="deadline")


_OF_THREAD: ContextVar[Patience | None] = ContextVar("patience", default=None)


@contextmanager
def with_patience(patience: Patience) -> Iterator[None]:
    """What this thread searches meanwhile, or asks of an engine, is waited for so long (internal)."""
    before = _OF_THREAD.set(patience)
    try:
        yield
    finally:
        _OF_THREAD.reset(before)


def patience() -> Patience:
    """That of this thread; an hour where none was said (internal)."""
    return _OF_THREAD.get() or Patience(time.monotonic() + 3600)


def look_of_thread() -> Callable[[], None] | None:
    """What raises Problem 504 where this thread's time is up or nobody waits; None where nobody said (internal)."""
    limit = _OF_THREAD.get()
    return None if limit is None else limit.check


def waited_for(future: Future[T]) -> T:
    """The result of a future; cancelled, with Problem 504, where the time is up or nobody waits (internal)."""
    limit = patience()
    while not future.done():
        try:
            limit.check()
        except Problem:
            future.cancel()
            raise
        try:
            return future.result(min(limit.left, TICK))
        except TimeoutError:
            continue
    return future.result()
