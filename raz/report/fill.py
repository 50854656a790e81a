"""Fill the cells of a table with the scores that the store has. Nothing is trained: missing scores stay missing."""

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
    """Look up one trial under many seeds: seed -> its scores, without the seeds that have none."""

    def __call__(
        self, config: TrialConfig, seeds: Sequence[int], *, data_root: Path | None, splits: tuple[str, ...]
    ) -> Mapping[int, TrialScores]: ...


@dataclass(frozen=True)
class TableCell:
    """One row on one data set: the scores of each seed that has been run."""

    row: str
    dataset: str
    zooms: bool  # more than one pass
    scores: Mapping[int, TrialScores]  # by seed
    config: TrialConfig | None = None  # of the first seed; None for a quoted row

    def values(self, metric: str) -> dict[int, float]:
        """Seed -> the metric; finite values only."""
        return {
            seed: trial.metrics[metric]
            for seed, trial in self.scores.items()
            if metric in trial.metrics and math.isfinite(trial.metrics[metric])
        }


@dataclass(frozen=True)
class FilledTable:
    """A table of one profile, with the scores that the store has of it."""

    table: AblationTable
    profile: Profile
    cells: Mapping[tuple[str, str], TableCell]  # by (row, data set)
    problems: Mapping[str, str]  # data set -> why its trials could not be looked up
    damaged: tuple[Path, ...] = ()  # folders of damaged scores in the store
    store: Path = field(default_factory=Path)
    stored: tuple[StoredScore, ...] = ()  # all scores of the store; only where cells are empty
    data_root: Path | None = None
    imported: str = ""  # the file that its scores are from; '' where they are from the store
    import_notes: tuple[str, ...] = ()  # what was left out of the file, and what could not be checked

    def title(self, dataset: str) -> str:
        """The data set's name in a header."""
        return dataset_title(dataset, self.data_root)

    def printed_dataset(self, dataset: str) -> str:
        """The data set whose printed numbers are shown for `dataset`: itself, else the table's first; '' for none."""
        printed = self.table.printed_datasets
        return dataset if dataset in printed else (printed[0] if printed else "")

    @property
    def wanted(self) -> int:
        """Number of trials (row x data set x seed) that a run can make: those of data sets that have a reader."""
        readable = readable_datasets(self.data_root)
        run = [c for c in self.cells.values() if c.config is not None and c.dataset in readable]
        return len(self.profile.seeds) * len(run)

    @property
    def missing(self) -> int:
        """Number of wanted trials that the store lacks."""
        return self.wanted - sum(len(cell.scores) for cell in self.cells.values())


def fill_table(
    table: AblationTable,
    profile: Profile,
    store: Path,
    *,
    data_root: Path | None = None,
    lookup: ScoreLookup | None = None,
) -> FilledTable:
    """Look up every trial of the table, in the store unless `lookup` is given.

    A data set that cannot be opened has unknown keys: its cells stay empty, its reason is in `problems`, and the rest
    of the table is filled.
    """
    index = ScoreIndex(store)
    find = lookup or StoreLookup(index)
    cells: dict[tuple[str, str], TableCell] = {}
    problems: dict[str, str] = {}
    for dataset in profile.datasets:
        if dataset not in readable_datasets(data_root):
            problems[dataset] = f"{dataset_title(dataset, data_root)} has no reader, so its cells stay empty"
        for row in table.rows:
            if row.quoted:
                cells[row.name, dataset] = TableCell(row.name, dataset, False, {})
                continue
            config = table.config(profile, row, dataset, profile.seeds[0])
            scores: Mapping[int, TrialScores] = {}
            if dataset not in problems:
                try:
                    scores = find(config, profile.seeds, data_root=data_root, splits=table.splits)
                except RazError as error:
                    problems[dataset] = str(error)
            cells[row.name, dataset] = TableCell(row.name, dataset, config.depth > 1, scores, config)
    filled = FilledTable(table, profile, cells, problems, tuple(index.damaged), store, data_root=data_root)
    return replace(filled, stored=index.all_scores()) if filled.missing and lookup is None else filled


@dataclass(frozen=True)
class StoreLookup:
    """Look up scores in a store. Where the store has no score at all, no data set is opened."""

    index: ScoreIndex

    def __call__(
        self, config: TrialConfig, seeds: Sequence[int], *, data_root: Path | None, splits: tuple[str, ...]
    ) -> Mapping[int, TrialScores]:
        return finished_seeds(
            config, seeds, self.index.find, store=self.index.store, data_root=data_root, splits=splits
        )
