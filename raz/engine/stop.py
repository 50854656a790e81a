"""SIGINT and SIGTERM: stop at once; the study and the store are such that the next command goes on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM, with the exit code a shell expects."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.code = 128 + signum


@contextmanager
def signals() -> Iterator[None]:
    """Within it, both signals end in Interrupted in the main thread."""
    seen: list[int] = []

    def raised(signum: int, frame: FrameType | None) -> None:
        seen.append(signum)
        raise Interrupted(signum)

    try:
        before = {number: signal.signal(number, raised) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: its owner decides about signals
        yield
        return
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:  # compiled code in between passes on the bare kind
        raise Interrupted(seen[-1] if seen else signal.SIGINT) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
