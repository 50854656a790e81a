"""SearchSpace: what a study searches. `raz.spec.space_yaml` reads one from YAML."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from raz.config import TrialConfig, added, changed_since, configure, parameters, without_before
from raz.spec.derived import Derived, derive
from raz.spec.designs import DESIGNS, points_of
from raz.spec.parameter import Parameter, Point, SuggestApi
from raz.spec.stage_resources import Resources
from raz.utils.json_types import Json

SAMPLERS = ("tpe", "random", "grid", "cma-es", "nsga-ii", "loo", "ofat", "factorial", "pairs")
POPULATION_SAMPLERS = ("cma-es", "nsga-ii")  # samplers that draw a generation at a time
CANDIDATE_SAMPLERS = ("tpe", "random")  # samplers that may draw several candidates per trial
MAX_CANDIDATES = 64
SEARCH_SPLITS = ("val",)  # that a search scores
DIRECTIONS = ("minimize", "maximize")
STUDY_NAME = re.compile(r"[a-z0-9_-]{1,64}")
MOST_TRIALS = 1_000_000


@dataclass(frozen=True)
class Objective:
    """A metric of the validation split, and whether it is minimized or maximized."""

    metric: str
    direction: str = "minimize"


@dataclass(frozen=True)
class Pruning:
    """Which trials are stopped early: a pruner of Optuna by name, with its options as the file writes them."""

    name: str = "none"
    options: Mapping[str, float] = field(default_factory=dict)
    stages: tuple[str, ...] = ()  # trained stages whose validation values it compares
    inner: Pruning | None = None  # of `patient`: the pruner that decides once patience has run out

    def meaning(self) -> dict[str, Json]:
        """The pruner in a study's meaning. A field that was `added` is left out while it has its `before` value."""
        out: dict[str, Json] = {"name": self.name, **self.options, **changed_since(self)}
        if self.stages:
            out["stages"] = list(self.stages)
        if self.inner is not None:
            out["pruner"] = self.inner.meaning()
        return out


@dataclass(frozen=True)
class SearchSpace:
    """What a study searches: the base, the parameters that vary, the sampler, and the objectives."""

    study: str
    base: TrialConfig
    parameters: tuple[Parameter, ...]  # each after those its conditions name
    sampler: str = "tpe"
    trials: int = 1
    seed: int = 0  # of the sampler
    seeds: tuple[int, ...] = ()  # of the trials
    population: int | None = None
    proposals: int = added(default=1, before=1)  # candidates drawn per trial, of which the cheapest is taken
    objectives: tuple[Objective, ...] = (Objective("val.mae"),)
    pruning: Pruning = Pruning()
    derived: tuple[Derived, ...] = ()  # each after those it reads
    resources: Mapping[str, Resources] = field(default_factory=dict, compare=False)  # by stage, or `all`
    source: str = ""
    comment: str = field(default="", compare=False)

    @property
    def metric(self) -> str:
        """The metric of the first objective."""
        return self.objectives[0].metric

    @property
    def direction(self) -> str:
        """The direction of the first objective."""
        return self.objectives[0].direction

    # ------------------------------------------------------------------ trials

    @property
    def fixed(self) -> bool:
        """Whether all its points are known before the study runs."""
        return self.sampler in DESIGNS

    @property
    def overcommits(self) -> bool:
        """Whether more trials may start than can run at once.

        A sampler or pruner that learns from results would know fewer of them. But trials that were chosen to share
        stages wait for one another, which would leave slots idle.
        """
        learns = not (self.fixed or self.sampler == "random") or self.pruning.name != "none"
        return not learns or self.proposals > 1

    @property
    def averaged_seeds(self) -> tuple[int, ...]:
        """The seeds over which every trial is averaged; empty where a trial has one seed."""
        return self.seeds if not self.fixed or self.sampler == "grid" else ()

    @property
    def sampled_parameters(self) -> tuple[Parameter, ...]:
        """The parameters, and the seed where every seed is a trial of its own."""
        if self.seeds and not self.averaged_seeds:
            return (*self.parameters, Parameter("seed", "choice", tuple(self.seeds)))
        return self.parameters

    def suggest(self, trial: SuggestApi) -> Point:
        """Draw the values of a trial: name -> value, active parameters only."""
        values: Point = {}
        for parameter in self.sampled_parameters:
            if parameter.active(values):
                values[parameter.name] = parameter.draw(trial)
        return values

    def settings(self, values: Mapping[str, Json]) -> dict[str, Json]:
        """Drawn values as dotted names with values; a named choice becomes all that it sets."""
        by_name = {p.name: p for p in self.parameters if p.sets}
        out: dict[str, Json] = {}
        for name, value in values.items():
            out |= by_name[name].settings(value) if name in by_name else {name: value}
        return out

    def config(self, values: Mapping[str, Json]) -> TrialConfig:
        """The base with these values and what derives from them. Raises RazError for values that are illegal
        together."""
        where = f"study {self.study}"
        return derive(configure(self.base, self.settings(values), where), self.derived, where)

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """All points of a fixed design, in order; empty for a search. Raises RazError when there are too many."""
        if not self.fixed:
            return ()
        return points_of(self.sampler, self.parameters, self.centre(), self.seeds)

    def centre(self) -> Point:
        """The base as a point: for each parameter the value that equals the base's; missing where there is none."""
        out: Point = {}
        for parameter in self.parameters:
            for value in _enumerable_values(parameter):
                if configure(self.base, parameter.settings(value), "centre") == self.base:
                    out[parameter.name] = value
                    break
        return out

    @property
    def target(self) -> int:
        """Number of trials to run; for a design at most its points."""
        return min(self.trials, len(self.points)) if self.fixed else self.trials

    # ------------------------------------------------------------------ threads and meaning

    @property
    def threads(self) -> int:
        """The largest number of CPU threads of a trial."""
        return threads_of(self.base, self.parameters)

    def meaning(self) -> dict[str, Json]:
        """What identifies the study, flat. The number of trials is left out, since a study may be extended.

        A field of the base or the design that was `added` is left out while it has its `before` value. So the meaning
        of an old study and of its file stays the same.
        """
        out: dict[str, Json] = {
            "objective.metric": self.metric,
            "objective.direction": self.direction,
            "objective.others": [[o.metric, o.direction] for o in self.objectives[1:]],
            "design.sampler": self.sampler,
            "design.seed": self.seed,
            "design.seeds": list(self.seeds),
            "design.population": self.population,
            "pruner": self.pruning.meaning(),
        }
        out.update({f"design.{name}": value for name, value in changed_since(self).items()})
        out.update({f"base.{name}": value for name, value in without_before(parameters(self.base)).items()})
        out.update({f"parameters.{p.name}": p.meaning() for p in self.parameters})
        out.update({f"derive.{d.name}": d.text for d in self.derived})
        loaded: dict[str, Json] = json.loads(json.dumps(out))
        return loaded

    def digest(self) -> str:
        """sha256 (hex) of the meaning."""
        return hashlib.sha256(json.dumps(self.meaning(), sort_keys=True).encode()).hexdigest()


def _enumerable_values(parameter: Parameter) -> tuple[Json, ...]:
    """All values of a parameter; empty for a range of floats with neither step nor grid."""
    return parameter.values() if parameter.kind != "float" or parameter.step or parameter.grid else ()


def threads_of(base: TrialConfig, parameters: tuple[Parameter, ...]) -> int:
    """The largest number of CPU threads of a trial."""
    counts = [base.threads]
    for parameter in parameters:
        if "threads" in parameter.names():
            ends = parameter.choices if parameter.kind == "choice" else (parameter.low, parameter.high)
            threads = [parameter.settings(value).get("threads") for value in ends]
            counts += [n for n in threads if isinstance(n, int)]  # another type is a fault of the file
    return max(counts)
