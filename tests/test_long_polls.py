"""The broker's held polls: whom an event wakes, what leaves, where the store is looked at, and a loop that lags."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest

from raz.config import TrialConfig
from raz.engine.broker_protocol import (
    BuildRequest,
    BuildSpec,
    Built,
    EpochReport,
    LossCause,
    StageMade,
    StageReply,
    StageStatus,
    WorkerLost,
)
from raz.engine.long_polls import LONGEST_POLL, POLLS_A_SECOND, SHORTEST_POLL, LongPolls
from raz.engine.served_clock import MOST_STEP, ServedClock
from raz.engine.stage_job import StageJob
from raz.engine.stage_queue import StageQueue
from raz.engine.trial_paths import WAITER_TIMEOUT
from raz.pipeline.graph import Node
from tests.virtual_time import run_virtually

BUILD = BuildSpec(TrialConfig(), Path("store"), None, "module:function")


class CountingQueue(StageQueue):
    """Counts the looks of held polls by trial."""

    followed: list[str]

    def follow(self, request: BuildRequest, job_seen: int, since: int) -> StageReply | None:
        self.followed.append(request.trial)
        return super().follow(request, job_seen, since)


class Broker:
    """A queue with its polls, in virtual time, over a store that `made` stands for."""

    def __init__(self, cpus: float = 4.0, look_seconds: float = 0.0) -> None:
        self.made: set[str] = set()
        self.looks: list[str] = []
        self.look_seconds = look_seconds
        self.started: list[StageJob] = []
        self.cancelled: list[int] = []
        self.queue = CountingQueue(
            self._start, lambda job, kill: self.cancelled.append(job.number), lambda: {"CPU": cpus},
            lambda: asyncio.get_running_loop().time(),
        )  # fmt: skip
        self.queue.followed = []
        self.polls = LongPolls(self.queue, self._look)
        self.ticking = asyncio.ensure_future(self._tick())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            self.queue.tick()
            self.polls.tick()

    def _start(self, job: StageJob) -> None:
        self.started.append(job)
        self.polls.wake(job.number)

    async def _look(self, request: BuildRequest) -> bool:
        self.looks.append(request.keys[0])
        await asyncio.sleep(self.look_seconds)
        return request.keys[0] in self.made

    def poll(
        self, trial: str, *keys: str, job: int = 0, since: int = 0, ignore_stored: bool = False
    ) -> asyncio.Task[StageReply]:
        nodes = tuple(Node("density", key) for key in keys)
        request = BuildRequest(trial, nodes, keys, keys[0], 1.0, 1.0, 0.0, BUILD)
        return asyncio.ensure_future(self.polls.poll(request, job, since, ignore_stored))


def virtually(test: Callable[[], Coroutine[object, object, None]]) -> Callable[[], None]:
    """Runs a test in virtual time."""

    def run() -> None:
        run_virtually(test())

    return run


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@virtually
async def test_an_event_wakes_the_trials_of_its_job_and_no_others() -> None:
    b = Broker()
    jobs = {trial: (await b.poll(trial, key)).job for trial, key in (("a", "x"), ("b", "x"), ("c", "y"))}
    held = {trial: b.poll(trial, key, job=jobs[trial]) for trial, key in (("a", "x"), ("b", "x"), ("c", "y"))}
    await settle()
    b.queue.followed.clear()
    epoch = EpochReport("x", 1, 0.5)
    b.polls.report(jobs["a"], epoch)
    assert [(await held[trial]).log for trial in "ab"] == [(epoch,), (epoch,)]
    assert b.queue.followed == ["a", "b"]
    assert not held["c"].done()
    b.polls.report(jobs["c"], StageMade("y"))
    assert (await held["c"]).status == "made"


@virtually
async def test_a_trial_hears_at_once_that_its_stage_was_started() -> None:
    b = Broker(cpus=1.0)
    first = (await b.poll("a", "x")).job
    waiting = await b.poll("b", "y")
    assert waiting.status == "queued"
    held = b.poll("b", "y", job=waiting.job)
    await settle()
    b.polls.finish(first, Built())
    reply = await held
    assert (reply.status, asyncio.get_running_loop().time()) == ("running", 0.0)
    held = b.poll("b", "y", job=waiting.job)
    await settle()
    b.polls.finish(waiting.job, WorkerLost(LossCause.NODE, "gone"))  # queued again, and started at once
    assert (await held).status is StageStatus.RUNNING
    assert [job.number for job in b.started] == [first, waiting.job, waiting.job]


@virtually
async def test_a_trial_that_leaves_or_polls_anew_ends_its_held_poll() -> None:
    b = Broker()
    job = (await b.poll("a", "x")).job
    held = b.poll("a", "x", job=job)
    await settle()
    b.polls.leave("a")
    assert b.cancelled == [job]
    await held
    assert b.queue.jobs[job].waiters == {}  # the poll that was held open did not make it wait again
    newer = [b.poll("b", "y", job=(await b.poll("b", "y")).job)]
    await settle()
    newer.append(b.poll("b", "y", job=2))
    await settle()
    assert newer[0].done()  # a trial polls once at a time
    assert not newer[1].done()


@virtually
async def test_a_held_poll_that_is_cancelled_leaves_nothing() -> None:
    b = Broker()
    job = (await b.poll("a", "x")).job
    held = b.poll("a", "x", job=job)
    await settle()
    held.cancel()
    await settle()
    assert not b.polls._held
    assert not b.polls._of_job


@virtually
async def test_the_store_is_looked_at_once_for_a_stage() -> None:
    b = Broker(look_seconds=3.0)
    b.made.add("x")
    before = b.poll("c", "z")
    first = [b.poll(trial, "x") for trial in "ab"]
    await settle()
    assert sorted(b.looks) == ["x", "z"]  # one for both
    epoch = b.polls.report(1, EpochReport("x", 1, 0.5))  # the loop is not held up meanwhile
    assert epoch is None
    assert [(await task).status for task in first] == ["made", "made"]
    assert (await before).status == "running"
    assert (await b.poll("d", "x")).status == "made"
    assert len(b.looks) == 2  # it is known by now
    b.made.clear()
    assert (await b.poll("d", "x", ignore_stored=True)).status == "running"  # it is damaged, and built again
    b.polls.leave("d")
    b.polls.finish(b.started[-1].number, WorkerLost(LossCause.PROCESS, "cancelled"))
    assert (await b.poll("d", "x")).status == "running"  # not known any more
    assert len(b.looks) == 3
    b.polls.finish(b.started[-1].number, Built())
    assert (await b.poll("e", "x")).status == "made"
    await b.poll("c", "z", job=1)
    assert len(b.looks) == 3  # nor is one looked for that a job builds or has built


@virtually
async def test_a_look_that_found_nothing_is_not_remembered() -> None:
    b = Broker()
    assert (await b.poll("a", "x")).status == "running"
    b.made.add("x")  # made elsewhere meanwhile; its job finds it there
    b.polls.finish(1, Built())
    assert (await b.poll("a", "x")).status == "made"
    assert (await b.poll("b", "late")).status == "running"  # not seen yet
    for job in (2, 3):
        b.polls.leave("b")
        b.polls.finish(job, WorkerLost(LossCause.PROCESS, "cancelled"))
        if job == 2:
            assert (await b.poll("b", "late")).status == "running"
    b.made.add("late")
    assert (await b.poll("b", "late")).status == "made"  # a look that found nothing is not remembered


@virtually
async def test_polls_are_held_open_longer_where_many_wait() -> None:
    loop = asyncio.get_running_loop()
    for trials, seconds in ((1, SHORTEST_POLL), (1000, 1000 / POLLS_A_SECOND), (5000, LONGEST_POLL)):
        b = Broker(cpus=1e6)
        jobs = [(await b.poll(f"t{i}", f"k{i}")).job for i in range(trials)]
        for i, job in enumerate(jobs):
            b.poll(f"t{i}", f"k{i}", job=job)
        await settle()
        began, last = loop.time(), b.poll("t0", "k0", job=jobs[0])
        await last
        assert seconds <= loop.time() - began <= seconds + 0.5
        assert (await last).status == "running"


def test_a_loop_that_lags_declares_nobody_absent() -> None:
    now = 0.0
    clock = ServedClock(lambda: now)
    cancelled: list[int] = []
    queue = StageQueue(lambda job: None, lambda job, kill: cancelled.append(job.number), lambda: {"CPU": 1.0}, clock)
    request = BuildRequest("a", (Node("density", "x"),), ("x",), "x", 1.0, 1.0, 0.0, BUILD)
    for _ in range(100):  # each poll is read two minutes late, after the tick
        queue.poll(request, 0, 0, False)
        now += 120.0
        clock.tick()
        queue.tick()
    assert cancelled == []
    before = clock()
    while clock() - before < WAITER_TIMEOUT - 2 * MOST_STEP:  # a trial that is silent while others could be heard
        now += 0.5
        clock.tick()
        queue.tick()
    assert cancelled == []
    for _ in range(int(3 * MOST_STEP / 0.5)):
        now += 0.5
        clock.tick()
        queue.tick()
    assert cancelled == [1]


def test_a_file_system_that_hangs_does_not_hold_up_the_broker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from raz.engine import broker

    answers = threading.Event()

    class Hanging:
        def exists(self) -> bool:
            assert answers.wait(60)
            return True

    async def body() -> None:
        actor = broker.StageBroker(str(tmp_path), "name")
        request = BuildRequest("a", (Node("density", "x"),), ("x",), "x", 1.0, 1.0, 0.0, BUILD)
        poll = asyncio.ensure_future(actor.poll(request, 0, 0, False))
        await asyncio.sleep(0.05)
        assert await actor.join("b", ["y"]) == []
        assert not poll.done()
        answers.set()
        assert (await poll).status == "made"
        for loop in actor._loops:
            loop.cancel()

    monkeypatch.setattr(broker, "capacity", lambda: {"CPU": 1.0})
    monkeypatch.setattr(broker.StorePaths, "manifest", lambda *_: Hanging())
    asyncio.run(asyncio.wait_for(body(), 50))
