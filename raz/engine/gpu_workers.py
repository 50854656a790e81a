"""Which GPU workers there are, without Ray: those that build, and idle ones that keep PyTorch loaded for the next job.

An idle worker holds its GPU and its CPUs. It is ended when another job needs them, and after a while in any case, so
that its GPU's memory and a machine of an autoscaling cluster are given back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

IDLE_SECONDS = 30.0  # seconds without a job after which a worker is ended

W = TypeVar("W")


@dataclass(frozen=True)
class Share:
    """What a worker holds for its life."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class _Idle(Generic[W]):
    worker: W
    share: Share
    since: float


class GpuWorkers(Generic[W]):
    """The workers of a broker. `start(share)` and `end(worker)` control a worker's process, `clock()` returns
    seconds."""

    def __init__(self, start: Callable[[Share], W], end: Callable[[W], None], clock: Callable[[], float]) -> None:
        self._start, self._end, self._clock = start, end, clock
        self._idle: list[_Idle[W]] = []  # the longest idle first

    @property
    def idle(self) -> list[W]:
        """The workers without a job, the longest idle first."""
        return [each.worker for each in self._idle]

    def take(self, share: Share) -> W:
        """A worker with this share: the idle one that ended its job last, else a new one."""
        for each in reversed(self._idle):
            if each.share == share:
                self._idle.remove(each)
                return each.worker
        return self._start(share)

    def release(self, worker: W, share: Share) -> None:
        """The worker's job has ended: it is idle."""
        self._idle.append(_Idle(worker, share, self._clock()))

    def make_room(self, free: Share) -> None:
        """Ends idle workers, the longest idle first, until all of them fit into what no job holds."""
        while self._idle:
            cpus = sum(each.share.cpus for each in self._idle)
            gpus = sum(each.share.gpus for each in self._idle)
            if cpus <= free.cpus + 1e-9 and gpus <= free.gpus + 1e-9:
                return
            self._end(self._idle.pop(0).worker)

    def end_all(self) -> None:
        """Ends all idle workers."""
        while self._idle:
            self._end(self._idle.pop(0).worker)

    def tick(self) -> None:
        """Ends workers that have been idle for IDLE_SECONDS."""
        now = self._clock()
        while self._idle and now - self._idle[0].since >= IDLE_SECONDS:
            self._end(self._idle.pop(0).worker)
