"""What a search space's YAML file may hold. `raz.spec.space_yaml` checks what depends on several sections."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from raz.config import PRESETS, parameter_types
from raz.spec import parameter_yaml
from raz.spec.base_config import BASE, BaseSection
from raz.spec.designs import DESIGNS
from raz.spec.search_space import (
    CANDIDATE_SAMPLERS,
    DIRECTIONS,
    MAX_CANDIDATES,
    MOST_TRIALS,
    POPULATION_SAMPLERS,
    SAMPLERS,
    STUDY_NAME,
)
from raz.spec.stage_resources import SCHEMA as RESOURCES
from raz.spec.stage_resources import Resources
from raz.utils.json_types import Json
from raz.utils.schema import (
    Anything,
    Either,
    ListOf,
    MapOf,
    Record,
    Scalar,
    WithPath,
    choice,
    integer,
    key,
    matching,
    text,
)
from raz.utils.yamlfile import Document, Problems

MOST_SEEDS = 100
MOST_OBJECTIVES = 8
_SEEDS_EXPECTED = f"a list of seeds or how many, up to {MOST_SEEDS}"
_ARITHMETIC = "localization.train.lr: counting.train.lr * 0.5"


def _first_seeds(value: Json) -> tuple[int, ...] | None:
    """`seeds: 3` are 0, 1 and 2."""
    count = integer(1, MOST_SEEDS).convert(value)
    return None if count is None else tuple(range(count))


def _plain_name(value: Json) -> str:
    plain = re.sub(r"[^a-z0-9_-]+", "-", str(value).lower()).strip("-")[:64]
    return f"study: {plain or 'my-study'}"


_SEEDS = Either(
    lambda value: isinstance(value, list),
    ListOf(integer(0, 2**31 - 1, "whole numbers from 0 on"), _SEEDS_EXPECTED, "3", fewest=1, most=MOST_SEEDS),
    Scalar(_first_seeds, _SEEDS_EXPECTED, "3"),
)


@dataclass(frozen=True)
class DesignSection:
    """`design:` as the file has it."""

    sampler: str = key(choice(SAMPLERS), default="tpe")
    seed: int = key(integer(0, 2**32 - 1), default=0)
    trials: int = key(integer(1, MOST_TRIALS), default=MOST_TRIALS)
    population: int | None = key(integer(2, MOST_TRIALS), default=None)
    proposals: int = key(integer(1, MAX_CANDIDATES), default=1)
    seeds: tuple[int, ...] = key(_SEEDS, default=())


@dataclass(frozen=True)
class ProfileBase:
    """`base:` of a profile: what it sets in place of the file's base."""

    preset: str | None = key(choice(PRESETS), default=None)
    dataset: str | None = key(text("the name of a data set"), default=None)
    set: Mapping[str, Json] = key(MapOf(Anything(), "dotted names with values", "seed: 1"), default={})


@dataclass(frozen=True)
class ProfileSection:
    """A profile as the file has it: what it changes on the rest of the file."""

    base: ProfileBase = key(Record(ProfileBase, hint="{preset: small, dataset: shanghaitech_a}"), default=ProfileBase())
    trials: int | None = key(integer(1, MOST_TRIALS), default=None)
    seeds: tuple[int, ...] = key(_SEEDS, default=())  # those of the design where it has none


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
    profiles: Mapping[str, ProfileSection] = key(
        MapOf(Record(ProfileSection, "base, trials and seeds", "{base: {preset: small, dataset: shanghaitech_a}}"),
              "names with what they change", "small: {base: {preset: small, dataset: shanghaitech_a}}",
              may_be_empty=False),
        default={},
    )  # fmt: skip
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


SPACE_FILE = Record(SpaceFile)
ONE_OBJECTIVE = Record(ObjectiveSection, hint="{metric: val.mae}")
OBJECTIVES = ListOf(
    WithPath(Record(ListedObjective, hint="{metric: val.mae}")), f"1 to {MOST_OBJECTIVES} metrics",
    "[{metric: val.mae}]", fewest=1, most=MOST_OBJECTIVES, repeats=True,
)  # fmt: skip


def check_design(document: Document, design: DesignSection, problems: Problems) -> None:
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
