"""The broker's bookkeeping in its simplest form: every call looks at all jobs and all trials.

The oracle of `raz.engine.stage_queue`, which answers the same from indexes (tests/test_broker_queue.py), and the other
side of benchmarks/bench_broker.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from raz.engine.broker_protocol import (
    BuilderMessage,
    BuildFailed,
    BuildOutcome,
    BuildRequest,
    Built,
    EpochReport,
    JobStatus,
    LossCause,
    StageMade,
    StageReply,
    StageStatus,
    WorkerLost,
)
from raz.engine.stage_queue import GRACE, MAX_CHARGED, MAX_NODE_LOSSES, MAX_WORKER_LOSSES
from raz.engine.trial_paths import WAITER_TIMEOUT
from raz.planning.schedule import ReadyStage, by_priority


@dataclass
class SlowJob:
    """Stages that one process builds, or will build."""

    number: int
    request: BuildRequest
    charged_to: str  # the trial that requested it first
    waiters: dict[str, float]  # trial -> time of its last poll
    remaining: dict[str, float]  # trial -> seconds that it still lacks
    log: list[BuilderMessage] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    awaited: dict[str, str] = field(default_factory=dict)  # trial -> the key that it polls for
    running: bool = False
    cancelled_at: float | None = None
    killed: bool = False
    worker_losses: int = 0
    node_losses: int = 0
    progressed: bool = False  # an epoch or a stage was finished since the last loss
    epochs: dict[str, int] = field(default_factory=dict)  # key -> the last epoch that was reported

    @property
    def keys(self) -> tuple[str, ...]:
        return self.request.keys


class SlowQueue:
    """The jobs of a store, queued and running, and the trials that wait for them.

    `start(job)` and `cancel(job, kill)` control a job's process, `capacity() -> {CPU, GPU}` is what all jobs may hold,
    `clock()` returns seconds.
    """

    def __init__(
        self,
        start: Callable[[SlowJob], None],
        cancel: Callable[[SlowJob, bool], None],
        capacity: Callable[[], Mapping[str, float]],
        clock: Callable[[], float],
    ) -> None:
        self._start, self._cancel, self._capacity, self._clock = start, cancel, capacity, clock
        self.jobs: dict[int, SlowJob] = {}  # cancelled ones too, until their process has ended
        self.trials: dict[str, tuple[float, frozenset[str]]] = {}  # trial -> (last call, keys on its path)
        # (trial, key) -> a failure that the trial has not seen yet
        self._failed: dict[tuple[str, str], tuple[SlowJob, BuildFailed | WorkerLost]] = {}
        # (trial, key) -> a job that made the key after the trial's last poll, and when it ended
        self._ended: dict[tuple[str, str], tuple[SlowJob, float]] = {}
        self._charged: OrderedDict[str, str] = OrderedDict()  # key of a made stage -> trial
        self._last_number = 0  # of a job
        self.idle_since = clock()

    # ------------------------------------------------------------------ calls of trials

    def join(self, trial: str, keys: Iterable[str]) -> list[str]:
        """Records the keys on a trial's path. Returns those that other living trials have on theirs."""
        path_keys = frozenset(keys)
        self.trials[trial] = (self._clock(), path_keys)
        self.idle_since = self._clock()
        return [key for key in path_keys if self._shared(key, trial)]

    def leave(self, trial: str) -> None:
        """The trial has ended and waits for no stage."""
        self.trials.pop(trial, None)
        for job in self.jobs.values():
            job.waiters.pop(trial, None)
        self._failed = {at: failure for at, failure in self._failed.items() if at[0] != trial}
        self._ended = {at: ended for at, ended in self._ended.items() if at[0] != trial}
        self.tick()

    def poll(self, request: BuildRequest, job_seen: int, since: int, stored: bool) -> StageReply:
        """The state of the first stage of the request. Queues a job for it if there is none.

        `stored`: the stage is in the store. The reply's log starts at entry `since` if the job is still `job_seen`,
        else at the first entry.
        """
        now, key = self._clock(), request.keys[0]
        self.idle_since = now
        if request.trial in self.trials:
            self.trials[request.trial] = (now, self.trials[request.trial][1])
        for other in self.jobs.values():
            if key not in other.keys:  # the trial has moved on
                other.waiters.pop(request.trial, None)
        failure = self._failed.pop((request.trial, key), None)
        if failure is not None:
            failed_job, outcome = failure
            reply = self._reply(StageStatus.FAILED, failed_job, request, job_seen, since)
            return replace(reply, outcome=outcome)
        job = self._job_of(key)
        ended = self._ended.pop((request.trial, key), None)
        if job is None and ended is not None:
            return self._reply(StageStatus.MADE, ended[0], request, job_seen, since)
        if job is None and stored:
            return StageReply(StageStatus.MADE, 0, charged=self._charged.get(key) == request.trial)
        if job is None:
            job = self._new_job(request, now)
        job.waiters[request.trial] = now
        job.remaining[request.trial] = request.remaining
        if key in job.made:
            job.awaited.pop(request.trial, None)
            return self._reply(StageStatus.MADE, job, request, job_seen, since)
        job.awaited[request.trial] = key
        self.tick()
        status = StageStatus.RUNNING if job.running else StageStatus.QUEUED
        return self._reply(status, job, request, job_seen, since)

    def _reply(self, status: StageStatus, job: SlowJob, request: BuildRequest, job_seen: int, since: int) -> StageReply:
        log = tuple(job.log[since if job.number == job_seen else 0 :])
        shared = self._shared(request.keys[0], request.trial) or any(other != request.trial for other in job.waiters)
        return StageReply(status, job.number, log, shared, job.charged_to == request.trial)

    def _shared(self, key: str, trial: str) -> bool:
        now = self._clock()
        return any(
            key in keys and now - last < WAITER_TIMEOUT for other, (last, keys) in self.trials.items() if other != trial
        )

    def _job_of(self, key: str) -> SlowJob | None:
        for job in self.jobs.values():
            if key in job.keys and job.cancelled_at is None:
                return job
        return None

    def _new_job(self, request: BuildRequest, now: float) -> SlowJob:
        """A job for the leading stages of the request that no other job builds."""
        count = 1
        while count < len(request.keys) and self._job_of(request.keys[count]) is None:
            count += 1
        self._last_number += 1
        own_request = replace(request, nodes=request.nodes[:count], keys=request.keys[:count])
        trial = request.trial
        job = SlowJob(self._last_number, own_request, trial, {trial: now}, {trial: request.remaining})
        self.jobs[job.number] = job
        return job

    # ------------------------------------------------------------------ calls of building processes

    def record(self, number: int, message: BuilderMessage) -> None:
        """Adds a message of a job's process to its log."""
        job = self.jobs.get(number)
        if job is None:
            return
        job.log.append(message)
        if isinstance(message, StageMade):
            self._charge(message.key, job.charged_to)
            job.made.add(message.key)
        if isinstance(message, EpochReport) and message.epoch > job.epochs.get(message.key, 0):
            job.epochs[message.key], job.progressed = message.epoch, True
        job.progressed = job.progressed or isinstance(message, StageMade)

    def finish(self, number: int, outcome: BuildOutcome) -> None:
        """A job's process has ended. A lost one is queued again until too many were lost in a row without progress."""
        job = self.jobs.get(number)
        if job is None:
            return
        job.running = False
        if isinstance(outcome, WorkerLost) and job.cancelled_at is None:
            if job.progressed:
                job.worker_losses = job.node_losses = 0
            job.progressed = False
            if outcome.cause is LossCause.NODE:
                job.node_losses += 1
            else:
                job.worker_losses += 1
            if job.worker_losses < MAX_WORKER_LOSSES and job.node_losses < MAX_NODE_LOSSES:
                self.tick()
                return  # a checkpoint of its last epoch is in the store
        del self.jobs[number]
        if isinstance(outcome, Built):
            for key in job.keys:
                self._charge(key, job.charged_to)
            for trial, key in job.awaited.items():
                if trial in job.waiters:
                    self._ended[trial, key] = (job, self._clock())
        elif job.cancelled_at is None:
            for trial in job.waiters:
                for key in job.keys:
                    if key not in job.made:
                        self._failed[trial, key] = (job, outcome)
        self.tick()

    def _charge(self, key: str, trial: str) -> None:
        self._charged[key] = trial
        while len(self._charged) > MAX_CHARGED:
            self._charged.popitem(last=False)

    # ------------------------------------------------------------------ what starts, what is cancelled

    def tick(self) -> None:
        """Expires silent waiters, cancels jobs without waiters, and starts queued jobs that fit."""
        now = self._clock()
        self.trials = {trial: call for trial, call in self.trials.items() if now - call[0] < 10 * WAITER_TIMEOUT}
        self._ended = {at: ended for at, ended in self._ended.items() if now - ended[1] < WAITER_TIMEOUT}
        for job in list(self.jobs.values()):
            job.waiters = {trial: last for trial, last in job.waiters.items() if now - last < WAITER_TIMEOUT}
            if job.cancelled_at is not None:
                if not job.killed and now - job.cancelled_at > GRACE:
                    job.killed = True
                    self._cancel(job, True)
            elif not job.waiters:
                if job.running:
                    job.cancelled_at = now
                    self._cancel(job, False)
                else:
                    del self.jobs[job.number]
        self._dispatch()
        if self.jobs:
            self.idle_since = now

    def _dispatch(self) -> None:
        queued = {job.number: job for job in self.jobs.values() if not job.running and job.cancelled_at is None}
        if not queued:
            return
        running = [job for job in self.jobs.values() if job.running]
        busy_keys = {job.request.exclusion_key for job in running}
        capacity = dict(self._capacity())
        devices = capacity.get("GPU", 0.0)
        free = {"CPU": capacity.get("CPU", 0.0), "GPU": devices}
        for job in running:
            free["CPU"] -= job.request.cpus
            free["GPU"] -= gpus_of(job.request, devices)
        ready = [
            ReadyStage(
                str(job.number), max(job.remaining.get(w, 0.0) for w in job.waiters), len(job.waiters), job.number
            )
            for job in queued.values()
            if job.waiters
        ]
        started = len(running)
        for entry in by_priority(ready):
            job = queued[int(entry.key)]
            if job.request.exclusion_key in busy_keys:
                continue
            cpus, gpus = job.request.cpus, gpus_of(job.request, devices)
            fits = cpus <= free["CPU"] + 1e-9 and gpus <= free["GPU"] + 1e-9
            if not fits and started:
                break  # no smaller job overtakes the first of the queue
            # If nothing runs, a job that does not fit is started anyway: a cluster may grow for it.
            started += 1
            busy_keys.add(job.request.exclusion_key)
            free["CPU"] -= cpus
            free["GPU"] -= gpus
            job.running = True
            self._start(job)

    # ------------------------------------------------------------------ for observers

    def status(self) -> list[JobStatus]:
        """The jobs in the queue, running and being cancelled."""
        out = []
        for job in self.jobs.values():
            epochs = [message for message in job.log if isinstance(message, EpochReport)]
            status = StageStatus.RUNNING if job.running else StageStatus.QUEUED
            if job.cancelled_at is not None:
                status = StageStatus.CANCELLED
            last = epochs[-1] if epochs else None
            out.append(JobStatus(job.request.nodes, job.keys[0], status, tuple(sorted(job.waiters)), last))
        return out


def gpus_of(request: BuildRequest, devices: float) -> float:
    """GPUs that a job holds: as requested, else one if the cluster has any (`devices` of them)."""
    return request.gpus if request.gpus is not None else min(1.0, devices)
