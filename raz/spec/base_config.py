"""The configuration that a file starts from: `base: {preset, dataset, set}`, with the settings of `--set` on top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raz.config import PRESETS, Settings, TrialConfig, configure, parameter_types
from raz.errors import RazError, flatten_errors, raise_all
from raz.utils.json_types import Json, to_json
from raz.utils.schema import Anything, MapOf, Record, choice, key, text
from raz.utils.shipped import find_shipped
from raz.utils.suggestions import did_you_mean
from raz.utils.yamlfile import Document, Problems, YamlPath, describe_value, read, scalar


@dataclass(frozen=True)
class BaseSection:
    """`base:` as the file has it."""

    preset: str = key(choice(PRESETS), default="tiny")
    dataset: str | None = key(text("the name of a data set"), default=None)
    set: Mapping[str, Json] = key(MapOf(Anything(), "dotted names with values", "seed: 1"), default={})


BASE = Record(BaseSection, hint="{preset: tiny}")


def open_spec(file: str, *, trials: int | None = None, retry: bool = False) -> tuple[Document, bool]:
    """The document of a search space or a table, and whether it is a table. `file` is a path or a shipped name.

    Raises RazError as `find_shipped` and `read`, and for an option that a file of its kind does not take.
    """
    path = find_shipped(file)
    source = read(path, file if Path(file).expanduser().is_file() else str(path), strict=False)
    table = "table" in source.data
    if table and (trials is not None or retry):
        what = "--retry" if trials is None else "--trials"
        raise RazError(what, f"{source.name} is a table, whose rows and seeds are fixed", "--set and --profile")
    return source, table


def enumerated_values(data_root: Path | None = None) -> dict[str, tuple[str, ...]]:
    """Parameters whose legal values are the names of a table of the code, or of the data sets in the data root."""
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


def check_enumerated_values(values: Settings, where: str = "settings", data_root: Path | None = None) -> list[RazError]:
    """A fault for every value that should be one of `enumerated_values` and is not."""
    tables = enumerated_values(data_root)
    return [
        RazError(
            where, f"{name} is {value!r}, expected one of {', '.join(tables[name])}",
            _hint(name, str(value), tables[name], data_root), name,
        )
        for name, value in values.items()
        if name in tables and value not in tables[name]
    ]  # fmt: skip


def _hint(name: str, value: str, legal: tuple[str, ...], data_root: Path | None) -> str:
    if name == "dataset":  # also why a data set in the data root cannot be read
        from raz.data import reader_of

        try:
            reader_of(value, data_root)
        except RazError as error:
            return error.hint
    return did_you_mean(value, legal)


def base_config(
    section: BaseSection,
    problems: Problems,
    settings: Settings,
    path: YamlPath = ("base",),
    *,
    paths: Mapping[str, YamlPath] | None = None,
    data_root: Path | None = None,
) -> TrialConfig:
    """The configuration that a base section means, with the command line's settings on top.

    paths: parameter -> where the file sets it, of those that it does not set below `path`.

    Notes the section's faults, each at its path in the file. Raises RazError(s) for wrong settings, which have no place
    in the file.
    """
    settings = dict(settings)
    preset = settings.pop("preset", section.preset)  # --set preset=small
    if not isinstance(preset, str) or preset not in PRESETS:
        raise RazError(
            "--set preset", f"preset is {preset!r}, expected one of {', '.join(PRESETS)}",
            did_you_mean(str(preset), PRESETS),
        )  # fmt: skip
    chosen: dict[str, Json] = {} if section.dataset is None else {"dataset": section.dataset}
    chosen |= section.set
    legal: dict[str, Json] = {}
    places = {name: (*path, "set", name) if name in section.set else (*path, "dataset") for name in chosen}
    places |= paths or {}
    for name, value in chosen.items():
        errors = check_types({name: value}, data_root)
        for error in errors:
            problems.add(places[name], error.what, error.hint)
        if not errors:
            legal[name] = value
    config = PRESETS[preset]
    try:
        config = configure(config, legal)
    except RazError as error:  # legal one by one, and out of range, alone or together
        for fault in flatten_errors(error):
            problems.add(places.get(fault.parameter, path), fault.what, fault.hint)
    if settings:
        names_known = all(name in parameter_types() for name in settings)
        errors = check_enumerated_values(settings, "--set", data_root) if names_known else []
        try:
            config = configure(config, settings, "--set")
        except RazError as error:
            errors += flatten_errors(error)
        raise_all(errors)
    return config


def check_types(values: Settings, data_root: Path | None = None) -> list[RazError]:
    """The first fault among the names and types of these values. Ranges depend on other values and are not checked."""
    errors = check_enumerated_values(values, data_root=data_root)
    if errors:
        return errors
    types = parameter_types()
    for name, value in values.items():
        if name not in types:
            return [RazError("", f"unknown parameter {name!r}", did_you_mean(name, types), name)]
        try:
            types[name].coerce(value)
        except ValueError as error:
            return [RazError("", f"{name} is {describe_value(to_json(value))}, expected {error}", parameter=name)]
    return []


def validate_settings(base: TrialConfig, values: Settings, data_root: Path | None = None) -> tuple[RazError, ...]:
    """The faults of values set together on a base; none where the configuration can be run."""
    errors = check_enumerated_values(values, data_root=data_root)
    if errors:
        return tuple(errors)
    try:
        configure(base, values)
    except RazError as error:
        return flatten_errors(error)
    return ()


def parse_settings(pairs: list[str]) -> dict[str, Json]:
    """`--set key=value …` as dotted names with values. Raises RazError for a pair without `=`, or without a value."""
    out: dict[str, Json] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise RazError("--set", f"{pair!r} has no value, expected key=value", "--set seed=1")
        out[name.strip()] = scalar(value, f"--set {name.strip()}")
    return out
