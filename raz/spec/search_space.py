"""SearchSpace: a question about the hyperparameters. `raz.spec.space_yaml` reads one from YAML."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from raz.config import TrialConfig, added, changed_since, configure, parameters, without_before
from raz.spec.derived import Derived, derive
from raz.spec.designs import DESIGNS, Point, points_of
from raz.spec.parameter import Parameter, SuggestApi
from raz.spec.stage_resources import Resources

SAMPLERS = ("tpe", "random", "grid", "cma-es", "nsga-ii", "loo", "ofat", "factorial", "pairs")
POPULATION_SAMPLERS = ("cma-es", "nsga-ii")  # samplers that draw a generation at a time
CANDIDATE_SAMPLERS = ("tpe", "random")  # samplers of which any draw may be left out
MAX_CANDIDATES = 64
SPLITS = ("val",)  # that a search scores
DIRECTIONS = ("minimize", "maximize")
STUDY_NAME = re.compile(r"[a-z0-9_-]{1,64}")
MOST_TRIALS = 1_000_000


@dataclass(frozen=True)
class Objective:
    """What is best: a metric of the validation split, and which way."""

    metric: str
    direction: str = "minimize"


@dataclass(frozen=True)
class Pruning:
    """When a trial is not worth going on: a pruner of Optuna by name, its options as the file writes them."""

    name: str = "none"
    options: Mapping[str, Any] = field(default_factory=dict)
    stages: tuple[str, ...] = ()  # whose results it is asked on
    inner: Pruning | None = None  # of `patient`: the pruner that decides once patience is at its end

    def meaning(self) -> dict[str, Any]:
        """What the file says of it; a later field where it is not as it was before."""
        out: dict[str, Any] = {"name": self.name, **self.options, **changed_since(self)}
        if self.stages:
            out["stages"] = list(self.stages)
        if self.inner is not None:
            out["pruner"] = self.inner.meaning()
        return out


@dataclass(frozen=True)
class SearchSpace:
    """A study's question: where it starts (base), what is varied, how, and what is best."""

    study: str
    base: TrialConfig
    parameters: tuple[Parameter, ...]  # each after those its conditions name
    sampler: str = "tpe"
    trials: int = 1
    seed: int = 0  # of the sampler
    seeds: tuple[int, ...] = ()  # of the trials
    population: int | None = None
    proposals: int = added(default=1, before=1)  # draws a trial, of which the one that adds least work is taken
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
        """Whether all its points are known before it runs."""
        return self.sampler in DESIGNS

    @property
    def overcommits(self) -> bool:
        """Whether more trials may begin than can run. What learns from results (by what it draws next, or by pruning)
        would know less of them; but trials that were chosen to share wait for one another, and leave slots idle."""
        learns = not (self.fixed or self.sampler == "random") or self.pruning.name != "none"
        return not learns or self.proposals > 1

    @property
    def averaged_seeds(self) -> tuple[int, ...]:
        """The seeds that every trial runs, to be judged by the mean; empty where a trial has one seed."""
        return self.seeds if not self.fixed or self.sampler == "grid" else ()

    @property
    def sampled_parameters(self) -> tuple[Parameter, ...]:
        """The parameters, and the seed where each is a trial of its own."""
        if self.seeds and not self.averaged_seeds:
            return (*self.parameters, Parameter("seed", "choice", tuple(self.seeds)))
        return self.parameters

    def suggest(self, trial: SuggestApi) -> dict[str, Any]:
        """Draws the values of a trial: name -> value, active parameters only."""
        values: dict[str, Any] = {}
        for parameter in self.sampled_parameters:
            if parameter.active(values):
                values[parameter.name] = parameter.draw(trial)
        return values

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Drawn values as dotted names with values: named choices written out."""
        by_name = {p.name: p for p in self.parameters if p.sets}
        out: dict[str, Any] = {}
        for name, value in values.items():
            out |= by_name[name].settings(value) if name in by_name else {name: value}
        return out

    def config(self, values: Mapping[str, Any]) -> TrialConfig:
        """The base with these values and what derives from them. Raises RazError when they cannot go together."""
        where = f"study {self.study}"
        return derive(configure(self.base, self.settings(values), where), self.derived, where)

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """All trials of a fixed design, in order; nothing for a search. Raises RazError when there are too many."""
        if not self.fixed:
            return ()
        return points_of(self.sampler, self.parameters, self.centre(), self.seeds)

    def centre(self) -> dict[str, Any]:
        """Where the base stands: the value of each parameter that changes nothing, where it has one."""
        out: dict[str, Any] = {}
        for parameter in self.parameters:
            for value in _listed(parameter):
                if configure(self.base, parameter.settings(value), "centre") == self.base:
                    out[parameter.name] = value
                    break
        return out

    @property
    def target(self) -> int:
        """Trials to do; a design's may be fewer than its points, never more."""
        return min(self.trials, len(self.points)) if self.fixed else self.trials

    # ------------------------------------------------------------------ what it needs, and what it asks

    @property
    def threads(self) -> int:
        """CPU threads of the hungriest trial."""
        return threads_of(self.base, self.parameters)

    def meaning(self) -> dict[str, Any]:
        """What the study asks, flat. The number of trials is no part of it: a study may be extended.

        A field of the base or of the design that came later is in it only where it is not as it was before, so an old
        study asks the same as the same file does now.
        """
        out: dict[str, Any] = {
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
        loaded: dict[str, Any] = json.loads(json.dumps(out))
        return loaded

    def digest(self) -> str:
        """sha256 (hex) of the meaning."""
        return hashlib.sha256(json.dumps(self.meaning(), sort_keys=True).encode()).hexdigest()


def _listed(parameter: Parameter) -> tuple[Any, ...]:
    return parameter.values() if parameter.kind != "float" or parameter.step or parameter.grid else ()


def threads_of(base: TrialConfig, parameters: tuple[Parameter, ...]) -> int:
    """CPU threads of the hungriest trial."""
    counts = [base.threads]
    for parameter in parameters:
        if "threads" in parameter.names():
            counts += [int(parameter.settings(value).get("threads", 1)) for value in parameter.values()]
    return max(counts)
