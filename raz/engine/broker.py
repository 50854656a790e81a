"""The broker: one actor for each store and version of the code. It has each missing stage built once, as a Ray task.

A waiting trial holds no CPU and no GPU; the task that builds a stage holds what the stage requests. The broker keeps
its state in memory: when it dies Ray restarts it, the trials poll again, and finished stages are found in the store. It
exits when it has been idle for a while.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar, cast

import ray

from raz.engine.broker_protocol import (
    BuilderMessage,
    BuildFailed,
    BuildOutcome,
    BuildRequest,
    BuildSpec,
    Built,
    EpochReport,
    JobStatus,
    LossCause,
    RemoteStageError,
    StageMade,
    StageReply,
    StageStatus,
    WorkerLost,
)
from raz.engine.ray_session import capacity, coordinator_affinity
from raz.engine.stage_queue import StageJob, StageQueue, gpus_of
from raz.engine.trial_runner import import_builder
from raz.errors import FailureReason, RazError, TrialFailure
from raz.pipeline.events import StageEvent
from raz.pipeline.failures import classify, fatal_os_error
from raz.pipeline.graph import Node
from raz.store.paths import StorePaths

NAMESPACE = "raz"
DEFAULT_BUILDER = "raz.pipeline.trial:build_stages"
LONG_POLL_SECONDS = 1.0  # seconds for which a poll is held open while nothing changes
TICK_SECONDS = 0.5  # seconds between two calls of StageQueue.tick
IDLE_SECONDS = 60.0  # seconds without jobs or calls after which the broker exits
REPORT_SECONDS = 5.0  # most seconds for which an ending stage waits until the broker has its reports
MAX_CONCURRENCY = 1000  # calls that the actor serves at a time

P = ParamSpec("P")
R = TypeVar("R")


class RemoteMethod(Protocol[P, R]):
    """A method of an actor, called through its handle."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ray.ObjectRef[R]: ...


class BrokerHandle(Protocol):
    """A handle of a StageBroker. Ray knows the methods of its own handles only at run time."""

    join: RemoteMethod[[str, list[str]], list[str]]
    poll: RemoteMethod[[BuildRequest, int, int, bool], StageReply]
    leave: RemoteMethod[[str], None]
    report: RemoteMethod[[int, BuilderMessage], None]
    shutdown: RemoteMethod[[], None]


@lru_cache(maxsize=1)
def code_digest() -> str:
    """sha256 (hex) of the package's source: each version of the code has a broker of its own."""
    package = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def broker_name(store: Path) -> str:
    """`raz-broker-` and a digest of the store's path and of the code."""
    digest = hashlib.sha256(f"{store.resolve()}:{code_digest()}".encode())
    return f"raz-broker-{digest.hexdigest()[:16]}"


def connect(store: Path) -> BrokerHandle:
    """The broker of the store. Starts one if none is running."""
    name = broker_name(store)
    actor = (
        ray.remote(StageBroker)
        .options(
            name=name,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=MAX_CONCURRENCY,
            scheduling_strategy="DEFAULT",
            resources=coordinator_affinity(),
        )
        .remote(str(store.resolve()), name)
    )
    return cast(BrokerHandle, actor)


class StageBroker:
    """StageQueue as an actor. All methods run in one event loop, so they never run at the same time."""

    def __init__(self, store: str, name: str) -> None:
        self._store, self._name = Path(store), name
        self._queue = StageQueue(self._start, self._cancel, self._capacity, time.monotonic)
        self._refs: dict[int, ray.ObjectRef[BuildOutcome]] = {}  # job -> its task
        self._watches: set[asyncio.Task[None]] = set()  # referenced, so that they are not collected
        self._cached_capacity: tuple[float, Mapping[str, float]] = (-1e9, {})  # time of reading, value
        self._changed = asyncio.Event()
        self._ticking: asyncio.Task[None] | None = None

    async def join(self, trial: str, keys: list[str]) -> list[str]:
        """As StageQueue.join."""
        self._ensure_ticking()
        return self._queue.join(trial, keys)

    async def poll(self, request: BuildRequest, job_seen: int, since: int, ignore_stored: bool) -> StageReply:
        """Long poll: returns when the stage's status or log changes, at most LONG_POLL_SECONDS later.

        `ignore_stored`: the artifact in the store failed verification, build it again. The rest as StageQueue.poll.
        """
        self._ensure_ticking()
        end = time.monotonic() + LONG_POLL_SECONDS
        first_status: StageStatus | None = None
        while True:
            stored = not ignore_stored and self._is_stored(request)
            reply = self._queue.poll(request, job_seen, since, stored)
            first_status = first_status or reply.status
            timeout = end - time.monotonic()
            changed = reply.status in (StageStatus.MADE, StageStatus.FAILED) or reply.status != first_status
            if changed or reply.log or timeout <= 0 or reply.job != job_seen:
                return reply
            try:
                await asyncio.wait_for(self._changed.wait(), timeout)
            except TimeoutError:
                continue

    async def leave(self, trial: str) -> None:
        """As StageQueue.leave."""
        self._queue.leave(trial)

    async def report(self, number: int, message: BuilderMessage) -> None:
        """As StageQueue.record."""
        self._queue.record(number, message)
        self._notify()

    async def status(self) -> list[JobStatus]:
        """As StageQueue.status."""
        return self._queue.status()

    async def shutdown(self) -> None:
        """Ends the actor."""
        ray.actor.exit_actor()

    # ------------------------------------------------------------------ what the queue calls

    def _is_stored(self, request: BuildRequest) -> bool:
        return StorePaths(self._store).manifest(request.nodes[0].stage, request.keys[0]).exists()

    def _capacity(self) -> Mapping[str, float]:
        read_at, cached = self._cached_capacity
        if time.monotonic() - read_at > 2.0:
            cached = capacity()
            self._cached_capacity = (time.monotonic(), cached)
        return cached

    def _start(self, job: StageJob) -> None:
        request = job.request
        task = ray.remote(_build_stage_task).options(
            name="+".join(map(str, request.nodes)),
            num_cpus=request.cpus,
            num_gpus=gpus_of(request, self._capacity().get("GPU", 0.0)),
            max_retries=0,
            scheduling_strategy="DEFAULT",
        )
        ref = task.remote(request.build, request.nodes, request.keys, self._name, job.number)
        self._refs[job.number] = ref
        watch = asyncio.get_running_loop().create_task(self._watch(job.number, ref))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    def _cancel(self, job: StageJob, kill: bool) -> None:
        ref = self._refs.get(job.number)
        if ref is not None:
            ray.cancel(ref, force=kill)

    async def _watch(self, number: int, ref: ray.ObjectRef[BuildOutcome]) -> None:
        outcome: BuildOutcome
        try:
            outcome = await ref
        except ray.exceptions.RayTaskError as error:  # raised by Ray itself: the task returns the stage's exceptions
            outcome = BuildFailed(RemoteStageError(str(error.cause), str(error)))
        except ray.exceptions.RayError as error:
            outcome = _worker_lost(error)
        self._refs.pop(number, None)
        self._queue.finish(number, outcome)
        self._notify()

    # ------------------------------------------------------------------ ticks

    def _ensure_ticking(self) -> None:
        if self._ticking is None or self._ticking.done():
            self._ticking = asyncio.get_running_loop().create_task(self._tick_loop())

    async def _tick_loop(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._queue.tick()
            if time.monotonic() - self._queue.idle_since > IDLE_SECONDS:
                cast(BrokerHandle, ray.get_runtime_context().current_actor).shutdown.remote()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _worker_lost(error: ray.exceptions.RayError) -> WorkerLost:
    """The outcome of a job whose process ended without one."""
    if isinstance(error, ray.exceptions.TaskCancelledError):
        return WorkerLost(LossCause.PROCESS, "it was cancelled")
    if classify(error).reason is FailureReason.OOM:
        return WorkerLost(LossCause.MEMORY, "its machine ran out of memory and killed it")
    if isinstance(error, ray.exceptions.NodeDiedError):
        return WorkerLost(LossCause.NODE, "its machine went away")
    return WorkerLost(LossCause.PROCESS, f"its process died ({type(error).__name__})")


# ------------------------------------------------------------------ the process that builds stages


def _build_stage_task(
    build: BuildSpec, nodes: Sequence[Node], keys: Sequence[str], broker: str, number: int
) -> BuildOutcome:
    """Builds the stages of a job and returns how that ended; the stage's exceptions are returned, not raised."""
    handle = cast(BrokerHandle, ray.get_actor(broker, namespace=NAMESPACE))
    key_of = dict(zip(nodes, keys, strict=True))
    last: list[ray.ObjectRef[None]] = []  # the last report

    def report(message: BuilderMessage) -> None:
        last[:] = [handle.report.remote(number, message)]

    def report_epoch(node: Node, epoch: int, value: float) -> bool:
        report(EpochReport(key_of[node], epoch, value))
        return False

    def report_made(node: Node) -> None:
        report(StageMade(key_of[node]))

    def log(event: StageEvent) -> None:
        if event.key in keys:  # the stages that these depend on are only looked up
            report(event)

    try:
        import_builder(build.builder)(
            build.config, build.store, list(nodes), data_root=build.data_root,
            on_epoch=report_epoch, on_made=report_made, log=log, needs_made=True,
        )  # fmt: skip
    except Exception as error:
        return _failed(error, nodes[0])
    finally:
        # Reports of one process arrive in order. The outcome may overtake them, and ends the job that they belong to.
        if last:
            ray.wait(last, timeout=REPORT_SECONDS)
    return Built()


def _failed(error: Exception, node: Node) -> BuildFailed:
    """The outcome of a build that raised: an exception that a trial can raise in its own process."""
    fatal = fatal_os_error(error)
    if fatal is not None:
        name = None if fatal.filename is None else str(fatal.filename)
        text = fatal.strerror or errno.errorcode.get(fatal.errno or 0, "")
        return BuildFailed(OSError(fatal.errno, text, name))
    if isinstance(error, RazError):
        return BuildFailed(error)
    reason = classify(error).reason
    if reason is not FailureReason.ERROR:
        what = str(error) or "the machine's memory is full"
        return BuildFailed(TrialFailure(f"stage {node}", what, reason=reason))
    text = f"{type(error).__name__}: {error}"
    return BuildFailed(RemoteStageError(text, "".join(traceback.format_exception(error))))
