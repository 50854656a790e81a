"""What is running in a store: studies with a driver, and stages that a process is making, with their progress."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from raz.store.inventory import KEY, check_store, entries
from raz.store.lease import holder_alive
from raz.store.paths import LEASE_SUFFIX, StorePaths
from raz.study.index import read_study
from raz.study.journal import study_names
from raz.study.records import is_running
from raz.study.trial_status import TrialStatus
from raz.utils import formatting
from raz.utils.json_types import Json, JsonLike


@dataclass(frozen=True)
class RunningTrial:
    """A running trial and the last step that it reported; None before its first step."""

    number: int
    values: Mapping[str, Json]
    step: int | None


@dataclass(frozen=True)
class RunningStudy:
    """A study with a driver."""

    name: str
    counts: Mapping[str, int]  # number of trials by state
    metric: str
    running: tuple[RunningTrial, ...]
    best: tuple[int, float | None] | None  # number and objective of the best trial

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {
            "study": self.name, "trials": self.counts, "metric": self.metric,
            "running": [{"trial": t.number, "values": t.values, "step": t.step} for t in self.running],
            "best": {"trial": self.best[0], "value": self.best[1]} if self.best else None,
        }  # fmt: skip


@dataclass(frozen=True)
class ChainProgress:
    """The last checkpoint of a chain of epochs."""

    epoch: int
    loss: float  # mean training loss of the last epoch
    curve: tuple[float, ...]  # validation value of each epoch; lower is better

    def to_dict(self) -> dict[str, JsonLike]:
        """The fields of the JSON document."""
        value, best = self.curve[-1], min(self.curve)
        return {"epoch": self.epoch, "loss": self.loss, "value": value, "best": best, "curve": self.curve}


@dataclass(frozen=True)
class StageInProgress:
    """A stage that a process is making."""

    stage: str
    key: str
    here: bool  # by a process on this machine
    heartbeat: float  # seconds since its lease was last renewed
    progress: ChainProgress | None  # None before the first checkpoint, and for a stage that is not trained
    trouble: str = ""  # why the checkpoint cannot be read

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {
            "stage": self.stage, "key": self.key, "here": self.here, "heartbeat": self.heartbeat,
            **(self.progress.to_dict() if self.progress else {}),
            **({"trouble": self.trouble} if self.trouble else {}),
        }  # fmt: skip

    def cells(self) -> tuple[str, ...]:
        """The row of the table for people."""
        where = "" if self.here else "on another machine"
        heartbeat = formatting.duration(self.heartbeat)
        if self.progress is None:
            return self.stage, self.key[:12], "-", "-", "-", "", heartbeat, where
        curve = self.progress.curve
        value, best = formatting.number(curve[-1]), formatting.number(min(curve))
        epoch = str(self.progress.epoch)
        return self.stage, self.key[:12], epoch, value, best, formatting.sparkline(curve), heartbeat, where


@dataclass(frozen=True)
class StoreStatus:
    """Everything that is running in a store."""

    store: Path
    studies: tuple[RunningStudy, ...]
    making: tuple[StageInProgress, ...]

    def to_dict(self) -> dict[str, JsonLike]:
        """The JSON document."""
        return {
            "studies": [study.to_dict() for study in self.studies],
            "making": [stage.to_dict() for stage in self.making],
        }

    def to_text(self) -> str:
        """Lines for a terminal."""
        if not self.studies and not self.making:
            return f"nothing is running in {self.store}"
        out = []
        for study in self.studies:
            best = ""
            if study.best:
                best = f"; best trial {study.best[0]}, {study.metric} {formatting.number(study.best[1])}"
            out.append(f"study {study.name}: {formatting.format_states(study.counts)}{best}")
            for trial in study.running:
                at = f" at step {trial.step}" if trial.step is not None else ""
                out.append(f"  trial {trial.number}{at}  {formatting.assignments(trial.values)}")
        if self.making:
            header = ("being made", "key", "epoch", "value", "best", "curve", "heartbeat", "")
            table = formatting.columns(header, [stage.cells() for stage in self.making], right=(2, 3, 4, 6))
            out += [*([""] if out else []), *table]
        return "\n".join(out)


def store_status(store: Path) -> StoreStatus:
    """The studies with a driver, and the stages being made. Raises RazError when there is no store."""
    check_store(store)
    studies = tuple(_running_study(store, name) for name in study_names(store) if is_running(store, name))
    return StoreStatus(store, studies, tuple(_stages_in_progress(store)))


def _running_study(store: Path, name: str) -> RunningStudy:
    study = read_study(store, name)
    running = tuple(
        RunningTrial(trial.number, trial.values, max(trial.steps, default=None))
        for trial in study.trials
        if trial.state == TrialStatus.RUNNING
    )
    best = (study.best.number, study.best.value) if study.best else None
    return RunningStudy(name, study.counts(), study.metric, running, best)


def _stages_in_progress(store: Path) -> Iterator[StageInProgress]:
    paths = StorePaths(store)
    for entry in entries(paths.leases):
        path = Path(entry.path)
        if path.suffix != LEASE_SUFFIX or not entry.is_file(follow_symlinks=False):
            continue
        alive = holder_alive(path)
        stage, _, key = path.stem.rpartition("-")
        if alive is not False and KEY.fullmatch(key):
            age = max(0.0, time.time() - path.stat().st_mtime)
            progress, trouble = _progress(paths.checkpoint(stage, key))
            yield StageInProgress(stage, key, alive is True, round(age, 1), progress, trouble)


def _progress(checkpoint: Path) -> tuple[ChainProgress | None, str]:
    """The progress in a checkpoint, or why it cannot be read; None and '' where there is no checkpoint yet."""
    if not checkpoint.is_file() or checkpoint.is_symlink():
        return None, ""
    import torch

    try:  # mapped, so that the weights are not read
        state = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        curve = tuple(float(point["value"]) for point in state["curve"])
        return ChainProgress(int(state["epoch"]), float(state["curve"][-1]["loss"]), curve), ""
    except Exception as error:  # torch.load raises whatever its reader meets: zip, pickle, EOF and runtime errors
        return None, f"the checkpoint cannot be read: {type(error).__name__}"
