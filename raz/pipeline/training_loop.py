"""The training loop of all trained stages. A stage is a chain of epochs that can be resumed and extended (I4).

Schedules do not depend on the total number of epochs, and randomness comes from (seed, epoch, item). So ten epochs
and later ten more give the same weights as twenty at once, also when a process is killed in between.
"""

from __future__ import annotations

import io
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NotRequired, TypeAlias, TypedDict, TypeVar

import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from raz.config import TrainConfig
from raz.errors import TrialFailure
from raz.pipeline.device_memory import WHOLE_IMAGES, full_memory_as_failure, step_memory
from raz.pipeline.events import Progress, TrialPruned
from raz.store.late_view import exists_announced
from raz.store.lease import ATTEMPT, Lease
from raz.store.s3_tier import S3Tier

BatchT = TypeVar("BatchT")
STATISTICS_BATCHES = 50  # as the authors of the schedule-free optimizers advise


@dataclass(frozen=True)
class LoadedBatch:
    """A batch in the machine's memory, ready to be copied to the device."""

    tensors: tuple[Tensor, ...]  # on the CPU
    loss: Callable[[tuple[Tensor, ...]], Tensor]  # () of these tensors on the device

    def pinned(self) -> LoadedBatch:
        """The same batch in memory from which a GPU copies while the CPU goes on."""
        return replace(self, tensors=tuple(tensor.pin_memory() for tensor in self.tensors))

    def compute(self, device: torch.device) -> Tensor:
        """The batch's loss."""
        return self.loss(tuple(tensor.to(device, non_blocking=True) for tensor in self.tensors))


@dataclass(frozen=True)
class TrainingTask(Generic[BatchT]):
    """What the loop trains: modules, batches, loss and validation of a stage."""

    name: str  # of the stage, for messages
    modules: nn.Module  # only what is trained; its state_dict is the artifact
    batches: Callable[[int], Iterable[BatchT]]  # epoch (from 1) -> batches
    loss: Callable[[BatchT], Tensor]  # () of a batch
    validate: Callable[[], float]  # validation value of the current weights; lower is better
    pretrained: nn.Module | None = None  # the part of `modules` that learns at `backbone_lr`
    # The two halves of a batch, each with its share of the batch's loss; the batch itself where it has one item.
    halves: Callable[[BatchT], Sequence[tuple[BatchT, float]]] | None = None
    load: Callable[[BatchT], LoadedBatch] | None = None  # `loss` in two steps; missing: in one
    ensure: Callable[[BatchT], None] | None = None  # compute on the device, and keep, what `load` would compute there


CurvePoint: TypeAlias = dict[str, float]
"""One epoch of a learning curve, as curve.json stores it: `epoch` from 1, `loss` (mean over the batches), `value`
(validation value), `rate` (learning rate after the epoch), `seconds`."""


class ChainState(TypedDict):
    """The state of a chain after an epoch, as its checkpoint stores it."""

    epoch: int  # epochs that are done
    updates: int  # optimizer steps that are done
    best_value: float
    best_epoch: int
    best: dict[str, Tensor]  # weights at the best epoch
    since_best: int  # epochs without a better value
    since_drop: int  # the same count, but from 0 when the learning rate is halved
    stopped: bool  # whether training stopped early
    curve: list[CurvePoint]
    average: dict[str, Tensor]  # moving average of the weights; empty where it is off
    modules: NotRequired[dict[str, Tensor]]  # these three are missing before the first epoch
    optimizer: NotRequired[dict[str, object]]
    scaler: NotRequired[dict[str, object]]


@dataclass(frozen=True)
class TrainedChain:
    """The best weights of a chain and its learning curve."""

    weights: dict[str, Tensor]
    best_epoch: int
    best_value: float
    curve: list[CurvePoint]


@dataclass(frozen=True)
class Checkpoint:
    """The file of a chain's state. With a lease, the file is replaced only while the lease is held. With a tier, the
    state is also written to the bucket, where other machines find it."""

    path: Path
    lease: Lease | None = None
    tier: S3Tier | None = None

    def truncated(self, epochs: int) -> Checkpoint:
        """The checkpoint of a run of `epochs` epochs, next to that of a chain with more epochs."""
        return replace(self, path=self.path.with_name(f"{self.path.stem}-upto-{epochs}{self.path.suffix}"))

    def load(self, device: torch.device) -> ChainState | None:
        """The state with the most epochs, from the file or the bucket, whichever device it was trained on. None if
        there is none, or it is damaged: training then starts from the beginning.

        `best` and `average` are on `device`. The rest stays on the CPU: `load_state_dict` moves what goes with the
        weights, and an optimizer reads its counters of steps there without waiting for the device.
        """
        state = self._load_file()
        stored = self.tier.load(self._name) if self.tier is not None else None
        if stored is not None:
            remote: ChainState = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
            if state is None or remote["epoch"] > state["epoch"]:
                state = remote
        if state is not None:
            for weights in (state["best"], state["average"]):
                weights.update({name: value.to(device) for name, value in weights.items()})
        return state

    def _load_file(self) -> ChainState | None:
        lost = self.lease is not None and self.lease.from_lost_machine
        if not exists_announced(self.path, announced=lost):
            return None
        try:
            state: ChainState = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises the errors of its readers: zip, pickle, EOF, runtime errors
            if isinstance(error, MemoryError):
                raise
            self._move(self.path, self.path.with_name(f"{self.path.name}.damaged"))
            return None
        return state if isinstance(state, dict) and "epoch" in state else None

    def save(self, state: ChainState) -> None:
        """Write the state to a temporary file and rename it. Raises LeaseLost when another process trains the chain
        now, OSError where it cannot be written."""
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{ATTEMPT}{uuid.uuid4().hex}.pt"
        temporary = self.lease.temp_path(folder, ".pt") if self.lease else folder / name
        try:
            # Through memory: torch's own writer raises a RuntimeError without the reason when the disk is full.
            buffer = io.BytesIO()
            torch.save(state, buffer)
            temporary.write_bytes(buffer.getbuffer())
            self._move(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        if self.tier is not None:
            self.tier.save(self._name, buffer.getvalue())

    @property
    def _name(self) -> str:
        assert self.tier is not None
        return self.path.relative_to(self.tier.store).as_posix()

    def _move(self, source: Path, target: Path) -> None:
        (self.lease.commit if self.lease else os.replace)(source, target)


def train(
    task: TrainingTask[BatchT],
    config: TrainConfig,
    checkpoint: Checkpoint,
    device: torch.device,
    progress: Progress | None = None,
    on_point: Callable[[CurvePoint], None] | None = None,
    *,
    halved: bool = False,
) -> TrainedChain:
    """Train up to `config.epochs` epochs, from the state in `checkpoint` if there is one.

    progress: called with (epoch, validation value) of every epoch, also of those in the checkpoint; True stops.
    on_point: called with the point of the curve of each epoch that is trained now.
    halved: take each batch in two halves and add up their gradients, which are those of the whole batch but for
        rounding, in about half the memory.
    Raises TrialPruned when `progress` stops, TrialFailure with reason `nan` when the loss or the validation value is
    not finite, `oom` when the device's memory runs out; BatchTooLarge where halves may fit.
    """
    optimizer = _optimizer(task, config)
    amp = config.amp and device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=amp)
    state = checkpoint.load(device)
    if state is not None and state["epoch"] > config.epochs and state["best_epoch"] > config.epochs:
        # The chain has more epochs, and its best weights are of a later one: train a chain of its own.
        checkpoint = checkpoint.truncated(config.epochs)
        state = checkpoint.load(device)
    if state is None:
        average = snapshot(task.modules) if config.average else {}
        state = {
            "epoch": 0, "updates": 0, "best_value": math.inf, "best_epoch": 0, "best": {}, "since_best": 0,
            "since_drop": 0, "stopped": False, "curve": [], "average": average,
        }  # fmt: skip
    else:
        task.modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty after epochs without mixed precision; a scaler that is off ignores it
            scaler.load_state_dict(state["scaler"])
    for past in state["curve"][: config.epochs]:
        if progress is not None and progress(int(past["epoch"]), past["value"]):
            raise TrialPruned(int(past["epoch"]), past["value"])

    parameters = [p for p in task.modules.parameters() if p.requires_grad]
    while state["epoch"] < config.epochs and not state["stopped"]:
        start = time.monotonic()
        epoch = state["epoch"] + 1
        task.modules.train()
        _switch(optimizer, training=True)
        halvable = task.halves is not None and not _learned_statistics(task.modules)
        total, count = 0.0, 0
        with step_memory(task.name, epoch, config, halvable=halvable, halved=halved):
            for batch in task.batches(epoch):
                optimizer.zero_grad(set_to_none=True)
                value = _add_gradients(task, batch, scaler, device, amp=amp, halved=halved)
                if not math.isfinite(value):
                    raise _divergence_error(task.name, epoch, f"the loss is {value}")
                if config.clip:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(parameters, config.clip)
                scaler.step(optimizer)
                scaler.update()
                state["updates"] += 1
                if config.average:
                    _update_ema(state["average"], task.modules, config.average, state["updates"])
                total, count = total + value, count + 1
            _switch(optimizer, training=False)  # from here on the modules hold the weights that are evaluated and kept
            if isinstance(optimizer, AdamWScheduleFree):
                _measure_statistics(task, epoch)
        with full_memory_as_failure(f"stage {task.name}, validation after epoch {epoch}", WHOLE_IMAGES):
            value = _validated(task, state["average"])
        if not math.isfinite(value):
            raise _divergence_error(task.name, epoch, f"the validation value is {value}")
        _update_best_and_schedule(state, config, optimizer, task.modules, value)
        state["epoch"] = epoch
        point: CurvePoint = {
            "epoch": epoch, "loss": total / max(1, count), "value": value,
            "rate": optimizer.param_groups[0]["lr"], "seconds": time.monotonic() - start,
        }  # fmt: skip
        state["curve"].append(point)
        checkpoint.save(
            {
                **state,
                "modules": task.modules.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
            }
        )
        if on_point is not None:
            on_point(point)
        if progress is not None and progress(epoch, value):
            raise TrialPruned(epoch, value)
    return TrainedChain(state["best"], state["best_epoch"], state["best_value"], state["curve"][: config.epochs])


def _add_gradients(
    task: TrainingTask[BatchT], batch: BatchT, scaler: torch.amp.GradScaler, device: torch.device, *, amp: bool,
    halved: bool,
) -> float:  # fmt: skip
    """Add the scaled gradients of a batch's loss, and return that loss. Of one that is not finite none are taken."""
    parts = task.halves(batch) if halved and task.halves is not None else [(batch, 1.0)]
    total = 0.0
    for part, share in parts:
        with torch.autocast(device.type, dtype=torch.float16, enabled=amp):
            loss = task.loss(part)
        value = float(loss.detach())
        if not math.isfinite(value):
            return value
        scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
        total += share * value
    return total


def _learned_statistics(modules: nn.Module) -> list[nn.BatchNorm2d]:
    """Layers that normalise by the statistics of the batch. Frozen ones use their own."""
    return [m for m in modules.modules() if isinstance(m, nn.BatchNorm2d) and m.training]


def _optimizer(task: TrainingTask[BatchT], config: TrainConfig) -> torch.optim.Optimizer:
    groups = _parameter_groups(task, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    if config.optimizer == "schedule-free":
        free: torch.optim.Optimizer = AdamWScheduleFree(
            groups, lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay, warmup_steps=config.warmup,
            foreach=False,
        )  # fmt: skip
        return free
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _parameter_groups(task: TrainingTask[BatchT], config: TrainConfig) -> list[dict[str, Any]]:
    """The trainable parameters. Pretrained ones have a learning rate of their own where it is set."""
    slow = set(task.pretrained.parameters()) if task.pretrained is not None and config.backbone_lr else set()
    rest = [p for p in task.modules.parameters() if p.requires_grad and p not in slow]
    groups: list[dict[str, Any]] = [{"params": rest}]
    if slow:
        pretrained = [p for p in task.modules.parameters() if p.requires_grad and p in slow]
        groups.append({"params": pretrained, "lr": config.backbone_lr})
    return groups


def _switch(optimizer: torch.optim.Optimizer, *, training: bool) -> None:
    """Put the weights into the modules at which gradients are taken, or those that are evaluated. Only the
    schedule-free optimizer tells them apart."""
    if isinstance(optimizer, AdamWScheduleFree):
        optimizer.train() if training else optimizer.eval()


def _measure_statistics(task: TrainingTask[BatchT], epoch: int) -> None:
    """Measure anew the statistics that batch normalisation learns, on batches of the epoch: those of the training are
    of the weights at which gradients were taken, and fit no others. Frozen statistics stay as they are."""
    learned = _learned_statistics(task.modules)
    momenta = [layer.momentum for layer in learned]
    for layer in learned:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over the batches
    with torch.no_grad():
        for batch in islice(task.batches(epoch), STATISTICS_BATCHES if learned else 0):
            task.loss(batch)
    for layer, momentum in zip(learned, momenta, strict=True):
        layer.momentum = momentum


def snapshot(modules: nn.Module) -> dict[str, Tensor]:
    """A copy of the modules' state dict."""
    return {name: value.detach().clone() for name, value in modules.state_dict().items()}


def _update_ema(average: dict[str, Tensor], modules: nn.Module, decay: float, updates: int) -> None:
    """Update the moving average of the weights. Its decay grows at first, so that the initial weights fade fast."""
    decay = min(decay, (1 + updates) / (10 + updates))
    with torch.no_grad():
        for name, value in modules.state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, 1 - decay)
            else:  # a counter of batch normalisation
                average[name].copy_(value)


def _validated(task: TrainingTask[BatchT], average: dict[str, Tensor]) -> float:
    """The validation value, of the averaged weights where averaging is on."""
    task.modules.eval()
    current = snapshot(task.modules) if average else {}
    if average:
        task.modules.load_state_dict(average)
    try:
        with torch.inference_mode():
            return task.validate()
    finally:
        if current:
            task.modules.load_state_dict(current)


def _update_best_and_schedule(
    state: ChainState, config: TrainConfig, optimizer: torch.optim.Optimizer, modules: nn.Module, value: float
) -> None:
    """Update the best weights, halve the learning rate on a plateau (section 3.2), and decide on the early stop."""
    if value < state["best_value"]:
        weights = state["average"] or snapshot(modules)
        state["best_value"], state["best_epoch"] = value, state["epoch"] + 1
        state["since_best"] = state["since_drop"] = 0
        state["best"] = {name: w.clone() for name, w in weights.items()}
        return
    state["since_best"] += 1
    state["since_drop"] += 1
    if state["since_drop"] >= config.plateau:
        state["since_drop"] = 0
        for group in optimizer.param_groups:
            group["lr"] *= 0.5
    state["stopped"] = state["since_best"] >= config.stop


def _divergence_error(stage: str, epoch: int, what: str) -> TrialFailure:
    hint = "set a lower learning rate, or a smaller clip"
    return TrialFailure(f"stage {stage}, epoch {epoch}", f"training diverged: {what}", hint, reason="nan")
