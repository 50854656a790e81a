"""A job of the broker, and the order in which queued jobs start. No call looks at all jobs."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from raz.engine.broker_protocol import BuilderMessage, BuildRequest
from raz.planning.schedule import ReadyStage, priority

Rank = tuple[float, int, int, str]  # as raz.planning.schedule.priority


@dataclass
class StageJob:
    """Stages that one process builds, or will build."""

    number: int
    request: BuildRequest
    charged_to: str  # the trial that requested it first
    waiters: dict[str, float] = field(default_factory=dict)  # trial -> time of its last poll
    remaining: dict[str, float] = field(default_factory=dict)  # waiter -> seconds that it still lacks
    longest: float = 0.0  # the largest of `remaining`
    log: list[BuilderMessage] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    awaited: dict[str, str] = field(default_factory=dict)  # waiter -> the key that it polls for
    running: bool = False
    cancelled_at: float | None = None
    killed: bool = False
    worker_losses: int = 0
    node_losses: int = 0
    progressed: bool = False  # an epoch or a stage was finished since the last loss
    epochs: dict[str, int] = field(default_factory=dict)  # key -> the last epoch that was reported
    rank: Rank | None = None  # its place in the order of those that wait for a device

    @property
    def keys(self) -> tuple[str, ...]:
        return self.request.keys

    def add_waiter(self, trial: str, now: float, remaining: float) -> bool:
        """A trial polls for the job. Returns whether its priority may have changed."""
        before = self.remaining.get(trial)
        self.waiters[trial], self.remaining[trial] = now, remaining
        if before == remaining:
            return False
        if before == self.longest and remaining < before:
            self.longest = max(self.remaining.values())
        else:
            self.longest = remaining if len(self.remaining) == 1 else max(self.longest, remaining)
        return True

    def remove_waiter(self, trial: str) -> None:
        """The trial waits for the job no more."""
        del self.waiters[trial]
        self.awaited.pop(trial, None)
        if self.remaining.pop(trial) == self.longest:
            self.longest = max(self.remaining.values(), default=0.0)


class JobOrder:
    """The queued jobs in the order in which they start, and what the running ones hold.

    The longest remaining path starts first, and no smaller job overtakes the first of the queue. Jobs with equal
    exclusion keys do not run at the same time, and do not hold up others.
    """

    def __init__(self, capacity: Callable[[], Mapping[str, float]]) -> None:
        self._capacity = capacity
        self._ranks: list[Rank] = []  # sorted: of the queued jobs, without those in `_excluded`
        self._jobs: dict[int, StageJob] = {}  # of `_ranks`, by number
        self._excluded: dict[str, dict[int, StageJob]] = {}  # exclusion key of a running job -> others that have it
        self._busy: set[str] = set()  # exclusion keys of running jobs
        self._held: Counter[tuple[float, float | None]] = Counter()  # (CPUs, GPUs) as requested -> running jobs

    def put(self, job: StageJob) -> None:
        """Queues a job, or moves it where its waiters have changed."""
        if job.number in self._excluded.get(job.request.exclusion_key, ()):
            return  # its place is found when it may run
        rank = priority(ReadyStage(str(job.number), job.longest, len(job.waiters), job.number))
        if rank == job.rank:
            return
        self._take_out(job)
        job.rank = rank
        insort(self._ranks, rank)
        self._jobs[job.number] = job

    def remove(self, job: StageJob) -> None:
        """Takes a job that has no waiters out of the queue."""
        self._take_out(job)
        self._excluded.get(job.request.exclusion_key, {}).pop(job.number, None)

    def _take_out(self, job: StageJob) -> None:
        if job.rank is not None:
            del self._ranks[bisect_left(self._ranks, job.rank)]
            del self._jobs[job.number]
            job.rank = None

    def start_next(self) -> StageJob | None:
        """The first queued job if it fits; it is then running. Where nothing runs, it is started in any case: a cluster
        may grow for it."""
        while self._ranks:
            job = self._jobs[self._ranks[0][2]]
            key = job.request.exclusion_key
            if key in self._busy:
                self._take_out(job)
                self._excluded.setdefault(key, {})[job.number] = job
                continue
            if self._held and not self._fits(job.request):
                return None
            self._take_out(job)
            self._busy.add(key)
            self._held[_share(job.request)] += 1
            job.running = True
            return job
        return None

    def ended(self, job: StageJob) -> None:
        """The process of a running job has ended."""
        job.running = False
        share = _share(job.request)
        self._held[share] -= 1
        if not self._held[share]:
            del self._held[share]
        self._busy.discard(job.request.exclusion_key)
        for other in self._excluded.pop(job.request.exclusion_key, {}).values():
            self.put(other)

    def free(self) -> tuple[float, float]:
        """CPUs and GPUs that no running job holds; below 0 where the cluster has shrunk."""
        capacity = self._capacity()
        devices = capacity.get("GPU", 0.0)
        cpus = capacity.get("CPU", 0.0) - sum(n * cpus for (cpus, _), n in self._held.items())
        return cpus, devices - sum(n * gpus_held(gpus, devices) for (_, gpus), n in self._held.items())

    def _fits(self, request: BuildRequest) -> bool:
        cpus, gpus = self.free()
        return request.cpus <= cpus + 1e-9 and gpus_of(request, self._capacity().get("GPU", 0.0)) <= gpus + 1e-9


def _share(request: BuildRequest) -> tuple[float, float | None]:
    return request.cpus, request.gpus


def gpus_of(request: BuildRequest, devices: float) -> float:
    """GPUs that a job holds on a cluster of so many."""
    return gpus_held(request.gpus, devices)


def gpus_held(requested: float | None, devices: float) -> float:
    """GPUs that a stage holds: as requested, else one if the cluster has any (`devices` of them)."""
    return requested if requested is not None else min(1.0, devices)
