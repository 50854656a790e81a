"""A clock by which nobody is late because this process was."""

from __future__ import annotations

import time
from collections.abc import Callable

MOST_STEP = 1.0  # seconds between two ticks that count in full


class ServedClock:
    """Seconds for which a process has been there for its callers.

    `tick` is called regularly by the loop that serves them. When a tick is late, because the loop was held up or the
    machine slept, calls have waited unread, so the pause counts as MOST_STEP and no more: a silence is measured by the
    time in which calls could be heard.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._served, self._last = 0.0, clock()

    def __call__(self) -> float:
        return self._served + min(self._clock() - self._last, MOST_STEP)

    def tick(self) -> None:
        """The loop is serving calls now."""
        self._served = self()
        self._last = self._clock()
