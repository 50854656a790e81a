"""Events of a trial's stages, and the record of a stage that a trial used. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

EventKind = Literal[
    "waiting", "started", "epoch", "images", "note", "warning", "finished", "hit", "stopped", "failed",
]  # fmt: skip


@dataclass(frozen=True)
class StageUse:
    """One stage of a finished trial, as its study records it."""

    stage: str  # as str(Node)
    key: str
    hit: bool  # found in the store
    seconds: float  # of work to make the stage, whichever trial made it
    spent: float = 0.0  # seconds of this trial's own work: 0 for a hit, less than `seconds` after a checkpoint

    def to_dict(self) -> dict[str, str | bool | float]:
        """As studies record it."""
        return {
            "stage": self.stage, "key": self.key, "hit": self.hit, "seconds": self.seconds, "spent": self.spent,
        }  # fmt: skip


@dataclass(frozen=True)
class StageEvent:
    """Something happened to a stage. `dataclasses.asdict` makes it JSON, `str` a line.

    waiting: requested, but another process makes it or no device is free.
    started, finished: a process begins or completes it.
    epoch: an epoch of a trained stage ended.
    images: `epoch` of `epochs` images are predicted.
    hit: found in the store.
    stopped, failed: it ended early; a trained stage keeps its checkpoint.
    note: `reason` is a remark. warning: one that is shown also where only running stages are.
    """

    kind: EventKind
    stage: str  # as str(Node): counting, density@val, zoom2@val
    key: str
    epoch: int = 0
    epochs: int = 0  # the stage's epoch cap, or the number of images
    loss: float | None = None  # mean training loss of the epoch
    value: float | None = None  # validation value of the epoch; lower is better
    seconds: float = 0.0  # epoch: of this epoch; finished, hit: of the whole artifact
    spent: float = 0.0  # finished, stopped, failed: seconds of this attempt, without epochs from a checkpoint
    reason: str = ""  # stopped, failed: why; note, warning: its text
    device: str = ""  # the GPU that the process holds, such as `GPU 1 of node7`; '' without one

    def __str__(self) -> str:
        if self.kind == "epoch":
            loss = "" if self.loss is None else f" loss {self.loss:.4g}"
            value = "" if self.value is None else f" val {self.value:.4g}"
            return f"{self.stage} epoch {self.epoch}/{self.epochs}{loss}{value} {self.seconds:.1f} s"
        if self.kind == "images":
            return f"{self.stage} {self.epoch}/{self.epochs} images"
        if self.kind in ("note", "warning"):
            return f"{self.stage}: {self.reason}"
        if self.kind == "finished":
            return f"{self.stage} done in {self.seconds:.0f} s"
        if self.kind == "started":
            return f"{self.stage} starts{f' on {self.device}' if self.device else ''}"
        texts = {
            "waiting": "waits: another process makes it, or no device is free",
            "hit": "found in the store",
            "stopped": "stopped",
            "failed": "failed",
        }
        return f"{self.stage} {texts[self.kind]}{f' ({self.reason})' if self.reason else ''}"


EventCallback = Callable[[StageEvent], None]
Progress = Callable[[int, float], bool]  # (step, validation value) -> stop?


class TrialPruned(Exception):
    """`progress` returned True at a step with this validation value. The checkpoint stays, so training can go on."""

    def __init__(self, step: int, value: float) -> None:
        super().__init__(step, value)
        self.step, self.value = step, value
