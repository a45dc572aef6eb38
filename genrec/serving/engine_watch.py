"""Whether an engine elsewhere still answers: looked at beside the requests, never for one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

SECONDS = 2.0
"""Between two looks."""
SOON = 0.25
"""Seconds from a look that failed to the next one."""
FAILURES = 2
"""Looks in a row that must fail: one may be bad luck."""


class EngineWatch:
    """Looks at an engine every two seconds, in a thread of its own (internal).

    look: one look, bounded in time; it raises where the engine has no answer. again: what must hold besides before one
    that was lost counts as back. lost: called when it is. ``well`` says how it stands; it is true at first.
    """

    def __init__(self, look: Callable[[], None], *, again: Callable[[], None], lost: Callable[[], None]) -> None:
        self._look, self._again, self._lost = look, again, lost
        self.well = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="genrec-engine-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, after the look that is under way."""
        self._stop.set()
        self._thread.join(5)

    def _watch(self) -> None:
        failures, said = 0, ""
        while not self._stop.wait(SOON if 0 < failures < FAILURES else SECONDS):
            try:
                self._look()
                if not self.well:
                    self._again()
            except Exception as error:  # whatever it is, the next look may be better
                failures, why = failures + 1, f"{type(error).__name__}: {error}"
                if failures >= FAILURES and why != said:
                    log.error("the engine is lost, requests are answered 503: %s", why)
                    said = why
                if failures >= FAILURES and self.well:
                    self.well = False
                    self._lost()
                continue
            if not self.well:
                log.warning("the engine is back")
            failures, said, self.well = 0, "", True
