"""AblationTable: a table of a paper as data: rows x data sets x metrics, the printed numbers beside, seeds repeated.

A row says only how it differs from its profile's base; a profile says at which scale the table is filled. A row of
another method (`source`) is quoted and never run. A claim is a sum of cells that is expected below or above 0.
`raz.spec.ablation_yaml` reads one from its file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from raz.config import TrialConfig, configure
from raz.errors import RazError
from raz.utils.json_types import Json
from raz.utils.suggestions import did_you_mean

DEFAULT_PROFILE = "toy"
TABLE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
ROW_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
# Data sets the paper prints numbers of, as its tables head them; a name here needs no reader to stand in a table.
PUBLISHED = {
    "shanghaitech_a": "ShanghaiTech_A",
    "shanghaitech_b": "ShanghaiTech_B",
    "worldexpo": "WorldExpo",
    "ucf_qnrf": "UCF_QNRF",
}
COUNTING = (
    "mae", "rmse", "mae_density", "rmse_density", "mae_localization", "rmse_localization", "mae_ceiling",
    "rmse_ceiling", "bias", "regions_per_image", "images_zoomed",
)  # fmt: skip
BY_PART = tuple(name for name in COUNTING if name.startswith(("mae", "rmse")))  # with @part, too: mae@scene1
LOCALIZATION = ("ap50", "ap75", "map", "ar50", "ar75", "mar")  # each with @sigma
SPLITS = ("val", "test")
REGIONS = ("regions_per_image", "images_zoomed")  # shown beside rows that zoom


def default_profile(names: Iterable[str]) -> str:
    """`toy`, or the first there is; nothing of none."""
    names = list(names)
    return DEFAULT_PROFILE if DEFAULT_PROFILE in names else next(iter(names), "")


@dataclass(frozen=True)
class Profile:
    """At which scale the table is filled: a base, and the data sets in the order of their columns."""

    name: str
    base: TrialConfig
    datasets: tuple[str, ...]
    preset: str


@dataclass(frozen=True)
class Row:
    """One line of the table: what it sets on the base, and what the paper prints for it."""

    name: str
    set: Mapping[str, Json]  # dotted name -> value
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # data set -> metric -> number
    source: str = ""  # where the numbers of another method are printed: such a row is quoted, not run

    @property
    def quoted(self) -> bool:
        return bool(self.source)


@dataclass(frozen=True)
class Claim:
    """A sentence that a table is read to say: a weighted sum of rows (and metrics) that is below or above 0.

    `rows` {loc_2: 1, loc_1: -1} and `expect` less: the second row's error is the smaller. With `of` the sum goes over
    metrics too; without, the claim is made of each of `metrics` by itself.
    """

    say: str
    rows: Mapping[str, float]
    expect: Literal["less", "more"]
    metrics: tuple[str, ...] = ()
    of: Mapping[str, float] = field(default_factory=dict)

    def sums(self) -> Iterator[tuple[tuple[str, ...], dict[tuple[str, str], float]]]:
        """(metrics, {(row, metric): weight}) of each sum that the sentence is about."""
        if self.of:
            yield tuple(self.of), {(row, m): w * v for row, w in self.rows.items() for m, v in self.of.items()}
            return
        for metric in self.metrics:
            yield (metric,), {(row, metric): weight for row, weight in self.rows.items()}


@dataclass(frozen=True)
class Misprint:
    """A printed number that cannot be right: it is shown as printed, and marked."""

    row: str
    dataset: str
    metric: str
    note: str


@dataclass(frozen=True)
class TableTrial:
    """One seed of one cell: what has to run to fill it."""

    row: str
    dataset: str
    seed: int
    config: TrialConfig


@dataclass(frozen=True)
class AblationTable:
    """A table to fill. `metrics` are dotted (`test.mae`, `test.ap50@40`), the paper's "MSE" is `rmse` (20).

    `base_row` is the row that differences are taken to.
    """

    table: str
    metrics: tuple[str, ...]
    seeds: tuple[int, ...]
    profiles: Mapping[str, Profile]
    rows: tuple[Row, ...]
    title: str = ""
    paper: str = ""  # where the printed numbers stand, e.g. "Table 4 of …"
    misprints: tuple[Misprint, ...] = ()
    notes: tuple[str, ...] = ()
    base_row: str = ""
    claims: tuple[Claim, ...] = ()
    dataset_metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # where they are not `metrics`
    source: str = ""
    comment: str = field(default="", compare=False)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits whose scores fill the table."""
        every = [*self.metrics, *(m for metrics in self.dataset_metrics.values() for m in metrics)]
        return tuple(split for split in SPLITS if any(m.startswith(f"{split}.") for m in every))

    @property
    def run_rows(self) -> tuple[Row, ...]:
        """The rows that a run fills, without those that are quoted."""
        return tuple(row for row in self.rows if not row.quoted)

    def metrics_of(self, dataset: str) -> tuple[str, ...]:
        """The columns of a data set."""
        return self.dataset_metrics.get(dataset, self.metrics)

    @property
    def printed_datasets(self) -> tuple[str, ...]:
        """The data sets with printed numbers, in the order of the file."""
        return tuple(dict.fromkeys(dataset for row in self.rows for dataset in row.paper))

    def row(self, name: str) -> Row:
        """The row of this name; KeyError when there is none."""
        return {row.name: row for row in self.rows}[name]

    def profile(self, name: str | None = None) -> Profile:
        """The profile, by default `toy`, or the only one. Raises RazError for an unknown name."""
        if name is None:
            name = default_profile(self.profiles)
        if name not in self.profiles:
            raise RazError(
                "--profile", f"table {self.table} has no profile {name!r}, expected one of {', '.join(self.profiles)}",
                did_you_mean(name, self.profiles),
            )  # fmt: skip
        return self.profiles[name]

    def config(self, profile: Profile, row: Row, dataset: str, seed: int) -> TrialConfig:
        """The trial behind one seed of one cell."""
        config = configure(profile.base, row.set, f"table {self.table}, row {row.name}")
        return replace(config, dataset=dataset, seed=seed)

    def trials(self, profile: Profile) -> Iterator[TableTrial]:
        """Everything that fills the table: all rows of one data set and seed together, since they share stages."""
        for dataset in profile.datasets:
            for seed in self.seeds:
                for row in self.run_rows:
                    yield TableTrial(row.name, dataset, seed, self.config(profile, row, dataset, seed))

    def misprint(self, row: str, dataset: str, metric: str) -> Misprint | None:
        """The mark on a printed number, if it has one."""
        for found in self.misprints:
            if (found.row, found.dataset, found.metric) == (row, dataset, metric):
                return found
        return None


def readable_datasets(data_root: Path | None = None) -> tuple[str, ...]:
    """The data sets that have a reader, those of one's own in the data root among them."""
    from raz.data import readers

    return tuple(readers(data_root))


def dataset_title(name: str, data_root: Path | None = None) -> str:
    """A data set as it stands in a header."""
    from raz.data import readers

    if name in PUBLISHED:
        return PUBLISHED[name]
    known = readers(data_root)
    return known[name].title if name in known else name
