"""An ablation's YAML -> AblationTable (`raz.spec.ablation`).

Every row is set on the base of every profile once, so that no run dies of its last row. All faults of a file are told
together (`file:line: ...`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raz.config import TrialConfig, configure, parameter_types
from raz.errors import RazError, flatten_errors
from raz.spec.ablation import (
    BY_PART,
    COUNTING,
    LOCALIZATION,
    PUBLISHED,
    REGIONS,
    ROW_NAME,
    SPLITS,
    TABLE_NAME,
    AblationTable,
    Claim,
    Misprint,
    Profile,
    Row,
    TableTrial,
    dataset_title,
    default_profile,
    readable_datasets,
)
from raz.spec.base_config import check_enumerated_values, read_base
from raz.utils.suggestions import did_you_mean
from raz.utils.yamlfile import Document, Place, Problems, describe_value, read

__all__ = [
    "REGIONS", "AblationTable", "Claim", "Misprint", "Profile", "Row", "TableTrial", "dataset_title", "load_table",
    "parse_table", "readable_datasets",
]  # fmt: skip

MetricsOf = Callable[[str], tuple[str, ...]]  # the columns of a data set


def load_table(
    path: Path,
    name: str = "",
    settings: Mapping[str, Any] | None = None,
    profile: str | None = None,
    *,
    data_root: Path | None = None,
) -> AblationTable:
    """The table in a file; `settings` (of `--set`) go on top of the base of `profile` (None: the default one).

    Raises RazError(s) with `file:line`, all faults at once; OSError goes through.
    """
    return parse_table(read(path, name, strict=False), settings, profile, data_root=data_root)


def parse_table(
    document: Document,
    settings: Mapping[str, Any] | None = None,
    profile: str | None = None,
    *,
    data_root: Path | None = None,
) -> AblationTable:
    """The table of a document. See `load_table`."""
    settings = settings or {}
    data, faults = document.data, Problems(document)
    faults.keys(
        (), data,
        ("table", "title", "paper", "metrics", "dataset_metrics", "seeds", "profiles", "base_row", "rows", "misprints",
         "claims", "notes"),
        ("table", "metrics", "profiles", "rows"),
    )  # fmt: skip
    table = data.get("table")
    if "table" in data and not (isinstance(table, str) and TABLE_NAME.fullmatch(table)):
        faults.add(("table",), f"table is {describe_value(table)}, expected a name of a-z, 0-9, _ and -", "recurrence")
    title, source = _text(data, "title", faults), _text(data, "paper", faults)
    metrics = _metrics(data.get("metrics"), ("metrics",), faults) if "metrics" in data else ()
    by_dataset = _dataset_metrics(data, faults, data_root)
    seeds = _seeds(data, faults)
    profiles = _profiles(document, faults, settings, profile, data_root)
    rows = _rows(data, faults, profiles, lambda dataset: by_dataset.get(dataset, metrics), settings)
    misprints = _misprints(data, faults, rows)
    base_row = _base_row(data, faults, rows)
    claims = _claims(data, faults, rows, metrics)
    notes = _list(("notes",), data.get("notes", []), faults, str, "a text")
    for found in profiles.values():
        _sigmas(metrics, found, faults)
    faults.raise_if_any()
    return AblationTable(
        table=str(table), metrics=metrics, seeds=seeds, profiles=profiles, rows=rows, title=title, paper=source,
        misprints=misprints, notes=notes, base_row=base_row, claims=claims, dataset_metrics=by_dataset,
        source=document.name, comment=document.comment,
    )  # fmt: skip


def _text(data: Mapping[str, Any], key: str, faults: Problems) -> str:
    value = data.get(key, "")
    if not isinstance(value, str):
        faults.add((key,), f"{key} is {describe_value(value)}, expected a text")
        return ""
    return value


def _list(place: Place, value: Any, faults: Problems, wanted: type, word: str) -> tuple[Any, ...]:
    """A list of one kind, without repetition."""
    name = ".".join(map(str, place))
    if not isinstance(value, list):
        faults.add(place, f"{name} is {describe_value(value)}, expected a list", "[…]")
        return ()
    out: list[Any] = []
    for i, item in enumerate(value):
        if not isinstance(item, wanted) or isinstance(item, bool):
            faults.add((*place, i), f"{name} has {describe_value(item)}, expected {word}")
        elif item in out:
            faults.add((*place, i), f"{name} has {item!r} twice", "leave one out")
        else:
            out.append(item)
    return tuple(out)


def _metrics(raw: Any, place: Place, faults: Problems) -> tuple[str, ...]:
    found = _list(place, raw, faults, str, "a metric's name")
    if raw == []:
        faults.add(place, f"{'.'.join(map(str, place))} is empty", "[test.mae, test.rmse]")
    bases = [*COUNTING, *(f"{name}@{sigma}" for name in LOCALIZATION for sigma in (40, 20, 5))]
    legal = [f"{split}.{name}" for split in ("test", "val") for name in bases]
    for metric in found:
        if not _is_metric(metric):
            faults.add((*place, raw.index(metric)), f"unknown metric {metric!r}", did_you_mean(metric, legal))
    return found


def _is_metric(metric: str) -> bool:
    split, _, name = metric.partition(".")
    stem, at, after = name.partition("@")
    ok = name in COUNTING or (stem in LOCALIZATION and bool(at) and _number(after) is not None)
    ok = ok or (stem in BY_PART and re.fullmatch(r"[a-z][a-z0-9_-]*", after) is not None)
    return split in SPLITS and ok


def _dataset_metrics(data: Mapping[str, Any], faults: Problems, data_root: Path | None) -> dict[str, tuple[str, ...]]:
    raw = data.get("dataset_metrics", {})
    if not isinstance(raw, dict):
        faults.add(("dataset_metrics",), f"dataset_metrics is {describe_value(raw)}, expected metrics by data set")
        return {}
    legal = list(dict.fromkeys([*readable_datasets(data_root), *PUBLISHED]))
    out = {}
    for name, metrics in raw.items():
        if name not in legal:
            faults.add(("dataset_metrics", name), f"unknown data set {name!r}", did_you_mean(name, legal))
            continue
        out[name] = _metrics(metrics, ("dataset_metrics", name), faults)
    return out


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None


def _sigmas(metrics: tuple[str, ...], profile: Profile, faults: Problems) -> None:
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


def _seeds(data: Mapping[str, Any], faults: Problems) -> tuple[int, ...]:
    found = _list(("seeds",), data.get("seeds", [0]), faults, int, "a whole number")
    if data.get("seeds") == []:
        faults.add(("seeds",), "seeds is empty", "[0, 1, 2]")
    for seed in found:
        if seed < 0:
            faults.add(("seeds", data["seeds"].index(seed)), f"seeds has {seed}, expected 0 or more")
    return found


def _profiles(
    document: Document, faults: Problems, settings: Mapping[str, Any], asked: str | None, data_root: Path | None
) -> dict[str, Profile]:
    raw = document.data.get("profiles", {})
    if not isinstance(raw, dict) or ("profiles" in document.data and not raw):
        shown = "empty" if raw == {} else describe_value(raw)
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
    legal = list(dict.fromkeys([*readable_datasets(data_root), *PUBLISHED]))
    asked = default_profile(raw) if asked is None else asked
    out = {}
    for name, body in raw.items():
        place: Place = ("profiles", name)
        if not isinstance(body, dict):
            faults.add(place, f"profiles.{name} is {describe_value(body)}, expected base and datasets")
            continue
        faults.keys(place, body, ("base", "datasets"), ("datasets",))
        base = body.get("base", {})
        chosen = base.get("set", {}) if isinstance(base, dict) else {}
        if isinstance(base, dict) and "dataset" in base:
            faults.add((*place, "base", "dataset"), f"profiles.{name}.base names a dataset", "datasets: [toy]")
        for key in ("dataset", "seed"):
            if isinstance(chosen, dict) and key in chosen:
                faults.add((*place, "base", "set", key), f"profiles.{name}.base sets {key}", f"use {key}s")
        # what fits the profile that is run (pretrained weights, say) need not fit the others
        config = read_base(document, faults, settings if name == asked else {}, (*place, "base"), data_root=data_root)
        datasets: tuple[str, ...] = ()
        if "datasets" in body:
            datasets = _list((*place, "datasets"), body["datasets"], faults, str, "a data set's name")
            if body["datasets"] == []:
                faults.add((*place, "datasets"), f"profiles.{name}.datasets is empty", "[toy]")
        for dataset in datasets:
            if dataset not in legal:
                i = body["datasets"].index(dataset)
                faults.add((*place, "datasets", i), f"unknown data set {dataset!r}", did_you_mean(dataset, legal))
        preset = str(base.get("preset", "tiny")) if isinstance(base, dict) else "tiny"
        out[name] = Profile(name, config, datasets, preset)
    return out


def _rows(
    data: Mapping[str, Any],
    faults: Problems,
    profiles: Mapping[str, Profile],
    metrics_of: MetricsOf,
    settings: Mapping[str, Any],
) -> tuple[Row, ...]:
    raw = data.get("rows", {})
    if not isinstance(raw, dict) or ("rows" in data and not raw):
        shown = "empty" if raw == {} else describe_value(raw)
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
            faults.add(
                place, f"rows.{name} is {describe_value(body)}, expected set, paper or both", "{set: {depth: 2}}"
            )
            continue
        faults.keys(place, body, ("set", "paper", "source"))
        source = body.get("source", "")
        if not isinstance(source, str):
            faults.add(
                (*place, "source"), f"rows.{name}.source is {describe_value(source)}, expected where it is printed"
            )
            source = ""
        if source and ("set" in body or "paper" not in body):
            what = "sets something" if "set" in body else "has no numbers"
            faults.add(place, f"rows.{name} is quoted (source) and {what}", "{source: …, paper: …}")
        chosen = body.get("set", {})
        if not isinstance(chosen, dict):
            faults.add(
                (*place, "set"), f"rows.{name}.set is {describe_value(chosen)}, expected dotted names with values"
            )
            chosen = {}
        for key in settings:
            if key in chosen:
                raise RazError(f"--set {key}", f"row {name} sets it, so the value would be lost", "edit the row")
        _check_row(name, chosen, faults, profiles)
        printed = _printed(name, body.get("paper", {}), faults, profiles, metrics_of)
        out.append(Row(name, dict(chosen), printed, source))
    if not faults.found:
        _check_alike(out, faults, profiles)
    return tuple(out)


def _check_alike(rows: list[Row], faults: Problems, profiles: Mapping[str, Profile]) -> None:
    """Two rows of one meaning would be trained once and compared as if they were two."""
    told: set[str] = set()
    for profile in profiles.values():
        seen: dict[TrialConfig, str] = {}
        for row in rows:
            if row.quoted:
                continue
            config = configure(profile.base, row.set).resolved()
            if config in seen and row.name not in told:
                told.add(row.name)
                faults.add(
                    ("rows", row.name), f"rows {seen[config]} and {row.name} mean the same trial in profile"
                    f" {profile.name}", "leave one out, or set what tells them apart",
                )  # fmt: skip
            seen.setdefault(config, row.name)


def _base_row(data: Mapping[str, Any], faults: Problems, rows: tuple[Row, ...]) -> str:
    """The row that differences are taken to: named, or the first that is run."""
    names = [row.name for row in rows if not row.quoted]
    raw = data.get("base_row", names[0] if names else "")
    if rows and raw not in names:
        faults.add(
            ("base_row",),
            f"base_row is {describe_value(raw)}, expected a row that is run",
            did_you_mean(str(raw), names),
        )
    return str(raw)


def _claims(
    data: Mapping[str, Any], faults: Problems, rows: tuple[Row, ...], metrics: tuple[str, ...]
) -> tuple[Claim, ...]:
    raw = data.get("claims", [])
    if not isinstance(raw, list):
        faults.add(("claims",), f"claims is {describe_value(raw)}, expected a list")
        return ()
    names = [row.name for row in rows]
    out = []
    for i, body in enumerate(raw):
        place: Place = ("claims", i)
        if not isinstance(body, dict) or not isinstance(body.get("say"), str):
            faults.add(place, f"claims.{i} has no `say`", "{say: …, rows: {loc_2: 1, loc_1: -1}, expect: less}")
            continue
        faults.keys(place, body, ("say", "rows", "expect", "metrics", "of"), ("say", "rows", "expect"))
        weights = _weights((*place, "rows"), body.get("rows", {}), names, "row", faults)
        of = _weights((*place, "of"), body.get("of", {}), metrics, "metric of this table", faults)
        expect = body.get("expect")
        if expect not in ("less", "more"):
            faults.add((*place, "expect"), f"expect is {describe_value(expect)}, expected less or more")
            continue
        chosen = metrics if "of" not in body else ()
        if "metrics" in body:
            chosen = _list((*place, "metrics"), body["metrics"], faults, str, "a metric's name")
            for metric in chosen:
                if metric not in metrics:
                    faults.add(
                        (*place, "metrics"), f"{metric} is no metric of this table", did_you_mean(metric, metrics)
                    )
        out.append(Claim(body["say"], weights, expect, chosen, of))
    return tuple(out)


def _weights(place: Place, raw: Any, legal: Sequence[str], word: str, faults: Problems) -> dict[str, float]:
    if not isinstance(raw, dict):
        faults.add(place, f"{place[-1]} is {describe_value(raw)}, expected weights by {word}")
        return {}
    out = {}
    for name, weight in raw.items():
        if name not in legal:
            faults.add((*place, name), f"no {word} {name!r}", did_you_mean(str(name), legal))
        elif isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            faults.add((*place, name), f"{name} is {describe_value(weight)}, expected a number")
        else:
            out[name] = float(weight)
    return out


def _check_row(name: str, chosen: Mapping[str, Any], faults: Problems, profiles: Mapping[str, Profile]) -> None:
    """Name by name, then all together on every profile's base."""
    hints, before = parameter_types(), len(faults.found)
    for key, value in chosen.items():
        place: Place = ("rows", name, "set", key)
        if key not in hints:
            faults.add(place, f"unknown parameter {key!r}", did_you_mean(key, hints))
            continue
        if key in ("dataset", "seed"):
            faults.add(place, f"row {name} sets {key}, which a table repeats over", f"use {key}s")
            continue
        try:
            hints[key].coerce(value)
        except ValueError as error:
            faults.add(place, f"{key} is {describe_value(value)}, expected {error}")
            continue
        for fault in check_enumerated_values({key: value}):
            faults.add(place, fault.what, fault.hint)
    if len(faults.found) > before:
        return
    told = set()
    for profile in profiles.values():
        try:
            configure(profile.base, chosen)
        except RazError as error:
            for fault in flatten_errors(error):
                if fault.what not in told:
                    told.add(fault.what)
                    where: Place = ("rows", name, *(("set", fault.parameter) if fault.parameter in chosen else ()))
                    faults.add(where, f"{fault.what} (profile {profile.name})", fault.hint)


def _printed(
    row: str,
    raw: Any,
    faults: Problems,
    profiles: Mapping[str, Profile],
    metrics_of: MetricsOf,
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
                faults.add(
                    (*place, name), f"rows.{row}.paper: unknown data set {name!r}", did_you_mean(name, PUBLISHED)
                )
    else:
        faults.add(place, f"rows.{row}.paper is {describe_value(raw)}, expected numbers by data set")
        return {}
    out: dict[str, dict[str, float]] = {}
    for dataset, (values, where) in by_name.items():
        metrics = metrics_of(dataset)
        if not isinstance(values, list) or (metrics and len(values) != len(metrics)):
            shown = f"{len(values)} numbers" if isinstance(values, list) else describe_value(values)
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
                faults.add(
                    (*where, i), f"rows.{row}.paper has {describe_value(value)} for {dataset}, expected a number"
                )
            else:
                numbers[metric] = value  # an int stays one: the paper prints 126, not 126.0
        out[dataset] = numbers
    return out


def _misprints(data: Mapping[str, Any], faults: Problems, rows: tuple[Row, ...]) -> tuple[Misprint, ...]:
    raw = data.get("misprints", [])
    if not isinstance(raw, list):
        faults.add(("misprints",), f"misprints is {describe_value(raw)}, expected a list")
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
            faults.add((*place, "row"), f"misprints: no row {found.row!r}", did_you_mean(found.row, by_name))
        elif found.metric not in row.paper.get(found.dataset, {}):
            what = f"misprints: row {found.row} has no printed {found.metric} of {found.dataset}"
            faults.add((*place, "metric"), what, did_you_mean(found.metric, row.paper.get(found.dataset, {})))
        else:
            out.append(found)
    return tuple(out)
