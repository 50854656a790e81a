"""A trial's side of the broker: it has each missing stage built by other processes and follows its epochs."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import ray

from raz.engine.broker import DEFAULT_BUILDER, connect
from raz.engine.broker_handle import BrokerHandle
from raz.engine.broker_protocol import BuildRequest, BuildSpec, EpochReport, StageReply, StageStatus, WorkerLost
from raz.engine.stage_queue import MAX_WORKER_LOSSES
from raz.errors import FailureReason, RazError, TrialFailure
from raz.pipeline.events import StageEvent
from raz.pipeline.graph import STAGES, Node, chain_key
from raz.pipeline.keys import stage_keys
from raz.planning.schedule import remaining_seconds
from raz.spec.stage_resources import Resources, resources_for
from raz.store.paths import StorePaths

if TYPE_CHECKING:
    from raz.pipeline.executor import EpochCallback, StageRequest
    from raz.store.cache import StageKey

HEARTBEAT_SECONDS = 1.0  # seconds between two calls of `heartbeat` while the broker holds a poll open
MAX_CALL_RETRIES = 10  # of a call to a broker that does not answer

T = TypeVar("T")


class WaitInterrupted(Exception):
    """The trial was stopped while it waited for a stage."""


class BrokerClient:
    """The StageProvider of a trial under Ray (`make` of `run_trial`).

    `seconds`: stage name -> seconds that it is expected to take (raz.planning.work_order.expected_seconds), for the
    broker's order. `seeds`: the seeds of a trial over several seeds, in order. `before_request` is called before a
    stage is requested or made, `heartbeat` about once a second while the trial waits, `log` with the events of the
    building processes.

    `live` is true while `on_epoch` handles an epoch that a building process has just trained. `shared` then says
    whether another living trial needs the stage.
    """

    def __init__(
        self,
        store: Path,
        trial: str,
        resources: Mapping[str, Resources],
        *,
        seconds: Mapping[str, float],
        seeds: Sequence[int] = (),
        before_request: Callable[[], None] = lambda: None,
        heartbeat: Callable[[], None] = lambda: None,
        log: Callable[[StageEvent], None],
        builder: str = DEFAULT_BUILDER,
    ) -> None:
        self.store, self.trial, self.resources, self.builder = store, trial, dict(resources), builder
        self.live = self.shared = False
        self._seconds, self._later_seeds = dict(seconds), list(seeds)
        self._before_request, self._heartbeat, self._log = before_request, heartbeat, log
        self._handle: BrokerHandle | None = None
        self._path: dict[Node, StageKey] = {}
        self._trained_keys: list[str] = []  # of the path
        self._times_made: dict[str, int] = {}  # key -> how often the broker has replied MADE

    # ------------------------------------------------------------------ as raz.pipeline.executor.StageProvider

    def begin(self, path: Mapping[Node, StageKey]) -> None:
        """Starts a trial, or its next seed: `path` are its stages in order."""
        self._path = dict(path)
        self._trained_keys = [key.key for node, key in path.items() if STAGES[node.stage].kind == "trained"]
        self._later_seeds = self._later_seeds[1:]

    def __call__(self, request: StageRequest, on_epoch: EpochCallback) -> bool | None:
        """Waits until the first stage of the request is in the store. Returns whether this trial was the first to
        request it; None for a computed stage, which the trial makes itself.

        Calls `on_epoch` for its epochs. Raises the exception of the building process, TrialFailure if that process was
        lost too often, RazError if it cannot be read each time it is made, WaitInterrupted if `on_epoch` stops
        the trial.
        """
        self._before_request()
        node, key = request.nodes[0], request.keys[0].key
        if STAGES[node.stage].kind == "computed":
            return None
        times = self._times_made.get(key, 0)
        if times >= MAX_WORKER_LOSSES:
            what = f"{node} was made {times} times, and is each time damaged or missing on this machine"
            raise RazError(str(self.store), what, "check the disk; on a cluster: raz-sweep doctor --cluster")
        self._join()
        build, job, since = self._build_request(request), 0, 0
        status: StageStatus | None = None
        while True:
            reply = self._poll(build, job, since, ignore_stored=times > 0)
            if reply.job != job:
                job, since = reply.job, 0
            if reply.status is StageStatus.QUEUED and status is not StageStatus.QUEUED:
                self._log(StageEvent("waiting", str(node), key))
            status, self.shared = reply.status, reply.shared
            since += len(reply.log)
            for message in reply.log:
                if isinstance(message, StageEvent):
                    self._log(message)
                elif isinstance(message, EpochReport) and message.key == key:
                    self._forward_epoch(on_epoch, message)
            if status is StageStatus.MADE:
                self._times_made[key] = times + 1
                return reply.charged
            if reply.outcome is not None:
                if isinstance(reply.outcome, WorkerLost):
                    raise reply.outcome.as_failure(str(node))
                raise reply.outcome.error
            self._heartbeat()

    def _forward_epoch(self, on_epoch: EpochCallback, report: EpochReport) -> None:
        self.live = True
        try:
            if on_epoch(report.epoch, report.value):
                raise WaitInterrupted
        finally:
            self.live = False

    def shared_now(self) -> frozenset[str]:
        """Keys of the trained stages on the trial's path that other living trials need too."""
        return frozenset(self._join()) if self._trained_keys else frozenset()

    def leave(self) -> None:
        """Tells the broker that the trial has ended."""
        if self._handle is not None:
            self._handle.leave.remote(self.trial)

    # ------------------------------------------------------------------

    def _join(self) -> list[str]:
        return self._call(lambda broker: broker.join.remote(self.trial, self._trained_keys))

    def _poll(self, request: BuildRequest, job: int, since: int, *, ignore_stored: bool) -> StageReply:
        return self._call(lambda broker: broker.poll.remote(request, job, since, ignore_stored), self._heartbeat)

    def _build_request(self, request: StageRequest) -> BuildRequest:
        node, key, config = request.nodes[0], request.keys[0], request.config
        resources = resources_for(self.resources, node.stage)
        return BuildRequest(
            trial=self.trial,
            nodes=request.nodes,
            keys=tuple(k.key for k in request.keys),
            exclusion_key=chain_key(key) if STAGES[node.stage].kind == "trained" else key.key,
            remaining=remaining_seconds(self._remaining_path(request), self._is_stored),
            cpus=float(resources.cpus or config.threads),
            gpus=resources.gpus,
            build=BuildSpec(config, self.store.resolve(), self._absolute(request.data_root), self.builder),
        )

    @staticmethod
    def _absolute(data_root: Path | None) -> Path | None:
        """For processes with another working folder."""
        return None if data_root is None else data_root.expanduser().absolute()

    def _remaining_path(self, request: StageRequest) -> Iterator[tuple[str, float]]:
        """(folder below `stages/`, expected seconds) of each stage from the requested one to the end of the trial, its
        later seeds included."""
        path = [(node, self._path[node]) for node in request.path]
        splits = tuple(node.split for node in self._path if STAGES[node.stage].kind == "computed")
        for seed in self._later_seeds:
            later = replace(request.config, seed=seed)
            path += stage_keys(later, data_root=request.data_root, splits=splits).items()
        for node, key in path:
            yield f"{node.stage}/{key.key}", self._seconds.get(str(node), 0.0)

    def _is_stored(self, folder: str) -> bool:
        stage, _, key = folder.partition("/")
        return StorePaths(self.store).manifest(stage, key).exists()

    def _call(
        self, method: Callable[[BrokerHandle], ray.ObjectRef[T]], meanwhile: Callable[[], None] = lambda: None
    ) -> T:
        """The result of a call of the broker; `meanwhile` is called every HEARTBEAT_SECONDS until it is there. A broker
        that has exited or lost its machine is started again, and the call is repeated. Raises TrialFailure (lost) after
        MAX_CALL_RETRIES."""
        for tries in range(MAX_CALL_RETRIES):
            if self._handle is None:
                self._handle = connect(self.store)
            try:
                ref = method(self._handle)
                while True:
                    with suppress(ray.exceptions.GetTimeoutError):
                        return ray.get(ref, timeout=HEARTBEAT_SECONDS)
                    meanwhile()
            except ray.exceptions.RayActorError:
                self._handle = None
                time.sleep(min(5.0, 0.1 * 2**tries))
        what = f"it did not answer {MAX_CALL_RETRIES} calls in a row"
        raise TrialFailure("broker", what, "run again", reason=FailureReason.LOST)


@contextmanager
def own_stages(
    store: Path,
    resources: Mapping[str, Resources] | None = None,
    *,
    seeds: Sequence[int] = (),
    log: Callable[[StageEvent], None] = lambda _: None,
    heartbeat: Callable[[], None] = lambda: None,
) -> Iterator[BrokerClient]:
    """A client for stages that the process of a Ray session needs itself, outside a trial of Tune: the held-out scores
    of a study, a final model. They are made where the session's GPUs are. `heartbeat`: as BrokerClient takes it."""
    name = f"own-{uuid.uuid4().hex[:8]}"
    client = BrokerClient(
        store.expanduser().resolve(), name, resources or {}, seconds={}, seeds=seeds, heartbeat=heartbeat, log=log
    )
    try:
        yield client
    finally:
        client.leave()
