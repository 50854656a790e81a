"""Time spent on the stages of many trials, and what sharing them saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raz.report.figures import figure
from raz.report.fill import FilledTable
from raz.report.layout import Figure, Sheet

if TYPE_CHECKING:
    from raz.study.records import TrialRecord

MOST_TRIALS = 200  # of a table whose stages are looked up; each takes some milliseconds


@dataclass(frozen=True)
class Spent:
    """The stages of one kind: how many were made in how many seconds, and how often trials had them."""

    stage: str
    made: int
    uses: int
    seconds: float
    unshared: float  # seconds, had every trial made its own

    @property
    def saved(self) -> float:
        return self.unshared - self.seconds


def spent(uses: Iterable[tuple[str, str, float]]) -> tuple[Spent, ...]:
    """(stage, key, seconds to make it) of every stage of every trial, in the order in which stages first appear."""
    by_stage: dict[str, dict[str, list[float]]] = {}
    for stage, key, seconds in uses:
        kind = stage.partition("@")[0].rstrip("0123456789")
        by_stage.setdefault(kind, {}).setdefault(key, []).append(seconds)
    return tuple(
        Spent(
            stage, len(keys), sum(map(len, keys.values())), sum(max(times) for times in keys.values()),
            sum(max(times) * len(times) for times in keys.values()),
        )
        for stage, keys in by_stage.items()
    )  # fmt: skip


def of_records(records: Sequence[TrialRecord]) -> tuple[Spent, ...]:
    """Of a study's trials; a trial that was pruned counts with the stages it has."""
    return spent(
        (str(s.get("stage", "")), str(s.get("key", "")), float(s.get("seconds") or 0.0)) for r in records
        for s in r.stages
    )  # fmt: skip


def of_table(filled: FilledTable, data_root: Path | None) -> tuple[Spent, ...]:
    """Of the trials of a table that are in the store, as the manifests of their stages say."""
    from dataclasses import replace

    from raz.pipeline.cache import StageCache
    from raz.pipeline.keys import stage_keys

    cache, seconds = StageCache(filled.store), dict[str, float]()
    found: list[tuple[str, str, float]] = []
    trials = [(cell.config, seed) for cell in filled.cells.values() if cell.config is not None for seed in cell.found]
    for config, seed in trials[:MOST_TRIALS]:
        keys = stage_keys(replace(config, seed=seed), data_root=data_root, splits=filled.table.splits)
        for node, key in keys.items():
            if key.key not in seconds:
                artifact = cache.find(key)
                seconds[key.key] = artifact.seconds if artifact is not None else 0.0
            found.append((str(node), key.key, seconds[key.key]))
    return spent(found)


def sheet(rows: Sequence[Spent]) -> Sheet:
    """A line a kind of stage."""
    lines = [(s.stage, str(s.made), str(s.uses), f"{s.seconds:.1f}", f"{s.saved:.1f}") for s in rows]
    total = ("all", "", "", f"{sum(s.seconds for s in rows):.1f}", f"{sum(s.saved for s in rows):.1f}")
    header = ("stage", "made", "uses", "seconds spent", "seconds saved")
    return Sheet("Time spent, and saved by sharing stages", header, (*lines, total))


def drawn(rows: Sequence[Spent]) -> tuple[Figure, ...]:
    """The stage tree, root at the bottom: bars of seconds spent and saved."""
    data: list[Mapping[str, Any]] = [
        {"stage": s.stage, "made": s.made, "uses": s.uses, "spent": s.seconds, "saved": s.saved} for s in rows
    ]
    if not any(s.unshared for s in rows):
        return ()
    names = [f"{s.stage} ({s.made} made, {s.uses} uses)" for s in rows]
    traces: list[dict[str, Any]] = [
        {"type": "bar", "orientation": "h", "name": "spent", "x": [s.seconds for s in rows], "y": names},
        {"type": "bar", "orientation": "h", "name": "saved", "x": [s.saved for s in rows], "y": names},
    ]
    return (
        figure("The stage tree: time spent and saved", data, traces, "seconds", "", barmode="stack",
               height=140 + 30 * len(rows)),
    )  # fmt: skip
