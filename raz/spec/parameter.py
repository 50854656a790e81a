"""Parameter: one searched hyperparameter, or a named choice that sets several at once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from raz.config import added, changed_since


class SuggestApi(Protocol):
    """The part of an Optuna trial that a space draws from."""

    def suggest_categorical(self, name: str, choices: Any, /) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, /, *, step: int = 1, log: bool = False) -> int: ...
    def suggest_float(
        self, name: str, low: float, high: float, /, *, step: float | None = None, log: bool = False
    ) -> float: ...


@dataclass(frozen=True)
class Parameter:
    """A choice of values, or a range with both ends included."""

    name: str  # dotted, as in raz.config; of a named choice that sets several: any word
    kind: str  # choice | int | float
    choices: tuple[Any, ...] = ()  # of a named choice: the names
    low: float = 0
    high: float = 0
    step: float | None = added(default=None, before=None)
    log: bool = added(default=False, before=False)
    grid: int | None = added(
        default=None, before=None
    )  # a range is drawn at this many places only, so that trials share stages
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()  # active when each of these parameters has one of the values
    sets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name of a choice -> dotted names and values

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether it is drawn beside these values; a condition on a parameter that is not drawn itself fails."""
        return all(name in values and contains_exactly(values[name], legal) for name, legal in self.when)

    def draw(self, trial: SuggestApi) -> Any:
        """A value from the trial. Optuna keeps scalars, so any other choice goes by its JSON text."""
        if self.kind == "choice":
            labels = [optuna_label(value) for value in self.choices]
            return self.choices[labels.index(trial.suggest_categorical(self.name, labels))]
        if self.kind == "int":
            drawn: float = trial.suggest_int(
                self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log
            )
        else:
            drawn = trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)
        return self.snap(drawn) if self.grid else drawn

    def snap(self, drawn: float) -> float:
        """The nearest place of its grid; near as its domain is, linear or log."""
        scale = math.log if self.log else float
        nearest: float = min(self.values(), key=lambda place: abs(scale(place) - scale(drawn)))
        return nearest

    def values(self) -> tuple[Any, ...]:
        """All its values, for a design. Raises ValueError for a float with neither step nor grid."""
        if self.kind == "choice":
            return self.choices
        if self.grid:
            return self._grid_values(self.grid)
        if self.kind == "int":
            return tuple(range(int(self.low), int(self.high) + 1, int(self.step or 1)))
        if self.step is None:
            raise ValueError(f"{self.name} has no step")
        n = round((self.high - self.low) / self.step)
        return (*(self.low + i * self.step for i in range(n)), self.high)

    def _grid_values(self, n: int) -> tuple[float, ...]:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        inner = [low + i * (high - low) / (n - 1) for i in range(1, n - 1)]
        places = [self.low, *(math.exp(x) if self.log else x for x in inner), self.high]
        # To six digits: the same place whatever the machine's exp, and short in tables and keys.
        return tuple(dict.fromkeys(round(x) if self.kind == "int" else float(f"{x:.6g}") for x in places))

    def settings(self, value: Any) -> Mapping[str, Any]:
        """What a value of it sets: dotted names with values."""
        return self.sets[value] if self.sets else {self.name: value}

    def names(self) -> tuple[str, ...]:
        """The dotted names that it may set."""
        return tuple(dict.fromkeys(n for body in self.sets.values() for n in body)) if self.sets else (self.name,)

    def meaning(self) -> dict[str, Any]:
        """What the file says of it; a later field where it is not as it was before."""
        out: dict[str, Any] = {}
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


def optuna_label(value: Any) -> Any:
    """A choice as Optuna stores it."""
    return value if isinstance(value, (bool, int, float, str)) else json.dumps(value)


def contains_exactly(value: Any, legal: tuple[Any, ...]) -> bool:
    """Whether it is one of them; true is not 1."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in legal)
