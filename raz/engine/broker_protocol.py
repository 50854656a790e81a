"""What trials, the broker and the processes that build stages send each other: frozen dataclasses and enums.

All are pickled by Ray between processes of one version of the code (the broker's name holds its digest).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from raz.config import TrialConfig
from raz.errors import FailureReason, RazError, TrialFailure
from raz.pipeline.events import StageEvent
from raz.pipeline.graph import Node


class RemoteStageError(Exception):
    """An unexpected exception of a process that built a stage: its text and its traceback."""

    def __init__(self, text: str, trace: str) -> None:
        super().__init__(text, trace)
        self.text, self.trace = text, trace


# ------------------------------------------------------------------ a trial asks the broker


@dataclass(frozen=True)
class BuildSpec:
    """What a process needs to build a stage, beside the stage's name."""

    config: TrialConfig
    store: Path
    data_root: Path | None
    builder: str  # dotted name of a function as raz.pipeline.trial.build_stages


@dataclass(frozen=True)
class BuildRequest:
    """The stage that a trial waits for (the first of `keys`), and those that the same process may build after it."""

    trial: str  # id of the trial
    nodes: tuple[Node, ...]
    keys: tuple[str, ...]
    exclusion_key: str  # jobs with equal keys never run at the same time, such as stages that continue one training
    remaining: float  # expected seconds of all stages that the trial still lacks, these included
    cpus: float
    gpus: float | None  # None: one device where the cluster has any
    build: BuildSpec


# ------------------------------------------------------------------ a building process reports to the broker


@dataclass(frozen=True)
class EpochReport:
    """A trained stage has finished an epoch. `value` is its validation value; lower is better."""

    key: str
    epoch: int
    value: float


@dataclass(frozen=True)
class StageMade:
    """A stage is in the store."""

    key: str


BuilderMessage: TypeAlias = EpochReport | StageMade | StageEvent


class LossCause(StrEnum):
    """Why a building process did not return."""

    PROCESS = "process"
    NODE = "node"  # its machine went away
    MEMORY = "memory"  # killed because its machine ran out of memory


@dataclass(frozen=True)
class Built:
    """All stages of a job are in the store."""


@dataclass(frozen=True)
class BuildFailed:
    """Building ended with an exception, which each waiting trial raises."""

    error: RazError | OSError | RemoteStageError


@dataclass(frozen=True)
class WorkerLost:
    """The building process ended without a result. `message` says why, without the stage's name."""

    cause: LossCause
    message: str

    def as_failure(self, stage: str) -> TrialFailure:
        """The failure of a trial that waited for the stage, once the broker gives up building it."""
        reason = FailureReason.OOM if self.cause is LossCause.MEMORY else FailureReason.LOST
        return TrialFailure(f"stage {stage}", f"{self.message}, again after each restart", reason=reason)


BuildOutcome: TypeAlias = Built | BuildFailed | WorkerLost


# ------------------------------------------------------------------ the broker answers a trial


class StageStatus(StrEnum):
    """State of a stage, for a trial that waits for it."""

    QUEUED = "queued"
    RUNNING = "running"
    MADE = "made"
    FAILED = "failed"
    CANCELLED = "cancelled"  # no trial waits for it any more; its process is ending


@dataclass(frozen=True)
class StageReply:
    """State of the first stage of a request.

    `log` holds what the building process has reported since the entry that the trial named; all of it if the trial
    named another job. `outcome` is set only with FAILED.
    """

    status: StageStatus
    job: int  # number of the job that builds it; 0 where none does
    log: tuple[BuilderMessage, ...] = ()
    shared: bool = False  # whether another living trial needs the stage
    charged: bool = False  # whether this trial was the first to request it: it is charged with the seconds
    outcome: BuildFailed | WorkerLost | None = None


@dataclass(frozen=True)
class JobStatus:
    """A job in the queue or running, for observers."""

    nodes: tuple[Node, ...]
    key: str  # of the first stage
    status: StageStatus
    waiters: tuple[str, ...]
    last: EpochReport | None
