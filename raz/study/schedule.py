"""Which of the stages that are ready is started first. Pure: the broker and the simulator call the same code.

Longest remaining path first (Hu 1961; Graham 1969, "Bounds on multiprocessing timing anomalies"): a free device takes
the stage behind which the longest chain still waits. Whatever the order, a device is never idle while a stage is
ready, so the makespan is at most total / N + (1 - 1 / N) * critical path, less than twice the best possible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ready:
    """A stage that could start now, and what hangs on it."""

    key: str
    path: float  # estimated seconds of this stage and of what the neediest trial that waits for it does afterwards
    waiters: int  # trials that wait for it
    arrived: int  # how many stages were asked for before it


def order(ready: Iterable[Ready]) -> list[Ready]:
    """The longest remaining path first; of equals what more trials wait for, then what was asked for first."""
    return sorted(ready, key=rank)


def rank(stage: Ready) -> tuple[float, int, int, str]:
    """What `order` sorts by, for a queue that is kept sorted: less starts earlier."""
    return -stage.path, -stage.waiters, stage.arrived, stage.key


def remaining(seconds: Sequence[float]) -> list[float]:
    """Of a trial that walks its stages one after the other: seconds from the start of each stage to the trial's end.

    A stage that the store holds costs 0 seconds.
    """
    out, left = [], 0.0
    for value in reversed(seconds):
        left += value
        out.append(left)
    return out[::-1]


def longest_paths(seconds: Mapping[str, float], needs: Mapping[str, Iterable[str]]) -> dict[str, float]:
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
