"""Stopping a run, cleanly or at once. The same command resumes it after either.

A clean stop (the first Ctrl-C, or the end of --max-hours) starts no further trial, finishes the running epochs, keeps
checkpoints and queues unfinished trials again. SIGTERM and a second Ctrl-C end the run at once and lose at most an
epoch of each running stage.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = "stopping: running epochs end and are kept; Ctrl-C again stops now"
OUT_OF_TIME = 3  # exit code of a run that --max-hours ended before its last trial


class RunInterrupted(KeyboardInterrupt):
    """A run that SIGINT or SIGTERM ended at once. `code` is its exit code, 128 plus the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.code = 128 + signum


class StopRequest:
    """Whether a run should stop cleanly: after a signal, or after `hours`. Executors check `requested` before each
    trial and after each step. `clock()` returns seconds."""

    def __init__(self, hours: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.hours, self._clock = hours, clock
        self._end = None if hours is None else clock() + 3600 * hours
        self._signum = 0
        self.on_signal: Callable[[], None] | None = None  # called when a signal requests the stop

    def request(self, signum: int = signal.SIGINT) -> None:
        """Requests a clean stop on behalf of the signal `signum`."""
        self._signum = signum
        if self.on_signal is not None:
            self.on_signal()

    @property
    def requested(self) -> bool:
        """Whether the run should stop: a signal has arrived or the time is up."""
        return bool(self._signum) or (self._end is not None and self._clock() >= self._end)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the time is up; None without a limit."""
        return None if self._end is None else max(0.0, self._end - self._clock())

    @property
    def reason(self) -> str:
        """The reason in words, once `requested` is true."""
        return "stopped by Ctrl-C" if self._signum else f"the {self.hours:g} hours of --max-hours are up"

    @property
    def code(self) -> int:
        """Exit code of a run that stopped before its last trial: 128 plus the signal's number, or OUT_OF_TIME."""
        return 128 + self._signum if self._signum else OUT_OF_TIME


@contextmanager
def handle_signals(stop: StopRequest | None = None) -> Iterator[None]:
    """Within the context the first SIGINT requests a clean stop of `stop`. SIGTERM, a second SIGINT, and without a
    `stop` also the first one raise RunInterrupted. Does nothing outside the main thread."""
    received: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        if stop is not None and signum == signal.SIGINT and not stop.requested:
            stop.request(signum)
            return
        raise RunInterrupted(signum)

    try:
        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread may set handlers
        yield
        return
    try:
        yield
    except RunInterrupted:
        raise
    except KeyboardInterrupt:  # compiled code replaces RunInterrupted by its base class
        raise RunInterrupted(received[-1] if received else signal.SIGINT) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
