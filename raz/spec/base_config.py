"""What a file starts from: `base: {preset, dataset, set}`, and the settings of `--set` on top."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raz.config import PRESETS, TrialConfig, configure, parameter_types
from raz.errors import RazError, flatten_errors, raise_all
from raz.utils.shipped import find_shipped
from raz.utils.suggestions import did_you_mean
from raz.utils.yamlfile import Document, Place, Problems, describe_value, read, scalar


def open_spec(
    file: str, *, profile: str | None = None, trials: int | None = None, retry: bool = False
) -> tuple[Document, bool]:
    """The search space or table that was typed, a path, else a shipped name; and whether it is a table.

    Raises RazError as `find` and `read`, and for options that a file of its kind does not take.
    """
    path = find_shipped(file)
    source = read(path, file if Path(file).expanduser().is_file() else str(path), strict=False)
    table = "table" in source.data
    if table and (trials is not None or retry):
        what = "--retry" if trials is None else "--trials"
        raise RazError(what, f"{source.name} is a table, whose rows and seeds are fixed", "--set and --profile")
    if not table and profile is not None:
        raise RazError("--profile", f"{source.name} is a search space, which has no profiles", "--set key=value")
    return source, table


def enumerated_values(data_root: Path | None = None) -> dict[str, tuple[str, ...]]:
    """Parameters whose legal words are the names in a table of the code, or of data sets in the data root."""
    from raz.data import readers
    from raz.paper.fusion import RULES
    from raz.paper.zoom import ANCHOR_SETS

    anchors = tuple(ANCHOR_SETS)
    return {
        "dataset": tuple(readers(data_root)),
        "fusion.rule": tuple(RULES),
        "zooming.anchors": anchors,
        "raz.regions.anchors": anchors,
    }


def check_enumerated_values(
    values: Mapping[str, Any], where: str = "settings", data_root: Path | None = None
) -> list[RazError]:
    """Faults of values that should be a name in one of the code's tables."""
    tables = enumerated_values(data_root)
    return [
        RazError(
            where,
            f"{name} is {value!r}, expected one of {', '.join(tables[name])}",
            _hint(name, str(value), tables[name], data_root),
            parameter=name,
        )
        for name, value in values.items()
        if name in tables and value not in tables[name]
    ]


def _hint(name: str, value: str, legal: tuple[str, ...], data_root: Path | None) -> str:
    if name == "dataset":  # why one's own is not taken, too
        from raz.data import reader_of

        try:
            reader_of(value, data_root)
        except RazError as error:
            return error.hint
    return did_you_mean(value, legal)


def read_base(
    document: Document,
    faults: Problems,
    settings: Mapping[str, Any],
    place: Place = ("base",),
    preset: str = "tiny",
    *,
    data_root: Path | None = None,
) -> TrialConfig:
    """`base: {preset, dataset, set: {dotted name: value}}`, with the command line's settings on top."""
    base = document.data
    for part in place:
        base = base.get(str(part), {}) if isinstance(base, dict) else {}
    if not isinstance(base, dict):
        faults.add(
            place, f"{'.'.join(map(str, place))} is {describe_value(base)}, expected keys with values", "{preset: tiny}"
        )
        base = {}
    prefix = "".join(f"{part}." for part in place)
    faults.keys(place, base, ("preset", "dataset", "set"))
    settings = dict(settings)
    name = settings.pop("preset", base.get("preset", preset))  # --set preset=small
    if not isinstance(name, str) or name not in PRESETS:
        faults.add(
            (*place, "preset"), f"{prefix}preset is {describe_value(name)}, expected one of {', '.join(PRESETS)}",
            did_you_mean(str(name), PRESETS),
        )  # fmt: skip
    config = PRESETS[name] if isinstance(name, str) and name in PRESETS else PRESETS["paper"]
    chosen = base.get("set", {})
    if not isinstance(chosen, dict):
        faults.add(
            (*place, "set"), f"{prefix}set is {describe_value(chosen)}, expected dotted names with values", "seed: 1"
        )
        chosen = {}
    given = {**({"dataset": base["dataset"]} if "dataset" in base else {}), **chosen}
    legal: dict[str, Any] = {}
    for key, value in given.items():
        where = (*place, "set", key) if key in chosen else (*place, "dataset")
        wrong = validate_settings(PRESETS["paper"], {key: value}, ranges=False, data_root=data_root)
        for fault in wrong:
            faults.add(where, fault.what, fault.hint)
        if not wrong:
            legal[key] = value
    try:
        config = configure(config, legal)
    except RazError as error:  # right one by one, and out of range together
        for fault in flatten_errors(error):
            faults.add((*place, "set", fault.parameter) if fault.parameter in legal else place, fault.what, fault.hint)
    if settings:
        wrong = (
            check_enumerated_values(settings, "--set", data_root)
            if all(key in parameter_types() for key in settings)
            else []
        )
        try:
            config = configure(config, settings, "--set")
        except RazError as error:
            wrong += flatten_errors(error)
        raise_all(wrong)  # the command line has no line to name, and is wrong whatever the file says
    return config


def validate_settings(
    base: TrialConfig, values: Mapping[str, Any], *, ranges: bool = True, data_root: Path | None = None
) -> list[RazError]:
    wrong = check_enumerated_values(values, data_root=data_root)
    if wrong:
        return wrong
    try:
        if ranges:
            configure(base, values)
        else:
            hints = parameter_types()
            for name, value in values.items():
                if name not in hints:
                    return [RazError("", f"unknown parameter {name!r}", did_you_mean(name, hints), name)]
                try:
                    hints[name].coerce(value)
                except ValueError as error:
                    return [RazError("", f"{name} is {describe_value(value)}, expected {error}", parameter=name)]
    except RazError as error:
        return list(flatten_errors(error))
    return []


def parse_settings(pairs: list[str]) -> dict[str, Any]:
    """`--set key=value …` as dotted names and values. Raises RazError for a word without `=`."""
    out: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise RazError("--set", f"{pair!r} has no value, expected key=value", "--set seed=1")
        out[name.strip()] = scalar(text, f"--set {name.strip()}")
    return out
