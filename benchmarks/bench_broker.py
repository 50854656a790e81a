"""What the broker costs: CPU for an event while trials wait, and for a sweep of 20,000 stages on 512 devices.

    python benchmarks/bench_broker.py [--waiters 16 64 256 1024] [--rounds 3] [--stages 20000] [--devices 512] [--ray]

Ray's calls are replaced by calls in one process, and its time by a virtual clock, so the figures are those of the queue
and of the polls that it answers. They are compared with the simplest form (`tests/slow_queue.py`), in which each event
wakes every trial and each call looks at all jobs, the sides in turn. `--ray` then runs the actor itself, with every
trial's polls held open, and reads the CPU of its process.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

from raz.config import TrialConfig
from raz.engine.broker_protocol import (
    BuilderMessage,
    BuildOutcome,
    BuildRequest,
    BuildSpec,
    Built,
    EpochReport,
    StageMade,
    StageReply,
    StageStatus,
)
from raz.engine.long_polls import LongPolls
from raz.engine.ray_session import set_ray_environment
from raz.engine.stage_queue import StageQueue
from raz.pipeline.graph import Node
from raz.planning.schedule import max_live_trials
from raz.store.paths import StorePaths
from tests.slow_queue import SlowQueue
from tests.virtual_time import run_virtually

BUILD = BuildSpec(TrialConfig(), Path("store"), None, "module:function")
NODE = Node("density", "val")
PATH = 16  # stages of a trial of the sweep
SHARED_BY = (8, 4, 2, 2)  # trials that share the first, second … stage of a path; the others are its own
EPOCHS = 10  # reports of a stage, beside that it is made


class Started(Protocol):
    """A job that a queue has started."""

    number: int

    @property
    def keys(self) -> tuple[str, ...]: ...


class Polls(Protocol):
    """The broker's calls, without Ray."""

    async def poll(self, request: BuildRequest, job_seen: int, since: int, ignore_stored: bool) -> StageReply: ...
    def report(self, number: int, message: BuilderMessage) -> None: ...
    def finish(self, number: int, outcome: BuildOutcome) -> None: ...
    def leave(self, trial: str) -> None: ...
    def join(self, trial: str, keys: list[str]) -> None: ...
    def tick(self) -> None: ...


class Store:
    """Where a stage is looked for: a folder in which none is, and the set of those that were made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, set[str]()

    def holds(self, request: BuildRequest) -> bool:
        """As the broker looks, at the cost of one file that is not there."""
        there = StorePaths(self.folder).manifest(NODE.stage, request.keys[0]).exists()
        return there or request.keys[0] in self.made

    async def look(self, request: BuildRequest) -> bool:
        """The same for LongPolls; its thread is not counted."""
        return self.holds(request)


def clock() -> float:
    """The virtual time."""
    return asyncio.get_running_loop().time()


class Indexed:
    """The broker as it is."""

    def __init__(self, store: Store, devices: int, start: Callable[[Started], None]) -> None:
        capacity = {"CPU": 2.0 * devices, "GPU": float(devices)}

        def started(job: Started) -> None:
            start(job)
            self.polls.wake(job.number)

        self.queue = StageQueue(started, lambda job, kill: None, lambda: capacity, clock)
        self.polls = LongPolls(self.queue, store.look)
        self.poll, self.report, self.finish = self.polls.poll, self.polls.report, self.polls.finish
        self.leave = self.polls.leave

    def tick(self) -> None:
        self.queue.tick()
        self.polls.tick()

    def join(self, trial: str, keys: list[str]) -> None:
        self.queue.join(trial, keys)


class Simple:
    """One event for all trials; each call looks at all jobs, and into the store."""

    def __init__(self, store: Store, devices: int, start: Callable[[Started], None]) -> None:
        capacity = {"CPU": 2.0 * devices, "GPU": float(devices)}
        self.queue = SlowQueue(start, lambda job, kill: None, lambda: capacity, clock)
        self.store, self.changed = store, asyncio.Event()
        self.leave, self.tick = self.queue.leave, self.queue.tick

    async def poll(self, request: BuildRequest, job_seen: int, since: int, ignore_stored: bool) -> StageReply:
        end = clock() + 1.0
        first: StageStatus | None = None
        while True:
            reply = self.queue.poll(request, job_seen, since, self.store.holds(request))
            first = first or reply.status
            timeout = end - clock()
            changed = reply.status in (StageStatus.MADE, StageStatus.FAILED) or reply.status != first
            if changed or reply.log or timeout <= 0 or reply.job != job_seen:
                return reply
            try:
                await asyncio.wait_for(self.changed.wait(), timeout)
            except TimeoutError:
                continue

    def join(self, trial: str, keys: list[str]) -> None:
        self.queue.join(trial, keys)

    def report(self, number: int, message: BuilderMessage) -> None:
        self.queue.record(number, message)
        self.notify()

    def finish(self, number: int, outcome: BuildOutcome) -> None:
        self.queue.finish(number, outcome)
        self.notify()

    def notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


SIDES: dict[str, Callable[[Store, int, Callable[[Started], None]], Polls]] = {"indexed": Indexed, "simple": Simple}


def request_of(trial: str, key: str, remaining: float = 1.0) -> BuildRequest:
    return BuildRequest(trial, (NODE,), (key,), key, remaining, 1.0, None, BUILD)


async def wait_for(polls: Polls, request: BuildRequest) -> None:
    """A trial that waits until the stage is made."""
    job, since = 0, 0
    while True:
        reply = await polls.poll(request, job, since, False)
        if reply.job != job:
            job, since = reply.job, 0
        since += len(reply.log)
        if reply.status is StageStatus.MADE:
            return


# ------------------------------------------------------------------ an event while many wait


async def wakes(side: str, waiters: int, one_stage: bool, events: int, folder: Path) -> tuple[float, float]:
    """CPU seconds for an event of a building process, and for a poll by which nothing is learnt."""
    running: list[Started] = []
    polls = SIDES[side](Store(folder), max(1, waiters // 2), running.append)
    trials = [request_of(f"t{i}", "x" if one_stage else f"k{i}") for i in range(waiters)]
    for request in trials:
        polls.join(request.trial, list(request.keys))
    tasks = [asyncio.ensure_future(wait_for(polls, request)) for request in trials]
    await settle()
    rng = random.Random(0)
    began = time.process_time()
    for _ in range(events):
        job = rng.choice(running)
        polls.report(job.number, EpochReport(job.keys[0], 1, 0.5))
        await settle()
    event = (time.process_time() - began) / events
    asked = 0
    began = time.process_time()
    for request in trials[: 64 if side == "indexed" else 8]:
        queue = cast("Indexed | Simple", polls).queue
        queue.poll(request, 0, 0, False)
        asked += 1
    poll = (time.process_time() - began) / asked
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return event, poll


async def settle() -> None:
    """Until all that can run without waiting has run."""
    for _ in range(6):
        await asyncio.sleep(0)


def compare_wakes(waiters: int, one_stage: bool, rounds: int, folder: Path) -> None:
    taken: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            events = 40 if side == "indexed" else max(1, 64 // waiters)
            taken[side].append(run_virtually(wakes(side, waiters, one_stage, events, folder)))
    line = f"{waiters:5d} trials wait, {'all for one stage' if one_stage else 'each for its own'}: "
    for i, name in enumerate(("an event", "a poll")):
        new, old = (statistics.median(pair[i] for pair in taken[side]) for side in SIDES)
        line += f"{name} {1e3 * new:.3f} ms against {1e3 * old:.3f} ({old / new:.0f}x); "
    print(line, flush=True)


# ------------------------------------------------------------------ a whole sweep


def sweep_paths(stages: int) -> tuple[list[list[str]], int]:
    """The paths of so many trials that they have at least so many distinct stages, and how many these are."""
    paths: list[list[str]] = []
    keys: set[str] = set()
    while len(keys) < stages:
        i = len(paths)
        paths.append([f"s{at}-{i // (SHARED_BY[at] if at < len(SHARED_BY) else 1)}" for at in range(PATH)])
        keys.update(paths[-1])
    return paths, len(keys)


class Counted:
    """What a sweep has done."""

    def __init__(self) -> None:
        self.built = self.events = 0


async def sweep(side: str, paths: list[list[str]], devices: int, most: float, folder: Path) -> tuple[float, Counted]:
    """Virtual seconds of a sweep, which ends early after `most` seconds of CPU, and what was done."""
    enough = asyncio.Event()
    last = time.process_time() + most
    store, count, rng = Store(folder), Counted(), random.Random(1)
    tasks: set[asyncio.Task[None]] = set()

    def start(job: Started) -> None:
        task = asyncio.ensure_future(build(job))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    polls = SIDES[side](store, devices, start)

    async def build(job: Started) -> None:
        seconds = rng.uniform(20.0, 100.0)
        for epoch in range(EPOCHS):
            await asyncio.sleep(seconds / EPOCHS)
            polls.report(job.number, EpochReport(job.keys[0], epoch + 1, 0.5))
        store.made.update(job.keys)
        polls.report(job.number, StageMade(job.keys[0]))
        count.built += 1
        count.events += EPOCHS + 2
        polls.finish(job.number, Built())

    async def run_trial(number: int, path: list[str]) -> None:
        trial = f"t{number}"
        for i, key in enumerate(path):
            polls.join(trial, path)
            await wait_for(polls, request_of(trial, key, 60.0 * (len(path) - i)))
        polls.leave(trial)

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.5)
            polls.tick()
            if time.process_time() > last:
                enough.set()

    ticking = asyncio.ensure_future(tick())
    left = list(reversed(list(enumerate(paths))))

    async def slot() -> None:
        while left:
            await run_trial(*left.pop())

    slots = asyncio.gather(*(slot() for _ in range(max_live_trials(devices, eager=True))))
    stopping = asyncio.ensure_future(enough.wait())
    ending: list[asyncio.Future[Any]] = [slots, stopping]
    await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
    seconds = clock()
    ending += [ticking, *tasks]
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)
    return seconds, count


def compare_sweeps(stages: int, devices: int, folder: Path) -> None:
    paths, distinct = sweep_paths(stages)
    print(f"{len(paths)} trials, {distinct} stages of 20 to 100 s, {devices} devices:", flush=True)
    for side, most in (("indexed", 1e9), ("simple", 60.0)):
        began = time.process_time()
        seconds, count = run_virtually(sweep(side, paths, devices, most, folder))
        cpu = time.process_time() - began
        part = "the whole of it" if most > 1e6 else "its beginning"
        print(
            f"  {side}, {part}: {seconds:.0f} s, {count.built} stages made; {cpu:.1f} s of CPU with trials and "
            f"workers, {100 * cpu / seconds:.1f} % of a core", flush=True,
        )  # fmt: skip


# ------------------------------------------------------------------ the actor itself


def actor_cpu(waiters: int, events_a_second: float, seconds: float) -> None:
    """Prints the CPU of the actor's process while polls of `waiters` trials are held open."""
    set_ray_environment()
    import ray

    from raz.engine.broker import MAX_CONCURRENCY, StageBroker

    class Actor(StageBroker):  # starts no process
        def _start(self, job: object) -> None:
            return None

        async def pid(self) -> int:
            return os.getpid()

    folder = tempfile.mkdtemp(dir="/tmp")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
             object_store_memory=100 * 2**20, _temp_dir=folder)  # fmt: skip
    try:
        broker: Any = ray.remote(Actor).options(max_concurrency=MAX_CONCURRENCY, num_cpus=0).remote(folder, "bench")
        pid: int = ray.get(broker.pid.remote())
        seen = {f"t{i}": (0, 0) for i in range(waiters)}
        refs: dict[Any, str] = {}
        for trial in seen:
            ray.get(broker.join.remote(trial, [f"k-{trial}-{i}" for i in range(PATH)]))

        def poll(trial: str) -> None:
            refs[broker.poll.remote(request_of(trial, f"k-{trial}-0"), *seen[trial], False)] = trial

        for trial in seen:
            poll(trial)
        rng = random.Random(0)
        began, first, replies, events = time.monotonic(), 0.0, 0, 0
        cpu = 0.0
        while (now := time.monotonic() - began) < seconds + 5.0:
            if not first and now > 5.0:  # the start is over
                first, replies, events, cpu = now, 0, 0, process_cpu(pid)
            while first and events < (now - first) * events_a_second:
                job = 1 + rng.randrange(waiters)
                broker.report.remote(job, EpochReport(f"k-t{job - 1}-0", 1, 0.5))
                events += 1
            ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0.05, fetch_local=False)
            for ref in ready:
                reply, trial = ray.get(ref), refs.pop(ref)
                seen[trial] = (reply.job, len(reply.log) + (seen[trial][1] if reply.job == seen[trial][0] else 0))
                replies += 1
                poll(trial)
        passed = now - first
        print(
            f"the actor with {waiters} trials and {events / passed:.0f} events a second: {replies / passed:.0f} "
            f"replies a second, {100 * (process_cpu(pid) - cpu) / passed:.1f} % of a core", flush=True,
        )  # fmt: skip
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def process_cpu(pid: int) -> float:
    """CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--waiters", type=int, nargs="*", default=[16, 64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side, in turn")
    parser.add_argument("--stages", type=int, default=20_000, help="of the sweep (0: none)")
    parser.add_argument("--devices", type=int, default=512)
    parser.add_argument("--ray", action="store_true", help="the actor too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="raz-bench-") as name:
        for one_stage in (False, True):
            for waiters in given.waiters:
                compare_wakes(waiters, one_stage, given.rounds, Path(name))
        if given.stages:
            compare_sweeps(given.stages, given.devices, Path(name))
    if given.ray:
        for events in (0.0, 100.0):
            actor_cpu(max_live_trials(given.devices, eager=True), events, 20.0)


if __name__ == "__main__":
    main()
