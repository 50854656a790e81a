"""Seconds spent on the stages of many trials, and seconds saved by sharing stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from raz.pipeline.graph import STAGES, stage_of
from raz.report.layout import TextTable

if TYPE_CHECKING:
    from raz.report.fill import FilledTable
    from raz.report.used_stages import UsedStage
    from raz.study.records import TrialRecord


@dataclass(frozen=True)
class StageCost:
    """All stages of one kind."""

    stage: str
    made: int  # distinct artifacts
    uses: int  # trials x stages that use one of them
    seconds: float  # to make each artifact once
    unshared: float  # seconds, had every use made its own

    @property
    def saved(self) -> float:
        """Seconds saved by sharing."""
        return self.unshared - self.seconds


def cost_by_stage(uses: Iterable[tuple[str, str, float]]) -> tuple[StageCost, ...]:
    """The cost of each kind of stage, in the order in which the kinds first appear.

    uses: (stage, key, seconds to make it) for every stage of every trial. Of one key, the largest time counts.
    """
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


def costs_of_records(records: Sequence[TrialRecord]) -> tuple[StageCost, ...]:
    """Costs of a study's trials, including the finished stages of pruned ones."""
    return cost_by_stage((use.stage, use.key, use.seconds) for record in records for use in record.stages)


def costs_of_stages(stages: Sequence[UsedStage]) -> tuple[StageCost, ...]:
    """Costs of a table's trials that are in the store, from the manifests of their stages."""
    return cost_by_stage((str(use.node), use.key, use.artifact.seconds if use.artifact else 0.0) for use in stages)


def prediction_seconds(filled: FilledTable, stages: Sequence[UsedStage]) -> dict[tuple[str, str], tuple[float, str]]:
    """(data set, row) -> the seconds that predicting an image of the last split took, mean over seeds, and the devices.

    They are the seconds of the inferred stages, each as it was made: stages that one process makes one after the other
    share features, and other work on the machine counts. Rows of which a stage is gone are left out.
    """
    split = filled.table.splits[-1]
    of_trial: dict[tuple[str, str, int], list[UsedStage]] = {}
    for use in stages:
        if STAGES[use.node.stage].kind == "inferred" and use.node.split == split:
            of_trial.setdefault((use.dataset, use.row, use.seed), []).append(use)
    seconds: dict[tuple[str, str], list[float]] = {}
    devices: dict[tuple[str, str], set[str]] = {}
    for (dataset, row, seed), uses in of_trial.items():
        images = filled.cells[row, dataset].scores[seed].metrics.get(f"{split}.images", 0.0)
        made = [use.artifact for use in uses if use.artifact is not None]
        if images and len(made) == len(uses):
            seconds.setdefault((dataset, row), []).append(sum(artifact.seconds for artifact in made) / images)
            devices.setdefault((dataset, row), set()).update(artifact.manifest.device for artifact in made)
    return {key: (sum(each) / len(each), ", ".join(sorted(devices[key]))) for key, each in seconds.items()}


def seconds_notes(filled: FilledTable, stages: Sequence[UsedStage]) -> list[str]:
    """One note a data set: the seconds of predicting an image, row by row and grouped by device."""
    notes = []
    took = prediction_seconds(filled, stages)
    for dataset in filled.profile.datasets:
        for device in sorted({on for (of, _), (_, on) in took.items() if of == dataset}):
            rows = [
                f"{row} {seconds:.2g}" for (of, row), (seconds, on) in took.items() if (of, on) == (dataset, device)
            ]
            notes.append(
                f"{filled.title(dataset)}, seconds of prediction an image as measured when each stage was made, on"
                f" {device}: {'; '.join(rows)}. Stages made one after the other share features, and other work on the"
                " machine counts, so GFLOP compare better."
            )
    return notes


def cost_table(costs: Sequence[StageCost]) -> TextTable:
    """One line for each kind of stage, and one for all."""
    lines = [(c.stage, str(c.made), str(c.uses), f"{c.seconds:.1f}", f"{c.saved:.1f}") for c in costs]
    total = ("all", "", "", f"{sum(c.seconds for c in costs):.1f}", f"{sum(c.saved for c in costs):.1f}")
    header = ("stage", "made", "uses", "seconds spent", "seconds saved")
    return TextTable("Time spent, and saved by sharing stages", header, (*lines, total))
