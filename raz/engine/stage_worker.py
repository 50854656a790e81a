"""The process that builds stages: a Ray task on CPUs, or an actor that holds one GPU, or a share of it, for its life.

Ray starts a fresh process for each *task* with a GPU only if the task's decorator says so; requested by `options`, a
process that had one GPU is later given another, while CUDA stays on the first. An actor keeps the GPU that it was
placed on, and PyTorch stays loaded between its stages.
"""

from __future__ import annotations

import errno
import importlib
import socket
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import ray

from raz.engine.broker_handle import NAMESPACE, BrokerHandle
from raz.engine.broker_protocol import (
    BuilderMessage,
    BuildFailed,
    BuildOutcome,
    BuildSpec,
    Built,
    EpochReport,
    RemoteStageError,
    StageMade,
)
from raz.engine.trial_runner import import_builder
from raz.errors import FailureReason, RazError, TrialFailure
from raz.pipeline import device
from raz.pipeline.events import StageEvent
from raz.pipeline.failures import classify, fatal_os_error
from raz.pipeline.graph import Node

MAKING = "raz.pipeline.making"  # imports torch, which takes seconds
REPORT_SECONDS = 5.0  # most seconds for which an ending stage waits until the broker has its reports


def build_on_cpus(
    build: BuildSpec, nodes: Sequence[Node], keys: Sequence[str], broker: str, number: int
) -> BuildOutcome:
    """The task of a job without a GPU. As `build_stages`."""
    device.hide_gpus()
    return build_stages(build, nodes, keys, broker, number)


def load_networks() -> None:
    """The task that makes a process ready for a stage: it loads PyTorch and what runs networks."""
    device.hide_gpus()
    importlib.import_module(MAKING)


class GpuWorker:
    """An actor that builds stages on the GPU that Ray placed it on, one job at a time."""

    def __init__(self) -> None:
        ids = ray.get_gpu_ids()
        self._gpu = f"GPU {ids[0]} of {socket.gethostname()}" if ids else "no GPU"

    def load(self) -> None:
        """As `load_networks`, on the GPU: the first stage then starts at once."""
        importlib.import_module(MAKING)

    def build(
        self, build: BuildSpec, nodes: Sequence[Node], keys: Sequence[str], broker: str, number: int
    ) -> BuildOutcome:
        """As `build_stages`. A cancelled job ends after its epoch. Fails where the process finds no CUDA."""
        cancelled = ray.get_runtime_context().is_canceled
        try:
            return build_stages(build, nodes, keys, broker, number, gpu=self._gpu, cancelled=cancelled)
        finally:
            device.release_device_memory()


def build_stages(
    build: BuildSpec,
    nodes: Sequence[Node],
    keys: Sequence[str],
    broker: str,
    number: int,
    *,
    gpu: str = "",
    cancelled: Callable[[], bool] = lambda: False,
) -> BuildOutcome:
    """Builds the stages of a job and returns how that ended; the stage's exceptions are returned, not raised.

    gpu: the GPU that this process holds, as messages name it. cancelled: asked after each epoch.
    """
    handle = cast(BrokerHandle, ray.get_actor(broker, namespace=NAMESPACE))
    key_of = dict(zip(nodes, keys, strict=True))
    last: list[ray.ObjectRef[None]] = []  # the last report

    def report(message: BuilderMessage) -> None:
        last[:] = [handle.report.remote(number, message)]

    def report_epoch(node: Node, epoch: int, value: float) -> bool:
        report(EpochReport(key_of[node], epoch, value))
        return cancelled()

    def report_made(node: Node) -> None:
        report(StageMade(key_of[node]))

    def log(event: StageEvent) -> None:
        if event.key in keys:  # the stages that these depend on are only looked up
            report(replace(event, device=gpu) if gpu else event)

    try:
        function = import_builder(build.builder)
        if gpu:
            _check_cuda(nodes[0], gpu)
        function(
            build.config, build.store, list(nodes), data_root=build.data_root,
            on_epoch=report_epoch, on_made=report_made, log=log, needs_made=True,
        )  # fmt: skip
    except Exception as error:
        return failed(error, nodes[0])
    finally:
        # Reports of one process arrive in order. The outcome may overtake them, and ends the job that they belong to.
        if last:
            ray.wait(last, timeout=REPORT_SECONDS)
    return Built()


def _check_cuda(node: Node, gpu: str) -> None:
    """Raises TrialFailure where this process cannot use the GPU that it holds. The reason is the machine's, so the
    store does not remember it as the stage's."""
    problem = device.cuda_problem()
    if problem:
        hint = "raz-sweep doctor on that machine, then the same command with --retry; `gpus: 0` trains on CPUs"
        raise TrialFailure(f"stage {node}", f"holds {gpu}, and its process finds no CUDA: {problem}", hint)


def failed(error: Exception, node: Node) -> BuildFailed:
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
