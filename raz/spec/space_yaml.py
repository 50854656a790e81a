"""YAML -> SearchSpace. All faults of a file are told together (`file:line: ...`)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raz.config import TrialConfig, configure, parameter_types
from raz.config import parameters as flat
from raz.errors import RazError, flatten_errors
from raz.spec.ablation import LOCALIZATION
from raz.spec.base_config import read_base
from raz.spec.derived import Derived, derive, parse_derived, topological_order
from raz.spec.designs import DESIGNS
from raz.spec.metric_names import metric_names
from raz.spec.parameter import Parameter
from raz.spec.parameter_yaml import activating_values, extreme_values, read_parameters
from raz.spec.pruner_yaml import read_pruning
from raz.spec.search_space import (
    CANDIDATE_SAMPLERS,
    DIRECTIONS,
    MAX_CANDIDATES,
    MOST_TRIALS,
    POPULATION_SAMPLERS,
    SAMPLERS,
    STUDY_NAME,
    Objective,
    SearchSpace,
    threads_of,
)
from raz.spec.stage_resources import read_resources
from raz.utils.suggestions import did_you_mean
from raz.utils.yamlfile import Document, Place, Problems, describe_value, read

KEYS = ("study", "base", "design", "objective", "pruner", "resources", "parameters", "derive")
MOST_SEEDS = 100
MOST_OBJECTIVES = 8


def load_space(
    path: Path, name: str = "", settings: Mapping[str, Any] | None = None, *, data_root: Path | None = None
) -> SearchSpace:
    """The search space in a file; `settings` (of `--set`) go on top of the file's base. Its data set is published, or
    lies in the data root (None: the environment's RAZ_DATA_ROOT).

    Raises RazError(s) with `file:line`, all faults at once.
    """
    return parse_space(read(path, name, strict=False), settings, data_root=data_root)


def parse_space(
    document: Document, settings: Mapping[str, Any] | None = None, *, data_root: Path | None = None
) -> SearchSpace:
    """The search space of a document. See `load_space`."""
    data, faults, settings = document.data, Problems(document), settings or {}
    faults.keys((), data, KEYS, ("study", "design", "parameters"))
    study = data.get("study")
    if "study" in data and not (isinstance(study, str) and STUDY_NAME.fullmatch(study)):
        faults.add(
            ("study",), f"study is {describe_value(study)}, expected 1 to 64 of a-z, 0-9, _ and -", _plain_name(study)
        )
    base = read_base(document, faults, settings, data_root=data_root)
    design = _design(data, faults)
    found = read_parameters(document, faults, base, design["sampler"], data_root)
    objectives = _objectives(data, faults, base, found)
    pruning = read_pruning(data, faults, base, objectives)
    derived = _derived(document, faults, found)
    _reject_double_settings(design, found, derived, settings, document, faults)
    resources = read_resources(document, faults, threads_of(base, found))
    _check_sampler_supports(design["sampler"], objectives, found, faults)
    # What follows needs a space whose parts are right.
    if not faults.found:
        space = SearchSpace(
            study=str(study), base=base, parameters=found, objectives=objectives, pruning=pruning, derived=derived,
            resources=resources, source=document.name, comment=document.comment, **design,
        )  # fmt: skip
        _try_derived(space, faults)
        _try_design(space, faults)
    faults.raise_if_any()
    return space


def _design(data: Mapping[str, Any], faults: Problems) -> dict[str, Any]:
    raw = _section(data, "design", faults, ("sampler", "trials", "seed", "seeds", "population", "proposals"))
    sampler = _choice(raw, ("design", "sampler"), SAMPLERS, "tpe", faults)
    seed = _integer(raw, ("design", "seed"), 0, 0, 2**32 - 1, faults)
    if "design" in data and sampler not in DESIGNS and "trials" not in raw:
        faults.add(("design",), "design.trials is missing", "trials: 40")
    trials = _integer(raw, ("design", "trials"), MOST_TRIALS, 1, MOST_TRIALS, faults)
    population = None
    if "population" in raw:
        population = _integer(raw, ("design", "population"), 2, 2, MOST_TRIALS, faults)
        if sampler not in POPULATION_SAMPLERS:
            what = f"design.population is not for {sampler}, which draws no generations"
            faults.add(("design", "population"), what, f"sampler: {POPULATION_SAMPLERS[-1]}, or leave it out")
    proposals = _integer(raw, ("design", "proposals"), 1, 1, MAX_CANDIDATES, faults)
    if proposals > 1 and sampler not in CANDIDATE_SAMPLERS:
        why = "all of whose trials are known" if sampler in DESIGNS else "which needs the results of all that it draws"
        what = f"design.proposals is not for {sampler}, {why}"
        faults.add(("design", "proposals"), what, f"sampler: {CANDIDATE_SAMPLERS[0]}, or leave it out")
    return {
        "sampler": sampler, "seed": seed, "trials": trials, "population": population, "proposals": proposals,
        "seeds": _seeds(raw, faults),
    }  # fmt: skip


def _seeds(raw: Mapping[str, Any], faults: Problems) -> tuple[int, ...]:
    """`seeds: 3` are 0, 1 and 2; `seeds: [0, 5]` are these."""
    seeds, place = raw.get("seeds", []), ("design", "seeds")
    if isinstance(seeds, int) and not isinstance(seeds, bool) and 1 <= seeds <= MOST_SEEDS:
        return tuple(range(seeds))
    if not isinstance(seeds, list) or ("seeds" in raw and not 1 <= len(seeds) <= MOST_SEEDS):
        got = "empty" if seeds == [] else describe_value(seeds)
        faults.add(place, f"design.seeds is {got}, expected a list of seeds or how many, up to {MOST_SEEDS}", "3")
        return ()
    for i, seed in enumerate(seeds):
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
            faults.add((*place, i), f"design.seeds has {describe_value(seed)}, expected whole numbers from 0 on")
        elif seed in seeds[:i]:
            faults.add((*place, i), f"design.seeds has {seed} twice", "leave one out")
    return tuple(seed for seed in seeds if isinstance(seed, int))


def _objectives(
    data: Mapping[str, Any], faults: Problems, base: TrialConfig, found: tuple[Parameter, ...]
) -> tuple[Objective, ...]:
    """`{metric, direction}`, or a list of them."""
    raw = data.get("objective", {})
    several = isinstance(raw, list)
    out: list[Objective] = []
    if several and not 1 <= len(raw) <= MOST_OBJECTIVES:
        what = f"objective has {len(raw)} metrics, expected 1 to {MOST_OBJECTIVES}"
        faults.add(("objective",), what, "[{metric: val.mae}]")
    open_ = any("metrics.sigmas" in p.names() for p in found)
    for i, one in enumerate(raw if several else [raw]):
        place: Place = ("objective", i) if several else ("objective",)
        if not isinstance(one, dict):
            faults.add(place, f"objective is {describe_value(one)}, expected keys with values", "{metric: val.mae}")
            continue
        faults.keys(place, one, ("metric", "direction"), ("metric",) if several else ())
        metric = one.get("metric", "val.mae")
        if not (isinstance(metric, str) and metric in metric_names(base, "val")) and not (open_ and "@" in str(metric)):
            _bad_metric(metric, (*place, "metric"), base, faults)
        elif metric in [o.metric for o in out]:
            faults.add((*place, "metric"), f"objective has {metric} twice", "leave one out")
        direction = _choice(one, (*place, "direction"), DIRECTIONS, "minimize", faults)
        out.append(Objective(str(metric), direction))
    return tuple(out) or (Objective("val.mae"),)


def _bad_metric(metric: Any, place: Place, base: TrialConfig, faults: Problems) -> None:
    name = ".".join(str(part) for part in place if not isinstance(part, int))
    if not isinstance(metric, str) or not metric.startswith("val."):
        hint = "val.mae"
        if isinstance(metric, str) and metric.startswith("test."):
            hint = f"val.{metric.removeprefix('test.')}: the test split is for the rows of a report only"
        faults.add(place, f"{name} is {describe_value(metric)}, expected a metric of the validation split", hint)
        return
    stem, at, sigma = metric.removeprefix("val.").partition("@")
    if stem in LOCALIZATION and at:
        sigmas = ", ".join(f"{s:g}" for s in base.metrics.sigmas)
        faults.add(
            place, f"{name} is {metric!r}, and the base scores sigma {sigmas} only", f"metrics.sigmas: [{sigma}]"
        )
        return
    faults.add(place, f"{name} is {metric!r}, which no trial scores", did_you_mean(metric, metric_names(base, "val")))


def _derived(document: Document, faults: Problems, found: tuple[Parameter, ...]) -> tuple[Derived, ...]:
    raw = document.data.get("derive", {})
    example = "localization.train.lr: counting.train.lr * 0.5"
    if not isinstance(raw, dict):
        faults.add(("derive",), f"derive is {describe_value(raw)}, expected dotted names with arithmetic", example)
        return ()
    chosen = document.data.get("base")
    chosen = chosen.get("set") if isinstance(chosen, dict) else None
    out: dict[str, Derived] = {}
    for name, text in raw.items():
        place: Place = ("derive", name)
        if name not in parameter_types():
            faults.add(place, f"unknown parameter {name!r}", did_you_mean(name, parameter_types()))
            continue
        if any(name in p.names() for p in found):
            faults.add(place, f"{name} is both searched and derived", "leave one out")
        if isinstance(chosen, dict) and name in chosen:
            faults.add(place, f"{name} is both derived and set in the base", "leave one out")
        if not isinstance(text, str):
            faults.add(place, f"derive.{name} is {describe_value(text)}, expected arithmetic as text", example)
            continue
        try:
            out[name] = parse_derived(name, text)
        except RazError as error:
            faults.add(place, error.what, error.hint)
    try:
        return topological_order(out)
    except ValueError as error:
        faults.add(("derive", str(error).split(" ")[0]), f"the derived values go in a circle: {error}")
        return ()


def _reject_double_settings(
    design: Mapping[str, Any], found: tuple[Parameter, ...], derived: tuple[Derived, ...],
    settings: Mapping[str, Any], document: Document, faults: Problems,
) -> None:  # fmt: skip
    """What is set in two places would be overwritten in one of them."""
    taken = {name: f"{document.name} searches it" for p in found for name in p.names()}
    taken |= {d.name: f"{document.name} derives it" for d in derived}
    if design["seeds"]:
        if "seed" in taken:
            faults.add(("design", "seeds"), "the seed is among the parameters too", "leave one out")
        taken["seed"] = f"{document.name} has design.seeds"
    for name, value in settings.items():
        if name in taken:
            raise RazError(
                f"--set {name}", f"{taken[name]}, so a trial would overwrite the value",
                f"set it in the file: {name}: {{choice: [{value}]}}",
            )  # fmt: skip


def _check_sampler_supports(
    sampler: str, objectives: tuple[Objective, ...], found: tuple[Parameter, ...], faults: Problems
) -> None:
    if sampler != "cma-es":
        return
    if len(objectives) > 1:
        faults.add(("design", "sampler"), "cma-es takes one objective", "sampler: nsga-ii, or tpe")
    if found and not any(p.kind != "choice" and not p.when for p in found):
        what = "cma-es moves through ranges, and no parameter is one that every trial has"
        faults.add(("design", "sampler"), what, "sampler: tpe")


def _try_derived(space: SearchSpace, faults: Problems) -> None:
    """Computes what is derived on the base and at every choice and both ends of each range."""
    if not space.derived:
        return
    by_name = {p.name: p for p in space.parameters}
    points: list[dict[str, Any]] = [{}]
    for parameter in space.parameters:
        points += [
            {**activating_values(parameter, by_name), parameter.name: value} for value in extreme_values(parameter)
        ]
    reported: set[str] = set()
    for point in points:
        try:
            config = configure(space.base, space.settings(point))
        except RazError:
            continue  # a fault of the parameters, which has been reported
        for one in space.derived:
            try:
                config = derive(config, (one,), "")
            except RazError as error:
                if one.name not in reported:
                    reported.add(one.name)
                    at = f" (where {', '.join(f'{k} is {v}' for k, v in point.items())})" if point else ""
                    first = flatten_errors(error)[0]
                    faults.add(("derive", one.name), f"{first.what}{at}", first.hint)
                break


def _try_design(space: SearchSpace, faults: Problems) -> None:
    """A design's points are known now, so what is wrong with them is told now."""
    if space.sampler == "ofat":
        centre = space.centre()
        for parameter in space.parameters:
            if parameter.name not in centre:
                what = f"{parameter.name}: the base's value is none of its values, and the base is the centre of ofat"
                faults.add(
                    ("parameters", parameter.name), what, f"add {_base_values(space.base, parameter)}, or sampler: loo"
                )
    if faults.found:
        return
    try:
        _ = space.points
    except RazError as error:
        place: Place = ("parameters", error.parameter) if error.parameter else ("design",)
        faults.add(place, error.what, error.hint)


def _base_values(base: TrialConfig, parameter: Parameter) -> str:
    values = flat(base)
    return ", ".join(json.dumps(values[n]) if not parameter.sets else f"{n}: {values[n]}" for n in parameter.names())


def _section(data: Mapping[str, Any], name: str, faults: Problems, legal: tuple[str, ...]) -> dict[str, Any]:
    section = data.get(name, {})
    if not isinstance(section, dict):
        faults.add((name,), f"{name} is {describe_value(section)}, expected keys with values", f"{{{legal[0]}: …}}")
        return {}
    faults.keys((name,), section, legal)
    return section


def _choice(section: Mapping[str, Any], place: Place, legal: tuple[str, ...], default: str, faults: Problems) -> str:
    value = section.get(str(place[-1]), default)
    if value not in legal:
        name = ".".join(str(part) for part in place if not isinstance(part, int))
        faults.add(
            place,
            f"{name} is {describe_value(value)}, expected one of {', '.join(legal)}",
            did_you_mean(str(value), legal),
        )
        return default
    return str(value)


def _integer(section: Mapping[str, Any], place: Place, default: int, low: int, high: int, faults: Problems) -> int:
    value = section.get(str(place[-1]), default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        name = ".".join(map(str, place))
        faults.add(place, f"{name} is {describe_value(value)}, expected a whole number from {low} to {high}")
        return default
    return value


def _plain_name(study: Any) -> str:
    plain = re.sub(r"[^a-z0-9_-]+", "-", str(study).lower()).strip("-")[:64]
    return f"study: {plain or 'my-study'}"
