"""What a broker knows and decides, without Ray: who waits for which stage, what is started next, what nobody wants.

Pure bookkeeping over a clock: `ask` is the whole protocol of a trial, said again and again until the stage is
there, so a broker that was restarted learns from the next asking all that it has to know.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raz.planning.schedule import ReadyStage, by_priority

WAITER_TIMEOUT = 30.0  # seconds without a word after which a waiter is gone
GRACE = 15.0  # seconds that a cancelled stage has to end by itself
MAX_WORKER_LOSSES = 3  # of a stage's process, one after the other, without an epoch gained
MAX_NODE_LOSSES = 20  # of the machines below it, likewise: no fault of the stage, unless it is what breaks them
REMEMBERED = 10_000  # made stages whose first asker is known


@dataclass(frozen=True)
class Request:
    """What a trial waits for (the first key), and what may be made with it in one process."""

    who: str  # the trial
    nodes: tuple[tuple[str, str, int], ...]  # stage, split, pass
    keys: tuple[str, ...]
    lane: str  # stages of one lane never run side by side: a chain of epochs has one
    path: float  # seconds that the trial has before it, these stages first
    cpus: float
    gpus: float | None  # None: a device if there is one
    job: Mapping[str, Any]  # what the process that makes it has to know


@dataclass
class StageJob:
    """Stages in the making, or waiting for room."""

    number: int
    request: Request
    paid: str  # who asked first
    waiters: dict[str, float]  # who -> when last heard
    paths: dict[str, float]
    log: list[Any] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    running: bool = False
    cancelled: float | None = None  # when
    forced: bool = False
    losses: int = 0
    nodes: int = 0  # machines lost below it
    gained: bool = False  # an epoch since its process was last lost

    @property
    def keys(self) -> tuple[str, ...]:
        return self.request.keys


class StageQueue:
    """`start(flight)`, `cancel(flight, force)` and `capacity() -> {CPU, GPU}` reach the machines."""

    def __init__(
        self,
        start: Callable[[StageJob], None],
        cancel: Callable[[StageJob, bool], None],
        capacity: Callable[[], Mapping[str, float]],
        clock: Callable[[], float],
    ) -> None:
        self._start, self._cancel, self._capacity, self._clock = start, cancel, capacity, clock
        self.flights: dict[int, StageJob] = {}  # also cancelled ones, until their process has ended
        self.trials: dict[str, tuple[float, frozenset[str]]] = {}  # who -> (last heard, keys on its path)
        self._failed: dict[tuple[str, str], tuple[StageJob, Mapping[str, Any]]] = {}  # (who, key), told once
        self._payers: OrderedDict[str, str] = OrderedDict()
        self._count = 0
        self.quiet_since = clock()

    # ------------------------------------------------------------------ what trials say

    def join(self, who: str, keys: Iterable[str]) -> list[str]:
        """A trial says what is on its path. Returns which of these keys other living trials have on theirs."""
        mine = frozenset(keys)
        self.trials[who] = (self._clock(), mine)
        self.quiet_since = self._clock()
        return [key for key in mine if self._shared(key, who)]

    def leave(self, who: str) -> None:
        """A trial is over: it waits for nothing more."""
        self.trials.pop(who, None)
        for flight in self.flights.values():
            flight.waiters.pop(who, None)
        self._failed = {at: told for at, told in self._failed.items() if at[0] != who}
        self.tick()

    def ask(self, request: Request, flight_seen: int, since: int, stored: bool) -> dict[str, Any]:
        """Where the first key of the request stands; starts it where nobody has. `stored`: it is in the store.

        state: queued, running, made or failed. `log`: what its maker said from entry `since` on, if the flight is
        still `flight_seen`, else from the first.
        """
        now, key = self._clock(), request.keys[0]
        self.quiet_since = now
        if request.who in self.trials:
            self.trials[request.who] = (now, self.trials[request.who][1])
        for other in self.flights.values():
            if key not in other.keys:
                other.waiters.pop(request.who, None)  # it has what it wanted of that one
        told = self._failed.pop((request.who, key), None)
        if told is not None:
            flight, outcome = told
            return self._answer("failed", flight, request, flight_seen, since) | {"outcome": dict(outcome)}
        flight_ = self._flight_of(key)
        if flight_ is None and stored:
            paid = self._payers.get(key) == request.who
            return {"state": "made", "flight": 0, "log": [], "shared": False, "paid": paid}
        if flight_ is None:
            flight_ = self._new(request, now)
        flight_.waiters[request.who] = now
        flight_.paths[request.who] = request.path
        if key in flight_.made:
            return self._answer("made", flight_, request, flight_seen, since)
        self.tick()
        return self._answer("running" if flight_.running else "queued", flight_, request, flight_seen, since)

    def _answer(self, state: str, flight: StageJob, request: Request, seen: int, since: int) -> dict[str, Any]:
        key = request.keys[0]
        return {
            "state": state,
            "flight": flight.number,
            "log": flight.log[since if flight.number == seen else 0 :],
            "shared": self._shared(key, request.who) or any(who != request.who for who in flight.waiters),
            "paid": flight.paid == request.who,
        }

    def _shared(self, key: str, who: str) -> bool:
        now = self._clock()
        return any(
            key in keys and now - heard < WAITER_TIMEOUT for other, (heard, keys) in self.trials.items() if other != who
        )

    def _flight_of(self, key: str) -> StageJob | None:
        for flight in self.flights.values():
            if key in flight.keys and flight.cancelled is None:
                return flight
        return None

    def _new(self, request: Request, now: float) -> StageJob:
        """Makes of the request what nobody else is making."""
        count = 1
        while count < len(request.keys) and self._flight_of(request.keys[count]) is None:
            count += 1
        self._count += 1
        own = Request(
            request.who, request.nodes[:count], request.keys[:count], request.lane, request.path, request.cpus,
            request.gpus, request.job,
        )  # fmt: skip
        flight = StageJob(self._count, own, request.who, {request.who: now}, {request.who: request.path})
        self.flights[flight.number] = flight
        return flight

    # ------------------------------------------------------------------ what makers say

    def record(self, number: int, kind: str, entry: Mapping[str, Any]) -> None:
        """A maker's word: `point` (key, epoch, value), `made` (key), `event`."""
        flight = self.flights.get(number)
        if flight is None:
            return
        flight.log.append([kind, dict(entry)])
        if kind == "made":
            self._credit_maker(str(entry["key"]), flight.paid)
            flight.made.add(str(entry["key"]))
        flight.gained = flight.gained or kind in ("point", "made")

    def ended(self, number: int, outcome: Mapping[str, Any]) -> None:
        """A maker's process is over: state made, failed, cancelled, or lost (its reason: lost, oom or node)."""
        flight = self.flights.get(number)
        if flight is None:
            return
        flight.running = False
        if outcome["state"] == "lost" and flight.cancelled is None:
            if flight.gained:
                flight.losses = flight.nodes = 0
            flight.gained = False
            flight.nodes += outcome["reason"] == "node"
            flight.losses += outcome["reason"] != "node"
            if flight.losses < MAX_WORKER_LOSSES and flight.nodes < MAX_NODE_LOSSES:
                self.tick()
                return  # queued again; it goes on from its last epoch
        del self.flights[number]
        if outcome["state"] == "made":
            for key in flight.keys:
                self._credit_maker(key, flight.paid)
        elif flight.cancelled is None:
            for who in flight.waiters:
                for key in flight.keys:
                    if key not in flight.made:
                        self._failed[who, key] = (flight, outcome)
        self.tick()

    def _credit_maker(self, key: str, who: str) -> None:
        self._payers[key] = who
        while len(self._payers) > REMEMBERED:
            self._payers.popitem(last=False)

    # ------------------------------------------------------------------ what is started, what is given up

    def tick(self) -> None:
        """Forgets who is gone, cancels what nobody wants, starts what there is room for."""
        now = self._clock()
        self.trials = {who: told for who, told in self.trials.items() if now - told[0] < 10 * WAITER_TIMEOUT}
        for flight in list(self.flights.values()):
            flight.waiters = {who: at for who, at in flight.waiters.items() if now - at < WAITER_TIMEOUT}
            if flight.cancelled is not None:
                if not flight.forced and now - flight.cancelled > GRACE:
                    flight.forced = True
                    self._cancel(flight, True)
            elif not flight.waiters:
                if flight.running:
                    flight.cancelled = now
                    self._cancel(flight, False)
                else:
                    del self.flights[flight.number]
        self._dispatch()
        if self.flights:
            self.quiet_since = now

    def _dispatch(self) -> None:
        waiting = {f.number: f for f in self.flights.values() if not f.running and f.cancelled is None}
        if not waiting:
            return
        running = [f for f in self.flights.values() if f.running]
        lanes = {f.request.lane for f in running}
        capacity = dict(self._capacity())
        devices = capacity.get("GPU", 0.0)
        free = {"CPU": capacity.get("CPU", 0.0), "GPU": devices}
        for flight in running:
            free["CPU"] -= flight.request.cpus
            free["GPU"] -= gpus_of(flight.request, devices)
        ready = [
            ReadyStage(str(f.number), max(f.paths.get(who, 0.0) for who in f.waiters), len(f.waiters), f.number)
            for f in waiting.values()
            if f.waiters
        ]
        started = len(running)
        for entry in by_priority(ready):
            flight = waiting[int(entry.key)]
            if flight.request.lane in lanes:
                continue
            cpus, gpus = flight.request.cpus, gpus_of(flight.request, devices)
            fits = cpus <= free["CPU"] + 1e-9 and gpus <= free["GPU"] + 1e-9
            if not fits and started:
                break  # what is first in line is not overtaken by what is small
            # Where nothing fits and nothing runs, one is asked for all the same: a cluster may grow for it.
            started += 1
            lanes.add(flight.request.lane)
            free["CPU"] -= cpus
            free["GPU"] -= gpus
            flight.running = True
            self._start(flight)

    # ------------------------------------------------------------------ what one may look at

    def status(self) -> list[dict[str, Any]]:
        """The stages in the making or in line: stage, key, state, waiters, the last point of its curve."""
        out = []
        for flight in self.flights.values():
            points = [entry for kind, entry in flight.log if kind == "point"]
            out.append(
                {
                    "stages": [list(node) for node in flight.request.nodes],
                    "key": flight.keys[0],
                    "state": "cancelled" if flight.cancelled else "running" if flight.running else "queued",
                    "waiters": sorted(flight.waiters),
                    "last": points[-1] if points else None,
                }
            )
        return out


def gpus_of(request: Request, devices: float) -> float:
    """Devices a stage holds: what its file says, else one where there is one."""
    return request.gpus if request.gpus is not None else min(1.0, devices)
