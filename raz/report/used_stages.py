"""The stages that the trials of a table used, with their artifacts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from raz.pipeline.graph import Node
from raz.pipeline.keys import stage_keys
from raz.report.fill import FilledTable
from raz.store.cache import Artifact, StageCache

MAX_TRIALS = 200  # trials of a table whose stages are looked up; each takes some milliseconds


@dataclass(frozen=True)
class UsedStage:
    """One stage of one filled trial; `artifact` is None where it is no longer in the store."""

    dataset: str
    row: str
    seed: int
    node: Node
    key: str
    artifact: Artifact | None


def used_stages(filled: FilledTable, data_root: Path | None) -> tuple[UsedStage, ...]:
    """Every stage of the first MAX_TRIALS trials of a table that are in the store."""
    cache, artifacts = StageCache(filled.store), dict[str, Artifact | None]()
    trials = [(cell, seed) for cell in filled.cells.values() if cell.config is not None for seed in cell.scores]
    out = []
    for cell, seed in trials[:MAX_TRIALS]:
        assert cell.config is not None
        keys = stage_keys(replace(cell.config, seed=seed), data_root=data_root, splits=filled.table.splits)
        for node, key in keys.items():
            if key.key not in artifacts:
                artifacts[key.key] = cache.find(key)
            out.append(UsedStage(cell.dataset, cell.row, seed, node, key.key, artifacts[key.key]))
    return tuple(out)
