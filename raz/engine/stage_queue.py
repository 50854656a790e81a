"""The broker's bookkeeping, without Ray: which trials wait for which stage, what starts next, what is cancelled.

A waiting trial only calls `poll`, again and again until the stage is in the store. So a restarted broker learns its
state from the next polls. A call looks up what it needs and lets expire what is due, in the order of time; none looks
at all jobs or all trials, of which there are thousands.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

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
from raz.engine.stage_job import JobOrder, StageJob
from raz.engine.trial_paths import WAITER_TIMEOUT, TrialPaths

TICK_SECONDS = 0.5  # seconds after which a call lets expire what is due
GRACE = 15.0  # seconds that a cancelled stage has before its process is killed
MAX_WORKER_LOSSES = 3  # consecutive losses of a stage's process without an epoch gained
MAX_NODE_LOSSES = 20  # likewise of its machine, which is rarely the stage's fault
MAX_CHARGED = 10_000  # made stages whose charged trial is remembered

T = TypeVar("T")


class StageQueue:
    """The jobs of a store, queued and running, and the trials that wait for them.

    `start(job)` and `cancel(job, kill)` control a job's process, `capacity() -> {CPU, GPU}` is what all jobs may hold,
    `clock()` returns seconds and never decreases.
    """

    def __init__(
        self,
        start: Callable[[StageJob], None],
        cancel: Callable[[StageJob, bool], None],
        capacity: Callable[[], Mapping[str, float]],
        clock: Callable[[], float],
    ) -> None:
        self._start, self._cancel, self._clock = start, cancel, clock
        self.jobs: dict[int, StageJob] = {}  # cancelled ones too, until their process has ended
        self.paths = TrialPaths()
        self.order = JobOrder(capacity)
        self._job_of: dict[str, StageJob] = {}  # key -> the job that builds it and is not cancelled
        self._waits: OrderedDict[str, StageJob] = OrderedDict()  # trial -> its job, the longest silent first
        self._without_waiters: set[int] = set()  # jobs that the last waiter has left since the last tick
        self._cancelled: deque[StageJob] = deque()  # those that are not killed yet, the longest cancelled first
        # trial -> key -> a failure that the trial has not seen yet
        self._failed: dict[str, dict[str, tuple[StageJob, BuildFailed | WorkerLost]]] = {}
        # trial -> key -> a job that made the key after the trial's last poll
        self._ended: dict[str, dict[str, StageJob]] = {}
        self._ended_at: deque[tuple[float, str, str, StageJob]] = deque()  # the same by time
        self._charged: OrderedDict[str, str] = OrderedDict()  # key of a made stage -> trial
        self._last_number = 0  # of a job
        self.idle_since = self._ticked_at = clock()

    # ------------------------------------------------------------------ calls of trials

    def join(self, trial: str, keys: Iterable[str]) -> list[str]:
        """Records the keys on a trial's path. Returns those that other living trials have on theirs."""
        self.idle_since = now = self._clock()
        return self.paths.join(trial, keys, now)

    def leave(self, trial: str) -> None:
        """The trial has ended and waits for no stage."""
        self.paths.leave(trial)
        self._stop_waiting(trial)
        self._failed.pop(trial, None)
        self._ended.pop(trial, None)
        self.tick()

    def knows(self, trial: str, key: str) -> bool:
        """Whether the next poll of this trial needs no look into the store."""
        return key in self._job_of or key in self._failed.get(trial, ()) or key in self._ended.get(trial, ())

    def poll(self, request: BuildRequest, job_seen: int, since: int, stored: bool) -> StageReply:
        """The state of the first stage of the request. Queues a job for it if there is none.

        `stored`: the stage is in the store. The reply's log starts at entry `since` if the job is still `job_seen`,
        else at the first entry.
        """
        now, trial, key = self._clock(), request.trial, request.keys[0]
        self.idle_since = now
        self.paths.called(trial, now)
        waited_for = self._waits.get(trial)
        if waited_for is not None and key not in waited_for.keys:  # the trial has moved on
            self._stop_waiting(trial)
        failure = _pop(self._failed, trial, key)
        if failure is not None:
            failed_job, outcome = failure
            reply = self._reply(StageStatus.FAILED, failed_job, request, job_seen, since)
            return replace(reply, outcome=outcome)
        job = self._job_of.get(key)
        ended = _pop(self._ended, trial, key)
        if job is None and ended is not None:
            return self._reply(StageStatus.MADE, ended, request, job_seen, since)
        if job is None and stored:
            return StageReply(StageStatus.MADE, 0, charged=self._charged.get(key) == trial)
        if job is None:
            job = self._new_job(request)
        moved = job.add_waiter(trial, now, request.remaining)
        self._waits[trial] = job
        self._waits.move_to_end(trial)
        if moved and not job.running:
            self.order.put(job)
        if key in job.made:
            job.awaited.pop(trial, None)
            return self._reply(StageStatus.MADE, job, request, job_seen, since)
        job.awaited[trial] = key
        if moved or self._without_waiters or now - self._ticked_at >= TICK_SECONDS:
            self.tick()
        status = StageStatus.RUNNING if job.running else StageStatus.QUEUED
        return self._reply(status, job, request, job_seen, since)

    def follow(self, request: BuildRequest, job_seen: int, since: int) -> StageReply | None:
        """What `poll` would reply to a trial whose last poll was about the same stage, and found that `job_seen` builds
        it. It is no sign of life. None where the trial does not wait for that job any more: it has to poll."""
        trial, key = request.trial, request.keys[0]
        job = self._waits.get(trial)
        if job is None or job.number != job_seen or key not in job.keys:
            return None
        if key in job.made:
            job.awaited.pop(trial, None)
            return self._reply(StageStatus.MADE, job, request, job_seen, since)
        status = StageStatus.RUNNING if job.running else StageStatus.QUEUED
        return self._reply(status, job, request, job_seen, since)

    def _reply(
        self, status: StageStatus, job: StageJob, request: BuildRequest, job_seen: int, since: int
    ) -> StageReply:
        trial = request.trial
        log = tuple(job.log[since if job.number == job_seen else 0 :])
        shared = len(job.waiters) > (trial in job.waiters) or self.paths.shared(request.keys[0], trial)
        return StageReply(status, job.number, log, shared, job.charged_to == trial)

    def _stop_waiting(self, trial: str) -> None:
        job = self._waits.pop(trial, None)
        if job is None:
            return
        job.remove_waiter(trial)
        if not job.waiters:
            self._without_waiters.add(job.number)
        if not job.running:
            if job.waiters:
                self.order.put(job)
            else:
                self.order.remove(job)

    def _new_job(self, request: BuildRequest) -> StageJob:
        """A job for the leading stages of the request that no other job builds."""
        count = 1
        while count < len(request.keys) and request.keys[count] not in self._job_of:
            count += 1
        self._last_number += 1
        own_request = replace(request, nodes=request.nodes[:count], keys=request.keys[:count])
        job = StageJob(self._last_number, own_request, request.trial)
        self.jobs[job.number] = job
        self._job_of.update(dict.fromkeys(job.keys, job))
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
        job.progressed = job.progressed or _is_progress(job, message)

    def finish(self, number: int, outcome: BuildOutcome) -> None:
        """A job's process has ended. A lost one is queued again until too many were lost in a row without progress."""
        job = self.jobs.get(number)
        if job is None:
            return
        self.order.ended(job)
        if isinstance(outcome, WorkerLost) and job.cancelled_at is None:
            if job.progressed:
                job.worker_losses = job.node_losses = 0
            job.progressed = False
            if outcome.cause is LossCause.NODE:
                job.node_losses += 1
            else:
                job.worker_losses += 1
            if job.worker_losses < MAX_WORKER_LOSSES and job.node_losses < MAX_NODE_LOSSES:
                if job.waiters:
                    self.order.put(job)
                self.tick()
                return  # a checkpoint of its last epoch is in the store
        if isinstance(outcome, Built):
            now = self._clock()
            for key in job.keys:
                self._charge(key, job.charged_to)
            for trial, key in job.awaited.items():
                self._ended.setdefault(trial, {})[key] = job
                self._ended_at.append((now, trial, key, job))
        elif job.cancelled_at is None:
            failed = {key: (job, outcome) for key in job.keys if key not in job.made}
            for trial in job.waiters:
                self._failed.setdefault(trial, {}).update(failed)
        self._forget(job)
        self.tick()

    def _forget(self, job: StageJob) -> None:
        """The job is over: nothing is queued, runs or is waited for."""
        del self.jobs[job.number]
        for trial in job.waiters:
            del self._waits[trial]
        self._unlink(job)

    def _unlink(self, job: StageJob) -> None:
        """The next request for one of the job's keys makes a new job."""
        if job.cancelled_at is None:
            for key in job.keys:
                del self._job_of[key]

    def _charge(self, key: str, trial: str) -> None:
        self._charged[key] = trial
        while len(self._charged) > MAX_CHARGED:
            self._charged.popitem(last=False)

    # ------------------------------------------------------------------ what starts, what is cancelled

    def tick(self) -> None:
        """Expires silent waiters, cancels jobs without waiters, and starts queued jobs that fit."""
        self._ticked_at = now = self._clock()
        self.paths.forget(now)
        self._expire_ended(now)
        while self._waits:
            trial, job = next(iter(self._waits.items()))
            if now - job.waiters[trial] < WAITER_TIMEOUT:
                break
            self._stop_waiting(trial)
        if self._without_waiters or self._cancelled:
            self._cancel_unwanted(now)
        while (next_job := self.order.start_next()) is not None:
            self._start(next_job)
        if self.jobs:
            self.idle_since = now

    def _expire_ended(self, now: float) -> None:
        while self._ended_at and now - self._ended_at[0][0] >= WAITER_TIMEOUT:
            _, trial, key, job = self._ended_at.popleft()
            if self._ended.get(trial, {}).get(key) is job:
                _pop(self._ended, trial, key)

    def _cancel_unwanted(self, now: float) -> None:
        kill: list[StageJob] = []
        while self._cancelled and now - (self._cancelled[0].cancelled_at or 0.0) > GRACE:
            job = self._cancelled.popleft()
            if job.number in self.jobs:
                kill.append(job)
        left = [self.jobs[number] for number in self._without_waiters if number in self.jobs]
        self._without_waiters.clear()
        for job in sorted(kill + left, key=lambda job: job.number):
            if job.cancelled_at is not None:
                job.killed = True
                self._cancel(job, True)
            elif not job.waiters:
                if job.running:
                    self._unlink(job)
                    job.cancelled_at = now
                    self._cancelled.append(job)
                    self._cancel(job, False)
                else:
                    self._forget(job)

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


def _pop(table: dict[str, dict[str, T]], trial: str, key: str) -> T | None:
    """Takes an entry out of a table of tables; None where there is none."""
    entries = table.get(trial)
    if entries is None:
        return None
    entry = entries.pop(key, None)
    if not entries:
        del table[trial]
    return entry


def _is_progress(job: StageJob, message: BuilderMessage) -> bool:
    """Whether a message tells of a stage that is made, or of an epoch that no process of the job has reported before.
    A process reports an epoch before it is stored, and the next one repeats those of the checkpoint."""
    if isinstance(message, EpochReport):
        if message.epoch <= job.epochs.get(message.key, 0):
            return False
        job.epochs[message.key] = message.epoch
        return True
    return isinstance(message, StageMade)
