"""AblationTable: a table of a paper as data, rows x data sets x metrics, with the numbers that the paper prints.

A row holds only how it differs from its profile's base. A profile sets the scale at which the table is filled. A row of
another method (`source`) is quoted and never run. A claim is a weighted sum of cells that is expected below or above 0.
`raz.spec.ablation_yaml` reads a table from its file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from raz.config import TrialConfig, configure
from raz.spec.profiles import choose_profile
from raz.utils.json_types import Json

TABLE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
ROW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
# Data sets for which the paper prints numbers, with their titles. A table may name them without a reader.
PUBLISHED = {
    "shanghaitech_a": "ShanghaiTech_A",
    "shanghaitech_b": "ShanghaiTech_B",
    "worldexpo": "WorldExpo",
    "ucf_qnrf": "UCF_QNRF",
}
TABLE_SPLITS = ("val", "test")  # that a table may score


@dataclass(frozen=True)
class Profile:
    """The scale at which the table is filled: a base, the data sets in the order of their columns, and the seeds."""

    name: str
    base: TrialConfig
    datasets: tuple[str, ...]
    preset: str
    seeds: tuple[int, ...]  # its own, or the table's


@dataclass(frozen=True)
class Row:
    """A line of the table: what it sets on the base, and what the paper prints for it."""

    name: str
    set: Mapping[str, Json]  # dotted name -> value
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # data set -> metric -> number
    source: str = ""  # where the numbers of another method are printed; such a row is quoted, not run

    @property
    def quoted(self) -> bool:
        """Whether it is quoted and not run."""
        return bool(self.source)


@dataclass(frozen=True)
class Claim:
    """A statement that the table should support: a weighted sum of cells is below or above 0.

    rows: weight of each row. `{loc_2: 1, loc_1: -1}` with `expect: less` says that loc_2 has the smaller error.
    metrics: the claim is tested for each of these metrics alone.
    of: in place of `metrics`, the weight of each metric in a single sum.
    """

    say: str  # the statement in words
    rows: Mapping[str, float]
    expect: Literal["less", "more"]
    metrics: tuple[str, ...] = ()
    of: Mapping[str, float] = field(default_factory=dict)

    def sums(self) -> Iterator[tuple[tuple[str, ...], dict[tuple[str, str], float]]]:
        """(metrics, {(row, metric): weight}) of each sum that the claim tests."""
        if self.of:
            yield tuple(self.of), {(row, m): w * v for row, w in self.rows.items() for m, v in self.of.items()}
            return
        for metric in self.metrics:
            yield (metric,), {(row, metric): weight for row, weight in self.rows.items()}


@dataclass(frozen=True)
class Misprint:
    """A printed number that cannot be right. It is shown as printed, and marked."""

    row: str
    dataset: str
    metric: str
    note: str


@dataclass(frozen=True)
class TableTrial:
    """The trial for one seed of one cell."""

    row: str
    dataset: str
    seed: int
    config: TrialConfig


@dataclass(frozen=True)
class AblationTable:
    """A table to fill.

    metrics: dotted names (`test.mae`, `test.ap50@40`); the paper's "MSE" is `rmse` (20).
    seeds: those of every profile that lists none of its own.
    base_row: the row that differences are taken to.
    """

    table: str
    metrics: tuple[str, ...]
    seeds: tuple[int, ...]
    profiles: Mapping[str, Profile]
    rows: tuple[Row, ...]
    title: str = ""
    paper: str = ""  # source of the printed numbers, e.g. "Table 4 of …"
    misprints: tuple[Misprint, ...] = ()
    notes: tuple[str, ...] = ()
    base_row: str = ""
    claims: tuple[Claim, ...] = ()
    dataset_metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # data sets with other columns
    source: str = ""
    comment: str = field(default="", compare=False)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits whose scores fill the table."""
        every = [*self.metrics, *(m for metrics in self.dataset_metrics.values() for m in metrics)]
        return tuple(split for split in TABLE_SPLITS if any(m.startswith(f"{split}.") for m in every))

    @property
    def run_rows(self) -> tuple[Row, ...]:
        """The rows that a run fills: all but the quoted ones."""
        return tuple(row for row in self.rows if not row.quoted)

    def metrics_of(self, dataset: str) -> tuple[str, ...]:
        """The columns of a data set."""
        return self.dataset_metrics.get(dataset, self.metrics)

    @property
    def printed_datasets(self) -> tuple[str, ...]:
        """The data sets with printed numbers, in the order of the file."""
        return tuple(dict.fromkeys(dataset for row in self.rows for dataset in row.paper))

    def row(self, name: str) -> Row:
        """The row of this name. Raises KeyError when there is none."""
        return {row.name: row for row in self.rows}[name]

    def profile(self, name: str | None = None) -> Profile:
        """The profile of this name; None for `default_profile`. Raises RazError for an unknown name."""
        return self.profiles[choose_profile(name, self.profiles, f"table {self.table}")]

    def config(self, profile: Profile, row: Row, dataset: str, seed: int) -> TrialConfig:
        """The configuration of the trial for one seed of one cell."""
        config = configure(profile.base, row.set, f"table {self.table}, row {row.name}")
        return replace(config, dataset=dataset, seed=seed)

    def trials(self, profile: Profile) -> Iterator[TableTrial]:
        """All trials that fill the table. Rows of one data set and seed follow each other, since they share stages."""
        for dataset in profile.datasets:
            for seed in profile.seeds:
                for row in self.run_rows:
                    yield TableTrial(row.name, dataset, seed, self.config(profile, row, dataset, seed))

    def misprint(self, row: str, dataset: str, metric: str) -> Misprint | None:
        """The mark on a printed number, if it has one."""
        for mark in self.misprints:
            if (mark.row, mark.dataset, mark.metric) == (row, dataset, metric):
                return mark
        return None


def readable_datasets(data_root: Path | None = None) -> tuple[str, ...]:
    """The data sets that have a reader, also custom ones in the data root."""
    from raz.data import readers

    return tuple(readers(data_root))


def dataset_title(name: str, data_root: Path | None = None) -> str:
    """The title of a data set in a table's header; its name where it has none."""
    from raz.data import readers

    if name in PUBLISHED:
        return PUBLISHED[name]
    by_name = readers(data_root)
    return by_name[name].title if name in by_name else name
