"""The order in which trials begin and ready stages start. Runs and the simulator call the same functions.

Longest remaining path first (Hu 1961; Graham 1969, "Bounds on multiprocessing timing anomalies"): a free device takes
the stage with the longest chain of stages behind it. In any order no device is idle while a stage is ready, so the
makespan is at most total / N + (1 - 1 / N) * critical path, less than twice the best possible.

That holds while stages are ready. Few trials are alive at a time, and trials that share their first stages wait for the
same one. So `order_by_new_work` begins with the trials of a known design that share least.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ReadyStage:
    """A stage that could start now, with what decides its turn."""

    key: str
    path: float  # the largest `remaining_seconds` of the trials that wait for it, this stage included
    waiters: int  # trials that wait for it
    arrived: int  # how many stages were requested before it


def by_priority(ready: Iterable[ReadyStage]) -> list[ReadyStage]:
    """The longest remaining path first. Ties: more waiting trials first, then the one requested first."""
    return sorted(ready, key=priority)


def priority(stage: ReadyStage) -> tuple[float, int, int, str]:
    """The sort key of `by_priority`: the stage with the smallest key starts first."""
    return -stage.path, -stage.waiters, stage.arrived, stage.key


def remaining_seconds(stages: Iterable[tuple[str, float]], made: Callable[[str], bool]) -> float:
    """The seconds that a trial has left: the sum over those of its stages (key, seconds) that are not made yet."""
    return sum(seconds for key, seconds in stages if not made(key))


def max_live_trials(slots: int, *, eager: bool) -> int:
    """The number of trials that may be alive when `slots` stages can be made at a time.

    With `eager` about twice as many as slots, so that slots have work while several trials wait for one stage, and the
    broker can choose the most urgent stage.
    """
    return max(slots + 2, 2 * slots) if eager else slots


def order_by_new_work(trials: Sequence[Mapping[str, float]], made: Iterable[str] = ()) -> list[int]:
    """The order in which to begin known trials, as indices. Each trial is given by its stages: key -> work.

    Next is always the trial that adds the most work to the stages begun so far and those that are `made`; the first of
    several equals. So the first N trials share as little as possible, and N slots have work. The work that a trial adds
    can only shrink as others begin, so it is computed once or twice for most trials, and the time is nearly linear.
    """
    begun = set(made)

    def adds(i: int) -> float:
        return sum(seconds for key, seconds in trials[i].items() if key not in begun)

    heap = [(-adds(i), i) for i in range(len(trials))]
    heapq.heapify(heap)
    out: list[int] = []
    while heap:
        _, i = heap[0]
        now = (-adds(i), i)
        if now > heap[0]:  # outdated: other trials have begun since
            heapq.heapreplace(heap, now)
            continue
        heapq.heappop(heap)
        out.append(i)
        begun.update(trials[i])
    return out


def critical_path_lengths(seconds: Mapping[str, float], needs: Mapping[str, Iterable[str]]) -> dict[str, float]:
    """Seconds from the start of each stage to the end of the last stage that depends on it.

    `needs`: the keys of the stages that each stage reads. Raises ValueError when they form a circle.
    """
    dependents: dict[str, list[str]] = {key: [] for key in seconds}
    open_needs = dict.fromkeys(seconds, 0)
    for key, needed in needs.items():
        for other in set(needed):
            dependents[other].append(key)
            open_needs[key] += 1
    done = [key for key, count in open_needs.items() if count == 0]
    for key in done:  # grows during the loop: each stage comes after those it needs
        for later in dependents[key]:
            open_needs[later] -= 1
            if open_needs[later] == 0:
                done.append(later)
    if len(done) < len(seconds):
        raise ValueError(f"stages need each other in a circle: {sorted(set(seconds) - set(done))}")
    paths: dict[str, float] = {}
    for key in reversed(done):
        paths[key] = seconds[key] + max((paths[later] for later in dependents[key]), default=0.0)
    return paths
