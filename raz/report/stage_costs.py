"""Time spent on the stages of many trials, and what sharing them saved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raz.pipeline.graph import stage_of
from raz.report.layout import TextTable

if TYPE_CHECKING:
    from raz.report.used_stages import UsedStage
    from raz.study.records import TrialRecord


@dataclass(frozen=True)
class StageCost:
    """The stages of one kind: how many were made in how many seconds, and how often trials had them."""

    stage: str
    made: int
    uses: int
    seconds: float
    unshared: float  # seconds, had every trial made its own

    @property
    def saved(self) -> float:
        return self.unshared - self.seconds


def cost_by_stage(uses: Iterable[tuple[str, str, float]]) -> tuple[StageCost, ...]:
    """(stage, key, seconds to make it) of every stage of every trial, in the order in which stages first appear."""
    by_stage: dict[str, dict[str, list[float]]] = {}
    for stage, key, seconds in uses:
        kind = stage_of(stage)
        by_stage.setdefault(kind, {}).setdefault(key, []).append(seconds)
    return tuple(
        StageCost(
            stage, len(keys), sum(map(len, keys.values())), sum(max(times) for times in keys.values()),
            sum(max(times) * len(times) for times in keys.values()),
        )
        for stage, keys in by_stage.items()
    )  # fmt: skip


def of_records(records: Sequence[TrialRecord]) -> tuple[StageCost, ...]:
    """Of a study's trials; a trial that was pruned counts with the stages it has."""
    return cost_by_stage(
        (stage.stage, stage.key, stage.seconds) for record in records for stage in record.stages
    )  # fmt: skip


def of_uses(uses: Sequence[UsedStage]) -> tuple[StageCost, ...]:
    """Of the trials of a table that are in the store, as the manifests of their stages say."""
    return cost_by_stage((str(use.node), use.key, use.artifact.seconds if use.artifact else 0.0) for use in uses)


def sheet(rows: Sequence[StageCost]) -> TextTable:
    """A line a kind of stage."""
    lines = [(s.stage, str(s.made), str(s.uses), f"{s.seconds:.1f}", f"{s.saved:.1f}") for s in rows]
    total = ("all", "", "", f"{sum(s.seconds for s in rows):.1f}", f"{sum(s.saved for s in rows):.1f}")
    header = ("stage", "made", "uses", "seconds spent", "seconds saved")
    return TextTable("Time spent, and saved by sharing stages", header, (*lines, total))
