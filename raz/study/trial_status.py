"""Where a trial of a study stands. Optuna is not imported here: it takes a while."""

from __future__ import annotations

from enum import StrEnum


class TrialStatus(StrEnum):
    """Where a trial stands, spelled as reports and JSON documents have it."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    RUNNING = "running"
    WAITING = "waiting"  # queued in the study
    LOST = "lost"  # recorded as running, but its driver is gone
