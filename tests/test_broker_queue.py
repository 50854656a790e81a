"""The broker's queue answers as its simplest form does, whatever trials, processes and the clock do."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raz.config import TrialConfig
from raz.engine.broker_protocol import (
    BuildFailed,
    BuildOutcome,
    BuildRequest,
    BuildSpec,
    Built,
    EpochReport,
    LossCause,
    StageMade,
    WorkerLost,
)
from raz.engine.stage_queue import GRACE, StageQueue
from raz.engine.trial_paths import FORGOTTEN, WAITER_TIMEOUT
from raz.errors import TrialFailure
from raz.pipeline.graph import Node
from tests.slow_queue import SlowQueue

BUILD = BuildSpec(TrialConfig(), Path("store"), None, "module:function")
FAILED = BuildFailed(TrialFailure("stage x", "diverged", reason="nan"))
OUTCOMES: tuple[BuildOutcome, ...] = (
    Built(), Built(), Built(), FAILED, WorkerLost(LossCause.PROCESS, "died"), WorkerLost(LossCause.NODE, "gone"),
)  # fmt: skip
KEYS = [f"k{i}" for i in range(14)]
TRIALS = [f"t{i}" for i in range(9)]


class Side:
    """One of the two queues, and what it did."""

    def __init__(self, make: Callable[..., Any], world: World) -> None:
        self.did: list[object] = []
        self.queue = make(self.start, self.cancel, lambda: world.capacity, lambda: world.now)

    def start(self, job: Any) -> None:
        self.did.append(("start", job.number, job.keys, job.charged_to))

    def cancel(self, job: Any, kill: bool) -> None:
        self.did.append(("cancel", job.number, kill))


class World:
    """Both queues, with one clock and one cluster; `rng` draws what happens next."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.capacity = {"CPU": 4.0, "GPU": float(self.rng.choice([0, 0, 1, 2]))}
        self.sides = [Side(StageQueue, self), Side(SlowQueue, self)]
        self.paths = {trial: self.rng.sample(KEYS, 6) for trial in TRIALS}
        self.seen = dict.fromkeys(TRIALS, (0, 0))  # trial -> job, entries of its log

    def both(self, call: Callable[[Any], Any]) -> Any:
        """What a call returns: on both sides the same, as is all that it starts and cancels."""
        fast, slow = (call(side.queue) for side in self.sides)
        assert fast == slow
        assert self.sides[0].did == self.sides[1].did
        assert self.sides[0].queue.idle_since == self.sides[1].queue.idle_since
        assert self.sides[0].queue.status() == self.sides[1].queue.status()
        return fast

    def request(self, trial: str) -> BuildRequest:
        rng = self.rng
        first = rng.randrange(len(self.paths[trial]))
        keys = tuple(self.paths[trial][first : first + rng.randint(1, 3)])
        chain = f"chain{KEYS.index(keys[0]) % 5}" if rng.random() < 0.6 else keys[0]
        remaining = float(rng.randint(0, 4))  # few values, so that there are ties
        gpus = rng.choice([None, None, 0.0, 0.25, 1.0])
        nodes, cpus = tuple(Node("density", key) for key in keys), float(rng.randint(1, 3))
        return BuildRequest(trial, nodes, keys, chain, remaining, cpus, gpus, BUILD)

    def poll(self) -> None:
        trial = self.rng.choice(TRIALS)
        request, (job, since), stored = self.request(trial), self.seen[trial], self.rng.random() < 0.2
        reply = self.both(lambda queue: queue.poll(request, job, since, stored))
        self.seen[trial] = (reply.job, len(reply.log) + (since if reply.job == job else 0))

    def step(self) -> None:
        rng = self.rng
        kind = rng.choices(
            ["poll", "join", "leave", "record", "finish", "tick", "clock", "absence", "capacity"],
            [40, 8, 3, 12, 10, 5, 12, 1, 1],
        )[0]
        jobs = list(self.sides[0].queue.jobs.values())
        if kind == "poll":
            self.poll()
        elif kind == "join":
            trial = rng.choice(TRIALS)
            self.both(lambda queue: sorted(queue.join(trial, self.paths[trial])))
        elif kind == "leave":
            trial = rng.choice(TRIALS)
            self.both(lambda queue: queue.leave(trial))
        elif kind == "record" and jobs:
            job = rng.choice(jobs)
            key = rng.choice(job.keys)
            message = EpochReport(key, 1, 0.5) if rng.random() < 0.6 else StageMade(key)
            self.both(lambda queue: queue.record(job.number, message))
        elif kind == "finish" and any(job.running for job in jobs):
            number, outcome = rng.choice([job.number for job in jobs if job.running]), rng.choice(OUTCOMES)
            self.both(lambda queue: queue.finish(number, outcome))
        elif kind == "tick":
            self.both(lambda queue: queue.tick())
        elif kind == "clock":
            self.now += rng.choice([0.0, 0.5, 5.0, GRACE])
        elif kind == "absence":
            self.now += rng.choice([WAITER_TIMEOUT - 1, WAITER_TIMEOUT, FORGOTTEN])
        elif kind == "capacity":
            self.capacity = {"CPU": float(rng.randint(0, 6)), "GPU": rng.choice([0.0, 0.5, 1.0, 3.0])}
            self.both(lambda queue: queue.tick())  # a poll by which nothing changes need not see it


@pytest.mark.parametrize("seed", range(12))
def test_the_queue_does_what_its_simplest_form_does(seed: int) -> None:
    world = World(seed)
    for _ in range(800):
        world.step()
    did = [entry[:1] + entry[2:] if entry[0] == "cancel" else entry[:1] for entry in world.sides[0].did]  # type: ignore[index]
    assert did.count(("start",)) > 20
    assert did.count(("cancel", False)) > 3
