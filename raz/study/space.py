"""SearchSpace: a question about the hyperparameters, read from YAML and checked before anything runs.

Every parameter name and every value that a trial could draw is set on the base once, so a search never
dies in its fortieth trial of a misspelt word. All faults of a file are told together (`file:line: ...`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from raz.config import TrialConfig, configure, parameters
from raz.errors import RazError
from raz.study.resources import Resources

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("none", "median", "percentile")  # median keeps the better half at each step, percentile a quarter
DIRECTIONS = ("minimize", "maximize")
KINDS = ("choice", "int", "float")
STUDY_NAME = re.compile(r"[a-z0-9_-]{1,64}")
LARGEST_GRID = 100_000
MOST_TRIALS = 1_000_000


class Suggests(Protocol):
    """The part of an Optuna trial that a space draws from."""

    def suggest_categorical(self, name: str, choices: Any, /) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, /, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(
        self, name: str, low: float, high: float, /, *, step: float | None = None, log: bool = False
    ) -> float: ...


@dataclass(frozen=True)
class Parameter:
    """One searched hyperparameter: a choice of values, or a range with both ends included."""

    name: str  # dotted, as in raz.config
    kind: str  # choice | int | float
    choices: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()  # active when each of these parameters has one of the values

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether it is drawn beside these values; a condition on a parameter that is not drawn itself fails."""
        return all(name in values and among(values[name], legal) for name, legal in self.when)

    def draw(self, trial: Suggests) -> Any:
        """A value from the trial. Optuna keeps scalars, so any other choice goes by its JSON text."""
        if self.kind == "choice":
            labels = [label(value) for value in self.choices]
            return self.choices[labels.index(trial.suggest_categorical(self.name, labels))]
        if self.kind == "int":
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def values(self) -> tuple[Any, ...]:
        """All its values, for a grid. Raises ValueError for a float without a step."""
        if self.kind == "choice":
            return self.choices
        if self.kind == "int":
            return tuple(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if self.step is None:
            raise ValueError(f"{self.name} has no step")
        n = round((self.high - self.low) / self.step)
        return (*(self.low + i * self.step for i in range(n)), self.high)

    def meaning(self) -> dict[str, Any]:
        """What the file says of it, defaults left out."""
        out: dict[str, Any] = {}
        if self.kind == "choice":
            out["choice"] = list(self.choices)
        else:
            out[self.kind] = [self.low, self.high]
        if self.step is not None:
            out["step"] = self.step
        if self.log:
            out["log"] = True
        if self.when:
            out["when"] = {name: list(legal) for name, legal in self.when}
        return out


@dataclass(frozen=True)
class SearchSpace:
    """A study's question: where it starts (base), what is varied, how, and what is best."""

    study: str
    base: TrialConfig
    parameters: tuple[Parameter, ...]  # each after those its conditions name
    sampler: str = "tpe"
    trials: int = 1
    seed: int = 0
    metric: str = "val.mae"
    direction: str = "minimize"
    pruner: str = "none"
    warmup_steps: int = 0
    resources: Mapping[str, Resources] = field(default_factory=dict, compare=False)  # by stage, or `all`
    source: str = ""
    comment: str = field(default="", compare=False)

    def suggest(self, trial: Suggests) -> dict[str, Any]:
        """Draws the values of a trial: dotted name -> value, active parameters only."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.active(values):
                values[parameter.name] = parameter.draw(trial)
        return values

    def config(self, values: Mapping[str, Any]) -> TrialConfig:
        """The base with these values set. Raises RazError when they cannot go together."""
        return configure(self.base, values, f"study {self.study}")

    def grid(self) -> tuple[dict[str, Any], ...]:
        """Every combination once; parameters that a combination leaves out do not multiply it."""
        points: list[dict[str, Any]] = [{}]
        for parameter in self.parameters:
            longer: list[dict[str, Any]] = []
            for point in points:
                if parameter.active(point):
                    longer += [{**point, parameter.name: value} for value in parameter.values()]
                else:
                    longer.append(point)
            points = longer
            if len(points) > LARGEST_GRID:
                raise RazError(self.source, f"the grid has more than {LARGEST_GRID} points", "use sampler: random")
        return tuple(points)

    @property
    def target(self) -> int:
        """Trials to do; a grid's may be fewer than its points, never more."""
        return min(self.trials, len(self.grid())) if self.sampler == "grid" else self.trials

    def resources_of(self, stage: str) -> Resources:
        """What a stage asks for: its own line of `resources:` over that of `all`."""
        return self.resources.get(stage, Resources()).over(self.resources.get("all", Resources()))

    @property
    def threads(self) -> int:
        """CPU threads of the hungriest trial."""
        return threads_of(self.base, self.parameters)

    def meaning(self) -> dict[str, Any]:
        """What the study asks, flat. The number of trials is no part of it: a study may be extended."""
        out: dict[str, Any] = {
            "objective.metric": self.metric,
            "objective.direction": self.direction,
            "design.sampler": self.sampler,
            "design.seed": self.seed,
            "pruner.name": self.pruner,
            "pruner.warmup_steps": self.warmup_steps,
        }
        out.update({f"base.{name}": value for name, value in parameters(self.base).items()})
        out.update({f"parameters.{p.name}": p.meaning() for p in self.parameters})
        loaded: dict[str, Any] = json.loads(json.dumps(out))
        return loaded

    def digest(self) -> str:
        """sha256 (hex) of the meaning."""
        return hashlib.sha256(json.dumps(self.meaning(), sort_keys=True).encode()).hexdigest()


def threads_of(base: TrialConfig, parameters: tuple[Parameter, ...]) -> int:
    """CPU threads of the hungriest trial."""
    counts = [max(int(v) for v in p.values()) for p in parameters if p.name == "threads"]
    return max([base.threads, *counts])


def label(value: Any) -> Any:
    """A choice as Optuna stores it."""
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


def among(value: Any, legal: tuple[Any, ...]) -> bool:
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in legal)


def combinations(space: SearchSpace) -> int | None:
    """How many different trials the space has; None when a float has no steps."""
    if any(p.kind == "float" and p.step is None for p in space.parameters):
        return None
    if not any(p.when for p in space.parameters):
        return math.prod(len(p.values()) for p in space.parameters)
    return sum(1 for _ in itertools.islice(space.grid(), LARGEST_GRID))
