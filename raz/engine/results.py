"""What a run of a search or a table returns, and the JSON documents of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from raz.engine.progress import spent_and_saved_seconds
from raz.study.records import Outcome, TrialRecord
from raz.study.trial_status import TrialStatus
from raz.utils.json_types import Json, JsonLike


@dataclass(frozen=True)
class Compute:
    """Device time of a run, in seconds."""

    spent: float = 0.0  # on stages that it made
    saved: float = 0.0  # that its trials would have spent on stages that were already made

    def as_json(self) -> dict[str, float]:
        return {"spent_seconds": round(self.spent, 3), "saved_seconds": round(self.saved, 3)}


def total_compute(trials: Iterable[Outcome | TrialRecord]) -> Compute:
    """The sum over trials."""
    used = [spent_and_saved_seconds(trial.stages) for trial in trials]
    return Compute(sum(spent for spent, _ in used), sum(saved for _, saved in used))


@dataclass(frozen=True)
class StudyResult:
    """What a run of a study did, and the study's best trial."""

    study: str
    metric: str
    counts: Mapping[str, int]  # complete, pruned, failed (without those that were run again)
    reasons: Mapping[str, int]  # of the failures
    ran: int  # trials this run finished
    best: TrialRecord | None
    changed: Mapping[str, tuple[Json, Json]]  # dotted name -> (base, best)
    held_out: Mapping[str, float]  # the best trial's metrics with the test split, predicted after the search
    baselines: Mapping[str, Mapping[str, float]]  # the same errors of the baselines `median` and `ridge`
    front: tuple[TrialRecord, ...] = ()  # with several objectives: the Pareto front
    trouble: str = ""  # why the test images could not be predicted
    store: str = ""
    seconds: float = 0.0
    compute: Compute = field(default_factory=Compute)
    left: int = 0  # trials that are still to run
    stopped: str = ""  # why the run ended before its target

    @property
    def failed(self) -> int:
        return self.counts.get("failed", 0)

    def as_json(self) -> dict[str, JsonLike]:
        """The document of `raz-sweep run --json`."""
        return {
            "study": self.study,
            "metric": self.metric,
            "trials": self.counts,
            "failures": self.reasons,
            "ran": self.ran,
            "best": self._best_as_json(),
            "front": [
                {"trial": r.number, "objectives": dict(r.objectives), "values": dict(r.values)} for r in self.front
            ],
            "store": self.store,
            "seconds": round(self.seconds, 3),
            "compute": self.compute.as_json(),
            "left": self.left,
            "stopped": self.stopped,
        }

    def _best_as_json(self) -> JsonLike:
        best = self.best
        if best is None:
            return None
        return {
            "trial": best.number,
            "value": best.value,
            "values": dict(best.values),
            "changed": {name: {"base": base, "best": value} for name, (base, value) in sorted(self.changed.items())},
            "validation": dict(best.metrics),
            "test": {name: value for name, value in self.held_out.items() if name.startswith("test.")},
            "baselines": self.baselines,
            "trouble": self.trouble,
        }


@dataclass(frozen=True)
class TableTrialResult:
    """How one trial of a table ended: one row, data set and seed."""

    row: str
    dataset: str
    seed: int
    outcome: Outcome


@dataclass(frozen=True)
class TableResult:
    """What a run of a table did."""

    table: str
    profile: str
    cells: tuple[TableTrialResult, ...]  # in the order of the table
    left_out: Mapping[str, str]  # data set -> why it could not be opened
    left: int = 0  # trials that are still to run
    stopped: str = ""  # why the run ended before its last trial

    @property
    def failed(self) -> tuple[TableTrialResult, ...]:
        return tuple(cell for cell in self.cells if cell.outcome.state != TrialStatus.COMPLETE)

    @property
    def compute(self) -> Compute:
        return total_compute(cell.outcome for cell in self.cells)

    def as_json(self) -> dict[str, JsonLike]:
        """The document of `raz-sweep run --json`."""
        cells: list[JsonLike] = [
            {
                "row": cell.row, "dataset": cell.dataset, "seed": cell.seed, "state": cell.outcome.state,
                "metrics": dict(cell.outcome.metrics or {}), "reason": cell.outcome.reason,
                "message": cell.outcome.message, "seconds": round(cell.outcome.seconds, 3),
            }
            for cell in self.cells
        ]  # fmt: skip
        return {
            "table": self.table, "profile": self.profile, "cells": cells, "left_out": self.left_out,
            "compute": self.compute.as_json(), "left": self.left, "stopped": self.stopped,
        }  # fmt: skip
