"""What an ablation's YAML file may hold. `raz.spec.ablation_yaml` checks what depends on several sections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from raz.spec.ablation import TABLE_NAME
from raz.spec.base_config import BASE, BaseSection
from raz.utils.json_types import Json
from raz.utils.schema import (
    Anything,
    ListOf,
    Located,
    MapOf,
    Record,
    WithPath,
    choice,
    integer,
    key,
    matching,
    number,
    text,
)

_METRICS = ListOf(text("a metric's name"), hint="[test.mae, test.rmse]", fewest=1)
_SEEDS = ListOf(integer(0), hint="[0, 1, 2]", fewest=1)
_WEIGHTS = MapOf(number(), "weights")


@dataclass(frozen=True)
class ProfileSection:
    """A profile as the file has it."""

    base: BaseSection = key(BASE, default=BaseSection())
    datasets: tuple[str, ...] = key(
        ListOf(text("a data set's name"), hint="[toy]", fewest=1), default=(), required=True
    )
    seeds: tuple[int, ...] = key(_SEEDS, default=())  # those of the table where it has none


@dataclass(frozen=True)
class RowSection:
    """A row as the file has it. What its numbers mean follows from the profiles and metrics."""

    set: Mapping[str, Json] | None = key(MapOf(Anything(), "dotted names with values"), default=None)
    paper: Json = key(Anything(), default={})
    source: str = key(text("where the numbers are printed"), default="")


@dataclass(frozen=True)
class ClaimSection:
    """A claim as the file has it."""

    say: str = key(text(), default="", required=True)
    rows: Mapping[str, float] = key(_WEIGHTS, default={}, required=True)
    expect: str = key(choice(("less", "more"), "less or more"), default="less", required=True)
    metrics: tuple[str, ...] | None = key(ListOf(text("a metric's name")), default=None)
    of: Mapping[str, float] = key(MapOf(number(), "weights", "{test.mae: 1}", may_be_empty=False), default={})


@dataclass(frozen=True)
class MisprintSection:
    """A misprint as the file has it."""

    row: str = key(text(), default="", required=True)
    dataset: str = key(text(), default="", required=True)
    metric: str = key(text(), default="", required=True)
    note: str = key(text(), default="", required=True)


@dataclass(frozen=True)
class TableFile:
    """A file of a table. What depends on other sections is checked after reading."""

    table: str = key(matching(TABLE_NAME, "a name of a-z, 0-9, _ and -", "recurrence"), default="", required=True)
    title: str = key(text(), default="")
    paper: str = key(text(), default="")
    metrics: tuple[str, ...] = key(_METRICS, default=(), required=True)
    dataset_metrics: Mapping[str, tuple[str, ...]] = key(MapOf(_METRICS, "metrics by data set"), default={})
    seeds: tuple[int, ...] = key(_SEEDS, default=(0,))
    profiles: Mapping[str, ProfileSection] = key(
        MapOf(Record(ProfileSection, "base, datasets and seeds"), "names with a base and data sets",
              "toy: {base: {preset: tiny}, datasets: [toy]}", may_be_empty=False),
        default={}, required=True,
    )  # fmt: skip
    base_row: Json = key(Anything(), default=None)
    rows: Mapping[str, RowSection] = key(
        MapOf(Record(RowSection, "set, paper or both", "{set: {depth: 2}}"), "names with what they set",
              "loc_2: {set: {depth: 2}}", may_be_empty=False),
        default={}, required=True,
    )  # fmt: skip
    misprints: tuple[Located[MisprintSection], ...] = key(
        ListOf(WithPath(Record(MisprintSection)), repeats=True), default=()
    )
    claims: tuple[Located[ClaimSection], ...] = key(
        ListOf(
            WithPath(Record(ClaimSection, hint="{say: …, rows: {loc_2: 1, loc_1: -1}, expect: less}")), repeats=True
        ),
        default=(),
    )
    notes: tuple[str, ...] = key(ListOf(text()), default=())


TABLE_FILE = Record(TableFile)
