"""Items made ready in a thread of their own while the caller works on those before."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from queue import Empty, Full, Queue
from typing import TypeVar

ItemT = TypeVar("ItemT")
AHEAD = 2  # items that wait for the caller
POLL = 0.05  # s


class _End:
    """After the last item; with the exception that came instead of one."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


@contextmanager
def prefetched(items: Iterable[ItemT], ahead: int = AHEAD) -> Iterator[Iterator[ItemT]]:
    """The same items in the same order, taken from `items` by a thread, at most `ahead` + 1 before they are asked for.

    An exception of `items` is raised where its item would have come. The thread has ended when the context is left.
    """
    ready: Queue[tuple[ItemT] | _End] = Queue(ahead)
    stop = threading.Event()

    def put(entry: tuple[ItemT] | _End) -> None:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=POLL)
            except Full:
                continue
            return

    def run() -> None:
        error = None
        try:
            for item in items:
                put((item,))
                if stop.is_set():
                    return
        except BaseException as caught:  # whatever it is, the caller gets it
            error = caught
        put(_End(error))

    def taken() -> Iterator[ItemT]:
        while not isinstance(entry := ready.get(), _End):
            yield entry[0]
        if entry.error is not None:
            raise entry.error

    thread = threading.Thread(target=run, daemon=True, name="prefetch")
    thread.start()
    try:
        yield taken()
    finally:
        stop.set()
        while thread.is_alive():
            try:
                ready.get(timeout=POLL)  # make room for what it is about to put
            except Empty:
                continue
        thread.join()
