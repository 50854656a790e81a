"""The polls of trials, held open until something happens to the job that they wait for. Without Ray.

An event wakes the trials of its job and no others. While nothing happens to it, a poll of a trial costs one look at its
job: how long it is held open grows with the number of trials, so that a thousand of them ask no more often than a few
hundred.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from raz.engine.broker_protocol import (
    BuilderMessage,
    BuildOutcome,
    BuildRequest,
    Built,
    StageMade,
    StageReply,
    StageStatus,
)
from raz.engine.stage_queue import StageQueue

SHORTEST_POLL = 1.0  # seconds for which a poll is held open while nothing changes
LONGEST_POLL = 10.0  # likewise, however many trials wait: a third of what makes a trial absent
POLLS_A_SECOND = 200.0  # as many at most, until polls are held open for LONGEST_POLL
MAX_KNOWN = 100_000  # stages that are known to be in the store


@dataclass(eq=False, slots=True)
class _Held:
    """A poll that is held open."""

    job: int
    end: float  # time of the loop
    wake: asyncio.Future[bool]  # whether the queue is to be asked again


class LongPolls:
    """The calls of trials and of building processes to a StageQueue, in one event loop.

    `look(request)` says whether the request's first stage is in the store. It is asked once where several trials ask at
    a time, not while a job builds the stage, and never again once the stage is known to be there.
    """

    def __init__(self, queue: StageQueue, look: Callable[[BuildRequest], Awaitable[bool]]) -> None:
        self.queue, self._look = queue, look
        self._held: dict[str, _Held] = {}  # trial -> its poll
        self._of_job: dict[int, dict[str, _Held]] = {}  # job -> the same
        self._by_end: deque[_Held] = deque()  # all, as they came: nearly in the order of their ends
        self._known: OrderedDict[str, None] = OrderedDict()  # keys of stages in the store
        self._looks: dict[str, asyncio.Task[bool]] = {}  # key -> the look into the store for it

    async def poll(self, request: BuildRequest, job_seen: int, since: int, ignore_stored: bool) -> StageReply:
        """Returns when the stage's status or log changes, or after a while.

        `ignore_stored`: the artifact in the store failed verification, build it again. The rest as StageQueue.poll.
        """
        trial, key = request.trial, request.keys[0]
        self._end(trial)
        if ignore_stored:
            self._known.pop(key, None)
        stored = False
        if not ignore_stored and not self.queue.knows(trial, key):
            stored = key in self._known or await self._is_stored(request)
        reply = self.queue.poll(request, job_seen, since, stored)
        status = reply.status
        if reply.log or reply.job != job_seen or status in (StageStatus.MADE, StageStatus.FAILED):
            return reply
        return await self._hold(request, reply, since, ignore_stored)

    async def _hold(self, request: BuildRequest, reply: StageReply, since: int, ignore_stored: bool) -> StageReply:
        """Holds a poll open until there is another reply than this."""
        loop = asyncio.get_running_loop()
        end, trial, job = loop.time() + self._seconds(), request.trial, reply.job
        while loop.time() < end:
            held = _Held(job, end, loop.create_future())
            self._held[trial] = self._of_job.setdefault(job, {})[trial] = held
            self._by_end.append(held)
            try:
                again = await held.wake
            finally:
                self._release(trial, held)
            if not again:
                return reply
            now = self.queue.follow(request, job, since)
            if now is None:
                return await self.poll(request, job, since, ignore_stored)
            if now.log or now.status is not reply.status:
                return now
        return reply

    def leave(self, trial: str) -> None:
        """As StageQueue.leave. A poll of the trial that is still held open is over."""
        self._end(trial)
        self.queue.leave(trial)

    def report(self, number: int, message: BuilderMessage) -> None:
        """As StageQueue.record."""
        self.queue.record(number, message)
        if isinstance(message, StageMade):
            self._know(message.key)
        self.wake(number)

    def finish(self, number: int, outcome: BuildOutcome) -> None:
        """As StageQueue.finish."""
        job = self.queue.jobs.get(number)
        if job is not None and isinstance(outcome, Built):
            for key in job.keys:
                self._know(key)
        self.queue.finish(number, outcome)
        self.wake(number)

    def wake(self, number: int) -> None:
        """Something has happened to a job: it was started, has reported, or has ended."""
        for held in self._of_job.pop(number, {}).values():
            _wake(held)

    def tick(self) -> None:
        """Ends polls that were held open for long enough. To be called regularly."""
        now = asyncio.get_running_loop().time()
        while self._by_end and (self._by_end[0].end <= now or self._by_end[0].wake.done()):
            _wake(self._by_end.popleft())

    # ------------------------------------------------------------------

    def _seconds(self) -> float:
        return min(LONGEST_POLL, max(SHORTEST_POLL, len(self._held) / POLLS_A_SECOND))

    def _end(self, trial: str) -> None:
        held = self._held.get(trial)
        if held is not None and not held.wake.done():
            held.wake.set_result(False)

    def _release(self, trial: str, held: _Held) -> None:
        if self._held.get(trial) is held:
            del self._held[trial]
        of_job = self._of_job.get(held.job, {})
        if of_job.get(trial) is held:
            del of_job[trial]
            if not of_job:
                del self._of_job[held.job]

    async def _is_stored(self, request: BuildRequest) -> bool:
        key = request.keys[0]
        look = self._looks.get(key)
        if look is None:
            look = self._looks[key] = asyncio.ensure_future(self._look_once(request))
            look.add_done_callback(lambda _: self._looks.pop(key, None))
        return await asyncio.shield(look)

    async def _look_once(self, request: BuildRequest) -> bool:
        found = await self._look(request)
        if found:
            self._know(request.keys[0])
        return found

    def _know(self, key: str) -> None:
        self._known[key] = None
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)


def _wake(held: _Held) -> None:
    if not held.wake.done():
        held.wake.set_result(True)
