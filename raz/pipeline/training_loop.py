"""The training loop of all trained stages. A stage is a chain of epochs that can be resumed and extended (I4).

Schedules do not depend on the total number of epochs, and randomness comes from (seed, epoch, item). So ten epochs
and later ten more give the same weights as twenty at once, also when a process is killed in between.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

import torch
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn

from raz.config import TrainConfig
from raz.errors import TrialFailure
from raz.pipeline.checkpoint import ChainState, Checkpoint, CheckpointWriter, CurvePoint
from raz.pipeline.device import half_precision
from raz.pipeline.device_memory import WHOLE_IMAGES, full_memory_as_failure, step_memory
from raz.pipeline.events import Progress, TrialPruned
from raz.pipeline.prefetch import prefetched

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


@dataclass(frozen=True)
class TrainedChain:
    """The best weights of a chain and its learning curve."""

    weights: dict[str, Tensor]
    best_epoch: int
    best_value: float
    curve: list[CurvePoint]


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
    on_gpu = device.type == "cuda"
    optimizer = _optimizer(task, config, on_gpu=on_gpu)
    half = half_precision() if config.amp and on_gpu else None
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
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
        _load_optimizer(optimizer, state["optimizer"])
        if state["scaler"]:  # empty after epochs without mixed precision; a scaler that is off ignores it
            scaler.load_state_dict(state["scaler"])
    for past in state["curve"][: config.epochs]:
        if progress is not None and progress(int(past["epoch"]), past["value"]):
            raise TrialPruned(int(past["epoch"]), past["value"])

    parameters = [p for p in task.modules.parameters() if p.requires_grad]
    with CheckpointWriter.after(checkpoint, state) as writer:
        while state["epoch"] < config.epochs and not state["stopped"]:
            start = time.monotonic()
            epoch = state["epoch"] + 1
            task.modules.train()
            _switch(optimizer, training=True)
            halvable = task.halves is not None and not _learned_statistics(task.modules)
            losses = EpochLosses(task.name, epoch, late=on_gpu)
            with (
                step_memory(task.name, epoch, config, halvable=halvable, halved=halved),
                _searched_convolutions(on_gpu and config.crop > 0),
            ):
                with _batches(task, epoch, device, halved=halved, ahead=on_gpu) as batches:
                    for parts in batches:
                        optimizer.zero_grad(set_to_none=True)
                        losses.add(_add_gradients(parts, scaler, _autocast(device, half), losses.late))
                        if config.clip:
                            scaler.unscale_(optimizer)
                            nn.utils.clip_grad_norm_(parameters, config.clip)
                        scaler.step(optimizer)
                        scaler.update()
                        state["updates"] += 1
                        if config.average:
                            _update_ema(state["average"], task.modules, config.average, state["updates"])
                total, count = losses.total()
                _switch(optimizer, training=False)  # from here on the modules hold the weights that are kept
                if isinstance(optimizer, AdamWScheduleFree):
                    _measure_statistics(task, epoch)
            with full_memory_as_failure(f"stage {task.name}, validation after epoch {epoch}", WHOLE_IMAGES):
                value = _validated(task, state["average"], _autocast(device, half))
            if not math.isfinite(value):
                raise _divergence_error(task.name, epoch, f"the validation value is {value}")
            _update_best_and_schedule(state, config, optimizer, task.modules, value)
            state["epoch"] = epoch
            point: CurvePoint = {
                "epoch": epoch, "loss": total / max(1, count), "value": value,
                "rate": optimizer.param_groups[0]["lr"], "seconds": time.monotonic() - start,
            }  # fmt: skip
            state["curve"].append(point)
            writer.write(
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
                writer.wait()
                raise TrialPruned(epoch, value)
    return TrainedChain(state["best"], state["best_epoch"], state["best_value"], state["curve"][: config.epochs])


Parts = list[tuple[Callable[[], Tensor], float]]
"""The parts of a batch: the loss of each, and its share in the batch's."""


@contextmanager
def _batches(
    task: TrainingTask[BatchT], epoch: int, device: torch.device, *, halved: bool, ahead: bool
) -> Iterator[Iterator[Parts]]:
    """The batches of an epoch. ahead: loaded by a thread while the device computes, where the task can; they get onto
    the device one at a time, when their loss is computed."""

    def split(batch: BatchT) -> Sequence[tuple[BatchT, float]]:
        return task.halves(batch) if halved and task.halves is not None else [(batch, 1.0)]

    load = task.load
    if load is None or not ahead:
        yield ([(partial(task.loss, part), share) for part, share in split(batch)] for batch in task.batches(epoch))
        return
    if task.ensure is not None:  # here, so that nothing but the loop computes on the device
        for batch in task.batches(epoch):
            task.ensure(batch)

    def loaded(part: BatchT) -> LoadedBatch:
        out = load(part)
        return out.pinned() if device.type == "cuda" else out

    items = ([(loaded(part), share) for part, share in split(batch)] for batch in task.batches(epoch))
    with prefetched(items) as ready:
        yield ([(partial(part.compute, device), share) for part, share in parts] for parts in ready)


class EpochLosses:
    """The losses of an epoch's steps. On a CPU each is read at once; `late`: all at the end of the epoch, since reading
    one waits until a GPU has computed it."""

    def __init__(self, stage: str, epoch: int, *, late: bool) -> None:
        self.stage, self.epoch, self.late = stage, epoch, late
        self._total, self._count = 0.0, 0
        self._unread: list[list[tuple[Tensor, float]]] = []

    def add(self, parts: list[tuple[Tensor, float]]) -> None:
        """The losses of a step's parts, and their shares. Raises TrialFailure for one that is not finite, or later."""
        self._unread.append(parts)
        if not self.late:
            self._read()

    def total(self) -> tuple[float, int]:
        """The sum over the steps, and their number. Raises TrialFailure where a loss is not finite."""
        self._read()
        return self._total, self._count

    def _read(self) -> None:
        if not self._unread:
            return
        values = iter(torch.stack([loss for parts in self._unread for loss, _ in parts]).tolist())
        for parts in self._unread:
            step = 0.0
            for (_, share), value in zip(parts, values, strict=False):  # `values` goes on with the next step
                step += share * value
            self._count += 1
            if not math.isfinite(step):
                raise _divergence_error(self.stage, self.epoch, f"the loss is {step} at step {self._count}")
            self._total += step
        self._unread = []


def _autocast(device: torch.device, half: torch.dtype | None) -> torch.autocast:
    return torch.autocast(device.type, dtype=half, enabled=half is not None)


@contextmanager
def _searched_convolutions(on: bool) -> Iterator[None]:
    """Let cuDNN try its algorithms on each size of input, which pays where there are few."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _add_gradients(
    parts: Parts, scaler: torch.amp.GradScaler, autocast: torch.autocast, late: bool
) -> list[tuple[Tensor, float]]:
    """Add the scaled gradients of a batch's loss, and return the losses of its parts with their shares. Of one that is
    not finite none are taken, unless losses are read late."""
    losses = []
    for loss_of, share in parts:
        with autocast:
            loss = loss_of()
        losses.append((loss.detach(), share))
        if not late and not math.isfinite(float(loss.detach())):
            return losses
        scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
    return losses


def _learned_statistics(modules: nn.Module) -> list[nn.BatchNorm2d]:
    """Layers that normalise by the statistics of the batch. Frozen ones use their own."""
    return [m for m in modules.modules() if isinstance(m, nn.BatchNorm2d) and m.training]


def _optimizer(task: TrainingTask[BatchT], config: TrainConfig, *, on_gpu: bool = False) -> torch.optim.Optimizer:
    """The optimizer of a stage; on a GPU in few large steps instead of many small ones."""
    fused = True if on_gpu else None
    groups = _parameter_groups(task, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    if config.optimizer == "schedule-free":
        free: torch.optim.Optimizer = AdamWScheduleFree(
            groups, lr=config.lr, betas=(0.9, 0.999), weight_decay=config.weight_decay, warmup_steps=config.warmup,
            foreach=on_gpu,
        )  # fmt: skip
        return free
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=fused
    )


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state that may be of another kind of device. How steps are taken is this device's matter."""
    for saved, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
        saved.update({name: own[name] for name in ("fused", "foreach") if name in own})
    optimizer.load_state_dict(state)


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


def _validated(task: TrainingTask[BatchT], average: dict[str, Tensor], autocast: torch.autocast) -> float:
    """The validation value, of the averaged weights where averaging is on."""
    task.modules.eval()
    current = snapshot(task.modules) if average else {}
    if average:
        task.modules.load_state_dict(average)
    try:
        with torch.inference_mode(), autocast:
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
