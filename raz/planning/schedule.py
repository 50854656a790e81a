"""Which trial begins first, and which of the stages that are ready. Pure: runs and the simulator call the same code.

Longest remaining path first (Hu 1961; Graham 1969, "Bounds on multiprocessing timing anomalies"): a free device takes
the stage behind which the longest chain still waits. Whatever the order, a device is never idle while a stage is
ready, so the makespan is at most total / N + (1 - 1 / N) * critical path, less than twice the best possible.

That holds while stages are ready. Few trials are alive at a time, and where they share all that they begin with they
wait for one stage together: so `spread` begins the trials of a known design that share least.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ReadyStage:
    """A stage that could start now, and what hangs on it."""

    key: str
    path: float  # what the neediest trial that waits for it has before it, this stage first (`ahead`)
    waiters: int  # trials that wait for it
    arrived: int  # how many stages were asked for before it


def by_priority(ready: Iterable[ReadyStage]) -> list[ReadyStage]:
    """The longest remaining path first; of equals what more trials wait for, then what was asked for first."""
    return sorted(ready, key=priority)


def priority(stage: ReadyStage) -> tuple[float, int, int, str]:
    """What `order` sorts by, for a queue that is kept sorted: less starts earlier."""
    return -stage.path, -stage.waiters, stage.arrived, stage.key


def remaining_seconds(way: Iterable[tuple[str, float]], made: Callable[[str], bool]) -> float:
    """What a trial has before it: the seconds of those stages (key, seconds) of its way that are not made yet."""
    return sum(seconds for key, seconds in way if not made(key))


def max_live_trials(slots: int, *, eager: bool) -> int:
    """Trials at a time where `slots` stages can be made at a time. `eager`: twice as many trials as stages may run, so
    that slots have work where trials wait for one stage together, and the broker chooses what is urgent."""
    return max(slots + 2, 2 * slots) if eager else slots


def order_by_new_work(ways: Sequence[Mapping[str, float]], made: Iterable[str] = ()) -> list[int]:
    """In which order to begin trials that are all known: next comes the one that adds the most work to what the trials
    before it brought (and to what is `made`), of equals the first. `ways` are the stages of each: key -> seconds.

    So the first N trials share as little as they can, and N slots have work. What a trial adds can only shrink as
    others begin, so most are weighed once or twice: nearly linear.
    """
    begun = set(made)

    def adds(i: int) -> float:
        return sum(seconds for key, seconds in ways[i].items() if key not in begun)

    heap = [(-adds(i), i) for i in range(len(ways))]
    heapq.heapify(heap)
    out: list[int] = []
    while heap:
        _, i = heap[0]
        now = (-adds(i), i)
        if now > heap[0]:  # weighed before others had begun
            heapq.heapreplace(heap, now)
            continue
        heapq.heappop(heap)
        out.append(i)
        begun.update(ways[i])
    return out


def critical_path_lengths(seconds: Mapping[str, float], needs: Mapping[str, Iterable[str]]) -> dict[str, float]:
    """Of a tree of stages: seconds from the start of each stage to the end of the last stage that depends on it.

    `needs` names the stages each one reads. Raises ValueError when they need each other in a circle.
    """
    wanted_by: dict[str, list[str]] = {key: [] for key in seconds}
    open_needs = dict.fromkeys(seconds, 0)
    for key, needed in needs.items():
        for other in set(needed):
            wanted_by[other].append(key)
            open_needs[key] += 1
    done = [key for key, count in open_needs.items() if count == 0]
    for key in done:  # grows while it is walked: each stage after what it needs
        for later in wanted_by[key]:
            open_needs[later] -= 1
            if open_needs[later] == 0:
                done.append(later)
    if len(done) < len(seconds):
        raise ValueError(f"stages need each other in a circle: {sorted(set(seconds) - set(done))}")
    paths: dict[str, float] = {}
    for key in reversed(done):
        paths[key] = seconds[key] + max((paths[later] for later in wanted_by[key]), default=0.0)
    return paths
