"""An ablation's YAML -> AblationTable (`raz.spec.ablation`).

Every row is set on the base of every profile once, so that a fault of the last row is found before the first one runs.
All faults of a file are reported together, each with `file:line`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from raz.config import Settings, TrialConfig, configure
from raz.errors import RazError, flatten_errors
from raz.spec.ablation import (
    PUBLISHED,
    ROW_NAME,
    TABLE_SPLITS,
    AblationTable,
    Claim,
    Misprint,
    Profile,
    Row,
    readable_datasets,
)
from raz.spec.ablation_schema import TABLE_FILE, ClaimSection, MisprintSection, TableFile
from raz.spec.base_config import base_config, check_types
from raz.spec.metric_names import COUNTING_METRICS, LOCALIZATION_METRICS, METRICS_BY_PART, ONE_TO_ONE_METRICS
from raz.spec.profiles import default_profile
from raz.utils.json_types import Json
from raz.utils.schema import Either, Located, Nothing, Schema, choice, number, read_or
from raz.utils.suggestions import did_you_mean
from raz.utils.yamlfile import Document, Problems, YamlPath, describe_value, read

MetricsOf = Callable[[str], tuple[str, ...]]  # the columns of a data set


def load_table(
    path: Path,
    name: str = "",
    settings: Settings | None = None,
    profile: str | None = None,
    *,
    data_root: Path | None = None,
) -> AblationTable:
    """The table in a file.

    name: the file as messages name it, by default its path.
    settings: of `--set`; they replace values of the base of `profile` (None: the default profile).
    data_root: where data sets that are not published are; None for the environment's RAZ_DATA_ROOT.

    Raises RazError(s) with `file:line`, all faults at once, and OSError where the file cannot be read.
    """
    return parse_table(read(path, name, strict=False), settings, profile, data_root=data_root)


def parse_table(
    document: Document,
    settings: Settings | None = None,
    profile: str | None = None,
    *,
    data_root: Path | None = None,
) -> AblationTable:
    """The table of a document. See `load_table`."""
    settings, problems = settings or {}, Problems(document)
    file = TABLE_FILE.read(document.data, (), problems)
    _check_metrics(file.metrics, ("metrics",), problems)
    _check_dataset_metrics(file.dataset_metrics, problems, data_root)
    profiles = _profiles(file, problems, settings, profile, data_root)
    rows = _rows(file, problems, profiles, settings)
    misprints = _misprints(file.misprints, problems, rows)
    base_row = _base_row(document, file, problems, rows)
    claims = _claims(file.claims, problems, rows, file.metrics)
    for checked in profiles.values():
        _check_numbers(file.metrics, checked, problems)
    problems.raise_if_any()
    return AblationTable(
        table=file.table, metrics=file.metrics, seeds=file.seeds, profiles=profiles, rows=rows, title=file.title,
        paper=file.paper, misprints=misprints, notes=file.notes, base_row=base_row, claims=claims,
        dataset_metrics=file.dataset_metrics, source=document.name, comment=document.comment,
    )  # fmt: skip


# ------------------------------------------------------------------ metrics


def _check_metrics(metrics: tuple[str, ...], path: YamlPath, problems: Problems) -> None:
    """Note metrics that no trial scores."""
    names = [
        *COUNTING_METRICS,
        *(f"{name}@{sigma}" for name in LOCALIZATION_METRICS for sigma in (40, 20, 5)),
        *(f"{name}@{radius}" for name in ONE_TO_ONE_METRICS for radius in (8, 4)),
    ]
    legal = [f"{split}.{name}" for split in ("test", "val") for name in names]
    for i, metric in enumerate(metrics):
        if not _is_metric(metric):
            problems.add((*path, i), f"unknown metric {metric!r}", did_you_mean(metric, legal))


def _is_metric(metric: str) -> bool:
    split, _, name = metric.partition(".")
    stem, _, suffix = name.partition("@")
    at_number = stem in (*LOCALIZATION_METRICS, *ONE_TO_ONE_METRICS) and _number(suffix) is not None
    of_part = stem in METRICS_BY_PART and re.fullmatch(r"[a-z][a-z0-9_-]*", suffix) is not None
    return split in TABLE_SPLITS and (name in COUNTING_METRICS or at_number or of_part)


def _number(text: str) -> float | None:
    """The number after the @ of a metric of points; None for any other text."""
    return float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else None


def _check_dataset_metrics(
    by_dataset: Mapping[str, tuple[str, ...]], problems: Problems, data_root: Path | None
) -> None:
    """Note unknown data sets, and metrics that no trial scores."""
    legal = list(dict.fromkeys([*readable_datasets(data_root), *PUBLISHED]))
    for name, metrics in by_dataset.items():
        if name in legal:
            _check_metrics(metrics, ("dataset_metrics", name), problems)
        else:
            problems.add(("dataset_metrics", name), f"unknown data set {name!r}", did_you_mean(name, legal))


def _check_numbers(metrics: tuple[str, ...], profile: Profile, problems: Problems) -> None:
    """Note metrics at a sigma or radius that the base does not score, whose column would stay empty."""
    for i, metric in enumerate(metrics):
        number = _number(metric.partition("@")[2])
        radius = metric.partition(".")[2].partition("@")[0] in ONE_TO_ONE_METRICS
        of = profile.base.metrics
        word, field, scored = ("radius", "radii", of.radii) if radius else ("sigma", "sigmas", of.sigmas)
        if number is not None and number not in scored:
            shown = ", ".join(f"{value:g}" for value in scored)
            problems.add(
                ("metrics", i), f"{metric}: profile {profile.name} scores {word} {shown} only",
                f"metrics.{field}: [{shown}, {number:g}] under profiles.{profile.name}.base.set",
            )  # fmt: skip


# ------------------------------------------------------------------ profiles and rows


def _profiles(
    file: TableFile, problems: Problems, settings: Settings, profile: str | None, data_root: Path | None
) -> dict[str, Profile]:
    """The profiles, with the settings on the base of the one that is run. Raises RazError(s) for wrong settings."""
    if not file.profiles:
        return {}
    for name in ("dataset", "seed"):
        if name in settings:
            what = f"{problems.document.name} lists the {name}s of its trials"
            raise RazError(f"--set {name}", what, f"edit {name}s in the file", name)
    legal = list(dict.fromkeys([*readable_datasets(data_root), *PUBLISHED]))
    profile_to_run = default_profile(file.profiles) if profile is None else profile
    out = {}
    for name, section in file.profiles.items():
        path: YamlPath = ("profiles", name)
        if section.base.dataset is not None:
            problems.add((*path, "base", "dataset"), f"profiles.{name}.base names a dataset", "datasets: [toy]")
        for parameter in ("dataset", "seed"):
            if parameter in section.base.set:
                what = f"profiles.{name}.base sets {parameter}"
                problems.add((*path, "base", "set", parameter), what, f"use {parameter}s")
        # Settings that fit the profile that is run, such as pretrained weights, need not fit the others.
        config = base_config(
            section.base, problems, settings if name == profile_to_run else {}, (*path, "base"), data_root=data_root
        )
        for i, dataset in enumerate(section.datasets):
            if dataset not in legal:
                problems.add((*path, "datasets", i), f"unknown data set {dataset!r}", did_you_mean(dataset, legal))
        out[name] = Profile(name, config, section.datasets, section.base.preset, section.seeds or file.seeds)
    return out


def _rows(file: TableFile, problems: Problems, profiles: Mapping[str, Profile], settings: Settings) -> tuple[Row, ...]:
    """The rows. Raises RazError for a setting that a row would overwrite."""

    def metrics_of(dataset: str) -> tuple[str, ...]:
        return file.dataset_metrics.get(dataset, file.metrics)

    out = []
    for name, section in file.rows.items():
        path: YamlPath = ("rows", name)
        if not ROW_NAME.fullmatch(name):
            problems.add(path, f"row {name!r}, expected a name of letters, digits, _ . + and -")
        row_settings = section.set or {}
        if section.source and (section.set is not None or not section.paper):
            what = "has no numbers" if section.set is None else "sets something"
            problems.add(path, f"rows.{name} is quoted (source) and {what}", "{source: …, paper: …}")
        for parameter in settings:
            if parameter in row_settings:
                what = f"row {name} sets it, so the value would be lost"
                raise RazError(f"--set {parameter}", what, "edit the row", parameter)
        _check_settings(name, row_settings, problems, profiles)
        printed = _printed(name, section.paper, problems, profiles, metrics_of)
        out.append(Row(name, row_settings, printed, section.source))
    if not problems.faults:
        _check_distinct(out, problems, profiles)
    return tuple(out)


def _check_settings(
    row: str, settings: Mapping[str, Json], problems: Problems, profiles: Mapping[str, Profile]
) -> None:
    """Note the faults of a row's settings: first of each value alone, then of all together on every profile's base."""
    before = len(problems.faults)
    for name, value in settings.items():
        path: YamlPath = ("rows", row, "set", name)
        if name in ("dataset", "seed"):
            problems.add(path, f"row {row} sets {name}, which a table repeats over", f"use {name}s")
            continue
        for error in check_types({name: value}):
            problems.add(path, error.what, error.hint)
    if len(problems.faults) > before:
        return
    reported = set()
    for profile in profiles.values():
        try:
            configure(profile.base, settings)
        except RazError as error:
            for fault in flatten_errors(error):
                if fault.what not in reported:
                    reported.add(fault.what)
                    inner = ("set", fault.parameter) if fault.parameter in settings else ()
                    problems.add(("rows", row, *inner), f"{fault.what} (profile {profile.name})", fault.hint)


def _check_distinct(rows: list[Row], problems: Problems, profiles: Mapping[str, Profile]) -> None:
    """Note rows with the same configuration, which would be trained once and compared as if they were two."""
    reported: set[str] = set()
    for profile in profiles.values():
        first: dict[TrialConfig, str] = {}
        for row in rows:
            if row.quoted:
                continue
            config = configure(profile.base, row.set).resolved()
            if config in first and row.name not in reported:
                reported.add(row.name)
                problems.add(
                    ("rows", row.name), f"rows {first[config]} and {row.name} mean the same trial in profile"
                    f" {profile.name}", "leave one out, or set what tells them apart",
                )  # fmt: skip
            first.setdefault(config, row.name)


def _printed(
    row: str, raw: Json, problems: Problems, profiles: Mapping[str, Profile], metrics_of: MetricsOf
) -> dict[str, dict[str, float]]:
    """The printed numbers of a row: a list in the order of the data sets of profile `paper`, or by data set."""
    path: YamlPath = ("rows", row, "paper")
    if isinstance(raw, list):
        if "paper" not in profiles:
            problems.add(
                path, f"rows.{row}.paper is a list, and no profile `paper` says of which data sets",
                "{shanghaitech_a: [67.5, 109.5]}",
            )  # fmt: skip
            return {}
        names = profiles["paper"].datasets
        if len(raw) != len(names):
            problems.add(
                path, f"rows.{row}.paper has {len(raw)} lists, expected {len(names)}: {', '.join(names)}",
                "write null for a data set without printed numbers",
            )  # fmt: skip
            return {}
        by_name: dict[str, Located[Json]] = {
            names[i]: Located(cells, (*path, i)) for i, cells in enumerate(raw) if cells is not None
        }
    elif isinstance(raw, dict):
        by_name = {name: Located(cells, (*path, name)) for name, cells in raw.items()}
        for name in raw:
            if name not in PUBLISHED:
                what = f"rows.{row}.paper: unknown data set {name!r}"
                problems.add((*path, name), what, did_you_mean(name, PUBLISHED))
    else:
        problems.wrong(path, describe_value(raw), "numbers by data set")
        return {}
    out: dict[str, dict[str, float]] = {}
    for dataset, cells in by_name.items():
        metrics, raw_cells = metrics_of(dataset), cells.value
        if not isinstance(raw_cells, list) or (metrics and len(raw_cells) != len(metrics)):
            shown = f"{len(raw_cells)} numbers" if isinstance(raw_cells, list) else describe_value(raw_cells)
            problems.add(
                cells.path,
                f"rows.{row}.paper has {shown} for {dataset}, expected {len(metrics)}: {', '.join(metrics)}",
                "write null for a number that is not printed",
            )
            continue
        cell: Schema[float | None] = Either(
            lambda value: value is None, Nothing(), number(expected=f"a number for {dataset} or null")
        )
        numbers = [read_or(cell, raw, (*cells.path, i), problems, None) for i, raw in enumerate(raw_cells)]
        # A whole number stays one: the paper prints 126, not 126.0.
        out[dataset] = {m: value for m, value in zip(metrics, numbers, strict=False) if value is not None}
    return out


# ------------------------------------------------------------------ what refers to rows


def _base_row(document: Document, file: TableFile, problems: Problems, rows: tuple[Row, ...]) -> str:
    """The row that differences are taken to: named, or the first that is run."""
    names = [row.name for row in rows if not row.quoted]
    if "base_row" not in document.data:
        return names[0] if names else ""
    if not rows:
        return ""
    return read_or(choice(names, "a row that is run"), file.base_row, ("base_row",), problems, "")


def _claims(
    sections: tuple[Located[ClaimSection], ...], problems: Problems, rows: tuple[Row, ...], metrics: tuple[str, ...]
) -> tuple[Claim, ...]:
    """The claims, whose rows and metrics must be of this table."""
    names = [row.name for row in rows]
    out = []
    for section in sections:
        claim, path = section.value, section.path
        weights = _legal_weights(claim.rows, names, "row", (*path, "rows"), problems)
        of = _legal_weights(claim.of, metrics, "metric of this table", (*path, "of"), problems)
        chosen = claim.metrics
        if chosen is None:
            chosen = () if claim.of else metrics
        for metric in chosen:
            if metric not in metrics:
                what = f"{metric} is no metric of this table"
                problems.add((*path, "metrics"), what, did_you_mean(metric, metrics))
        out.append(Claim(claim.say, weights, "less" if claim.expect == "less" else "more", chosen, of))
    return tuple(out)


def _legal_weights(
    weights: Mapping[str, float], legal: list[str] | tuple[str, ...], noun: str, path: YamlPath, problems: Problems
) -> dict[str, float]:
    """The weights of legal names; notes the others."""
    for name in weights:
        if name not in legal:
            problems.add((*path, name), f"no {noun} {name!r}", did_you_mean(name, legal))
    return {name: float(weight) for name, weight in weights.items() if name in legal}


def _misprints(
    sections: tuple[Located[MisprintSection], ...], problems: Problems, rows: tuple[Row, ...]
) -> tuple[Misprint, ...]:
    """The misprints, each of a number that the table prints."""
    by_name = {row.name: row for row in rows}
    out = []
    for section in sections:
        mark, path = section.value, section.path
        row = by_name.get(mark.row)
        if row is None:
            problems.add((*path, "row"), f"misprints: no row {mark.row!r}", did_you_mean(mark.row, by_name))
        elif mark.metric not in row.paper.get(mark.dataset, {}):
            what = f"misprints: row {mark.row} has no printed {mark.metric} of {mark.dataset}"
            problems.add((*path, "metric"), what, did_you_mean(mark.metric, row.paper.get(mark.dataset, {})))
        else:
            out.append(Misprint(mark.row, mark.dataset, mark.metric, mark.note))
    return tuple(out)
