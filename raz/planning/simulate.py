"""The schedule of a run on simulated devices: event by event, with the broker's own order of starting.

Each trial walks its stages one after the other, as `run_trial` does. A stage that somebody has made is passed at once,
one that is being made is waited for, any other joins the queue for a device. Nothing is pruned and nothing fails.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from raz.planning.schedule import ReadyStage, critical_path_lengths, priority, remaining_seconds


@dataclass(frozen=True)
class StageVisit:
    """One stage on a trial's way."""

    key: str  # equal keys are one stage, made once
    seconds: float  # 0 when the store holds it
    device: bool = True  # False: computed in the coordinator, beside the devices
    needs: tuple[str, ...] = ()  # keys of the stages it reads


@dataclass(frozen=True)
class Schedule:
    """What came of a simulation. Seconds."""

    devices: int
    makespan: float
    total: float  # of all distinct stages, on a device or not
    busy: float  # of the devices together
    critical_path: float  # the longest chain of stages that need each other
    starts: dict[str, tuple[float, float]]  # stage -> start, end; without those that the store held

    @property
    def floor(self) -> float:
        """No schedule on as many devices is shorter."""
        return max(self.critical_path, self.busy / self.devices)

    @property
    def utilisation(self) -> float:
        """Part of the devices' time that they work, 0 to 1."""
        return self.busy / (self.makespan * self.devices) if self.makespan else 0.0


def simulate(trials: Sequence[Sequence[StageVisit]], devices: int, alive: int | None = None) -> Schedule:
    """The schedule of these trials, begun in their order, `alive` of them at a time (default: all).

    Raises ValueError for fewer than one device or trial at a time.
    """
    if devices < 1 or (alive is not None and alive < 1):
        raise ValueError(f"{devices} devices and {alive} trials at a time, expected 1 or more of each")
    steps = {step.key: step for trial in trials for step in trial}
    done = {key for key, step in steps.items() if step.seconds <= 0}
    position = [0] * len(trials)
    waiters: dict[str, list[int]] = {}  # a stage that is not made yet -> the trials that wait for it
    arrived: dict[str, int] = {}
    queue: list[tuple[tuple[float, int, int, str], str]] = []
    current: dict[str, tuple[float, int, int, str]] = {}  # a queued stage -> its rank now; other entries are outdated
    running: list[tuple[float, str]] = []
    starts: dict[str, tuple[float, float]] = {}
    now, free, begun, living = 0.0, devices, 0, 0
    most = len(trials) if alive is None else alive

    def start(key: str) -> None:
        starts[key] = (now, now + steps[key].seconds)
        heapq.heappush(running, (starts[key][1], key))

    def walk(trial: int) -> bool:
        """Goes on to the next stage that must be waited for; whether the trial has come to its end."""
        way = trials[trial]
        while position[trial] < len(way) and way[position[trial]].key in done:
            position[trial] += 1
        if position[trial] == len(way):
            return True
        key = way[position[trial]].key
        waiters.setdefault(key, []).append(trial)
        arrived.setdefault(key, len(arrived))
        if key in starts:
            return False
        if not steps[key].device:
            start(key)
            return False
        path = remaining_seconds(((step.key, step.seconds) for step in way[position[trial] :]), done.__contains__)
        path = max(path, -current[key][0]) if key in current else path
        current[key] = priority(ReadyStage(key, path, len(waiters[key]), arrived[key]))
        heapq.heappush(queue, (current[key], key))
        return False

    while True:
        while begun < len(trials) and living < most:
            living += 0 if walk(begun) else 1
            begun += 1
        while free and queue:
            place, key = heapq.heappop(queue)
            if current.get(key) == place:
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
        # Only now, since `walk` must know all that has ended by this moment; and in the order of the trials, so that
        # the name of a stage decides nothing.
        for trial in sorted(ready):
            living -= 1 if walk(trial) else 0
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
    """The same trials when each makes all of its stages itself, as plain training does."""
    alone = [
        [StageVisit(f"{i}/{s.key}", s.seconds, s.device, tuple(f"{i}/{other}" for other in s.needs)) for s in trial]
        for i, trial in enumerate(trials)
    ]
    return simulate(alone, devices, alive)
