"""The one training loop. A stage is a chain of epochs: resumable, extendable, its curve kept (I4).

Schedules never look at the total number of epochs and randomness comes from (seed, epoch, item), so ten
epochs and then ten more are twenty at once, whatever died in between.
"""

from __future__ import annotations

import io
import math
import os
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raz.config import TrainConfig
from raz.errors import TrialFailure
from raz.store.lease import ATTEMPT, Lease
from raz.store.s3_tier import S3Tier

Progress = Callable[[int, float], bool]


class TrialPruned(Exception):
    """`progress` asked to stop. What was trained is kept for whoever needs it next."""

    def __init__(self, step: int, value: float) -> None:
        super().__init__(step, value)
        self.step, self.value = step, value


@dataclass(frozen=True)
class TrainingTask:
    """What the loop trains: the modules, the batches of an epoch, their loss, and the validation value."""

    name: str
    modules: nn.Module  # only what is trained; its state_dict is the artifact
    batches: Callable[[int], Iterable[Any]]  # epoch (from 1) -> batches
    loss: Callable[[Any], Tensor]
    validate: Callable[[], float]  # lower is better


@dataclass(frozen=True)
class TrainedChain:
    """The best weights of a chain and its learning curve."""

    weights: dict[str, Tensor]
    best_epoch: int
    best_value: float
    curve: list[dict[str, float]]  # epoch, loss, value, rate, seconds


@dataclass(frozen=True)
class Checkpoint:
    """Where a chain's state lies. With a lease, it is replaced only while that is held; with a tier, other machines
    find it, too."""

    path: Path
    lease: Lease | None = None
    tier: S3Tier | None = None

    def truncated(self, epochs: int) -> Checkpoint:
        """That of a shorter run beside a chain that went further."""
        return replace(self, path=self.path.with_name(f"{self.path.stem}-upto-{epochs}{self.path.suffix}"))

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The state, that of the machine that came furthest; None where there is none or it is damaged: training then
        starts anew."""
        state = self._load(device)
        far = self.tier.load(self._name) if self.tier is not None else None
        if far is not None:
            other = torch.load(io.BytesIO(far), map_location=device, weights_only=True)
            if state is None or other["epoch"] > state["epoch"]:
                return dict(other)
        return state

    def _load(self, device: torch.device) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location=device, weights_only=True)
        except Exception as error:  # torch raises what its reader met: zip, pickle, EOF, runtime errors
            if isinstance(error, MemoryError):
                raise
            self._move(self.path, self.path.with_name(f"{self.path.name}.damaged"))
            return None
        return state if isinstance(state, dict) and "epoch" in state else None

    def save(self, state: dict[str, Any]) -> None:
        """Written aside and renamed. Raises LostLease when another process trains the chain now."""
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{ATTEMPT}{uuid.uuid4().hex}.pt"
        aside = self.lease.temp_path(folder, ".pt") if self.lease else folder / name
        try:
            # Through memory: torch's own writer turns a full disk into a RuntimeError without its reason.
            buffer = io.BytesIO()
            torch.save(state, buffer)
            aside.write_bytes(buffer.getbuffer())
            self._move(aside, self.path)
        finally:
            aside.unlink(missing_ok=True)
        if self.tier is not None:
            self.tier.save(self._name, buffer.getvalue())

    @property
    def _name(self) -> str:
        assert self.tier is not None
        return self.path.relative_to(self.tier.store).as_posix()

    def _move(self, aside: Path, final: Path) -> None:
        (self.lease.commit if self.lease else os.replace)(aside, final)


def train(
    task: TrainingTask,
    config: TrainConfig,
    checkpoint: Checkpoint,
    device: torch.device,
    progress: Progress | None = None,
    heard: Callable[[Mapping[str, float]], None] | None = None,
) -> TrainedChain:
    """Train up to `config.epochs` epochs, or go on from `checkpoint` where it holds fewer.

    `heard` is told each point of the curve that is trained now: epoch, loss, value, rate, seconds.
    Raises Pruned when `progress(epoch, validation value)` says so, TrialFailure with reason `nan` when
    the loss or the validation value is not finite, `oom` when memory runs out.
    """
    optimizer = _optimizer(task.modules, config)
    amp = config.amp and device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=amp)
    state = checkpoint.load(device)
    if state is not None and state["epoch"] > config.epochs and state["best_epoch"] > config.epochs:
        # The chain went further and forgot its best of then: an attempt of its own, the chain stays.
        checkpoint = checkpoint.truncated(config.epochs)
        state = checkpoint.load(device)
    if state is None:
        average = _snapshot(task.modules) if config.average else {}
        state = {
            "epoch": 0, "updates": 0, "best_value": math.inf, "best_epoch": 0, "best": {}, "since_best": 0,
            "since_drop": 0, "stopped": False, "curve": [], "average": average,
        }  # fmt: skip
    else:
        task.modules.load_state_dict(state["modules"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
    for point in state["curve"][: config.epochs]:
        if progress is not None and progress(int(point["epoch"]), point["value"]):
            raise TrialPruned(int(point["epoch"]), point["value"])

    parameters = [p for p in task.modules.parameters() if p.requires_grad]
    while state["epoch"] < config.epochs and not state["stopped"]:
        start = time.monotonic()
        epoch = state["epoch"] + 1
        task.modules.train()
        total, count = 0.0, 0
        try:
            for batch in task.batches(epoch):
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(device.type, dtype=torch.float16, enabled=amp):
                    loss = task.loss(batch)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise _divergence_error(task.name, epoch, f"the loss is {value}")
                scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                if config.clip:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(parameters, config.clip)
                scaler.step(optimizer)
                scaler.update()
                state["updates"] += 1
                if config.average:
                    _update_ema(state["average"], task.modules, config.average, state["updates"])
                total, count = total + value, count + 1
            value = _validated(task, state["average"])
        except torch.OutOfMemoryError as error:
            raise TrialFailure(
                f"stage {task.name}, epoch {epoch}", "the device's memory is full",
                "set a smaller batch or crop, or a smaller input.scale", reason="oom",
            ) from error  # fmt: skip
        if not math.isfinite(value):
            raise _divergence_error(task.name, epoch, f"the validation value is {value}")
        _update_best_and_schedule(state, config, optimizer, task.modules, value)
        state["epoch"] = epoch
        point = {
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
        if heard is not None:
            heard(point)
        if progress is not None and progress(epoch, value):
            raise TrialPruned(epoch, value)
    return TrainedChain(state["best"], state["best_epoch"], state["best_value"], state["curve"][: config.epochs])


def _optimizer(modules: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = [p for p in modules.parameters() if p.requires_grad]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _snapshot(modules: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in modules.state_dict().items()}


def _update_ema(average: dict[str, Tensor], modules: nn.Module, decay: float, updates: int) -> None:
    """The moving average of the weights; its decay grows at first, so that it forgets the initial ones."""
    decay = min(decay, (1 + updates) / (10 + updates))
    with torch.no_grad():
        for name, value in modules.state_dict().items():
            average[name].lerp_(value, 1 - decay)


def _validated(task: TrainingTask, average: dict[str, Tensor]) -> float:
    """The validation value of the averaged weights, where there are any."""
    task.modules.eval()
    own = _snapshot(task.modules) if average else {}
    if average:
        task.modules.load_state_dict(average)
    try:
        with torch.inference_mode():
            return task.validate()
    finally:
        if own:
            task.modules.load_state_dict(own)


def _update_best_and_schedule(
    state: dict[str, Any], config: TrainConfig, optimizer: torch.optim.Optimizer, modules: nn.Module, value: float
) -> None:
    """Best so far, the plateau that halves the rate (section 3.2), and the early stop."""
    if value < state["best_value"]:
        weights = state["average"] or _snapshot(modules)
        state.update(best_value=value, best_epoch=state["epoch"] + 1, since_best=0, since_drop=0)
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
