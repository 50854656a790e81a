"""YAML -> SearchSpace. All faults of a file are told together (`file:line: ...`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raz.config import nearest
from raz.errors import RazError
from raz.study.base import read_base
from raz.study.domains import read_parameters
from raz.study.resources import read_resources
from raz.study.space import DIRECTIONS, MOST_TRIALS, PRUNERS, SAMPLERS, STUDY_NAME, SearchSpace, threads_of
from raz.yamlfile import Document, Faults, Place, kind, read


def load_space(path: Path, name: str = "", settings: Mapping[str, Any] | None = None) -> SearchSpace:
    """The search space in a file; `settings` (of `--set`) go on top of the file's base.

    Raises RazError(s) with `file:line`, all faults at once.
    """
    return parse_space(read(path, name, strict=False), settings)


def parse_space(document: Document, settings: Mapping[str, Any] | None = None) -> SearchSpace:
    """The search space of a document. See `load_space`."""
    data, faults = document.data, Faults(document)
    faults.keys(
        (), data, ("study", "base", "design", "objective", "pruner", "resources", "parameters"),
        ("study", "design", "parameters"),
    )  # fmt: skip
    study = data.get("study")
    if "study" in data and not (isinstance(study, str) and STUDY_NAME.fullmatch(study)):
        faults.add(("study",), f"study is {kind(study)}, expected 1 to 64 of a-z, 0-9, _ and -", _plain_name(study))
    base = read_base(document, faults, settings or {})
    design = _section(data, "design", faults, ("sampler", "trials", "seed"))
    sampler = _word(design, ("design", "sampler"), SAMPLERS, "tpe", faults)
    seed = _whole(design, ("design", "seed"), 0, 0, 2**32 - 1, faults)
    if "design" in data and sampler != "grid" and "trials" not in design:
        faults.add(("design",), "design.trials is missing", "trials: 40")
    trials = _whole(design, ("design", "trials"), MOST_TRIALS, 1, MOST_TRIALS, faults)
    objective = _section(data, "objective", faults, ("metric", "direction"))
    metric = objective.get("metric", "val.mae")
    if not isinstance(metric, str) or not re.fullmatch(r"val\.[\w@.]+", metric):
        if isinstance(metric, str) and metric.startswith("test."):
            hint = f"val.{metric.removeprefix('test.')}: the test split is for the rows of a report only"
        else:
            hint = "val.mae"
        faults.add(
            ("objective", "metric"),
            f"objective.metric is {kind(metric)}, expected a metric of the validation split",
            hint,
        )
    direction = _word(objective, ("objective", "direction"), DIRECTIONS, "minimize", faults)
    pruning = _section(data, "pruner", faults, ("name", "warmup_steps"))
    pruner = _word(pruning, ("pruner", "name"), PRUNERS, "none", faults)
    warmup = _whole(pruning, ("pruner", "warmup_steps"), 0, 0, MOST_TRIALS, faults)
    found = read_parameters(document, faults, base, sampler)
    for parameter in found:
        if parameter.name in (settings or {}):
            raise RazError(
                f"--set {parameter.name}", f"{document.name} searches it, so a trial would overwrite the value",
                f"set it in the file: {parameter.name}: {{choice: [{(settings or {})[parameter.name]}]}}",
            )  # fmt: skip
    resources = read_resources(document, faults, threads_of(base, found))
    faults.settle()
    space = SearchSpace(
        study=str(study), base=base, parameters=found, sampler=sampler, trials=trials, seed=seed, metric=str(metric),
        direction=direction, pruner=pruner, warmup_steps=warmup, resources=resources, source=document.name,
        comment=document.comment,
    )  # fmt: skip
    if sampler == "grid":
        try:
            space.grid()
        except RazError as error:
            raise RazError(document.where("design"), error.what, error.hint) from None
    return space


def _section(data: Mapping[str, Any], name: str, faults: Faults, legal: tuple[str, ...]) -> dict[str, Any]:
    section = data.get(name, {})
    if not isinstance(section, dict):
        faults.add((name,), f"{name} is {kind(section)}, expected keys with values", f"{{{legal[0]}: …}}")
        return {}
    faults.keys((name,), section, legal)
    return section


def _word(section: Mapping[str, Any], place: Place, legal: tuple[str, ...], default: str, faults: Faults) -> str:
    value = section.get(str(place[-1]), default)
    if value not in legal:
        name = ".".join(map(str, place))
        faults.add(place, f"{name} is {kind(value)}, expected one of {', '.join(legal)}", nearest(str(value), legal))
        return default
    return str(value)


def _whole(section: Mapping[str, Any], place: Place, default: int, low: int, high: int, faults: Faults) -> int:
    value = section.get(str(place[-1]), default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        name = ".".join(map(str, place))
        faults.add(place, f"{name} is {kind(value)}, expected a whole number from {low} to {high}")
        return default
    return value


def _plain_name(study: Any) -> str:
    plain = re.sub(r"[^a-z0-9_-]+", "-", str(study).lower()).strip("-")[:64]
    return f"study: {plain or 'my-study'}"
