"""From the store to the cells of a table. Whatever is not in the store stays empty: nothing is trained here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from raz.config import TrialConfig
from raz.errors import RazError
from raz.study.ablation import AblationTable, Profile, dataset_title, readable


class Stored(Protocol):
    """Looks up a trial's metrics by dotted name; None when its score is not in the store."""

    def __call__(
        self, config: TrialConfig, store: Path, *, data_root: Path | None, splits: tuple[str, ...]
    ) -> dict[str, float] | None: ...


@dataclass(frozen=True)
class Cell:
    """One row on one data set: the metrics of every seed that is there."""

    row: str
    dataset: str
    zooms: bool  # more than one pass, so that regions were zoomed
    found: Mapping[int, Mapping[str, float]]  # seed -> dotted metric -> value

    def values(self, metric: str) -> dict[int, float]:
        """The metric by seed, finite values only."""
        return {
            seed: metrics[metric]
            for seed, metrics in self.found.items()
            if metric in metrics and math.isfinite(metrics[metric])
        }


@dataclass(frozen=True)
class FilledTable:
    """A table at one scale, with what the store has of it."""

    table: AblationTable
    profile: Profile
    cells: Mapping[tuple[str, str], Cell]  # (row, data set)
    troubles: Mapping[str, str]  # data set -> why it could not be looked up

    @property
    def wanted(self) -> int:
        """Trials (row x data set x seed) that a run can give: those of data sets that have a reader."""
        runs = {row.name for row in self.table.run_rows}
        there = readable()
        return len(self.table.seeds) * sum(c.dataset in there and c.row in runs for c in self.cells.values())

    @property
    def missing(self) -> int:
        """Those of the wanted trials that the store does not have."""
        return self.wanted - sum(len(cell.found) for cell in self.cells.values())


def fill_table(
    table: AblationTable, profile: Profile, store: Path, *, data_root: Path | None = None, stored: Stored | None = None
) -> FilledTable:
    """Look every trial of the table up in the store.

    A data set that cannot be opened (its keys cannot be known then) leaves its cells empty and its reason in
    `troubles`; the rest of the table is filled.
    """
    look = stored or from_store
    cells, troubles = {}, {}
    for dataset in profile.datasets:
        if dataset not in readable():
            troubles[dataset] = f"{dataset_title(dataset)} has no reader, so its cells stay empty"
        for row in table.rows:
            found: dict[int, Mapping[str, float]] = {}
            seeds = () if row.quoted else table.seeds
            configs = {seed: table.config(profile, row, dataset, seed) for seed in seeds}
            for seed, config in configs.items():
                if dataset in troubles:
                    break
                try:
                    metrics = look(config, store, data_root=data_root, splits=table.splits)
                except RazError as error:
                    troubles[dataset] = str(error)
                    break
                if metrics is not None:
                    found[seed] = metrics
            zooms = any(config.depth > 1 for config in configs.values())
            cells[row.name, dataset] = Cell(row.name, dataset, zooms, found)
    return FilledTable(table, profile, cells, troubles)


def from_store(
    config: TrialConfig, store: Path, *, data_root: Path | None, splits: tuple[str, ...]
) -> dict[str, float] | None:
    """`raz.pipeline.stages.stored_metrics`; a store without any score is answered without opening a data set."""
    if not (store / "stages" / "score").is_dir():
        return None
    from raz.pipeline.stages import stored_metrics

    return stored_metrics(config, store, data_root=data_root, splits=splits)
