"""`parameters:` of a search space. Every name, and every value that a trial could draw, is tried on the base."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from raz.config import TrialConfig, parameter_types
from raz.errors import RazError
from raz.spec.base_config import validate_settings
from raz.spec.designs import DESIGNS
from raz.spec.parameter import Parameter, Point, contains_exactly, optuna_label
from raz.utils.json_types import Json
from raz.utils.ordering import CycleError, in_order_of_needs
from raz.utils.schema import (
    LARGEST,
    Anything,
    Invalid,
    ListOf,
    MapOf,
    Record,
    Scalar,
    boolean,
    integer,
    key,
    number,
    read_or,
)
from raz.utils.suggestions import did_you_mean
from raz.utils.yamlfile import Problems, YamlPath, describe_value

KINDS: tuple[Literal["choice", "int", "float"], ...] = ("choice", "int", "float")
KEYS = (*KINDS, "log", "step", "grid", "when")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")  # of a named choice
MOST_PLACES = 1000  # of `grid:`
SECTION = "parameters"

When = tuple[tuple[str, tuple[Json, ...]], ...]
Bounds = tuple[float, float]

SCHEMA = MapOf(Anything(), "dotted names with ranges", "depth: {choice: [1, 2, 3]}", may_be_empty=False)


def _bounds(value: Json, whole: bool) -> Bounds | None:
    """[low, high] of a range."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    bound = integer(math.ceil(-LARGEST), math.floor(LARGEST)) if whole else number(-LARGEST, LARGEST)
    low, high = map(bound.convert, value)
    if low is None or high is None:
        return None
    return (low, high) if whole else (float(low), float(high))


def _shown(value: Json) -> str:
    return json.dumps(value) if isinstance(value, list) else describe_value(value)


def _step(value: Json, whole: bool) -> float | None:
    step = (integer() if whole else number(-LARGEST, LARGEST)).convert(value)
    return step if step is not None and 0 < step <= LARGEST else None


@dataclass(frozen=True)
class _Range:
    """The keys of a range beside its bounds."""

    log: bool = key(boolean(), default=False)
    grid: int | None = key(integer(2, MOST_PLACES, hint="grid: 8"), default=None)


_RANGE = Record(_Range)
_ENDS = "the lowest and the highest"
_BOUNDS = {
    "int": Scalar(lambda value: _bounds(value, True), f"two whole numbers: {_ENDS}", "[1, 4]", _shown),
    "float": Scalar(lambda value: _bounds(value, False), f"two numbers: {_ENDS}", "[1, 4]", _shown),
}
_STEP = {
    "int": Scalar(lambda value: _step(value, True), "one of the whole numbers over 0"),
    "float": Scalar(lambda value: _step(value, False), "one of the numbers over 0"),
}


def _legal(value: Json) -> tuple[Json, ...] | None:
    """The values of a condition: one, or a list with at least one."""
    values = value if isinstance(value, list) else [value]
    return None if any(isinstance(one, dict) for one in values) else tuple(values) or None


def _shown_condition(value: Json) -> str:
    return "empty, so its parameter is never drawn" if value == [] else describe_value(value)


_CONDITION = Scalar(_legal, "a value or a list of values", show=_shown_condition)
_WHEN = MapOf(_CONDITION, "parameters with values", "when: {fusion.rule: grid}")


def read_parameters(
    raw: Mapping[str, Json], problems: Problems, base: TrialConfig, sampler: str, data_root: Path | None = None
) -> tuple[Parameter, ...]:
    """The parameters of the section, each after those that its conditions name. Faulty ones are noted and left out."""
    known = parameter_types()
    by_name: dict[str, Parameter] = {}
    for name, body in raw.items():
        several = isinstance(body, dict) and isinstance(body.get("choice"), dict)
        if name not in known and not (several and NAME.fullmatch(name)):
            problems.add((SECTION, name), f"unknown parameter {name!r}", did_you_mean(name, known))
            continue
        try:
            parameter = by_name[name] = _parameter(name, body, problems)
        except Invalid:
            continue
        if sampler in DESIGNS and parameter.kind == "float" and not (parameter.step or parameter.grid):
            what = f"{name} is a range without steps, which a {sampler} design cannot go through"
            problems.add((SECTION, name), what, "grid: 8, step: 0.1, or choice: [...]")
    _check_overlapping(by_name, problems)
    for parameter in by_name.values():
        for other, legal in parameter.when:
            _check_condition(parameter.name, other, legal, raw, by_name, problems)
    ordered = _ordered(by_name, problems)
    for parameter in ordered:
        _try_values(parameter, by_name, base, problems, data_root)
    return ordered


def _parameter(name: str, body: Json, problems: Problems) -> Parameter:
    """One parameter. Raises Invalid where anything in it is wrong."""
    path: YamlPath = (SECTION, name)
    before = len(problems.faults)
    if not isinstance(body, dict):
        hint = f"{name}: {{choice: {json.dumps(body)}}}" if isinstance(body, list) else f"{name}: {{int: [1, 4]}}"
        problems.wrong(path, describe_value(body), "choice, int or float", hint)
        raise Invalid
    problems.keys(path, body, KEYS)
    kinds = [kind for kind in KINDS if kind in body]
    if len(kinds) != 1:
        got = " and ".join(kinds) if kinds else "no range"
        what = f"{name} has {got}, expected one of choice, int and float"
        problems.add(path, what, f"{name}: {{choice: [1, 2]}}")
        raise Invalid
    conditions = read_or(_WHEN, body.get("when", {}), (*path, "when"), problems, {})
    when: When = tuple(conditions.items())
    read_kind = _choice if kinds == ["choice"] else _range
    parameter = read_kind(name, kinds[0], body, when, problems)
    if len(problems.faults) > before:
        raise Invalid
    return parameter


def _choice(
    name: str, kind: Literal["choice", "int", "float"], body: Mapping[str, Json], when: When, problems: Problems
) -> Parameter:
    path: YamlPath = (SECTION, name, "choice")
    for other in ("log", "step", "grid"):
        if other in body:
            problems.add((*path[:2], other), f"{name} has {other} beside choice", f"leave {other} out, or give a range")
    values = body["choice"]
    if isinstance(values, dict) and values:
        sets = _named(name, values, problems)
        return Parameter(name, kind, tuple(sets), when=when, sets=sets)
    if not values and isinstance(values, (list, dict)):
        problems.wrong(path, "empty", "a list", "[1, 2]")
        raise Invalid
    hint = f"{{this: {{{name}: …}}, that: …}}"
    item: Scalar[Json] = Scalar(_value, "values", lambda value: hint if isinstance(value, dict) else "")
    choices = ListOf(item, hint="[1, 2]", same=_same_label).read(values, path, problems)
    return Parameter(name, kind, choices, when=when)


def _value(value: Json) -> Json:
    return None if isinstance(value, dict) else value


def _same_label(a: Json, b: Json) -> bool:
    return contains_exactly(optuna_label(a), (optuna_label(b),))


def _named(name: str, values: Mapping[str, Json], problems: Problems) -> dict[str, dict[str, Json]]:
    """`{narrow: {counting.channels: [32]}, wide: …}`, or names for the values of one parameter: what each name sets."""
    own = name in parameter_types()
    sets: dict[str, dict[str, Json]] = {}
    for choice, value in values.items():
        if isinstance(value, dict) and value:
            sets[choice] = value
        elif own and value is not None and not isinstance(value, dict):
            sets[choice] = {name: value}
        else:
            shown = "nothing" if value == {} else describe_value(value)
            hint = f"{choice}: {{counting.channels: [32, 32]}}"
            problems.wrong((SECTION, name, "choice", choice), shown, "dotted names with values", hint)
    return sets


def _range(
    name: str, kind: Literal["choice", "int", "float"], body: Mapping[str, Json], when: When, problems: Problems
) -> Parameter:
    path: YamlPath = (SECTION, name)
    low, high = _BOUNDS[kind].read(body[kind], (*path, kind), problems)
    options = _RANGE.read({k: v for k, v in body.items() if k in ("log", "grid")}, path, problems)
    step: float | None = None
    if "step" in body:
        step = read_or(_STEP[kind], body["step"], (*path, "step"), problems, None)
    if low > high:
        what = f"{name}.{kind} is [{low}, {high}], the lowest is above the highest"
        problems.add((*path, kind), what, f"[{high}, {low}]")
    if options.log and low <= 0:
        what = f"{name} has log: true and starts at {low}, expected more than 0"
        problems.add((*path, "log"), what, "a higher lowest value")
    if step is not None:
        if options.log:
            problems.add((*path, "step"), f"{name} has both step and log: true", "leave one out")
        elif low <= high and abs((high - low) / step - round((high - low) / step)) > 1e-9:
            top = low + math.floor((high - low) / step) * step
            what = f"{name}.step {step} does not lead from {low} to {high}"
            problems.add((*path, "step"), what, f"[{low}, {top:g}]")
    if options.grid is not None:
        if "step" in body:
            problems.add((*path, "grid"), f"{name} has both step and grid", "leave one out")
        elif low == high:
            problems.add((*path, "grid"), f"{name} has a grid over the one value {low}", "leave grid out")
    return Parameter(name, kind, low=low, high=high, step=step, log=options.log, grid=options.grid, when=when)


def _check_overlapping(by_name: Mapping[str, Parameter], problems: Problems) -> None:
    """Note hyperparameters that two parameters set."""
    owner: dict[str, str] = {}
    for parameter in by_name.values():
        for name in parameter.names():
            if name in owner:
                what = f"{name} is set by {parameter.name} and by {owner[name]}"
                problems.add((SECTION, parameter.name), what, "leave one out")
            owner.setdefault(name, parameter.name)


def _check_condition(
    name: str,
    other: str,
    legal: tuple[Json, ...],
    raw: Mapping[str, Json],
    by_name: Mapping[str, Parameter],
    problems: Problems,
) -> None:
    """Note a condition on a parameter that the file lacks, or on a value that the parameter never has."""
    path: YamlPath = (SECTION, name, "when", other)
    if other not in raw:
        known = parameter_types()
        hint = f"add {other} to parameters" if other in known else did_you_mean(other, known)
        problems.add(path, f"{name} depends on {other!r}, which is no parameter of this file", hint)
        return
    if other not in by_name:
        return  # it has a fault of its own
    parent = by_name[other]
    if parent.kind == "float":
        what = f"{name} depends on {other}, a range of floats, expected a choice or whole numbers"
        problems.add(path, what)
        return
    try:
        values = parent.values()
    except RazError as error:
        problems.add(path, error.what, "grid: 8, or a larger step")
        return
    for value in legal:
        if not contains_exactly(value, values):
            shown = values if len(values) <= 12 else (*values[:12], "…")
            problems.add(path, f"{name}.when: {other} is never {value!r}", "one of " + ", ".join(map(str, shown)))


def _ordered(by_name: Mapping[str, Parameter], problems: Problems) -> tuple[Parameter, ...]:
    """Parents first, else the order of the file. A cycle of conditions is a fault."""
    try:
        return in_order_of_needs(by_name, lambda parameter: [name for name, _ in parameter.when])
    except CycleError as error:
        problems.add((SECTION, error.names[0], "when"), f"the conditions go in a circle: {error}", "drop one `when`")
        return ()


def _try_values(
    parameter: Parameter,
    by_name: Mapping[str, Parameter],
    base: TrialConfig,
    problems: Problems,
    data_root: Path | None,
) -> None:
    """Set every choice, or both ends of a range, on the base, with values that make it active; note faults."""
    active = activating_values(parameter, by_name)
    parents = [
        by_name[name].settings(value) for name, value in active.items() if _is_valid_choice(by_name[name], value)
    ]
    if any(validate_settings(base, settings, data_root) for settings in parents):
        return  # the fault is the parent's, and noted there
    context = {name: value for settings in parents for name, value in settings.items()}
    reported = set()
    for i, value in enumerate(extreme_values(parameter)):
        for error in validate_settings(base, {**context, **parameter.settings(value)}, data_root):
            if error.what not in reported:
                reported.add(error.what)
                inner: YamlPath = (str(value), error.parameter) if parameter.sets else (i,)
                problems.add((SECTION, parameter.name, parameter.kind, *inner), error.what, error.hint)


def extreme_values(parameter: Parameter) -> tuple[Json, ...]:
    """Every choice, or both ends of a range."""
    return parameter.choices if parameter.kind == "choice" else (parameter.low, parameter.high)


def activating_values(parameter: Parameter, by_name: Mapping[str, Parameter]) -> Point:
    """Values of other parameters for which it is active."""
    out: Point = {}
    todo = [parameter]
    while todo:
        for other, legal in todo.pop().when:
            if other in by_name and other not in out:
                out[other] = legal[0]
                todo.append(by_name[other])
    return out


def _is_valid_choice(parameter: Parameter, value: Json) -> bool:
    return not parameter.sets or (isinstance(value, str) and value in parameter.sets)
