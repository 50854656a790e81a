"""AblationTable: a table of a paper as data: rows x data sets x metrics, the printed numbers beside, seeds repeated.

A row says only how it differs from its profile's base; a profile says at which scale the table is filled.
Every row is set on the base of every profile once, so that no run dies of its last row. All faults of a
file are told together (`file:line: ...`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raz.config import TrialConfig, coerce, configure, known_names, nearest
from raz.errors import RazError, RazErrors
from raz.study.base import check_words, read_base
from raz.yamlfile import Document, Faults, Place, kind, read

DEFAULT_PROFILE = "toy"
TABLE_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
ROW_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.+-]{0,63}")
# Data sets the paper prints numbers of, as its tables head them; a name here needs no reader to stand in a table.
PUBLISHED = {
    "shanghaitech_a": "ShanghaiTech_A",
    "shanghaitech_b": "ShanghaiTech_B",
    "worldexpo": "WorldExpo",
    "ucf_qnrf": "UCF_QNRF",
}
COUNTING = (
    "mae", "rmse", "mae_density", "rmse_density", "mae_localization", "rmse_localization", "bias",
    "regions_per_image", "images_zoomed",
)  # fmt: skip
BY_PART = tuple(name for name in COUNTING if name.startswith(("mae", "rmse")))  # with @part, too: mae@scene1
LOCALIZATION = ("ap50", "ap75", "map", "ar50", "ar75", "mar")  # each with @sigma
SPLITS = ("val", "test")
REGIONS = ("regions_per_image", "images_zoomed")  # shown beside rows that zoom


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
    set: Mapping[str, Any]  # dotted name -> value
    paper: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # data set -> metric -> number


@dataclass(frozen=True)
class Misprint:
    """A printed number that cannot be right: it is shown as printed, and marked."""

    row: str
    dataset: str
    metric: str
    note: str


@dataclass(frozen=True)
class Trial:
    """One seed of one cell: what has to run to fill it."""

    row: str
    dataset: str
    seed: int
    config: TrialConfig


@dataclass(frozen=True)
class AblationTable:
    """A table to fill. `metrics` are dotted (`test.mae`, `test.ap50@40`), the paper's "MSE" is `rmse` (20)."""

    table: str
    metrics: tuple[str, ...]
    seeds: tuple[int, ...]
    profiles: Mapping[str, Profile]
    rows: tuple[Row, ...]
    title: str = ""
    paper: str = ""  # where the printed numbers stand, e.g. "Table 4 of …"
    misprints: tuple[Misprint, ...] = ()
    notes: tuple[str, ...] = ()
    source: str = ""
    comment: str = field(default="", compare=False)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits whose scores fill the table."""
        return tuple(split for split in SPLITS if any(m.startswith(f"{split}.") for m in self.metrics))

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
            name = DEFAULT_PROFILE if DEFAULT_PROFILE in self.profiles else next(iter(self.profiles))
        if name not in self.profiles:
            raise RazError(
                "--profile", f"table {self.table} has no profile {name!r}, expected one of {', '.join(self.profiles)}",
                nearest(name, self.profiles),
            )  # fmt: skip
        return self.profiles[name]

    def config(self, profile: Profile, row: Row, dataset: str, seed: int) -> TrialConfig:
        """The trial behind one seed of one cell."""
        settings = {**row.set, "dataset": dataset, "seed": seed}
        return configure(profile.base, settings, f"table {self.table}, row {row.name}")

    def trials(self, profile: Profile) -> Iterator[Trial]:
        """Everything that fills the table: all rows of one data set and seed together, since they share stages."""
        for dataset in profile.datasets:
            for seed in self.seeds:
                for row in self.rows:
                    yield Trial(row.name, dataset, seed, self.config(profile, row, dataset, seed))

    def misprint(self, row: str, dataset: str, metric: str) -> Misprint | None:
        """The mark on a printed number, if it has one."""
        for found in self.misprints:
            if (found.row, found.dataset, found.metric) == (row, dataset, metric):
                return found
        return None


def readable() -> tuple[str, ...]:
    """The data sets that have a reader."""
    from raz.data import DATASETS

    return tuple(DATASETS)


def dataset_title(name: str) -> str:
    """A data set as it stands in a header."""
    from raz.data import DATASETS

    if name in PUBLISHED:
        return PUBLISHED[name]
    return DATASETS[name].title if name in DATASETS else name


# ------------------------------------------------------------------------------------ reading


def load_table(path: Path, name: str = "", settings: Mapping[str, Any] | None = None) -> AblationTable:
    """The table in a file; `settings` (of `--set`) go on top of every profile's base.

    Raises RazError(s) with `file:line`, all faults at once; OSError goes through.
    """
    return parse_table(read(path, name, strict=False), settings)


def parse_table(document: Document, settings: Mapping[str, Any] | None = None) -> AblationTable:
    """The table of a document. See `load_table`."""
    settings = settings or {}
    data, faults = document.data, Faults(document)
    faults.keys(
        (), data, ("table", "title", "paper", "metrics", "seeds", "profiles", "rows", "misprints", "notes"),
        ("table", "metrics", "profiles", "rows"),
    )  # fmt: skip
    table = data.get("table")
    if "table" in data and not (isinstance(table, str) and TABLE_NAME.fullmatch(table)):
        faults.add(("table",), f"table is {kind(table)}, expected a name of a-z, 0-9, _ and -", "recurrence")
    title, source = _text(data, "title", faults), _text(data, "paper", faults)
    metrics = _metrics(data, faults)
    seeds = _seeds(data, faults)
    profiles = _profiles(document, faults, settings)
    rows = _rows(data, faults, profiles, metrics, settings)
    misprints = _misprints(data, faults, rows)
    notes = _list(("notes",), data.get("notes", []), faults, str, "a text")
    for profile in profiles.values():
        _sigmas(metrics, profile, faults)
    faults.settle()
    return AblationTable(
        table=str(table), metrics=metrics, seeds=seeds, profiles=profiles, rows=rows, title=title, paper=source,
        misprints=misprints, notes=notes, source=document.name, comment=document.comment,
    )  # fmt: skip


def _text(data: Mapping[str, Any], key: str, faults: Faults) -> str:
    value = data.get(key, "")
    if not isinstance(value, str):
        faults.add((key,), f"{key} is {kind(value)}, expected a text")
        return ""
    return value


def _list(place: Place, value: Any, faults: Faults, wanted: type, word: str) -> tuple[Any, ...]:
    """A list of one kind, without repetition."""
    name = ".".join(map(str, place))
    if not isinstance(value, list):
        faults.add(place, f"{name} is {kind(value)}, expected a list", "[…]")
        return ()
    out: list[Any] = []
    for i, item in enumerate(value):
        if not isinstance(item, wanted) or isinstance(item, bool):
            faults.add((*place, i), f"{name} has {kind(item)}, expected {word}")
        elif item in out:
            faults.add((*place, i), f"{name} has {item!r} twice", "leave one out")
        else:
            out.append(item)
    return tuple(out)


def _metrics(data: Mapping[str, Any], faults: Faults) -> tuple[str, ...]:
    if "metrics" not in data:
        return ()
    found = _list(("metrics",), data["metrics"], faults, str, "a metric's name")
    if data["metrics"] == []:
        faults.add(("metrics",), "metrics is empty", "[test.mae, test.rmse]")
    bases = [*COUNTING, *(f"{name}@{sigma}" for name in LOCALIZATION for sigma in (40, 20, 5))]
    legal = [f"{split}.{name}" for split in ("test", "val") for name in bases]
    for metric in found:
        split, _, name = metric.partition(".")
        stem, at, sigma = name.partition("@")
        ok = name in COUNTING or (stem in LOCALIZATION and at and _number(sigma) is not None)
        ok = ok or (stem in BY_PART and re.fullmatch(r"[a-z][a-z0-9_-]*", sigma))
        if split not in SPLITS or not ok:
            faults.add(("metrics", data["metrics"].index(metric)), f"unknown metric {metric!r}", nearest(metric, legal))
    return found


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None


def _sigmas(metrics: tuple[str, ...], profile: Profile, faults: Faults) -> None:
    """A metric at a sigma that the base does not score would leave its column empty for ever."""
    scored = profile.base.metrics.sigmas
    for i, metric in enumerate(metrics):
        sigma = _number(metric.partition("@")[2])
        if sigma is not None and sigma not in scored:
            shown = ", ".join(f"{s:g}" for s in scored)
            faults.add(
                ("metrics", i), f"{metric}: profile {profile.name} scores sigma {shown} only",
                f"metrics.sigmas: [{shown}, {sigma:g}] under profiles.{profile.name}.base.set",
            )  # fmt: skip


def _seeds(data: Mapping[str, Any], faults: Faults) -> tuple[int, ...]:
    found = _list(("seeds",), data.get("seeds", [0]), faults, int, "a whole number")
    if data.get("seeds") == []:
        faults.add(("seeds",), "seeds is empty", "[0, 1, 2]")
    for seed in found:
        if seed < 0:
            faults.add(("seeds", data["seeds"].index(seed)), f"seeds has {seed}, expected 0 or more")
    return found


def _profiles(document: Document, faults: Faults, settings: Mapping[str, Any]) -> dict[str, Profile]:
    raw = document.data.get("profiles", {})
    if not isinstance(raw, dict) or ("profiles" in document.data and not raw):
        shown = "empty" if raw == {} else kind(raw)
        faults.add(
            ("profiles",), f"profiles is {shown}, expected names with a base and data sets",
            "toy: {base: {preset: tiny}, datasets: [toy]}",
        )  # fmt: skip
        return {}
    for name in ("dataset", "seed"):
        if name in settings:
            raise RazError(
                f"--set {name}", f"the rows of {document.name} say so themselves", f"edit {name}s in the file"
            )
    legal = [*readable(), *(name for name in PUBLISHED if name not in readable())]
    out = {}
    for name, body in raw.items():
        place: Place = ("profiles", name)
        if not isinstance(body, dict):
            faults.add(place, f"profiles.{name} is {kind(body)}, expected base and datasets")
            continue
        faults.keys(place, body, ("base", "datasets"), ("datasets",))
        base = body.get("base", {})
        chosen = base.get("set", {}) if isinstance(base, dict) else {}
        if isinstance(base, dict) and "dataset" in base:
            faults.add((*place, "base", "dataset"), f"profiles.{name}.base names a dataset", "datasets: [toy]")
        for key in ("dataset", "seed"):
            if isinstance(chosen, dict) and key in chosen:
                faults.add((*place, "base", "set", key), f"profiles.{name}.base sets {key}", f"use {key}s")
        config = read_base(document, faults, settings, (*place, "base"))
        datasets: tuple[str, ...] = ()
        if "datasets" in body:
            datasets = _list((*place, "datasets"), body["datasets"], faults, str, "a data set's name")
            if body["datasets"] == []:
                faults.add((*place, "datasets"), f"profiles.{name}.datasets is empty", "[toy]")
        for dataset in datasets:
            if dataset not in legal:
                i = body["datasets"].index(dataset)
                faults.add((*place, "datasets", i), f"unknown data set {dataset!r}", nearest(dataset, legal))
        preset = str(base.get("preset", "tiny")) if isinstance(base, dict) else "tiny"
        out[name] = Profile(name, config, datasets, preset)
    return out


def _rows(
    data: Mapping[str, Any],
    faults: Faults,
    profiles: Mapping[str, Profile],
    metrics: tuple[str, ...],
    settings: Mapping[str, Any],
) -> tuple[Row, ...]:
    raw = data.get("rows", {})
    if not isinstance(raw, dict) or ("rows" in data and not raw):
        shown = "empty" if raw == {} else kind(raw)
        faults.add(
            ("rows",), f"rows is {shown}, expected names with what they set", "loc_2: {set: {depth: 2}}"
        )  # fmt: skip
        return ()
    out = []
    for name, body in raw.items():
        place: Place = ("rows", name)
        if not ROW_NAME.fullmatch(name):
            faults.add(place, f"row {name!r}, expected a name of letters, digits, _ . + and -")
        if not isinstance(body, dict):
            faults.add(place, f"rows.{name} is {kind(body)}, expected set, paper or both", "{set: {depth: 2}}")
            continue
        faults.keys(place, body, ("set", "paper"))
        chosen = body.get("set", {})
        if not isinstance(chosen, dict):
            faults.add((*place, "set"), f"rows.{name}.set is {kind(chosen)}, expected dotted names with values")
            chosen = {}
        for key in settings:
            if key in chosen:
                raise RazError(f"--set {key}", f"row {name} sets it, so the value would be lost", "edit the row")
        _check_row(name, chosen, faults, profiles)
        printed = _printed(name, body.get("paper", {}), faults, profiles, metrics, data)
        out.append(Row(name, dict(chosen), printed))
    return tuple(out)


def _check_row(name: str, chosen: Mapping[str, Any], faults: Faults, profiles: Mapping[str, Profile]) -> None:
    """Name by name, then all together on every profile's base."""
    hints, before = known_names(), len(faults.found)
    for key, value in chosen.items():
        place: Place = ("rows", name, "set", key)
        if key not in hints:
            faults.add(place, f"unknown parameter {key!r}", nearest(key, hints))
            continue
        if key in ("dataset", "seed"):
            faults.add(place, f"row {name} sets {key}, which a table repeats over", f"use {key}s")
            continue
        try:
            coerce(hints[key], value)
        except ValueError as error:
            faults.add(place, f"{key} is {kind(value)}, expected {error}")
            continue
        for fault in check_words({key: value}):
            faults.add(place, fault.what, fault.hint)
    if len(faults.found) > before:
        return
    told = set()
    for profile in profiles.values():
        try:
            configure(profile.base, chosen)
        except RazError as error:
            for fault in error.faults if isinstance(error, RazErrors) else [error]:
                if fault.what not in told:
                    told.add(fault.what)
                    culprit = next((key for key in chosen if fault.what.startswith(f"{key} ")), None)
                    where: Place = ("rows", name, "set", culprit) if culprit else ("rows", name)
                    faults.add(where, f"{fault.what} (profile {profile.name})", fault.hint)


def _printed(
    row: str,
    raw: Any,
    faults: Faults,
    profiles: Mapping[str, Profile],
    metrics: tuple[str, ...],
    data: Mapping[str, Any],
) -> dict[str, dict[str, float]]:
    """Printed numbers: a list in the order of the `paper` profile's data sets, or by data set."""
    place: Place = ("rows", row, "paper")
    if isinstance(raw, list):
        if "paper" not in profiles:
            faults.add(
                place, f"rows.{row}.paper is a list, and no profile `paper` says of which data sets",
                "{shanghaitech_a: [67.5, 109.5]}",
            )  # fmt: skip
            return {}
        names = profiles["paper"].datasets
        if len(raw) != len(names):
            faults.add(
                place, f"rows.{row}.paper has {len(raw)} lists, expected {len(names)}: {', '.join(names)}",
                "write null for a data set without printed numbers",
            )  # fmt: skip
            return {}
        by_name = {names[i]: (value, (*place, i)) for i, value in enumerate(raw) if value is not None}
    elif isinstance(raw, dict):
        by_name = {name: (value, (*place, name)) for name, value in raw.items()}
        for name in raw:
            if name not in PUBLISHED:
                faults.add((*place, name), f"rows.{row}.paper: unknown data set {name!r}", nearest(name, PUBLISHED))
    else:
        faults.add(place, f"rows.{row}.paper is {kind(raw)}, expected numbers by data set")
        return {}
    out: dict[str, dict[str, float]] = {}
    for dataset, (values, where) in by_name.items():
        if not isinstance(values, list) or ("metrics" in data and len(values) != len(metrics)):
            shown = f"{len(values)} numbers" if isinstance(values, list) else kind(values)
            faults.add(
                where, f"rows.{row}.paper has {shown} for {dataset}, expected {len(metrics)}: {', '.join(metrics)}",
                "write null for a number that is not printed",
            )  # fmt: skip
            continue
        numbers = {}
        for i, (metric, value) in enumerate(zip(metrics, values, strict=False)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                faults.add((*where, i), f"rows.{row}.paper has {kind(value)} for {dataset}, expected a number")
            else:
                numbers[metric] = value  # an int stays one: the paper prints 126, not 126.0
        out[dataset] = numbers
    return out


def _misprints(data: Mapping[str, Any], faults: Faults, rows: tuple[Row, ...]) -> tuple[Misprint, ...]:
    raw = data.get("misprints", [])
    if not isinstance(raw, list):
        faults.add(("misprints",), f"misprints is {kind(raw)}, expected a list")
        return ()
    by_name = {row.name: row for row in rows}
    out = []
    for i, body in enumerate(raw):
        place: Place = ("misprints", i)
        keys = ("row", "dataset", "metric", "note")
        if not isinstance(body, dict) or not all(isinstance(body.get(key), str) for key in keys):
            faults.add(place, f"misprints.{i} lacks one of {', '.join(keys)}, each a text")
            continue
        faults.keys(place, body, keys)
        found = Misprint(body["row"], body["dataset"], body["metric"], body["note"])
        row = by_name.get(found.row)
        if row is None:
            faults.add((*place, "row"), f"misprints: no row {found.row!r}", nearest(found.row, by_name))
        elif found.metric not in row.paper.get(found.dataset, {}):
            what = f"misprints: row {found.row} has no printed {found.metric} of {found.dataset}"
            faults.add((*place, "metric"), what, nearest(found.metric, row.paper.get(found.dataset, {})))
        else:
            out.append(found)
    return tuple(out)
