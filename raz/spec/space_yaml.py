"""YAML -> SearchSpace. All faults of a file are reported together, each with `file:line`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from raz.config import Settings, TrialConfig, configure
from raz.config import parameters as flat
from raz.errors import RazError, flatten_errors
from raz.spec import parameter_yaml
from raz.spec.base_config import BaseSection, base_config
from raz.spec.derived import Derived, derive, parse_derived, topological_order
from raz.spec.metric_names import LOCALIZATION_METRICS, ONE_TO_ONE_METRICS, metric_names
from raz.spec.parameter import Parameter, Point
from raz.spec.parameter_yaml import activating_values, extreme_values, read_parameters
from raz.spec.profiles import choose_profile, default_profile, profile_study
from raz.spec.pruner_yaml import read_pruning
from raz.spec.search_space import STUDY_NAME, Objective, SearchSpace, threads_of
from raz.spec.space_schema import (
    OBJECTIVES,
    ONE_OBJECTIVE,
    SPACE_FILE,
    ListedObjective,
    ObjectiveSection,
    ProfileSection,
    SpaceFile,
    check_design,
)
from raz.spec.stage_resources import check_threads
from raz.utils.json_types import Json
from raz.utils.ordering import CycleError
from raz.utils.schema import Located, read_or
from raz.utils.suggestions import did_you_mean
from raz.utils.yamlfile import Document, Problems, YamlPath, describe_value, read


def load_space(
    path: Path,
    name: str = "",
    settings: Settings | None = None,
    profile: str | None = None,
    *,
    data_root: Path | None = None,
) -> SearchSpace:
    """The search space in a file.

    name: the file as messages name it, by default its path.
    settings: of `--set`; they replace values of the base of `profile` (None: the default profile).
    data_root: where data sets that are not published are; None for the environment's RAZ_DATA_ROOT.

    Raises RazError(s) with `file:line`, all faults at once, and OSError where the file cannot be read.
    """
    return parse_space(read(path, name, strict=False), settings, profile, data_root=data_root)


def parse_space(
    document: Document,
    settings: Settings | None = None,
    profile: str | None = None,
    *,
    data_root: Path | None = None,
) -> SearchSpace:
    """The search space of a document under a profile. See `load_space`. The other profiles are checked as well."""
    problems = Problems(document, unnamed=(parameter_yaml.SECTION,))
    file = SPACE_FILE.read(document.data, (), problems)
    check_design(document, file.design, problems)
    _check_profile_names(file, problems)
    names = tuple(file.profiles) or ("",)
    chosen = default_profile(file.profiles) if profile is None else profile
    spaces: dict[str, SearchSpace | None] = {}
    found: dict[str, list[RazError]] = {}
    for name in names:
        own = Problems(replace(document, faults=()), unnamed=problems.unnamed)
        # Settings that fit the profile that is run, such as pretrained weights, need not fit the others.
        own_settings = (settings or {}) if name == chosen else {}
        spaces[name] = _space(file, name, own_settings, own, not problems.faults, data_root)
        found[name] = own.faults
    problems.faults += _faults_of_profiles(found)
    problems.raise_if_any()
    space = spaces[choose_profile(profile, file.profiles, document.name)]
    assert space is not None  # else there were faults
    return space


def _check_profile_names(file: SpaceFile, problems: Problems) -> None:
    """Note names of profiles that cannot be part of a study's name."""
    default = default_profile(file.profiles)
    for name in file.profiles:
        study = profile_study(file.study, name, default)
        if not STUDY_NAME.fullmatch(name):
            problems.add(("profiles", name), f"profile {name!r}, expected a name of a-z, 0-9, _ and -", "small")
        elif file.study and not STUDY_NAME.fullmatch(study):
            what = f"the study of profile {name} would be {study}, of more than 64 letters"
            problems.add(("profiles", name), what, "a shorter name of the study or the profile")


def _faults_of_profiles(found: Mapping[str, list[RazError]]) -> list[RazError]:
    """Every fault once. Where a fault is no fault under other profiles, and its place does not say it, its text has the
    profiles that it belongs to."""
    first: dict[tuple[str, str], RazError] = {}
    profiles: dict[tuple[str, str], list[str]] = {}
    for profile, faults in found.items():
        for fault in faults:
            first.setdefault((fault.where, fault.what), fault)
            profiles.setdefault((fault.where, fault.what), []).append(profile)
    out = []
    for same, fault in first.items():
        among = list(dict.fromkeys(profiles[same]))
        if len(among) == len(found) or fault.parameter.startswith("profiles."):
            out.append(fault)
        else:
            noun = "profile" if len(among) == 1 else "profiles"
            what = f"{fault.what} ({noun} {', '.join(among)})"
            out.append(RazError(fault.where, what, fault.hint, fault.parameter))
    return out


def _space(
    file: SpaceFile, profile: str, settings: Settings, problems: Problems, readable: bool, data_root: Path | None
) -> SearchSpace | None:
    """The search space of one profile; '' for a file without profiles.

    None where there are faults, which are noted, or where the file has some already (not `readable`).
    """
    changes = file.profiles.get(profile, ProfileSection())
    section, paths = _base_section(file.base, changes, profile)
    design = replace(
        file.design, trials=changes.trials or file.design.trials, seeds=changes.seeds or file.design.seeds
    )  # fmt: skip
    seeds_path: YamlPath = ("profiles", profile, "seeds") if changes.seeds else ("design", "seeds")
    path: YamlPath = ("profiles", profile, "base") if profile else ("base",)
    base = base_config(section, problems, settings, path, paths=paths, data_root=data_root)
    parameters = read_parameters(file.parameters, problems, base, design.sampler, data_root)
    objectives = _objectives(file.objective, problems, base, parameters)
    pruning = read_pruning(file.pruner, problems, base, objectives)
    derived = _derived(file.derive, section, problems, parameters)
    _reject_double_settings(seeds_path if design.seeds else (), parameters, derived, settings, problems)
    check_threads(file.resources, threads_of(base, parameters), problems)
    _check_sampler_supports(design.sampler, objectives, parameters, problems)
    if problems.faults or not readable:
        return None
    space = SearchSpace(
        study=profile_study(file.study, profile, default_profile(file.profiles)), base=base, parameters=parameters,
        sampler=design.sampler, trials=design.trials, seed=design.seed, seeds=design.seeds,
        population=design.population, proposals=design.proposals, objectives=objectives, pruning=pruning,
        derived=derived, resources=file.resources, source=problems.document.name, comment=problems.document.comment,
    )  # fmt: skip
    _try_derived(space, problems)
    _try_design(space, problems)
    return space


def _base_section(base: BaseSection, changes: ProfileSection, profile: str) -> tuple[BaseSection, dict[str, YamlPath]]:
    """The file's base with what a profile changes on it, and where the file sets each of its parameters."""
    over = changes.base
    paths: dict[str, YamlPath] = {} if base.dataset is None else {"dataset": ("base", "dataset")}
    paths |= {name: ("base", "set", name) for name in base.set}
    if over.dataset is not None:
        paths["dataset"] = ("profiles", profile, "base", "dataset")
    paths |= {name: ("profiles", profile, "base", "set", name) for name in over.set}
    dataset = base.dataset if over.dataset is None else over.dataset
    return BaseSection(over.preset or base.preset, dataset, {**base.set, **over.set}), paths


def _objectives(
    raw: Json, problems: Problems, base: TrialConfig, parameters: tuple[Parameter, ...]
) -> tuple[Objective, ...]:
    """`{metric, direction}`, or a list of them."""
    sections: tuple[Located[ListedObjective] | Located[ObjectiveSection], ...]
    if isinstance(raw, list):
        sections = read_or(OBJECTIVES, raw, ("objective",), problems, ())
    else:
        only = read_or(ONE_OBJECTIVE, raw, ("objective",), problems, ObjectiveSection())
        sections = (Located(only, ("objective",)),)
    searched = {name for p in parameters for name in p.names()}
    legal = metric_names(base, "val")
    out: list[Objective] = []
    for section in sections:
        metric, path = section.value.metric, (*section.path, "metric")
        if not isinstance(metric, str) or not (metric in legal or _may_be_scored(metric, searched)):
            _note_wrong_metric(metric, path, base, problems)
        elif metric in [o.metric for o in out]:
            problems.add(path, f"objective has {metric} twice", "leave one out")
        out.append(Objective(str(metric), section.value.direction))
    return tuple(out) or (Objective("val.mae"),)


def _may_be_scored(metric: str, searched: Collection[str]) -> bool:
    """Whether a metric of points may be at a sigma or radius that the search proposes."""
    stem, at, _ = metric.partition(".")[2].partition("@")
    field = "metrics.radii" if stem in ONE_TO_ONE_METRICS else "metrics.sigmas"
    return bool(at) and field in searched


def _note_wrong_metric(metric: Json, path: YamlPath, base: TrialConfig, problems: Problems) -> None:
    """Note why a metric cannot be an objective."""
    name = problems.name(path)
    if not isinstance(metric, str) or not metric.startswith("val."):
        hint = "val.mae"
        if isinstance(metric, str) and metric.startswith("test."):
            hint = f"val.{metric.removeprefix('test.')}: the test split is for the rows of a report only"
        problems.wrong(path, describe_value(metric), "a metric of the validation split", hint)
        return
    stem, at, value = metric.removeprefix("val.").partition("@")
    if stem in (*LOCALIZATION_METRICS, *ONE_TO_ONE_METRICS) and at:
        radius, of = stem in ONE_TO_ONE_METRICS, base.metrics
        word, field, scored = ("radius", "radii", of.radii) if radius else ("sigma", "sigmas", of.sigmas)
        what = f"{name} is {metric!r}, and the base scores {word} {', '.join(f'{v:g}' for v in scored)} only"
        problems.add(path, what, f"metrics.{field}: [{value}]")
        return
    what = f"{name} is {metric!r}, which no trial scores"
    problems.add(path, what, did_you_mean(metric, metric_names(base, "val")))


def _derived(
    section: Mapping[str, str], base: BaseSection, problems: Problems, parameters: tuple[Parameter, ...]
) -> tuple[Derived, ...]:
    """The derived parameters, each after those it reads."""
    out: dict[str, Derived] = {}
    for name, arithmetic in section.items():
        path: YamlPath = ("derive", name)
        if any(name in p.names() for p in parameters):
            problems.add(path, f"{name} is both searched and derived", "leave one out")
        if name in base.set:
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
    seeds_path: YamlPath,
    parameters: tuple[Parameter, ...],
    derived: tuple[Derived, ...],
    settings: Settings,
    problems: Problems,
) -> None:
    """Note parameters that are set in two places, where one value would be overwritten. Raises RazError if one of the
    places is `--set`. `seeds_path` is where the file lists the seeds; () for a file that lists none."""
    source = problems.document.name
    set_by_file = {name: f"{source} searches it" for p in parameters for name in p.names()}
    set_by_file |= {d.name: f"{source} derives it" for d in derived}
    if seeds_path:
        if "seed" in set_by_file:
            problems.add(seeds_path, "the seed is among the parameters too", "leave one out")
        set_by_file["seed"] = f"{source} has {problems.name(seeds_path)}"
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
