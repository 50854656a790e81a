"""Parameter: one searched hyperparameter, or a named choice that sets several hyperparameters at once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from raz.config import added, changed_since
from raz.errors import RazError
from raz.utils.json_types import Json

MAX_VALUES = 1_000_000  # of a range of whole numbers that is enumerated

Label: TypeAlias = "bool | int | float | str | None"
"""A choice as Optuna stores it."""

Point: TypeAlias = "dict[str, Json]"
"""A trial's searched values by parameter name; inactive parameters are missing."""


class SuggestApi(Protocol):
    """The part of an Optuna trial that a space draws from."""

    def suggest_categorical(self, name: str, choices: Sequence[Label], /) -> Json: ...
    def suggest_int(self, name: str, low: int, high: int, /, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(
        self, name: str, low: float, high: float, /, *, step: float | None = None, log: bool = False
    ) -> float: ...


@dataclass(frozen=True)
class Parameter:
    """A choice of values, or a range with both ends included."""

    name: str  # a dotted name of `raz.config`; any name for a named choice that sets several
    kind: Literal["choice", "int", "float"]
    choices: tuple[Json, ...] = ()  # for a named choice, the names
    low: float = 0
    high: float = 0
    step: float | None = added(default=None, before=None)
    log: bool = added(default=False, before=False)
    # Number of values to which a range is rounded, so that trials share stages.
    grid: int | None = added(default=None, before=None)
    # Active where each of these parameters has one of the values.
    when: tuple[tuple[str, tuple[Json, ...]], ...] = ()
    sets: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)  # name of a choice -> dotted names and values

    def active(self, values: Mapping[str, Json]) -> bool:
        """Whether its conditions hold for these values. A condition on a parameter that has no value fails."""
        return all(name in values and contains_exactly(values[name], legal) for name, legal in self.when)

    def draw(self, trial: SuggestApi) -> Json:
        """A value from the trial. Optuna stores scalars, so a list is passed to it as JSON text."""
        if self.kind == "choice":
            labels = [optuna_label(value) for value in self.choices]
            chosen = trial.suggest_categorical(self.name, labels)
            return self.choices[[label == chosen for label in labels].index(True)]
        if self.kind == "int":
            drawn: float = trial.suggest_int(
                self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log
            )
        else:
            drawn = trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)
        return self.snap(drawn) if self.grid else drawn

    def snap(self, drawn: float) -> float:
        """The nearest value of its grid, in the logarithm where `log` is set."""
        scale = math.log if self.log else float
        return min(self._range_values(), key=lambda value: abs(scale(value) - scale(drawn)))

    def values(self) -> tuple[Json, ...]:
        """All its values, for a design. Raises ValueError for a float range with neither step nor grid, and RazError
        for more than MAX_VALUES."""
        return self.choices if self.kind == "choice" else self._range_values()

    def _range_values(self) -> tuple[float, ...]:
        if self.grid:
            return self._grid_values(self.grid)
        if self.kind == "int":
            step = int(self.step or 1)
            if (self.high - self.low) // step >= MAX_VALUES:
                what = f"{self.name} has more than {MAX_VALUES:,} values"
                raise RazError("design", what, "a larger step, grid: 8, or sampler: random", self.name)
            return tuple(range(int(self.low), int(self.high) + 1, step))
        if self.step is None:
            raise ValueError(f"{self.name} has no step")
        n = round((self.high - self.low) / self.step)
        return (*(self.low + i * self.step for i in range(n)), self.high)

    def _grid_values(self, n: int) -> tuple[float, ...]:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        inner = [low + i * (high - low) / (n - 1) for i in range(1, n - 1)]
        values = [self.low, *(math.exp(x) if self.log else x for x in inner), self.high]
        # Six digits, so that every machine's exp gives the same value, and tables and keys stay short.
        return tuple(dict.fromkeys(round(x) if self.kind == "int" else float(f"{x:.6g}") for x in values))

    def settings(self, value: Json) -> Mapping[str, Json]:
        """The hyperparameters that one of its values sets: dotted names with values."""
        return self.sets[str(value)] if self.sets else {self.name: value}

    def names(self) -> tuple[str, ...]:
        """The dotted names that it may set."""
        return tuple(dict.fromkeys(n for body in self.sets.values() for n in body)) if self.sets else (self.name,)

    def meaning(self) -> dict[str, Json]:
        """The parameter in a study's meaning. A field that was `added` is left out while it has its `before` value."""
        out: dict[str, Json] = {}
        if self.sets:
            out["choice"] = {name: dict(body) for name, body in self.sets.items()}
        elif self.kind == "choice":
            out["choice"] = list(self.choices)
        else:
            out[self.kind] = [self.low, self.high]
        out |= changed_since(self)
        if self.when:
            out["when"] = {name: list(legal) for name, legal in self.when}
        return out


def optuna_label(value: Json) -> Label:
    """A choice as Optuna stores it."""
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


def contains_exactly(value: Json, legal: Sequence[Json]) -> bool:
    """Whether the value is one of the legal ones; true is not 1."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in legal)
