"""Discrete-event simulation of a run on a number of devices, in which stages start in the broker's order.

Each trial goes through its stages one after the other, as `run_trial` does. A finished stage takes no time, a running
one is waited for, any other joins the queue for a device. Nothing is pruned and nothing fails.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from raz.planning.schedule import ReadyStage, critical_path_lengths, priority, remaining_seconds


@dataclass(frozen=True)
class StageVisit:
    """One stage of one trial."""

    key: str  # stages of equal keys are one stage, made once
    seconds: float  # 0 when the store holds it
    device: bool = True  # False: computed by the trial's own process, without a device
    needs: tuple[str, ...] = ()  # keys of the stages it reads


@dataclass(frozen=True)
class Schedule:
    """A simulated schedule. All times in seconds."""

    devices: int
    makespan: float
    total: float  # of all distinct stages, on a device or not
    busy: float  # of the devices together
    critical_path: float  # the longest chain of stages that need each other
    starts: dict[str, tuple[float, float]]  # key -> start, end; without stages of 0 seconds

    @property
    def floor(self) -> float:
        """A lower bound of the makespan of any schedule on as many devices."""
        return max(self.critical_path, self.busy / self.devices)

    @property
    def utilisation(self) -> float:
        """The fraction of the devices' time in which they work, 0 to 1."""
        return self.busy / (self.makespan * self.devices) if self.makespan else 0.0


def simulate(trials: Sequence[Sequence[StageVisit]], devices: int, alive: int | None = None) -> Schedule:
    """The schedule of these trials, begun in the given order, at most `alive` of them at a time (default: all).

    Raises ValueError for fewer than one device or trial at a time.
    """
    if devices < 1 or (alive is not None and alive < 1):
        raise ValueError(f"{devices} devices and {alive} trials at a time, expected 1 or more of each")
    steps = {step.key: step for trial in trials for step in trial}
    done = {key for key, step in steps.items() if step.seconds <= 0}
    position = [0] * len(trials)
    waiters: dict[str, list[int]] = {}  # key of a stage that is not made yet -> the trials that wait for it
    arrived: dict[str, int] = {}
    queue: list[tuple[tuple[float, int, int, str], str]] = []
    current: dict[str, tuple[float, int, int, str]] = {}  # key of a queued stage -> its priority; others are outdated
    running: list[tuple[float, str]] = []
    starts: dict[str, tuple[float, float]] = {}
    now, free, begun, living = 0.0, devices, 0, 0
    max_living = len(trials) if alive is None else alive

    def start(key: str) -> None:
        starts[key] = (now, now + steps[key].seconds)
        heapq.heappush(running, (starts[key][1], key))

    def advance(trial: int) -> bool:
        """Moves a trial on to its next stage that is not made, and returns whether it has none."""
        visits = trials[trial]
        while position[trial] < len(visits) and visits[position[trial]].key in done:
            position[trial] += 1
        if position[trial] == len(visits):
            return True
        key = visits[position[trial]].key
        waiters.setdefault(key, []).append(trial)
        arrived.setdefault(key, len(arrived))
        if key in starts:
            return False
        if not steps[key].device:
            start(key)
            return False
        path = remaining_seconds(((step.key, step.seconds) for step in visits[position[trial] :]), done.__contains__)
        path = max(path, -current[key][0]) if key in current else path
        current[key] = priority(ReadyStage(key, path, len(waiters[key]), arrived[key]))
        heapq.heappush(queue, (current[key], key))
        return False

    while True:
        while begun < len(trials) and living < max_living:
            living += 0 if advance(begun) else 1
            begun += 1
        while free and queue:
            rank, key = heapq.heappop(queue)
            if current.get(key) == rank:
                del current[key]
                free -= 1
                start(key)
        if not running:
            break
        now = running[0][0]
        ready: list[int] = []  # trials whose stage ended at this moment
        while running and running[0][0] == now:
            _, key = heapq.heappop(running)
            done.add(key)
            free += 1 if steps[key].device else 0
            ready += waiters.pop(key)
        # After all stages that end now, which `advance` must know; in the order of the trials, so that the result does
        # not depend on the keys of stages.
        for trial in sorted(ready):
            living -= 1 if advance(trial) else 0
    seconds = {key: step.seconds for key, step in steps.items()}
    needs = {key: [other for other in step.needs if other in steps] for key, step in steps.items()}
    return Schedule(
        devices=devices, makespan=now, total=math.fsum(seconds.values()),
        busy=math.fsum(s.seconds for s in steps.values() if s.device),
        critical_path=max(critical_path_lengths(seconds, needs).values(), default=0.0), starts=starts,
    )  # fmt: skip


def simulate_without_sharing(
    trials: Sequence[Sequence[StageVisit]], devices: int, alive: int | None = None
) -> Schedule:
    """The schedule of the same trials where each makes all of its stages itself, as plain training does."""
    alone = [
        [StageVisit(f"{i}/{s.key}", s.seconds, s.device, tuple(f"{i}/{other}" for other in s.needs)) for s in trial]
        for i, trial in enumerate(trials)
    ]
    return simulate(alone, devices, alive)
