"""YAML -> SearchSpace. All faults of a file are reported together, each with `file:line`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from raz.config import Settings, TrialConfig, configure, parameter_types
from raz.config import parameters as flat
from raz.errors import RazError, flatten_errors
from raz.spec import parameter_yaml
from raz.spec.base_config import BASE, BaseSection, base_config
from raz.spec.derived import Derived, derive, parse_derived, topological_order
from raz.spec.designs import DESIGNS
from raz.spec.metric_names import LOCALIZATION_METRICS, metric_names
from raz.spec.parameter import Parameter, Point
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
from raz.spec.stage_resources import SCHEMA as RESOURCES
from raz.spec.stage_resources import Resources, check_threads
from raz.utils.json_types import Json
from raz.utils.ordering import CycleError
from raz.utils.schema import (
    Anything,
    Either,
    ListOf,
    Located,
    MapOf,
    Record,
    Scalar,
    WithPath,
    choice,
    integer,
    key,
    matching,
    read_or,
    text,
)
from raz.utils.suggestions import did_you_mean
from raz.utils.yamlfile import Document, Problems, YamlPath, describe_value, read

MOST_SEEDS = 100
MOST_OBJECTIVES = 8
_SEEDS = f"a list of seeds or how many, up to {MOST_SEEDS}"
_ARITHMETIC = "localization.train.lr: counting.train.lr * 0.5"


def _first_seeds(value: Json) -> tuple[int, ...] | None:
    """`seeds: 3` are 0, 1 and 2."""
    count = integer(1, MOST_SEEDS).convert(value)
    return None if count is None else tuple(range(count))


def _plain_name(value: Json) -> str:
    plain = re.sub(r"[^a-z0-9_-]+", "-", str(value).lower()).strip("-")[:64]
    return f"study: {plain or 'my-study'}"


@dataclass(frozen=True)
class DesignSection:
    """`design:` as the file has it."""

    sampler: str = key(choice(SAMPLERS), default="tpe")
    seed: int = key(integer(0, 2**32 - 1), default=0)
    trials: int = key(integer(1, MOST_TRIALS), default=MOST_TRIALS)
    population: int | None = key(integer(2, MOST_TRIALS), default=None)
    proposals: int = key(integer(1, MAX_CANDIDATES), default=1)
    seeds: tuple[int, ...] = key(
        Either(
            lambda value: isinstance(value, list),
            ListOf(integer(0, 2**31 - 1, "whole numbers from 0 on"), _SEEDS, "3", fewest=1, most=MOST_SEEDS),
            Scalar(_first_seeds, _SEEDS, "3"),
        ),
        default=(),
    )


@dataclass(frozen=True)
class ObjectiveSection:
    """`objective:` as the file has it. Which metrics are legal follows from the base."""

    metric: Json = key(Anything(), default="val.mae")
    direction: str = key(choice(DIRECTIONS), default="minimize")


@dataclass(frozen=True)
class ListedObjective(ObjectiveSection):
    """One of several objectives, which must name its metric."""

    metric: Json = key(Anything(), default="val.mae", required=True)


@dataclass(frozen=True)
class SpaceFile:
    """A file of a search space. What depends on other sections is checked after reading."""

    study: str = key(matching(STUDY_NAME, "1 to 64 of a-z, 0-9, _ and -", _plain_name), default="", required=True)
    base: BaseSection = key(BASE, default=BaseSection())
    design: DesignSection = key(Record(DesignSection, hint="{sampler: …}"), default=DesignSection(), required=True)
    objective: Json = key(Anything(), default={})
    pruner: Json = key(Anything(), default={})
    resources: Mapping[str, Resources] = key(RESOURCES, default={})
    parameters: Mapping[str, Json] = key(parameter_yaml.SCHEMA, default={}, required=True)
    derive: Mapping[str, str] = key(
        MapOf(text("arithmetic as text", _ARITHMETIC), "dotted names with arithmetic", _ARITHMETIC,
              keys=parameter_types(), noun="parameter"),
        default={},
    )  # fmt: skip


_FILE = Record(SpaceFile)
_ONE_OBJECTIVE = Record(ObjectiveSection, hint="{metric: val.mae}")
_OBJECTIVES = ListOf(
    WithPath(Record(ListedObjective, hint="{metric: val.mae}")), f"1 to {MOST_OBJECTIVES} metrics",
    "[{metric: val.mae}]", fewest=1, most=MOST_OBJECTIVES, repeats=True,
)  # fmt: skip


def load_space(
    path: Path, name: str = "", settings: Settings | None = None, *, data_root: Path | None = None
) -> SearchSpace:
    """The search space in a file.

    name: the file as messages name it, by default its path.
    settings: of `--set`; they replace values of the file's base.
    data_root: where data sets that are not published are; None for the environment's RAZ_DATA_ROOT.

    Raises RazError(s) with `file:line`, all faults at once, and OSError where the file cannot be read.
    """
    return parse_space(read(path, name, strict=False), settings, data_root=data_root)


def parse_space(document: Document, settings: Settings | None = None, *, data_root: Path | None = None) -> SearchSpace:
    """The search space of a document. See `load_space`."""
    problems, settings = Problems(document, unnamed=(parameter_yaml.SECTION,)), settings or {}
    file = _FILE.read(document.data, (), problems)
    base = base_config(file.base, problems, settings, data_root=data_root)
    _check_design(document, file.design, problems)
    parameters = read_parameters(file.parameters, problems, base, file.design.sampler, data_root)
    objectives = _objectives(file.objective, problems, base, parameters)
    pruning = read_pruning(file.pruner, problems, base, objectives)
    derived = _derived(file, problems, parameters)
    _reject_double_settings(file, parameters, derived, settings, problems)
    check_threads(file.resources, threads_of(base, parameters), problems)
    _check_sampler_supports(file.design.sampler, objectives, parameters, problems)
    problems.raise_if_any()
    space = SearchSpace(
        study=file.study, base=base, parameters=parameters, sampler=file.design.sampler, trials=file.design.trials,
        seed=file.design.seed, seeds=file.design.seeds, population=file.design.population,
        proposals=file.design.proposals, objectives=objectives, pruning=pruning, derived=derived,
        resources=file.resources, source=document.name, comment=document.comment,
    )  # fmt: skip
    _try_derived(space, problems)
    _try_design(space, problems)
    problems.raise_if_any()
    return space


def _check_design(document: Document, design: DesignSection, problems: Problems) -> None:
    """Note options of the design that its sampler lacks or does not take."""
    raw, sampler = document.data.get("design"), design.sampler
    keys = raw if isinstance(raw, dict) else {}
    if "design" in document.data and sampler not in DESIGNS and "trials" not in keys:
        problems.add(("design",), "design.trials is missing", "trials: 40")
    if "population" in keys and sampler not in POPULATION_SAMPLERS:
        what = f"design.population is not for {sampler}, which draws no generations"
        problems.add(("design", "population"), what, f"sampler: {POPULATION_SAMPLERS[-1]}, or leave it out")
    if design.proposals > 1 and sampler not in CANDIDATE_SAMPLERS:
        why = "all of whose trials are known" if sampler in DESIGNS else "which needs the results of all that it draws"
        what = f"design.proposals is not for {sampler}, {why}"
        problems.add(("design", "proposals"), what, f"sampler: {CANDIDATE_SAMPLERS[0]}, or leave it out")


def _objectives(
    raw: Json, problems: Problems, base: TrialConfig, parameters: tuple[Parameter, ...]
) -> tuple[Objective, ...]:
    """`{metric, direction}`, or a list of them."""
    sections: tuple[Located[ListedObjective] | Located[ObjectiveSection], ...]
    if isinstance(raw, list):
        sections = read_or(_OBJECTIVES, raw, ("objective",), problems, ())
    else:
        only = read_or(_ONE_OBJECTIVE, raw, ("objective",), problems, ObjectiveSection())
        sections = (Located(only, ("objective",)),)
    searches_sigmas = any("metrics.sigmas" in p.names() for p in parameters)
    legal = metric_names(base, "val")
    out: list[Objective] = []
    for section in sections:
        metric, path = section.value.metric, (*section.path, "metric")
        if not isinstance(metric, str) or not (metric in legal or (searches_sigmas and "@" in metric)):
            _note_wrong_metric(metric, path, base, problems)
        elif metric in [o.metric for o in out]:
            problems.add(path, f"objective has {metric} twice", "leave one out")
        out.append(Objective(str(metric), section.value.direction))
    return tuple(out) or (Objective("val.mae"),)


def _note_wrong_metric(metric: Json, path: YamlPath, base: TrialConfig, problems: Problems) -> None:
    """Note why a metric cannot be an objective."""
    name = problems.name(path)
    if not isinstance(metric, str) or not metric.startswith("val."):
        hint = "val.mae"
        if isinstance(metric, str) and metric.startswith("test."):
            hint = f"val.{metric.removeprefix('test.')}: the test split is for the rows of a report only"
        problems.wrong(path, describe_value(metric), "a metric of the validation split", hint)
        return
    stem, at, sigma = metric.removeprefix("val.").partition("@")
    if stem in LOCALIZATION_METRICS and at:
        sigmas = ", ".join(f"{s:g}" for s in base.metrics.sigmas)
        what = f"{name} is {metric!r}, and the base scores sigma {sigmas} only"
        problems.add(path, what, f"metrics.sigmas: [{sigma}]")
        return
    what = f"{name} is {metric!r}, which no trial scores"
    problems.add(path, what, did_you_mean(metric, metric_names(base, "val")))


def _derived(file: SpaceFile, problems: Problems, parameters: tuple[Parameter, ...]) -> tuple[Derived, ...]:
    """The derived parameters, each after those it reads."""
    out: dict[str, Derived] = {}
    for name, arithmetic in file.derive.items():
        path: YamlPath = ("derive", name)
        if any(name in p.names() for p in parameters):
            problems.add(path, f"{name} is both searched and derived", "leave one out")
        if name in file.base.set:
            problems.add(path, f"{name} is both derived and set in the base", "leave one out")
        try:
            out[name] = parse_derived(name, arithmetic)
        except RazError as error:
            problems.add(path, error.what, error.hint)
    try:
        return topological_order(out)
    except CycleError as error:
        problems.add(("derive", error.names[0]), f"the derived values go in a circle: {error}")
        return ()


def _reject_double_settings(
    file: SpaceFile,
    parameters: tuple[Parameter, ...],
    derived: tuple[Derived, ...],
    settings: Settings,
    problems: Problems,
) -> None:
    """Note parameters that are set in two places, where one value would be overwritten. Raises RazError if one of the
    places is `--set`."""
    source = problems.document.name
    set_by_file = {name: f"{source} searches it" for p in parameters for name in p.names()}
    set_by_file |= {d.name: f"{source} derives it" for d in derived}
    if file.design.seeds:
        if "seed" in set_by_file:
            problems.add(("design", "seeds"), "the seed is among the parameters too", "leave one out")
        set_by_file["seed"] = f"{source} has design.seeds"
    for name, value in settings.items():
        if name in set_by_file:
            raise RazError(
                f"--set {name}", f"{set_by_file[name]}, so a trial would overwrite the value",
                f"set it in the file: {name}: {{choice: [{value}]}}", name,
            )  # fmt: skip


def _check_sampler_supports(
    sampler: str, objectives: tuple[Objective, ...], parameters: tuple[Parameter, ...], problems: Problems
) -> None:
    """Note what CMA-ES cannot search."""
    if sampler != "cma-es":
        return
    if len(objectives) > 1:
        problems.add(("design", "sampler"), "cma-es takes one objective", "sampler: nsga-ii, or tpe")
    if parameters and not any(p.kind != "choice" and not p.when for p in parameters):
        what = "cma-es moves through ranges, and no parameter is one that every trial has"
        problems.add(("design", "sampler"), what, "sampler: tpe")


def _try_derived(space: SearchSpace, problems: Problems) -> None:
    """Compute the derived parameters for the base, for every choice and for both ends of each range; note faults."""
    if not space.derived:
        return
    by_name = {p.name: p for p in space.parameters}
    points: list[Point] = [{}]
    for parameter in space.parameters:
        active = activating_values(parameter, by_name)
        points += [{**active, parameter.name: value} for value in extreme_values(parameter)]
    reported: set[str] = set()
    for point in points:
        try:
            config = configure(space.base, space.settings(point))
        except RazError:
            continue  # a fault of the parameters: every one of them was tried on the base before
        for one in space.derived:
            try:
                config = derive(config, (one,), "")
            except RazError as error:
                if one.name not in reported:
                    reported.add(one.name)
                    condition = f" (where {', '.join(f'{k} is {v}' for k, v in point.items())})" if point else ""
                    first = flatten_errors(error)[0]
                    problems.add(("derive", one.name), f"{first.what}{condition}", first.hint)
                break  # the others may read it


def _try_design(space: SearchSpace, problems: Problems) -> None:
    """Note the faults of a design's points, which are known before it runs."""
    try:
        centre = space.centre() if space.sampler == "ofat" else {}
    except RazError as error:
        problems.add((parameter_yaml.SECTION, error.parameter), error.what, error.hint)
        return
    if space.sampler == "ofat":
        for parameter in space.parameters:
            if parameter.name not in centre:
                what = f"{parameter.name}: the base's value is none of its values, and the base is the centre of ofat"
                hint = f"add {_base_values(space.base, parameter)}, or sampler: loo"
                problems.add((parameter_yaml.SECTION, parameter.name), what, hint)
    if problems.faults:
        return
    try:
        _ = space.points
    except RazError as error:
        path: YamlPath = (parameter_yaml.SECTION, error.parameter) if error.parameter else ("design",)
        problems.add(path, error.what, error.hint)


def _base_values(base: TrialConfig, parameter: Parameter) -> str:
    values = flat(base)
    return ", ".join(json.dumps(values[n]) if not parameter.sets else f"{n}: {values[n]}" for n in parameter.names())
