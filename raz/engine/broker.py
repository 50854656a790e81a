"""The broker: one actor for each store and version of the code. It has each missing stage built once.

A waiting trial holds no CPU and no GPU; the process that builds a stage (`raz.engine.stage_worker`) holds what the
stage requests. The broker keeps its state in memory: when it dies Ray restarts it, the trials poll again, and finished
stages are found in the store. It exits when it has been idle for a while.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import ray

from raz.engine.broker_handle import NAMESPACE, BrokerHandle, RemoteMethod
from raz.engine.broker_protocol import (
    BuilderMessage,
    BuildFailed,
    BuildOutcome,
    BuildRequest,
    BuildSpec,
    Built,
    JobStatus,
    LossCause,
    RemoteStageError,
    StageReply,
    WorkerLost,
)
from raz.engine.gpu_workers import GpuWorkers, Share
from raz.engine.long_polls import LongPolls
from raz.engine.ray_internals import actor_lost_its_node
from raz.engine.ray_session import capacity, coordinator_affinity
from raz.engine.served_clock import ServedClock
from raz.engine.stage_job import StageJob, gpus_of
from raz.engine.stage_queue import TICK_SECONDS, StageQueue
from raz.engine.stage_worker import GpuWorker, build_on_cpus, load_networks
from raz.errors import FailureReason
from raz.pipeline.failures import classify
from raz.pipeline.graph import Node
from raz.store.paths import StorePaths

if TYPE_CHECKING:
    from ray.actor import ActorHandle

DEFAULT_BUILDER = "raz.pipeline.trial:build_stages"
CAPACITY_SECONDS = 2.0  # seconds between two questions how large the cluster is
LOOK_THREADS = 8  # that look into the store, and ask Ray how large the cluster is
IDLE_SECONDS = 60.0  # seconds without jobs or calls after which the broker exits
MAX_CONCURRENCY = 10_000  # calls that the actor serves at a time: polls that are held open, and reports beside them


class GpuWorkerHandle(Protocol):
    """A handle of a GpuWorker."""

    build: RemoteMethod[[BuildSpec, tuple[Node, ...], tuple[str, ...], str, int], BuildOutcome]
    load: RemoteMethod[[], None]


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
    """StageQueue as an actor. All methods run in one event loop, so they never run at the same time, and none of them
    waits for a disk or for Ray's own servers: threads do."""

    def __init__(self, store: str, name: str) -> None:
        self._store, self._name = Path(store), name
        self._clock = ServedClock()
        self._capacity: Mapping[str, float] = capacity()
        self._queue = StageQueue(self._start, self._cancel, lambda: self._capacity, self._clock)
        self._polls = LongPolls(self._queue, self._look)
        self._threads = ThreadPoolExecutor(LOOK_THREADS, thread_name_prefix="look into the store")
        self._refs: dict[int, ray.ObjectRef[BuildOutcome]] = {}  # job -> its task, or its call of a worker
        self._workers: GpuWorkers[GpuWorkerHandle] = GpuWorkers(_start_worker, _kill_worker, time.monotonic)
        self._worker_of: dict[int, tuple[GpuWorkerHandle, Share]] = {}  # job with a GPU -> who builds it
        self._silent: set[int] = set()  # jobs with a GPU, not heard of yet: perhaps no device has room
        self._watches: set[asyncio.Task[None]] = set()  # referenced, so that they are not collected
        self._loops: list[asyncio.Task[None]] = []

    async def join(self, trial: str, keys: list[str]) -> list[str]:
        """As StageQueue.join."""
        self._ensure_ticking()
        return self._queue.join(trial, keys)

    async def poll(self, request: BuildRequest, job_seen: int, since: int, ignore_stored: bool) -> StageReply:
        """As LongPolls.poll."""
        self._ensure_ticking()
        return await self._polls.poll(request, job_seen, since, ignore_stored)

    async def warm(self, cpus: float) -> None:
        """Has a process of `cpus` CPUs, and a GPU where there is one, load PyTorch for the first stage, while the
        processes of trials start. Ray keeps it for the next task. No machine is started for it: perhaps no stage is
        missing."""
        self._ensure_ticking()
        present = await asyncio.get_running_loop().run_in_executor(self._threads, ray.cluster_resources)
        share = Share(cpus, min(1.0, present.get("GPU", 0.0)))
        if self._queue.jobs or self._workers.idle or present.get("CPU", 0.0) < cpus:
            return
        if share.gpus:
            worker = self._workers.take(share)
            worker.load.remote()
            self._workers.release(worker, share)  # what it is given next waits until it has loaded
        else:
            ray.remote(load_networks).options(num_cpus=cpus, max_retries=0, scheduling_strategy="DEFAULT").remote()

    async def leave(self, trial: str) -> None:
        """As LongPolls.leave."""
        self._polls.leave(trial)

    async def report(self, number: int, message: BuilderMessage) -> None:
        """As StageQueue.record."""
        self._silent.discard(number)
        self._polls.report(number, message)

    async def status(self) -> list[JobStatus]:
        """As StageQueue.status."""
        return self._queue.status()

    async def shutdown(self) -> None:
        """Ends the actor."""
        ray.actor.exit_actor()

    # ------------------------------------------------------------------ what the queue calls

    async def _look(self, request: BuildRequest) -> bool:
        """Whether the request's first stage is in the store: a shared file system may take long to say so."""
        path = StorePaths(self._store).manifest(request.nodes[0].stage, request.keys[0])
        return await asyncio.get_running_loop().run_in_executor(self._threads, path.exists)

    def _start(self, job: StageJob) -> None:
        request = job.request
        share = self._share(job)
        arguments = (request.build, request.nodes, request.keys, self._name, job.number)
        if share.gpus:
            worker = self._workers.take(share)
            self._worker_of[job.number] = worker, share
            self._silent.add(job.number)
            ref = worker.build.remote(*arguments)
        else:
            task = ray.remote(build_on_cpus).options(
                name="+".join(map(str, request.nodes)),
                num_cpus=share.cpus,
                num_gpus=0,
                max_retries=0,
                scheduling_strategy="DEFAULT",
            )
            ref = task.remote(*arguments)
        self._workers.make_room(Share(*self._queue.order.free()))
        self._refs[job.number] = ref
        watch = asyncio.get_running_loop().create_task(self._watch(job.number, ref))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)
        self._polls.wake(job.number)

    def _share(self, job: StageJob) -> Share:
        return Share(job.request.cpus, gpus_of(job.request, self._capacity.get("GPU", 0.0)))

    def _cancel(self, job: StageJob, kill: bool) -> None:
        ref = self._refs.get(job.number)
        if ref is None:
            return
        if kill and job.number in self._worker_of:
            _kill_worker(self._worker_of[job.number][0])
        else:
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
        self._end_worker(number, outcome)
        self._polls.finish(number, outcome)

    def _end_worker(self, number: int, outcome: BuildOutcome) -> None:
        """Keep the worker of an ended job for the next one. After a failure its GPU's memory may not be free; and while
        another job has not been heard of, Ray may be looking for a device that has room for it."""
        self._silent.discard(number)
        worker, share = self._worker_of.pop(number, (None, None))
        if worker is None or share is None:
            return
        if isinstance(outcome, Built) and not self._silent:
            self._workers.release(worker, share)
        else:
            _kill_worker(worker)
        if isinstance(outcome, WorkerLost):  # what ended it may have ended idle ones too, which nobody watches
            self._workers.end_all()

    # ------------------------------------------------------------------ ticks

    def _ensure_ticking(self) -> None:
        if not self._loops or any(loop.done() for loop in self._loops):
            for loop in self._loops:
                loop.cancel()
            running = asyncio.get_running_loop()
            self._loops = [running.create_task(self._tick_loop()), running.create_task(self._capacity_loop())]

    async def _tick_loop(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._clock.tick()
            self._queue.tick()
            self._polls.tick()
            self._workers.tick()
            if self._clock() - self._queue.idle_since > IDLE_SECONDS:
                cast(BrokerHandle, ray.get_runtime_context().current_actor).shutdown.remote()

    async def _capacity_loop(self) -> None:
        while True:
            await asyncio.sleep(CAPACITY_SECONDS)
            self._capacity = await asyncio.get_running_loop().run_in_executor(self._threads, capacity)


def _worker_lost(error: ray.exceptions.RayError) -> WorkerLost:
    """The outcome of a job whose process ended without one."""
    if isinstance(error, ray.exceptions.TaskCancelledError):
        return WorkerLost(LossCause.PROCESS, "it was cancelled")
    if classify(error).reason is FailureReason.OOM:
        return WorkerLost(LossCause.MEMORY, "its machine ran out of memory and killed it")
    if isinstance(error, ray.exceptions.NodeDiedError) or actor_lost_its_node(error):
        return WorkerLost(LossCause.NODE, "its machine went away")
    return WorkerLost(LossCause.PROCESS, f"its process died ({type(error).__name__})")


def _start_worker(share: Share) -> GpuWorkerHandle:
    """A GPU worker, in a process that has built nothing before. It ends with the broker."""
    options = ray.remote(GpuWorker).options(
        num_cpus=share.cpus,
        num_gpus=share.gpus,
        max_restarts=0,
        max_task_retries=0,
        scheduling_strategy="DEFAULT",
        runtime_env={"env_vars": {"RAZ_GPU_WORKER": "1"}},  # Ray gives processes of other environments to none of it
    )
    return cast(GpuWorkerHandle, options.remote())


def _kill_worker(worker: GpuWorkerHandle) -> None:
    ray.kill(cast("ActorHandle[GpuWorker]", worker))
