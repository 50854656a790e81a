"""Stopping a run: cleanly when asked once, now when asked twice. The study and the store are such that the same
command goes on from either.

Asked once (Ctrl-C, or the time of --max-hours is up), no further trial starts, running epochs end, checkpoints are
kept, and what was not finished is queued again. SIGTERM and a second Ctrl-C end the run at once: at most an epoch of
each running stage is lost.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = "stopping: running epochs end and are kept; Ctrl-C again stops now"
OUT_OF_TIME = 3  # the exit code when --max-hours ended a run that has more to do


class RunInterrupted(KeyboardInterrupt):
    """A run ended at once by SIGINT or SIGTERM, with the exit code a shell expects."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.code = 128 + signum


class StopRequest:
    """Whether a run should come to its end. Whoever runs trials asks it before a trial and after each step."""

    def __init__(self, hours: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.hours, self._clock = hours, clock
        self._end = None if hours is None else clock() + 3600 * hours
        self._signum = 0
        self.told: Callable[[], None] | None = None  # called when a signal asks

    def ask(self, signum: int = signal.SIGINT) -> None:
        """From now on `asked` is true."""
        self._signum = signum
        if self.told is not None:
            self.told()

    @property
    def asked(self) -> bool:
        return bool(self._signum) or (self._end is not None and self._clock() >= self._end)

    @property
    def left(self) -> float | None:
        """Seconds until the time is up; None without a limit."""
        return None if self._end is None else max(0.0, self._end - self._clock())

    @property
    def why(self) -> str:
        """In words, once it is asked."""
        return "stopped by Ctrl-C" if self._signum else f"the {self.hours:g} hours of --max-hours are up"

    @property
    def code(self) -> int:
        """The exit code of a run that it ended."""
        return 128 + self._signum if self._signum else OUT_OF_TIME


@contextmanager
def handle_signals(stop: StopRequest | None = None) -> Iterator[None]:
    """Within it, the first SIGINT asks `stop`; SIGTERM, a second SIGINT, and the first without a `stop` end in
    Interrupted in the main thread."""
    seen: list[int] = []

    def raised(signum: int, frame: FrameType | None) -> None:
        seen.append(signum)
        if stop is not None and signum == signal.SIGINT and not stop.asked:
            stop.ask(signum)
            return
        raise RunInterrupted(signum)

    try:
        before = {number: signal.signal(number, raised) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: its owner decides about signals
        yield
        return
    try:
        yield
    except RunInterrupted:
        raise
    except KeyboardInterrupt:  # compiled code in between passes on the bare kind
        raise RunInterrupted(seen[-1] if seen else signal.SIGINT) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
