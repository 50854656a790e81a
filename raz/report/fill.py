"""From the store to the cells of a table. Whatever is not in the store stays empty: nothing is trained here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from raz.config import TrialConfig
from raz.errors import RazError
from raz.report.score_index import ScoreIndex, StoredScore, TrialScores
from raz.spec.ablation import AblationTable, Profile, dataset_title, readable_datasets
from raz.study.remaining import finished_seeds


class ScoreLookup(Protocol):
    """Looks up one trial under many seeds: {seed: what is there}."""

    def __call__(
        self, config: TrialConfig, seeds: Sequence[int], *, data_root: Path | None, splits: tuple[str, ...]
    ) -> Mapping[int, TrialScores]: ...


@dataclass(frozen=True)
class Cell:
    """One row on one data set: the scores of every seed that is there."""

    row: str
    dataset: str
    zooms: bool  # more than one pass, so that regions were zoomed
    found: Mapping[int, TrialScores]
    config: TrialConfig | None = None  # of the first seed; None for a row that is quoted

    def values(self, metric: str) -> dict[int, float]:
        """The metric by seed, finite values only."""
        return {
            seed: found.metrics[metric]
            for seed, found in self.found.items()
            if metric in found.metrics and math.isfinite(found.metrics[metric])
        }


@dataclass(frozen=True)
class FilledTable:
    """A table at one scale, with what the store has of it."""

    table: AblationTable
    profile: Profile
    cells: Mapping[tuple[str, str], Cell]  # (row, data set)
    troubles: Mapping[str, str]  # data set -> why it could not be looked up
    damaged: tuple[Path, ...] = ()  # scores that are there and not whole
    store: Path = field(default_factory=Path)
    kept: tuple[StoredScore, ...] = ()  # all scores of the store, looked at only where cells are empty
    data_root: Path | None = None

    def title(self, dataset: str) -> str:
        """A data set as it stands in a header."""
        return dataset_title(dataset, self.data_root)

    @property
    def wanted(self) -> int:
        """Trials (row x data set x seed) that a run can give: those of data sets that have a reader."""
        there = readable_datasets(self.data_root)
        return len(self.table.seeds) * sum(c.dataset in there and c.config is not None for c in self.cells.values())

    @property
    def missing(self) -> int:
        """Those of the wanted trials that the store does not have."""
        return self.wanted - sum(len(cell.found) for cell in self.cells.values())


def fill_table(
    table: AblationTable,
    profile: Profile,
    store: Path,
    *,
    data_root: Path | None = None,
    stored: ScoreLookup | None = None,
) -> FilledTable:
    """Look every trial of the table up in the store.

    A data set that cannot be opened (its keys cannot be known then) leaves its cells empty and its reason in
    `troubles`; the rest of the table is filled.
    """
    index = ScoreIndex(store)
    look = stored or StoreLookup(index)
    cells: dict[tuple[str, str], Cell] = {}
    troubles: dict[str, str] = {}
    for dataset in profile.datasets:
        if dataset not in readable_datasets(data_root):
            troubles[dataset] = f"{dataset_title(dataset, data_root)} has no reader, so its cells stay empty"
        for row in table.rows:
            if row.quoted:
                cells[row.name, dataset] = Cell(row.name, dataset, False, {})
                continue
            config = table.config(profile, row, dataset, table.seeds[0])
            found: Mapping[int, TrialScores] = {}
            if dataset not in troubles:
                try:
                    found = look(config, table.seeds, data_root=data_root, splits=table.splits)
                except RazError as error:
                    troubles[dataset] = str(error)
            cells[row.name, dataset] = Cell(row.name, dataset, config.depth > 1, found, config)
    filled = FilledTable(table, profile, cells, troubles, tuple(index.damaged), store, data_root=data_root)
    return replace(filled, kept=index.all_scores()) if filled.missing and stored is None else filled


@dataclass(frozen=True)
class StoreLookup:
    """The scores of a store; one without any score is answered without opening a data set."""

    index: ScoreIndex

    def __call__(
        self, config: TrialConfig, seeds: Sequence[int], *, data_root: Path | None, splits: tuple[str, ...]
    ) -> Mapping[int, TrialScores]:
        return finished_seeds(
            config, seeds, self.index.find, store=self.index.store, data_root=data_root, splits=splits
        )
