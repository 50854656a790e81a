"""States of a trial. Optuna is not imported here, since that is slow."""

from __future__ import annotations

from enum import StrEnum


class TrialStatus(StrEnum):
    """State of a trial, as spelled in reports and JSON documents."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    RUNNING = "running"
    WAITING = "waiting"  # queued in the study
    LOST = "lost"  # recorded as running, but its driver is gone


STATUS_OF_STATE = {  # by the name of Optuna's TrialState
    "COMPLETE": TrialStatus.COMPLETE,
    "PRUNED": TrialStatus.PRUNED,
    "FAIL": TrialStatus.FAILED,
    "RUNNING": TrialStatus.RUNNING,
    "WAITING": TrialStatus.WAITING,
}
