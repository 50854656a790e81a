"""What a trial tells while it walks its stages: events that cross process borders as plain dicts. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["waiting", "started", "epoch", "images", "note", "finished", "hit", "stopped", "failed"]


@dataclass(frozen=True)
class StageUse:
    """One stage of a finished trial, as its study records it."""

    stage: str  # as str(Node)
    key: str
    hit: bool  # found in the store
    seconds: float  # that it took when it was made, by whichever trial
    spent: float = 0.0  # by this trial: 0 for a hit, less than `seconds` where training resumed from a checkpoint

    def to_dict(self) -> dict[str, str | bool | float]:
        """As studies record it."""
        return {
            "stage": self.stage, "key": self.key, "hit": self.hit, "seconds": self.seconds, "spent": self.spent,
        }  # fmt: skip


@dataclass(frozen=True)
class StageEvent:
    """Something happened to a stage. `dataclasses.asdict` makes it JSON, `str` a line.

    waiting: asked for, and not started by this trial: another process makes it, or no device is free.
    started, finished: being made. epoch: of a trained stage. images: of an inferred one, `epoch` of `epochs` are
    predicted. hit: found in the store. stopped, failed: making it ended early; a trained stage keeps its epochs.
    note: `reason` is worth a line.
    """

    kind: Kind
    stage: str  # as str(Node): counting, density@val, zoom2@val
    key: str
    epoch: int = 0
    epochs: int = 0  # the most there can be
    loss: float | None = None  # mean training loss of the epoch
    value: float | None = None  # validation value of the epoch; lower is better
    seconds: float = 0.0  # epoch: of this epoch; finished, hit: what making the whole artifact took
    spent: float = 0.0  # finished, stopped, failed: worked on it just now, without epochs found in a checkpoint
    reason: str = ""  # of stopped and failed; a note's text

    def __str__(self) -> str:
        if self.kind == "epoch":
            loss = "" if self.loss is None else f" loss {self.loss:.4g}"
            value = "" if self.value is None else f" val {self.value:.4g}"
            return f"{self.stage} epoch {self.epoch}/{self.epochs}{loss}{value} {self.seconds:.1f} s"
        if self.kind == "images":
            return f"{self.stage} {self.epoch}/{self.epochs} images"
        if self.kind == "note":
            return f"{self.stage}: {self.reason}"
        if self.kind == "finished":
            return f"{self.stage} done in {self.seconds:.0f} s"
        said = {
            "waiting": "waits: another process makes it, or no device is free",
            "started": "starts",
            "hit": "found in the store",
            "stopped": "stopped",
            "failed": "failed",
        }
        return f"{self.stage} {said[self.kind]}{f' ({self.reason})' if self.reason else ''}"


EventCallback = Callable[[StageEvent], None]
